"""Every backend under test: a fresh store of its own, and a look at it that does not go through backendops."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import inspect, text

from backendops.backends.postgres import PostgresBackend
from backendops.backends.redis import RedisBackend
from backendops.backends.sql import SqlBackend
from backendops.backends.sqlite import SqliteBackend
from backendops.contracts.backend import Backend
from backendops.contracts.run import Limits, NoWatermarks, Pace, Step, Steps, Watermarks
from tests.engines import engine_of
from tests.servers import Servers, postgres_versions

LIVE, GROUPS = "celery_taskmeta", "celery_tasksetmeta"
ARCHIVE, GROUP_ARCHIVE = "celery_taskmeta_archive", "celery_tasksetmeta_archive"


class FixedPace(Pace):
    """The same size for every batch, so that a test knows where it stops."""

    def __init__(self, size: int) -> None:
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    def measured(self, rows: int, seconds: float) -> None:
        pass

    def timed_out(self) -> None:
        raise AssertionError("no statement of this test takes long")


def drive(steps: Steps, stop_after: int | None = None) -> list[Step]:
    """Take the steps of a run, all of them or the first few; then end it, as the engine does."""
    taken: list[Step] = []
    try:
        while stop_after is None or len(taken) < stop_after:
            try:
                taken.append(next(steps))
            except StopIteration:
                break
    finally:
        steps.close()
    return taken


class Store:
    """One backend, one fresh store."""

    def __init__(self, kind: type[Backend], url: str) -> None:
        self.kind = kind
        self.url = url

    def backend(self, **keys: Any) -> Any:
        """The backend as a policy would describe it."""
        return self.kind.model_validate({"url": self.url, **keys})

    @contextmanager
    def opened(self, limits: Limits | None = None, watermarks: Watermarks | None = None, **keys: Any) -> Iterator[Any]:
        """The same, connected for a run."""
        with self.backend(**keys).open(limits or Limits(), watermarks or NoWatermarks()) as backend:
            yield backend

    def previewing(self, **keys: Any) -> AbstractContextManager[Any]:
        """The same, for a preview: nothing can be changed."""
        return self.opened(Limits(read_only=True), **keys)


class TableStore(Store):
    """A store that keeps results in tables."""

    def execute(self, statement: str, **values: Any) -> list[Any]:
        """One statement in a transaction of its own; its rows."""
        with engine_of(self.url).begin() as connection:
            result = connection.execute(text(statement), values)
            return list(result.all()) if result.returns_rows else []

    @property
    def is_postgres(self) -> bool:
        """Is it PostgreSQL?"""
        return issubclass(self.kind, PostgresBackend)

    def has_table(self, name: str) -> bool:
        """Is there such a table?"""
        with engine_of(self.url).connect() as connection:
            return inspect(connection).has_table(name)

    def ids(self, table: str = LIVE) -> list[int]:
        """Every id, sorted; none where there is no table yet."""
        return sorted(row[0] for row in self.execute(f"SELECT id FROM {table}")) if self.has_table(table) else []

    def checksum(self, *tables: str) -> str:
        """Of every row's bytes over these tables, whichever of them it is in."""
        rows = []
        for table in tables:
            if self.has_table(table):
                found = self.execute(
                    "SELECT id, task_id, status, result, date_done, traceback, children, name, args, kwargs, worker, "
                    f"retries, queue, stamps FROM {table}"
                )
                rows += [tuple(bytes(v) if isinstance(v, memoryview) else str(v) for v in row) for row in found]
        return hashlib.sha256(repr(sorted(rows, key=lambda row: int(row[0]))).encode()).hexdigest()

    def young(self, older_than: timedelta = timedelta(days=7)) -> list[int]:
        """The ids that must stay: finished too lately, or not at all."""
        since = f"now() at time zone 'UTC' - interval '{older_than.days} days'"
        if not self.is_postgres:
            since = f"datetime('now', '-{older_than.days} days')"
        return sorted(
            row[0] for row in self.execute(f"SELECT id FROM {LIVE} WHERE date_done IS NULL OR date_done >= {since}")
        )


@dataclass(frozen=True)
class Entry:
    """A backend and how a fresh store of it is made."""

    name: str
    kind: type[Backend]
    url: Callable[[Servers, Path], AbstractContextManager[str]]

    @contextmanager
    def store(self, servers: Servers, directory: Path) -> Iterator[Store]:
        """A fresh store, gone afterwards."""
        with self.url(servers, directory) as url:
            yield (TableStore if issubclass(self.kind, SqlBackend) else Store)(self.kind, url)


def _postgres(version: str) -> Callable[[Servers, Path], AbstractContextManager[str]]:
    @contextmanager
    def fresh(servers: Servers, directory: Path) -> Iterator[str]:
        server = servers.postgres(version)
        database = server.create_database()
        try:
            yield server.celery_url(database)
        finally:
            server.drop_database(database)

    return fresh


@contextmanager
def _sqlite(servers: Servers, directory: Path) -> Iterator[str]:
    # An empty file is an empty database; backendops would not make one.
    (directory / "results.db").touch()
    yield f"db+sqlite:///{directory / 'results.db'}"


def _redis(which: str) -> Callable[[Servers, Path], AbstractContextManager[str]]:
    @contextmanager
    def fresh(servers: Servers, directory: Path) -> Iterator[str]:
        url = servers.redis(which).url()
        with closing(redis.Redis.from_url(url)) as client:
            client.flushall()
        yield url

    return fresh


# A new backend is one line here.
ENTRIES = (
    *(Entry(f"postgres{version}", PostgresBackend, _postgres(version)) for version in postgres_versions()),
    Entry("sqlite", SqliteBackend, _sqlite),
    Entry("valkey", RedisBackend, _redis("valkey")),
    Entry("redis8", RedisBackend, _redis("redis8")),
)
