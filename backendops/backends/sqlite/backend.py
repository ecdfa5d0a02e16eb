"""SQLite as Celery's result backend (`db+sqlite:///results.db`)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Self

from pydantic import PrivateAttr, SecretStr, field_validator
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from backendops.backends.sql import Schemas, SqlBackend
from backendops.backends.sql_files import load
from backendops.backends.sqlite.archive_table import archive_table
from backendops.backends.sqlite.connection import File, opened
from backendops.backends.sqlite.date_done import DateDone
from backendops.backends.sqlite.errors import translated
from backendops.backends.sqlite.lock import FileLock, file_lock
from backendops.backends.sqlite.removal import Removal
from backendops.backends.sqlite.search import nameless, searches
from backendops.backends.sqlite.space import Vacuuming, space_of
from backendops.backends.sqlite.sweep import Sweep
from backendops.backends.sqlite.tables import LiveTable, find_tables
from backendops.contracts.backend import Standing
from backendops.contracts.capabilities import (
    ArchivePlan,
    CanArchive,
    CanExpire,
    CanKeepNewest,
    CanReportPool,
    CanVacuum,
    PoolReport,
    VacuumPlan,
)
from backendops.contracts.readings import Finding
from backendops.contracts.retention import Retention
from backendops.contracts.run import Limits, Pace, Preview, Steps, Watermarks


class SqliteBackend(SqlBackend, CanExpire, CanKeepNewest, CanArchive, CanVacuum, CanReportPool):
    """A file that Celery on the same host writes results to."""

    kind: ClassVar[str] = "sqlite"
    schemes: ClassVar[tuple[str, ...]] = ("db+sqlite", "sqlite")
    drivername: ClassVar[str] = "sqlite+pysqlite"

    _file: File | None = PrivateAttr(None)

    @field_validator("url")
    @classmethod
    def _names_a_file(cls, value: SecretStr) -> SecretStr:
        try:
            database = make_url(value.get_secret_value().removeprefix("db+")).database
        except ArgumentError:
            raise ValueError("this is not an URL: write sqlite:////absolute/path/of/results.db") from None
        if not database or database == ":memory:" or "mode=memory" in database:
            raise ValueError(
                "a database in memory belongs to the one process that made it, and nobody else can see it: "
                "write the path of a file, such as sqlite:////var/lib/app/results.db"
            )
        if database.startswith("file:"):
            raise ValueError("write the plain path of the file, such as sqlite:////var/lib/app/results.db")
        return value

    @field_validator("schemas")
    @classmethod
    def _no_schemas(cls, value: Schemas) -> Schemas:
        if value.task or value.group:
            raise ValueError("SQLite has no schemas: leave them out")
        return value

    @property
    def path(self) -> Path:
        """The file, links followed: two names of one file share its lock."""
        return Path(self.sqlalchemy_url.database or "").resolve()

    @contextmanager
    def open(self, limits: Limits, watermarks: Watermarks) -> Iterator[Self]:
        with opened(self.path, limits) as file:
            copy = self.model_copy()
            copy._file, copy._limits, copy._watermarks = file, limits, watermarks
            yield copy

    @property
    def _opened(self) -> File:
        if self._file is None:
            raise RuntimeError("open the backend first")
        return self._file

    @property
    def _clock(self) -> DateDone:
        return DateDone(self.zone)

    def standing(self) -> Standing:
        """The clock is the host's: nobody else's writes date_done but Celery's on this host."""
        newest = None
        with translated(self.path):
            # Groups and retries are in UTC whatever the zone: only finished tasks can show that it is wrong.
            for table in self._live_tables()[0]:
                if not table.has("status"):
                    continue
                statement = "newest_by_date" if table.date_done_index else "newest_by_id"
                row = self._opened.connection.execute(load("sqlite", "schema", statement, table.slots())).first()
                if row is not None and (moment := self._clock.read(*row)) is not None:
                    newest = moment.earliest
        return Standing(server_now=datetime.now(UTC), newest_done=newest)

    @contextmanager
    def lock(self) -> Iterator[FileLock | None]:
        with file_lock(self.path) as held:
            yield held

    def interrupt(self) -> None:
        if self._file is not None:
            self._file.interrupt()

    def _live_tables(self) -> tuple[tuple[LiveTable, ...], tuple[Finding, ...]]:
        with translated(self.path):
            return find_tables(self._opened.connection, self.tables.task, self.tables.group)

    def preview_expire(self, due: Retention) -> Preview:
        return self._sweep(due, None).preview("remove")

    def expire(self, due: Retention, pace: Pace) -> Steps:
        yield from self._sweep(due, None).run(pace)

    def preview_archive(self, due: Retention, plan: ArchivePlan) -> Preview:
        return self._sweep(due, plan).preview("archive")

    def archive(self, due: Retention, plan: ArchivePlan, pace: Pace) -> Steps:
        yield from self._sweep(due, plan).run(pace)

    def _sweep(self, due: Retention, plan: ArchivePlan | None) -> Sweep:
        tables, findings = self._live_tables()
        connection = self._opened.connection
        with translated(self.path):
            removals = tuple(
                Removal(
                    self._opened,
                    search,
                    archive_table(connection, search.table, self.table_names(), plan) if plan else None,
                )
                for search in searches(connection, tables, due, self._clock)
            )
            findings += nameless(connection, tables, due)
        return Sweep(self._opened, self._clock, due, removals, findings)

    def _vacuuming(self, plan: VacuumPlan) -> Vacuuming:
        tables = tuple(table.name for table in self._live_tables()[0])
        return Vacuuming(self._opened, plan, tables, self._limits.budget, self._watermarks)

    def preview_vacuum(self, plan: VacuumPlan) -> Preview:
        vacuuming = self._vacuuming(plan)
        with translated(self.path):
            space = space_of(self._opened.connection)
            return Preview(
                summary=f"{space} in {self.path.name}",
                statements=vacuuming.statements,
                readings=tuple(vacuuming.readings()),
                findings=vacuuming.findings(space),
            )

    def vacuum(self, plan: VacuumPlan, pace: Pace) -> Steps:
        yield from self._vacuuming(plan).run(pace)

    def report_pool(self) -> PoolReport:
        """SQLite has no server: opening and reading the file is all there is to measure."""
        began = time.monotonic()
        with opened(self.path, Limits(lock_timeout=self._limits.lock_timeout, read_only=True)) as file:
            connected = time.monotonic()
            with translated(self.path):
                file.connection.execute(load("sqlite", "pool", "round_trip")).scalar_one()
            answered = time.monotonic()
        return PoolReport(connect_seconds=connected - began, roundtrip_seconds=answered - connected)
