"""Making a converted live table plain again online: no row is ever out of sight, and none is there twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import Connection

from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.convert_checks import Index, index_name, list_grants, list_indexes
from backendops.backends.postgres.live_lock import held, with_moment
from backendops.backends.postgres.live_table import Leaf, LiveState, read_live
from backendops.backends.postgres.periods import fit
from backendops.backends.postgres.sent import EXCLUSIVE, Sent
from backendops.backends.postgres.tables import LiveTable, find_tables, quoted
from backendops.backends.postgres.undo_rows import Mover
from backendops.backends.sql_files import literal, load
from backendops.contracts.errors import BackendBusy, BackendRefused
from backendops.contracts.partitions import Conversion, Converted, PlannedStatement
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.run import Pace, Step, Steps
from backendops.contracts.units import format_bytes

# Reading every task id once to see that none is there twice; a hundred million rows take some minutes.
TWINS_BUDGET: Final = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Undoing:
    """One partitioned table's way back: which leaf becomes the table, and what is said in which order."""

    live: LiveTable
    state: LiveState
    base: Leaf
    indexes: tuple[Index, ...]
    """The base's."""
    grants: tuple[tuple[str, dict[str, str]], ...]

    @property
    def others(self) -> tuple[Leaf, ...]:
        """The leaves whose rows are moved over afterwards."""
        return tuple(leaf for leaf in self.state.leaves if leaf is not self.base)

    def swap(self) -> Iterator[Sent]:
        """All in one transaction behind the lock; no row is read."""
        live = self.live.slot
        for leaf in self.state.leaves:
            yield Sent("live_partition", "detach", {"live": live, "leaf": leaf.slot})
        yield Sent("convert", "drop_parent", {"live": live})
        yield Sent("convert", "rename_table", {"live": self.base.slot, "name": literal(quoted(self.live.name))})
        yield from self._names()
        for name, grant in self.grants:
            yield Sent("convert", name, {"live": live, **grant})
        for leaf in self.others:
            yield Sent("convert", "inherit", {"leaf": leaf.slot, "live": live})
        # Until the last row is moved, the comment says what this table is.
        yield Sent("convert", "describe", {"live": live}, {"comment": str(self.state.marker)})

    def _names(self) -> Iterator[Sent]:
        renamed = self.state.marker.renamed if self.state.marker and self.base is self.state.first else {}
        given: set[str] = set()
        for index in self.indexes:
            old = index.constraint or index.name
            new = renamed.get(old) or _usual_name(self.live, index)
            if new is None or new == old or new in given:
                continue
            given.add(new)
            if index.constraint:
                slots = {"live": self.live.slot, "old": literal(quoted(old)), "name": literal(quoted(new))}
                yield Sent("convert", "rename_constraint", slots)
            else:
                where = literal(f"{quoted(self.live.schema)}.{quoted(old)}")
                yield Sent("convert", "rename_index", {"index": where, "name": literal(quoted(new))})


class UndoOnPostgres(PostgresSession):
    """Can make a converted table plain again."""

    def plan_undo(self, table: Converted) -> Conversion:
        with self.transaction(read_only=True) as connection:
            live = self._named(connection, table)
            state = read_live(connection, live)
            if state.state in ("plain", "foreign"):
                return Conversion(f"{live.sql_name} was not partitioned by backendops: nothing to undo")
            if state.state == "bounded":
                drop = Sent("live_partition", "drop_bound", {"leaf": live.slot}, hold="about 2 ms")
                return Conversion("would take the CHECK of an unfinished conversion away", (drop.planned(),))
            others = state.leaves
            statements: tuple[PlannedStatement, ...] = ()
            if state.state == "partitioned":
                undoing = self._undoing(connection, live, state)
                others, statements = undoing.others, tuple(_planned(undoing))
        rows = sum(leaf.rows for leaf in others)
        size = format_bytes(sum(leaf.bytes for leaf in others))
        return Conversion(
            f"would make {live.sql_name} a plain table again; about {rows:,} rows ({size}) of {len(others)} partitions "
            "would be moved into it in batches, in sight all the time",
            statements,
        )

    def undo(self, table: Converted, pace: Pace) -> Steps:
        with self.transaction() as connection:
            live = self._named(connection, table)
            state = read_live(connection, live)
        if state.state in ("plain", "foreign"):
            yield Step(what=f"{live.sql_name} was not partitioned by backendops: nothing to undo")
            return
        if state.state == "bounded":
            slots = {"leaf": live.slot}
            with_moment(self, live.slot, [live.slot], [Sent("live_partition", "drop_bound", slots)])
            yield Step(what=f"took the CHECK of an unfinished conversion away from {live.sql_name}")
            return
        if state.state == "partitioned":
            yield self._swapped_back(live)
        yield from self._drain(table, pace)

    def _undoing(self, connection: Connection, live: LiveTable, state: LiveState) -> Undoing:
        if not live.is_owner:
            raise BackendRefused(
                f"the role {live.role} does not own {live.sql_name}: only its owner can change its partitions",
                f"GRANT {quoted(state.owner)} TO {quoted(live.role)};",
            )
        # The fewer rows have to be moved, the better.
        base = state.first or max(state.leaves, key=lambda leaf: leaf.bytes)
        return Undoing(live, state, base, list_indexes(connection, base.oid), list_grants(connection, live.oid))

    def _swapped_back(self, live: LiveTable) -> Step:
        with self.transaction(statement_timeout=TWINS_BUDGET) as connection:
            state = read_live(connection, live)
            undoing = self._undoing(connection, live, state)
            slots = {"live": live.slot, "key": live.key_column}
            twins = connection.execute(load("postgres", "convert", "find_key_twins", slots)).scalars().all()
        if twins:
            raise BackendRefused(
                f"tasks of {live.sql_name} are in two partitions: {', '.join(twins)}; a plain table takes one of each",
                "look at their rows with tableoid::regclass, and delete the one that is not wanted from its partition",
            )

        seconds = with_moment(self, live.slot, [leaf.slot for leaf in state.leaves], undoing.swap())
        return Step(what=f"{live.sql_name} is a plain table again{held(seconds)}")

    def _drain(self, table: Converted, pace: Pace) -> Steps:
        """Move every row of what were leaves into the table, and drop each when it is empty."""
        with self.transaction() as connection:
            live = self._named(connection, table)
            state = read_live(connection, live)
        left: list[Leaf] = []
        for leaf in state.leaves:
            conflicts = yield from Mover(self, live, leaf, pace).all_rows()
            if conflicts or not self._dropped(live, leaf):
                left.append(leaf)
                yield Step(findings=(_left(live, leaf, conflicts),))
            else:
                yield Step(what=f"{leaf.sql_name} is empty and dropped")
        if left:
            raise BackendBusy(
                f"rows are left in {', '.join(leaf.sql_name for leaf in left)}, which {live.sql_name} shows as its own",
                "run `backendops partition undo` again, after what the findings say",
            )
        comment = state.marker.comment if state.marker else None
        with self.transaction() as connection:
            Sent("convert", "describe", {"live": live.slot}, {"comment": comment}).send(connection)

    def _dropped(self, live: LiveTable, leaf: Leaf) -> bool:
        """Drop it if it is empty, read under the lock."""

        slots = {"leaf": leaf.slot, "live": live.slot}

        def is_empty(connection: Connection) -> bool:
            return bool(connection.execute(load("postgres", "live_partition", "is_empty", slots)).scalar_one())

        with self.transaction() as connection:
            if not is_empty(connection):
                return False
        wanted = [Sent("convert", "disinherit", slots), Sent("convert", "drop_leaf", slots)]
        return with_moment(self, live.slot, [leaf.slot], wanted, is_empty) is not None

    def _named(self, connection: Connection, table: Converted) -> LiveTable:
        for live in find_tables(self, connection).tables:
            if live.holds == table:
                return live
        raise BackendRefused(
            f"there is no {table} table {getattr(self.tables, table)!r}", "name it under `tables:` of the backend"
        )


def _usual_name(live: LiveTable, index: Index) -> str | None:
    if index.is_primary:
        return fit(live.name, "_pkey")
    if index.columns == (live.key_column,) and index.is_unique:
        return fit(live.name, f"_{live.key_column}_key")
    if index.columns == ("date_done",):
        return index_name(live)
    return None


def _planned(undoing: Undoing) -> Iterator[PlannedStatement]:
    lock = Sent("live_partition", "lock_live", {"live": undoing.live.slot})
    leaves = len(undoing.state.leaves)
    hold = f"about {10 + 2 * leaves} ms until the commit: no row is read; waited for 2 s at most"
    yield PlannedStatement(lock.planned().sql, EXCLUSIVE, hold)
    for sent in undoing.swap():
        yield sent.planned(together=True)


def _left(live: LiveTable, leaf: Leaf, conflicts: int) -> Finding:
    if conflicts:
        return Finding(
            Severity.WARNING,
            "undo.twins",
            f"{conflicts:,} rows of {leaf.sql_name} are in {live.sql_name} already, by their id or {live.key_column}",
            f"compare them, delete the ones that are not wanted FROM ONLY {leaf.sql_name}, and undo again",
        )
    return Finding(
        Severity.INFO,
        "undo.rows-held",
        f"rows of {leaf.sql_name} are held by other sessions",
        "undo again when their transactions have ended",
    )
