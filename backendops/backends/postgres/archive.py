"""archive on PostgreSQL: due rows move to the archive table, each batch in one statement."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from backendops.backends.postgres.archive_table import (
    ArchiveTable,
    archive_name,
    ensure_archive,
    ensure_partitions,
    find_archive,
)
from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.drift import columns_to_add
from backendops.backends.postgres.filters import make_filters
from backendops.backends.postgres.intercepted import refuse_intercepted
from backendops.backends.postgres.periods import period_start
from backendops.backends.postgres.ranges import Span
from backendops.backends.postgres.survey import Target
from backendops.backends.postgres.sweep import preview_sweep, sweep
from backendops.backends.postgres.tables import quoted
from backendops.backends.postgres.walk import Deed, walked_column
from backendops.backends.sql_files import literal, load
from backendops.contracts.capabilities import ArchivePlan, CanArchive
from backendops.contracts.errors import BackendBusy
from backendops.contracts.retention import Retention
from backendops.contracts.run import Pace, Preview, Steps


class ArchiveOnPostgres(PostgresSession, CanArchive):
    """Can move old results to a table of their own, none lost and none twice."""

    def preview_archive(self, due: Retention, plan: ArchivePlan) -> Preview:
        return preview_sweep(self, due, partial(_planned_move, self, plan), "archive")

    def archive(self, due: Retention, plan: ArchivePlan, pace: Pace) -> Steps:
        yield from sweep(self, due, partial(_move, self, plan), pace)


def _move(session: PostgresSession, plan: ArchivePlan, target: Target) -> Deed:
    archive, made_ready = ensure_archive(session, target.live, plan)
    archive.require_insert()
    refuse_intercepted(session, archive)
    deed = _deed(session, target, archive.sql_name, archive.name)
    partitions = _Partitions(session, plan, target, archive)
    return replace(deed, made_ready=made_ready, prepare=partitions.prepare, finish=partitions.finish)


def _planned_move(session: PostgresSession, plan: ArchivePlan, target: Target) -> Deed:
    schema, name = archive_name(target.live, plan)
    with session.transaction(read_only=True) as connection:
        archive = find_archive(connection, target.live, plan)
    if archive is not None:
        columns_to_add(target.live, archive)
    return _deed(session, target, f"{quoted(schema)}.{quoted(name)}", name)


def _deed(session: PostgresSession, target: Target, sql_name: str, name: str) -> Deed:
    columns = literal(", ".join(quoted(column.name) for column in target.live.columns))
    return Deed(
        "archive",
        ("copy_range", "remove_range"),
        "move_unlocked",
        {"archive": literal(sql_name), "columns": columns},
        {"zone": session.date_done_timezone},
        f"moved to {name}",
        lazy=True,
    )


class _Partitions:
    """Makes the partitions that a range needs, before it is moved, and the filters of what was moved into them."""

    def __init__(self, session: PostgresSession, plan: ArchivePlan, target: Target, archive: ArchiveTable) -> None:
        self._session = session
        self._plan = plan
        self._target = target
        self._archive = archive
        self._in_default: set[datetime] = set()
        self._filled: tuple[datetime, datetime] | None = None

    def finish(self) -> Iterator[None]:
        """Make the filters of the partitions that were moved into."""
        if self._filled is not None:
            yield from make_filters(self._session, self._archive, *self._filled)

    def prepare(self, span: Span, failed: bool) -> None:
        """Look at the range's dates only where its ends do not already say that every partition is there."""
        if not failed and isinstance(span.low, datetime) and isinstance(span.high, datetime):
            first, last = (end.replace(tzinfo=self._session.zone).astimezone(UTC) for end in (span.low, span.high))
            if self._archive.covers(first, last):
                self._fills(first, last)
                return
        target, every, zone = self._target, self._plan.every, self._session.zone
        slots = {"live": target.live.slot, "by": walked_column(target.live), "due": target.due.dated}
        values = {**target.due.values, **span.values, "zone": self._session.date_done_timezone, "every": every}
        with self._session.transaction(prefer_indexes=True) as connection:
            periods = connection.execute(load("postgres", "archive", "find_periods", slots), values).all()
        for moment in (moment for period in periods for moment in (period.first, period.last)):
            self._fills(moment, moment)
            start = period_start(moment, every, zone)
            if start in self._in_default:
                continue
            self._archive = ensure_partitions(self._session, self._archive, [moment], every, zone)
            if self._archive.covers(moment, moment):
                continue
            if not any(other.is_default for other in self._archive.others):
                raise BackendBusy(
                    f"the partition of {self._archive.sql_name} for {moment:%Y-%m-%d} is being detached",
                    "the partition job finishes that; or ALTER TABLE … DETACH PARTITION … FINALIZE",
                )
            self._in_default.add(start)

    def _fills(self, first: datetime, last: datetime) -> None:
        before = self._filled or (first, last)
        self._filled = (min(first, before[0]), max(last, before[1]))
