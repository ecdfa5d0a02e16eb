"""Retiring a large partition beside a small one: detaching and dropping are catalog work, whatever the rows."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from backendops.contracts.run import Trigger
from backendops.embedded import PostgresServer
from backendops.engine.ledger import Ledger
from backendops.engine.runner import Runner
from backendops.policy.load import load_policy
from bench.goals import Goal
from bench.postgres import server, sql
from bench.reader import reading
from tests.celery_rows import ensure_tables

SMALL = 50_000
POLICY = """
version: 1
state: {state}
backends:
  results: {{url: "{url}"}}
jobs:
  partition: {{keep: {keep}, ahead: 1, quarantine: {quarantine}, pace: full}}
"""
FILL = """
INSERT INTO {table} (id, task_id, status, result, date_done, done_at)
SELECT n, md5(n::text), 'SUCCESS', decode(repeat('41', 100), 'hex'), moment AT TIME ZONE 'UTC', moment
FROM generate_series(1, {rows}) AS n CROSS JOIN LATERAL (SELECT {moment} AS moment) AS at
"""

# A month that is past keeping, under the name that both backendops and pg_partman would give it.
OLD = (datetime.now(UTC) - timedelta(days=500)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
OLD_BOUNDS = f"FOR VALUES FROM ('{OLD.isoformat()}') TO ('{(OLD + timedelta(days=32)).replace(day=1).isoformat()}')"
OLD_PARTITION = f"celery_taskmeta_archive_p{OLD:%Y_%m}"


def retiring(rows: int, rounds: int) -> list[Goal]:
    """Time to retire a partition of `rows` rows against one of 50,000, and the longest wait of those who use both."""
    sizes = {"small": SMALL, "large": rows}
    seconds: dict[str, list[float]] = {name: [] for name in sizes}
    waited: list[float] = []
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory, server(Path(directory)) as postgres:
        for name, size in sizes.items():
            make_archive(postgres, name)
            fill_old_partition(postgres.superuser_url(name), size)
        # Once more than asked for: the first of each pays for cold catalogs and files.
        for number in range(rounds + 1):
            for name in sizes:
                url = postgres.superuser_url(name)
                with partition_job(url) as run, reading(url) as waits:
                    took = run()
                must_be_retired(url)
                if number:
                    seconds[name].append(took)
                if number and name == "large":
                    waited.append(waits.longest)
                sql(
                    url,
                    f"COMMENT ON TABLE {OLD_PARTITION} IS NULL",
                    f"ALTER TABLE celery_taskmeta_archive ATTACH PARTITION {OLD_PARTITION} {OLD_BOUNDS}",
                    "CHECKPOINT",
                )
    ratio = statistics.median(large / small for small, large in zip(seconds["small"], seconds["large"], strict=True))
    return [
        Goal(f"retire a partition of {rows:,} rows against {SMALL:,}: time", ratio, 1.5, "×", most=True),
        Goal(
            f"retire a partition of {rows:,} rows: readers and writers of the archive wait",
            statistics.median(waited) * 1000,
            50,
            "ms",
            most=True,
        ),
    ]


def make_archive(postgres: PostgresServer, database: str) -> None:
    """A database with Celery's tables and an archive by month, as the job itself makes it."""
    sql(postgres.superuser_url(), f"CREATE DATABASE {database}")
    url = postgres.superuser_url(database)
    ensure_tables(url.replace("postgresql://", "db+postgresql://"))
    with partition_job(url) as run:
        run()


def fill_old_partition(url: str, rows: int) -> None:
    """A partition of `rows` rows that is past keeping, every month since, and nothing left to write back."""
    sql(url, f"CREATE TABLE {OLD_PARTITION} PARTITION OF celery_taskmeta_archive {OLD_BOUNDS}")
    # The months between: the run that is measured would make them, and take longer for that than to retire one.
    with partition_job(url, keep="24 months") as run:
        run()
    sql(
        url,
        FILL.format(table=OLD_PARTITION, rows=rows, moment=f"timestamptz '{(OLD + timedelta(days=14)).isoformat()}'"),
        f"VACUUM (FREEZE, ANALYZE) {OLD_PARTITION}",
        "CHECKPOINT",
    )


@contextmanager
def partition_job(url: str, keep: str = "12 months", quarantine: str = "7d") -> Iterator[Callable[[], float]]:
    """The job as the daemon runs it: call it for one run and its seconds."""
    with tempfile.TemporaryDirectory() as state:
        file = Path(state) / "policy.yaml"
        celery_url = url.replace("postgresql://", "db+postgresql://")
        text = POLICY.format(state=state, url=celery_url, keep=keep, quarantine=quarantine)
        file.write_text(text, encoding="utf-8")
        policy = load_policy(file)
        ledger = Ledger.open(policy.state)
        runner = Runner(ledger)

        def run() -> float:
            report = runner.run(policy.pairs[0], Trigger.COMMAND)
            if report.outcome != "completed":
                raise SystemExit(f"the run ended {report.outcome}: {report.error}")
            return report.seconds

        try:
            yield run
        finally:
            ledger.close()


def must_be_retired(url: str) -> None:
    """End the benchmark where the old partition is still part of the archive."""
    if sql(url, f"SELECT FROM pg_inherits WHERE inhrelid = to_regclass('{OLD_PARTITION}')"):
        raise SystemExit("the partition was not retired: nothing was measured")
