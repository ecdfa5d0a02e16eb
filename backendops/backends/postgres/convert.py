"""Making a live table a partitioned one online: nothing is copied, and writers wait for milliseconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from math import ceil
from typing import Final

from sqlalchemy import Connection

from backendops.backends.postgres.archive_table import free_name
from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.convert_checks import (
    Index,
    index_name,
    inspect,
    list_grants,
    ownership,
    refusals,
    refuse,
    remarks,
)
from backendops.backends.postgres.convert_course import READ_BYTES, Course, NewLeaf, new_names
from backendops.backends.postgres.free_names import FreeNames
from backendops.backends.postgres.live_leaves import BURST_RATE, fuse_ids, leaf_rows, make_ahead
from backendops.backends.postgres.live_lock import held, still_bound, unbind, with_moment
from backendops.backends.postgres.live_retire import not_marked
from backendops.backends.postgres.live_table import (
    LiveState,
    Marker,
    naive_in,
    newest_id,
    read_live,
)
from backendops.backends.postgres.periods import NAME_BYTES, fit, next_period, partition_name, period_start
from backendops.backends.postgres.tables import LiveTable, find_tables
from backendops.backends.postgres.undo import UndoOnPostgres
from backendops.contracts.errors import BackendError, BackendRefused
from backendops.contracts.partitions import CanConvert, Conversion, ConversionPlan, Converted
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.run import Pace, Step, Steps

# Between the CHECK and the swap lie seconds. Were the process killed in them and never run again, results would be
# refused from the bound on: it lies a week ahead, and the next `partition` job, convert or undo takes the CHECK away.
FUSE: Final = timedelta(days=7)


class ConversionOnPostgres(UndoOnPostgres, PostgresSession, CanConvert):
    """Can partition a live table by id or by date, and make it plain again."""

    def plan_conversion(self, plan: ConversionPlan) -> Conversion:
        with self.transaction(read_only=True) as connection:
            live = live_named(self, connection, plan.table)
            state = read_live(connection, live)
            if state.state == "partitioned":
                return Conversion(_already(live, state))
            course = self._chart(connection, live, plan)
            reasons = (*_in_between(live, state), *refusals(live, course.found), *_no_room(course, plan))
            return Conversion(_in_words(course), tuple(course.planned()), reasons, tuple(remarks(live, course.found)))

    def convert(self, plan: ConversionPlan, pace: Pace) -> Steps:  # noqa: ARG002 - no step has a size
        with self.transaction() as connection:
            live = live_named(self, connection, plan.table)
            state = read_live(connection, live)
            if state.state != "partitioned":
                course = self._chart(connection, live, plan)
                reasons = (*_in_between(live, state), *refusals(live, course.found), *_no_room(course, plan))
                refuse(reasons)
        if state.state == "partitioned":
            yield Step(what=_already(live, state))
        else:
            yield Step(findings=tuple(remarks(live, course.found)))
            for sent in course.index():
                with self.autocommit(self.limits.budget) as connection:
                    connection.execute(sent.statement)
                yield Step(what=sent.planned().sql)
            yield self._swapped(plan)
        with self.transaction() as connection:
            live = live_named(self, connection, plan.table)
        yield from make_ahead(self, live, plan.ahead, plan.now)

    def _chart(self, connection: Connection, live: LiveTable, plan: ConversionPlan) -> Course:
        found = inspect(connection, live)
        # First of all: who is not the owner may not be able to read it either, and that is no GRANT that would do.
        refuse(ownership(live, found))
        indexes = found.indexes
        if found.date_index is None:
            dropped = FreeNames(connection, live.schema, (one.name for one in found.invalid))
            to_build = Index(0, dropped.take(index_name(live)), True, False, False, True, 0, None, ("date_done",))
            indexes = (*(one for one in indexes if one not in found.invalid), to_build)
        if plan.by == "id":
            first = free_name(connection, live.schema, fit(live.name, "_first"))
            rows = leaf_rows(self, connection, live, plan.rows, plan.now)
            newest = newest_id(connection, live)
            burst = ceil(found.row.heap_bytes / READ_BYTES * BURST_RATE)
            bound = newest + max(rows, burst, fuse_ids(self, connection, live, newest, plan.now))
            leaves = tuple(_by_id(connection, live, bound, rows, plan.ahead))
            marker = Marker("id", first, rows=plan.rows)
        else:
            first = free_name(connection, live.schema, fit(live.name, "_default"))
            leaves = tuple(self._by_date(connection, live, plan))
            marker = Marker("date_done", first, every=plan.every)
        renamed = new_names(live, first, indexes, FreeNames(connection, live.schema))
        marker = replace(marker, renamed=renamed, comment=found.row.comment)
        names = FreeNames(connection, live.schema, renamed.values())
        key, index = names.take(_key_name(live)), names.take(index_name(live))
        return Course(live, found, marker, indexes, list_grants(connection, live.oid), leaves, key, index)

    def _by_date(self, connection: Connection, live: LiveTable, plan: ConversionPlan) -> Iterator[NewLeaf]:
        start = next_period(period_start(plan.now + FUSE, plan.every, self.zone), plan.every, self.zone)
        for _ in range(plan.ahead):
            name = free_name(connection, live.schema, partition_name(live.name, start, plan.every, self.zone))
            end = next_period(start, plan.every, self.zone)
            yield NewLeaf(name, naive_in(start, self.zone), naive_in(end, self.zone))
            start = end

    def _swapped(self, plan: ConversionPlan) -> Step:
        """From the CHECK to the commit in one go: what fails in between takes the CHECK away again."""
        with self.transaction() as connection:
            live = live_named(self, connection, plan.table)
        # One that a killed process left behind may be too near by now.
        self._unbind(live)
        with self.transaction() as connection:
            course = self._chart(connection, live, plan)
        try:
            bounding = with_moment(self, live.slot, [live.slot], [course.bounding()])
            with self.transaction(statement_timeout=self.limits.budget) as connection:
                course.validating().send(connection)
            swapping = with_moment(self, live.slot, [live.slot], course.swap(), before=course.prepare())
        except BaseException as error:
            if not self._unbind(live) and isinstance(error, BackendError):
                raise still_bound(live.sql_name, course.bound, error) from error
            raise
        return Step(
            what=f"{live.sql_name} is partitioned by {course.marker.by}; no row was copied"
            f"{held(bounding)} for the CHECK{held(swapping)} for the rest"
        )

    def _unbind(self, live: LiveTable) -> bool:
        return unbind(self, live.oid, live.slot)


def _key_name(live: LiveTable) -> str:
    """As Celery would call it; a long name's is another one: the server calls the key of `…_tail` like that by then."""
    usual = f"{live.name}_pkey"
    return usual if len(usual.encode()) < NAME_BYTES else fit(live.name, "_key")


def _by_id(connection: Connection, live: LiveTable, bound: int, rows: int, ahead: int) -> Iterator[NewLeaf]:
    for lower in range(bound, bound + ahead * rows, rows):
        yield NewLeaf(free_name(connection, live.schema, fit(live.name, f"_i{lower}")), lower, lower + rows)
    yield NewLeaf(free_name(connection, live.schema, fit(live.name, "_tail")), bound + ahead * rows, None)


def live_named(session: PostgresSession, connection: Connection, table: Converted) -> LiveTable:
    """Celery's task or group table; raises BackendRefused where there is none yet."""
    found = find_tables(session, connection)
    for live in found.tables:
        if live.holds == table:
            return live
    raise BackendRefused(
        f"there is no {table} table {getattr(session.tables, table)!r} yet",
        "Celery makes it with the first result it stores; or name it under `tables:` of the backend",
    )


def _in_between(live: LiveTable, state: LiveState) -> Iterable[Finding]:
    if state.state == "undoing":
        yield _critical(
            "undoing", f"{live.sql_name} is on its way back to a plain table", "end it with `backendops partition undo`"
        )
    if state.unmarked:
        yield not_marked(live, state.unmarked)
    elif state.state == "foreign":
        yield _critical(
            "foreign",
            f"{live.sql_name} is partitioned already, and not by backendops",
            "leave it to whoever partitioned it; expire and archive work on it as it is",
        )


def _no_room(course: Course, plan: ConversionPlan) -> Iterable[Finding]:
    last = course.leaves[-1].lower
    if plan.by != "id" or not isinstance(last, int) or last < course.found.largest_id:
        return
    yield _critical(
        "id-headroom",
        f"the id column ends at {course.found.largest_id:,}, before the partitions made now would ({last:,})",
        f"ALTER TABLE {course.live.sql_name} ALTER COLUMN id TYPE bigint (it rewrites the table), "
        "or give a smaller --rows-per-partition, or --ahead",
    )


def _already(live: LiveTable, state: LiveState) -> str:
    return f"{live.sql_name} is partitioned by {state.marker.by if state.marker else '?'} already"


def _in_words(course: Course) -> str:
    name, first = course.live.sql_name, course.marker.first
    about = f"about {course.found.row.rows:,} rows"
    if course.marker.by == "id":
        return (
            f"would partition {name} ({about}) by id: what is there stays in {first}, up to id {course.bound:,}; "
            f"what comes after goes to partitions of {_size(course)}"
        )
    return (
        f"would partition {name} ({about}) by date_done, one partition per {course.marker.every}: what is there stays "
        f"in {first}, as does every unfinished task; what finishes from {course.bound} on goes to partitions of its own"
    )


def _size(course: Course) -> str:
    return f"{course.marker.rows:,} ids" if course.marker.rows else "what a week takes"


def _critical(code: str, sentence: str, fix: str) -> Finding:
    return Finding(Severity.CRITICAL, f"convert.{code}", sentence, fix)
