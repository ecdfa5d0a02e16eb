"""A SQLite file of a test: rows as Celery writes them, and a look at them from beside backendops."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from celery import Celery, states
from celery.app.task import Context

from backendops.backends.sqlite import SqliteBackend
from backendops.contracts.capabilities import ArchivePlan, VacuumPlan
from backendops.contracts.retention import Retention, Rule
from backendops.contracts.run import Limits, NoWatermarks, Pace, Step
from tests.celery_rows import celery_app

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
LIVE, ARCHIVE = "celery_taskmeta", "celery_taskmeta_archive"
PLAN = ArchivePlan()


class SmallPace(Pace):
    """Batches of a fixed size, so that a test has many steps."""

    def __init__(self, size: int = 10) -> None:
        self._size = size
        self.timeouts = 0

    @property
    def size(self) -> int:
        return self._size

    def measured(self, rows: int, seconds: float) -> None:
        pass

    def timed_out(self) -> None:
        self.timeouts += 1


def path_of(url: str) -> Path:
    return Path(url.removeprefix("db+sqlite:///"))


@contextlib.contextmanager
def raw(url: str) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path_of(url), isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def ids(url: str, table: str) -> list[int]:
    with raw(url) as connection:
        try:
            return sorted(row[0] for row in connection.execute(f"SELECT id FROM {table}"))
        except sqlite3.OperationalError as error:
            assert "no such table" in str(error)
            return []


@contextlib.contextmanager
def opened(url: str, read_only: bool = False, lock_timeout: float = 2, **settings: object) -> Iterator[SqliteBackend]:
    limits = Limits(read_only=read_only, lock_timeout=timedelta(seconds=lock_timeout))
    with SqliteBackend(url=url, **settings).open(limits, NoWatermarks()) as backend:  # type: ignore[arg-type]
        yield backend


def older_than(age: timedelta, *rules: Rule) -> Retention:
    return Retention(datetime.now(UTC) - age, rules)


def archive(
    url: str, due: Retention, pace: Pace | None = None, plan: ArchivePlan = PLAN, **settings: object
) -> list[Step]:
    with opened(url, **settings) as backend:  # type: ignore[arg-type]
        return list(backend.archive(due, plan, pace or SmallPace()))


def store(app: Celery, task_id: str, state: str = states.SUCCESS) -> None:
    """A result through Celery's own backend."""
    app.backend.store_result(task_id, ValueError(1) if state == states.RETRY else 1, state, request=Context(id=task_id))


def retry_after_start(url: str, **conf: object) -> None:
    """The one way to a RETRY row that has a date: NULL stays NULL, so the column's own default in UTC fires."""
    app = celery_app(url, **conf)
    for state in (states.STARTED, states.RETRY):
        store(app, "retried", state)
    app.close()


def dated(url: str) -> list[int]:
    with raw(url) as connection:
        return [row[0] for row in connection.execute(f"SELECT id FROM {LIVE} WHERE date_done > '' ORDER BY id")]


def shift(url: str, age: timedelta) -> None:
    """Let everything have finished that much earlier, each row still in the zone Celery wrote it in."""
    with raw(url) as connection:
        for table in (LIVE, "celery_tasksetmeta"):
            for id_, text in connection.execute(f"SELECT id, date_done FROM {table} WHERE date_done > ''").fetchall():
                earlier = datetime.fromisoformat(text) - age
                connection.execute(
                    f"UPDATE {table} SET date_done = ? WHERE id = ?",
                    (earlier.isoformat(" ", "microseconds"), id_),
                )


def vacuum_plan(full: bool = False) -> VacuumPlan:
    return VacuumPlan(datetime.now(UTC), dead_rows=1000, dead_ratio=0.1, analyze_after=7 * DAY, full=full)
