"""Convert a large live table under four real Celery writers, let the job go on, undo: nothing lost, nothing twice.

Run as `python -m tests.proofs.convert --rows 2000000`. The server keeps its usual settings, fsync among them. The
exclusive lock is measured twice: as the command says it, and by a session that looks into pg_locks all the time.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg2

from backendops import embedded
from backendops.contracts.capabilities import ArchivePlan, PartitionPlan
from backendops.contracts.partitions import ConversionPlan, ConvertBy
from backendops.contracts.run import Step, Steps
from backendops.contracts.units import Duration
from backendops.engine.pacing import TimedPace
from tests.celery_rows import fill_celery_table
from tests.celery_writers import writers
from tests.conformance.postgres_store import opened, sql

MOST_MILLISECONDS = 50.0
# A look takes a few milliseconds beside four writers, and a hold is seen from one look to the one after it.
LOOKING = 15.0
# Writers queue behind a lock that is waited for: lock_timeout (2 s) is the most that DDL may keep one.
MOST_WAIT = 2.0
_HELD = """
    SELECT count(*) FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation
    WHERE l.mode = 'AccessExclusiveLock' AND l.granted AND c.relname LIKE 'celery_taskmeta%' AND c.relkind IN ('r', 'p')
"""

# Some numbers before the end of the partition that takes results now, so that the writers cross it.
_NEAR_THE_END = """
    SELECT setval('task_id_sequence', (
        SELECT min(upper) - 50 FROM pg_inherits JOIN pg_class AS c ON c.oid = inhrelid
        CROSS JOIN LATERAL (
            SELECT (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO .''?(\\d+)'))[1]::bigint AS upper
        ) AS b
        WHERE inhparent = 'celery_taskmeta'::regclass AND upper - 50 > (SELECT last_value FROM task_id_sequence)
    ))
"""


class Watch:
    """Looks for exclusive locks on the table all the time; a stretch of looks that all saw one is one hold."""

    def __init__(self, url: str) -> None:
        self.holds: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, args=[url])

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self, url: str) -> None:
        with closing(psycopg2.connect(url.removeprefix("db+"))) as session, session.cursor() as cursor:
            session.autocommit = True
            since: float | None = None
            while not self._over.is_set():
                # As often as it can without taking the server from the writers.
                time.sleep(0.001)
                cursor.execute(_HELD)
                seen, now = cursor.fetchone()[0] > 0, time.monotonic()  # type: ignore[index]
                if seen and since is None:
                    since = now
                elif not seen and since is not None:
                    self.holds.append((now - since) * 1000)
                    since = None


def main() -> int:
    """Prove it by id and by date; 1 where something was lost or doubled, or a lock held for too long."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--by", choices=["id", "date_done"], action="append")
    wanted = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory() as directory:
        server = embedded.start_postgres(Path(directory) / "postgres", settings={"shared_buffers": "256MB"})
        try:
            for by in wanted.by or ["id", "date_done"]:
                with closing(psycopg2.connect(server.superuser_url("postgres"))) as session, session.cursor() as cursor:
                    session.autocommit = True
                    cursor.execute(f"CREATE DATABASE by_{by}")
                bad += not _prove(f"db+{server.superuser_url(f'by_{by}')}", wanted.rows, by, Path(directory))
        finally:
            server.stop()
    return 1 if bad else 0


def _prove(url: str, rows: int, by: ConvertBy, directory: Path) -> bool:
    fill_celery_table(url, rows, older_than=timedelta(days=1), payload=300, started=1000)
    last, before, size = sql(
        url, "SELECT max(id), sum(hashtextextended(t::text, 0)), pg_size_pretty(pg_table_size('celery_taskmeta')) "
        "FROM celery_taskmeta AS t",
    )[0]  # fmt: skip
    print(f"\nby {by}: {rows:,} rows, {size}, four Celery writers")
    now = datetime.now(UTC)
    plan = ConversionPlan(now, "task", by, "day", 5000 if by == "id" else None, 3)
    with writers(url, directory, pause=0.005) as running, Watch(url) as watch:
        time.sleep(2)
        said = _timed("convert", url, lambda backend: backend.convert(plan, TimedPace()))
        for _ in range(3):
            # Ids run on into new partitions, or time does: as if days had passed.
            if by == "id":
                sql(url, _NEAR_THE_END)
            now += timedelta(days=1)
            job = PartitionPlan(now, ArchivePlan(), 1, None, Duration.parse("7d"))
            said += _timed("partition job", url, lambda backend, job=job: backend.maintain_partitions(job, TimedPace()))
            time.sleep(3)
        crossed = sql(url, f"SELECT count(DISTINCT tableoid) FROM celery_taskmeta WHERE id > {last}")[0][0]
        said += _timed("undo", url, lambda backend: backend.undo("task", TimedPace()))
        time.sleep(1)
    told = running.told()
    stored = dict(sql(url, f"SELECT task_id, status FROM celery_taskmeta WHERE id > {last}"))
    lost = sum(stored.get(task) != state for task, state in told["stored"].items())
    twice = sql(url, "SELECT count(*) - count(DISTINCT task_id) FROM celery_taskmeta")[0][0]
    after = sql(url, f"SELECT sum(hashtextextended(t::text, 0)) FROM celery_taskmeta AS t WHERE id <= {last}")[0][0]
    holds = [float(found) for found in re.findall(r"lock held for ([\d.]+) ms", " ".join(said))]
    errors, seen = len(told["errors"]), max(watch.holds, default=0.0)
    print(f"  tasks stored meanwhile {len(told['stored']):,}; lost or wrong {lost}; twice {twice}; errors {errors}")
    print(f"  partitions they came to: {crossed}")
    print(f"  rows from before: {'unchanged' if after == before else 'CHANGED'}")
    print(f"  exclusive lock, as the commands say: longest {max(holds):.1f} ms of {len(holds)}")
    print(f"  exclusive lock, as pg_locks shows it: longest {seen:.1f} ms of {len(watch.holds)} seen")
    print(f"  a writer's longest call: {told['longest'] * 1000:.0f} ms (at most {MOST_WAIT * 1000:.0f})")
    is_short = max(holds) <= MOST_MILLISECONDS and seen <= MOST_MILLISECONDS + LOOKING and told["longest"] <= MOST_WAIT
    return not lost and not twice and after == before and not told["errors"] and is_short


def _timed(what: str, url: str, steps: object) -> list[str]:
    began = time.monotonic()
    with opened(url) as backend:
        taken: list[Step] = list(_steps(steps, backend))
    said = [step.what for step in taken if "exclusive" in step.what]
    print(f"  {what}: {time.monotonic() - began:.1f} s, {sum(step.rows for step in taken):,} rows moved")
    for sentence in said:
        print(f"    {sentence}")
    return said


def _steps(steps: object, backend: object) -> Steps:
    yield from steps(backend)  # type: ignore[operator]


if __name__ == "__main__":
    raise SystemExit(main())
