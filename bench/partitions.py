"""Retiring a large partition beside a small one: detaching and dropping are catalog work, whatever the rows."""

from __future__ import annotations

import tempfile
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg2

from backendops.contracts.run import Trigger
from backendops.embedded import PostgresServer
from backendops.engine.ledger import Ledger
from backendops.engine.runner import Runner
from backendops.policy.load import load_policy
from bench.goals import Goal
from bench.postgres import server, sql
from tests.celery_rows import ensure_tables

SMALL = 50_000
POLICY = """
version: 1
state: {state}
backends:
  results: {{url: "{url}"}}
jobs:
  partition: {{keep: 12 months, ahead: 1, quarantine: 7d}}
"""
FILL = """
INSERT INTO celery_taskmeta_archive (id, task_id, status, result, date_done, done_at)
SELECT n, md5(n::text), 'SUCCESS', decode(repeat('41', 100), 'hex'), %(day)s, %(day)s::timestamptz
FROM generate_series(1, %(rows)s) AS n
"""


def retiring(rows: int) -> list[Goal]:
    """Time to retire a partition of `rows` rows against one of 50,000, and the longest exclusive lock it takes."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory, server(Path(directory)) as postgres:
        # Twice the small one first: the first run of all pays for cold catalogs.
        _retire(postgres, SMALL)
        small, large = _retire(postgres, SMALL), _retire(postgres, rows)
    return [
        Goal(f"retire a partition of {rows:,} rows against {SMALL:,}: time", large[0] / small[0], 1.5, "×", most=True),
        Goal(
            f"retire a partition of {rows:,} rows: readers and writers of the archive wait",
            large[1] * 1000,
            50,
            "ms",
            most=True,
        ),
    ]


def _retire(postgres: PostgresServer, rows: int) -> tuple[float, float]:
    """Seconds of the run that detaches it, and the longest wait of a session that reads the archive all the while."""
    sql(postgres.superuser_url(), "DROP DATABASE IF EXISTS run WITH (FORCE)", "CREATE DATABASE run")
    url = postgres.superuser_url("run")
    celery_url = url.replace("postgresql://", "db+postgresql://")
    ensure_tables(celery_url)
    with tempfile.TemporaryDirectory() as state:
        file = Path(state) / "policy.yaml"
        file.write_text(POLICY.format(state=state, url=celery_url), encoding="utf-8")
        policy = load_policy(file)
        ledger = Ledger.open(policy.state)
        runner = Runner(ledger)
        _completed(runner, policy.pairs[0])
        old = (datetime.now(UTC) - timedelta(days=500)).replace(day=15)
        start = old.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        end = (start + timedelta(days=32)).replace(day=1)
        with closing(psycopg2.connect(url)) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute(
                "CREATE TABLE celery_taskmeta_archive_old PARTITION OF celery_taskmeta_archive "
                "FOR VALUES FROM (%s) TO (%s)",
                (start, end),
            )
            cursor.execute(FILL, {"day": old.replace(tzinfo=None), "rows": rows})
            cursor.execute("CHECKPOINT")
        with _Reader(url) as reader:
            seconds = _completed(runner, policy.pairs[0])
        ledger.close()
    left = sql(url, "SELECT count(*) FROM pg_inherits WHERE inhrelid = 'celery_taskmeta_archive_old'::regclass")
    if left[0][0]:
        raise SystemExit("the partition was not retired: nothing was measured")
    return seconds, reader.longest


def _completed(runner: Runner, pair: object) -> float:
    report = runner.run(pair, Trigger.COMMAND)  # type: ignore[arg-type] # a Pair; bench is not under strict typing
    if report.outcome != "completed":
        raise SystemExit(f"the run ended {report.outcome}: {report.error}")
    return report.seconds


class _Reader:
    """A session that reads the archive and inserts into it without a pause, and notes its longest wait."""

    def __init__(self, url: str) -> None:
        self.longest = 0.0
        self._url = url
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        with closing(psycopg2.connect(self._url)) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            while not self._ending.is_set():
                began = time.monotonic()
                cursor.execute("SELECT count(*) FROM celery_taskmeta_archive WHERE task_id = 'none'")
                cursor.execute("INSERT INTO celery_taskmeta_archive (id, task_id, done_at) VALUES (0, 'bench', now())")
                self.longest = max(self.longest, time.monotonic() - began)

    def __enter__(self) -> _Reader:
        self._thread.start()
        time.sleep(0.2)
        self.longest = 0.0
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        self._thread.join()
