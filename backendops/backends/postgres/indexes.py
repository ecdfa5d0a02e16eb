"""Indexes in the vacuum job: made, dropped and rebuilt in nobody's way; what a cancelled build left is dropped."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, Final

from sqlalchemy import Connection, TextClause
from sqlalchemy.exc import DBAPIError

from backendops.backends.postgres.bloat import Bloat, Meter
from backendops.backends.postgres.ddl import with_ddl
from backendops.backends.postgres.holdback import list_holders
from backendops.backends.postgres.index_work import (
    COLUMN,
    Index,
    IndexWork,
    create_text,
    decide_indexes,
    doomed_name,
    free_index_name,
    list_indexes,
    size_of_new,
)
from backendops.backends.postgres.live_lock import PATIENCE
from backendops.backends.postgres.tables import LiveTable, quoted
from backendops.backends.postgres.vacuum_session import Ended, LongStatements, WindowClosed
from backendops.backends.postgres.vacuum_work import Table, list_tables
from backendops.backends.sql_files import literal, load
from backendops.contracts import metrics
from backendops.contracts.capabilities import IndexPlan
from backendops.contracts.errors import BackendError
from backendops.contracts.readings import Reading
from backendops.contracts.run import Step, Steps
from backendops.contracts.units import format_bytes, format_seconds

# A run that was asked to end does not wait for strangers: what a transaction on the table keeps from being dropped in
# this time, the next run drops.
CLEAN_UP_SECONDS: Final = 5.0
# A drop waits for every transaction on the table; those of an application are over in a minute. One that is forgotten
# must not use up the time of the vacuums, which come after it.
DROP_PATIENCE: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class IndexState:
    """The indexes there are, and what is to be done and said about them."""

    indexes: tuple[Index, ...]
    work: IndexWork
    readings: tuple[Reading, ...]

    @property
    def said(self) -> tuple[str, ...]:
        """What a run would do, in words."""
        return (
            *(f"drop the invalid index {one.sql_name}" for one in self.work.drop),
            *(
                f"create the missing index on {COLUMN} of {one.sql_name} (about {size_of_new(one.estimated_rows)} "
                "on the server's disk)"
                for one in self.work.create
            ),
            *(
                f"rebuild {one.sql_name} ({bloat}; needs up to {format_bytes(one.bytes)} more on the server's disk "
                "while it runs)"
                for one, bloat in self.work.rebuild
            ),
        )

    @property
    def statements(self) -> tuple[str, ...]:
        """What a run would send."""
        return (
            *(one.drop.removesuffix(";") for one in self.work.drop),
            *(create_text(one).removesuffix(";") for one in self.work.create),
            *(f"REINDEX INDEX CONCURRENTLY {one.sql_name}" for one, _ in self.work.rebuild),
        )


class IndexesOnPostgres(LongStatements):
    """Keeps the indexes of Celery's tables, and of their archives, whole."""

    def index_state(self, live: Sequence[LiveTable], tables: Sequence[Table], plan: IndexPlan) -> IndexState:
        """Look at every index of these tables; changes nothing."""
        with self.transaction(read_only=True) as connection:
            indexes = list_indexes(connection, [one.oid for one in tables])
            meter = Meter.of(self, connection)

        def measure(index: Index, thoroughly: bool) -> Bloat:
            return meter.index(index.oid, index.bytes, index.rows, index.key_bytes, measure=thoroughly)

        return IndexState(
            indexes,
            decide_indexes(indexes, live, tables, plan, measure),
            tuple(_readings(self.table_names(), live, tables, indexes)),
        )

    def drop_leftovers(self, state: IndexState, deadline: float) -> Steps:
        """Drop the invalid indexes that the policy lets us drop."""
        for index in state.work.drop:
            renamed = with_ddl(self, lambda connection, index=index: _rename(connection, index))  # type: ignore[misc]
            if renamed is None:
                yield Step(what=f"left {index.sql_name}: it is not invalid any more")
                continue
            try:
                self.send(_drop(renamed), f"drop of {index.sql_name}", deadline, datetime.now(UTC) + DROP_PATIENCE)
            except WindowClosed:
                yield Step(
                    what=f"did not drop {index.sql_name} in {format_seconds(DROP_PATIENCE.total_seconds())}: "
                    f"a transaction on {index.on_table} goes on; the next run tries again"
                )
                continue
            yield Step(what=f"dropped the invalid index {index.sql_name} ({format_bytes(index.bytes)})")

    def mend_indexes(self, state: IndexState, plan: IndexPlan, deadline: float) -> Steps:
        """Create what is missing, and inside the window rebuild what is bloated."""
        for table in state.work.create:
            # As it is now: it may have been looked at hours ago. A build that queues for its lock makes an autovacuum
            # on the table give up.
            with self.transaction() as connection:
                parts = [one for one in list_tables(connection, [table.oid]) if not one.is_parent]
            if not parts:
                yield Step(what=f"did not index {table.sql_name}: it was dropped meanwhile")
            elif busy := next((one for one in parts if one.busy_pid), None):
                yield Step(what=f"did not index {table.sql_name}: pid {busy.busy_pid} works on {busy.sql_name} now")
            elif table.partitioned:
                yield from self._create_index_by_partition(table, parts, deadline)
            elif self._index_of(parts[0]) is not None:
                yield Step(what=f"did not index {table.sql_name}: it has an index on {COLUMN} by now")
            else:
                yield self._create_index(table.schema, table.name, table.oid, deadline)
        try:
            for index, bloat in state.work.rebuild:
                yield self._rebuild_index(index, bloat, deadline, plan.rebuild_until)
        except WindowClosed as closed:
            yield Step(what=str(closed))

    def _create_index(self, schema: str, table: str, oid: int, deadline: float) -> Step:
        where, began = f"{quoted(schema)}.{quoted(table)}", monotonic()
        with self.transaction() as connection:
            name = f"{quoted(schema)}.{quoted(free_index_name(connection, schema, table))}"
        # The statement wants the bare name: an index is in its table's schema.
        slots = {"index": literal(name.removeprefix(f"{quoted(schema)}.")), "table": literal(where)}
        self._build_index(load("postgres", "indexes", "create", slots), f"build of {name}", oid, deadline)
        return Step(what=f"created {name} on {where} ({COLUMN}) in {format_seconds(monotonic() - began)}")

    def _create_index_by_partition(self, table: LiveTable, parts: Sequence[Table], deadline: float) -> Steps:
        """The frame on the parent, then one index after the other; a later run goes on where this one ends."""
        # The frame stops every writer of the table for a moment, an attached index those of its partition, as long as
        # their lock is waited for, too.
        frame = with_ddl(self, lambda connection: _frame(connection, table), PATIENCE)
        for part in parts:
            if (found := self._index_of(part)) is None:
                yield self._create_index(part.schema, part.name, part.oid, deadline)
                found = self._index_of(part)
            if found is not None and not found.is_attached:
                slots = {"index": frame.slot, "part": found.slot}
                with_ddl(
                    self,
                    lambda connection, slots=slots: connection.execute(  # type: ignore[misc]
                        load("postgres", "indexes", "attach", slots)
                    ),
                    PATIENCE,
                )
        yield Step(what=f"{frame.sql_name} is whole: every partition of {table.sql_name} has its index")

    def _index_of(self, part: Table) -> Index | None:
        with self.transaction() as connection:
            whole = [one for one in list_indexes(connection, [part.oid]) if one.is_valid and one.is_plain]
        return max(whole, key=lambda one: one.is_attached, default=None)

    def _rebuild_index(self, index: Index, bloat: Bloat, deadline: float, until: datetime | None) -> Step:
        now, began = self._index_again(index), monotonic()
        if now is None:
            return Step(what=f"did not rebuild {index.sql_name}: it was dropped meanwhile")
        if now.is_busy:
            # A build that queues for its lock makes an autovacuum on the table give up.
            return Step(what=f"did not rebuild {index.sql_name}: another session works on {index.on_table} now")
        statement = load("postgres", "indexes", "rebuild", {"index": index.slot})
        self._build_index(statement, f"rebuild of {index.sql_name}", index.table_oid, deadline, until)
        with self.transaction() as connection:
            after = next((o for o in list_indexes(connection, [index.table_oid]) if o.name == index.name), index)
        return Step(
            what=f"rebuilt {index.sql_name} in {format_seconds(monotonic() - began)}: "
            f"{format_bytes(index.bytes)} → {format_bytes(after.bytes)} ({bloat})"
        )

    def _index_again(self, index: Index) -> Index | None:
        """As it is now, hours of vacuuming after it was looked at; None where it is gone, or another one."""
        with self.transaction() as connection:
            found = (one for one in list_indexes(connection, [index.table_oid]) if one.oid == index.oid)
            return next((one for one in found if one.sql_name == index.sql_name), None)

    def _build_index(
        self, statement: TextClause, what: str, table_oid: int, deadline: float, until: datetime | None = None
    ) -> None:
        """Send it; where it does not end well, what it left is dropped before anything else happens."""
        with self.transaction() as connection:
            before = frozenset(one.oid for one in list_indexes(connection, [table_oid]) if not one.is_valid)
        try:
            self.send(statement, what, deadline, until)
        except Ended as ended:
            raise type(ended)(f"{ended}; {self._clean_up_after_build(table_oid, before)}") from ended
        except BackendError:
            self._clean_up_after_build(table_oid, before)
            raise

    def _clean_up_after_build(self, table_oid: int, before: frozenset[int]) -> str:
        """Drop what a build has just left, on a connection of its own: the run's may have been asked to end."""
        left: list[Index] = []
        with suppress(BackendError, DBAPIError), self.connect() as connection:
            with connection.begin():
                self.bound(connection)
                waited_for = list_holders(connection).oldest
                found = list_indexes(connection, [table_oid])
            left = [one for one in found if one.oid not in before and one.is_left_over]
            for index in left:
                with connection.begin():
                    self.bound(connection)
                    renamed = _rename(connection, index)
                if renamed is not None:
                    _within(connection, _drop(renamed), CLEAN_UP_SECONDS)
            if any(one.oid not in before and not one.is_valid and one.is_busy for one in found):
                return "what it left stays until the next run: another session works on the table now"
            why = f"; {waited_for} may be what it waited for" if waited_for else ""
            return f"what it left is dropped{why}" if left else f"it left nothing behind{why}"
        return "what it left could not be dropped now, the next run does"


def _frame(connection: Connection, table: LiveTable) -> Index:
    """The parent's index that waits for those of the partitions; made where there is none."""

    def found() -> Index | None:
        frames = (one for one in list_indexes(connection, [table.oid]) if one.is_parent and one.is_plain)
        return next(frames, None)

    frame = found()
    if frame is None:
        name = free_index_name(connection, table.schema, table.name)
        slots = {"index": literal(quoted(name)), "table": table.slot}
        connection.execute(load("postgres", "indexes", "create_parent", slots))
        frame = found()
    assert frame is not None  # noqa: S101 - it was made in this transaction
    return frame


def _rename(connection: Connection, index: Index) -> str | None:
    """A name of our own for an index that is still invalid, as SQL; None where it is not any more."""
    connection.execute(load("postgres", "indexes", "lock_table", {"table": literal(index.on_table)}))
    if not connection.execute(load("postgres", "indexes", "is_invalid"), {"oid": index.oid}).scalar_one():
        return None
    name = doomed_name(index.oid)
    if index.name != name:
        slots = {"index": index.slot, "name": quoted(name)}
        connection.execute(load("postgres", "indexes", "rename", slots))
    return f"{quoted(index.schema)}.{quoted(name)}"


def _drop(name: str) -> TextClause:
    return load("postgres", "indexes", "drop", {"index": literal(name)})


def _within(connection: Connection, statement: TextClause, seconds: float) -> None:
    """Send it outside any transaction; cancelled, with an error, where it takes longer."""
    raw: Any = connection.connection.dbapi_connection
    clock = threading.Timer(seconds, raw.cancel)
    clock.daemon = True
    clock.start()
    try:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(statement)
    finally:
        clock.cancel()
        connection.rollback()


def _readings(
    labels: Sequence[str], live: Sequence[LiveTable], tables: Sequence[Table], indexes: Sequence[Index]
) -> Iterator[Reading]:
    """Invalid indexes of each of Celery's tables, its partitions included."""
    roots = {one.oid: one.root for one in tables}
    oids = {table.label: table.oid for table in live}
    for label in labels:
        left = sum(one.is_left_over and roots[one.table_oid] == oids.get(label) for one in indexes)
        yield metrics.TABLE_INVALID_INDEXES.read(left, table=label)
