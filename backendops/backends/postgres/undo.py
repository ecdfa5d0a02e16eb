"""Making a converted live table plain again online: no row is ever out of sight, and none is there twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import Connection

from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.convert_checks import (
    Index,
    index_name,
    inspect,
    list_grants,
    list_indexes,
    refuse,
    undo_refusals,
)
from backendops.backends.postgres.errors import CHECK_VIOLATION, DEPENDENT_OBJECTS, STATEMENT_TIMEOUT, code_of
from backendops.backends.postgres.free_names import FreeNames
from backendops.backends.postgres.live_lock import held, planned_moment, unbind, with_moment
from backendops.backends.postgres.live_retire import not_marked, pending
from backendops.backends.postgres.live_table import Leaf, LiveState, read_live
from backendops.backends.postgres.periods import fit
from backendops.backends.postgres.sent import Sent
from backendops.backends.postgres.tables import LiveTable, find_tables, quoted
from backendops.backends.postgres.undo_rows import Mover, planned_emptying, rows_left, twins_unseen
from backendops.backends.sql_files import literal, load
from backendops.contracts.errors import BackendBusy, BackendError, BackendRefused
from backendops.contracts.partitions import Conversion, Converted, PlannedStatement
from backendops.contracts.readings import Finding
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
    names: tuple[tuple[Index, str], ...]
    """Those that get another name, and which."""
    grants: tuple[tuple[str, dict[str, str]], ...]
    """As they are now."""
    base_grants: tuple[tuple[str, dict[str, str]], ...]
    """As the base has them, from before the conversion."""

    @property
    def others(self) -> tuple[Leaf, ...]:
        """The leaves whose rows are moved over afterwards."""
        return tuple(leaf for leaf in self.state.leaves if leaf is not self.base)

    def swap(self) -> Iterator[Sent]:
        """All in one transaction behind the lock; no row is read."""
        live = self.live.slot
        for leaf in self.state.leaves:
            yield Sent("live_partition", "detach", {"live": live, "leaf": leaf.slot})
            if leaf.has_bound:
                # A killed job's: on the table it would refuse results one day, and now it keeps leaves from inheriting.
                yield Sent("live_partition", "drop_bound", {"leaf": leaf.slot})
        yield Sent("convert", "drop_parent", {"live": live})
        yield Sent("convert", "rename_table", {"live": self.base.slot, "name": literal(quoted(self.live.name))})
        for index, new in self.names:
            yield self._renaming(index, new)
        yield Sent("convert", "own", {"live": live, "owner": literal(quoted(self.state.owner))})
        for name, grant in self.base_grants:
            if (name, grant) not in self.grants:
                yield Sent("convert", "revoke", {"live": live, **grant})
        for name, grant in self.grants:
            yield Sent("convert", name, {"live": live, **grant})
        for leaf in self.others:
            yield Sent("convert", "inherit", {"leaf": leaf.slot, "live": live})
        # Until the last row is moved, the comment says what this table is.
        yield Sent("convert", "describe", {"live": live}, {"comment": str(self.state.marker)})

    def _renaming(self, index: Index, new: str) -> Sent:
        old = index.constraint or index.name
        if index.constraint:
            slots = {"live": self.live.slot, "old": literal(quoted(old)), "name": literal(quoted(new))}
            return Sent("convert", "rename_constraint", slots)
        where = literal(f"{quoted(self.live.schema)}.{quoted(old)}")
        return Sent("convert", "rename_index", {"index": where, "name": literal(quoted(new))})


class UndoOnPostgres(PostgresSession):
    """Can make a converted table plain again."""

    def plan_undo(self, table: Converted) -> Conversion:
        with self.transaction(read_only=True) as connection:
            live = self._named(connection, table)
            state = read_live(connection, live)
            if reasons := tuple(_unready(live, state)):
                return Conversion(f"would make {live.sql_name} a plain table again", (), reasons)
            if state.state in ("plain", "foreign"):
                return Conversion(f"{live.sql_name} was not partitioned by backendops: nothing to undo")
            statements: tuple[PlannedStatement, ...]
            if state.state == "bounded":
                drop = Sent("live_partition", "drop_bound", {"leaf": live.slot})
                statements = tuple(planned_moment(live.slot, [live.slot], [drop], "about 2 ms"))
                return Conversion("would take the CHECK of an unfinished conversion away", statements)
            others = state.leaves
            statements = ()
            if state.state == "partitioned":
                undoing = self._undoing(connection, live, state)
                others, statements = undoing.others, tuple(_planned(undoing))
                reasons = tuple(undo_refusals(live, inspect(connection, live).row))
            comment = state.marker.comment if state.marker else None
            last = Sent("convert", "describe", {"live": live.slot}, {"comment": comment}, hold="about 1 ms")
            emptying = [one for leaf in others for one in planned_emptying(live, leaf)]
            statements = (*statements, *emptying, last.planned())
        rows = sum(leaf.rows for leaf in others)
        size = format_bytes(sum(leaf.bytes for leaf in others))
        return Conversion(
            f"would make {live.sql_name} a plain table again; about {rows:,} rows ({size}) of {len(others)} partitions "
            "would be moved into it in batches, in sight all the time",
            statements,
            reasons,
        )

    def undo(self, table: Converted, pace: Pace) -> Steps:
        with self.transaction() as connection:
            live = self._named(connection, table)
            state = read_live(connection, live)
        refuse(_unready(live, state))
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
        names = _names(connection, live, state, base)
        grants, had = list_grants(connection, live.oid), list_grants(connection, base.oid, owned_as=live.oid)
        return Undoing(live, state, base, names, grants, had)

    def _swapped_back(self, live: LiveTable) -> Step:
        with self.transaction() as connection:
            state = read_live(connection, live)
            undoing = self._undoing(connection, live, state)
            refuse(undo_refusals(live, inspect(connection, live).row))
        twins = self._key_twins(live)
        if twins:
            raise BackendRefused(
                f"tasks of {live.sql_name} are in two partitions: {', '.join(twins)}; a plain table takes one of each",
                "look at their rows with tableoid::regclass, and delete the one that is not wanted from its partition",
            )

        seconds = with_moment(self, live.slot, [leaf.slot for leaf in state.leaves], undoing.swap())
        unseen = (twins_unseen(live, TWINS_BUDGET),) if twins is None else ()
        return Step(what=f"{live.sql_name} is a plain table again{held(seconds)}", findings=unseen)

    def _key_twins(self, live: LiveTable) -> Sequence[str] | None:
        """Tasks that are there twice; None where the table is too large to look for them in time."""
        slots = {"live": live.slot, "key": live.key_column}
        try:
            with self.transaction(statement_timeout=TWINS_BUDGET) as connection:
                return connection.execute(load("postgres", "convert", "find_key_twins", slots)).scalars().all()
        except BackendBusy as error:
            if self.interrupted or code_of(error) != STATEMENT_TIMEOUT:
                raise
        return None

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
                yield Step(findings=(rows_left(live, leaf, conflicts),))
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
        """Drop it if it is empty, which is read while everybody goes on; a killed run's CHECK is no hindrance."""
        slots = {"leaf": leaf.slot, "live": live.slot}
        with self.transaction(statement_timeout=self.limits.budget) as connection:
            if not connection.execute(load("postgres", "live_partition", "is_empty", slots)).scalar_one():
                return False
        unbound = Sent("live_partition", "drop_bound", slots)
        with_moment(self, live.slot, [leaf.slot], [unbound, Sent("convert", "close_leaf", slots)])
        try:
            with self.transaction(statement_timeout=self.limits.budget) as connection:
                Sent("live_partition", "validate_bound", slots).send(connection)
        except BackendError as error:
            # Somebody put a row into the leaf itself, an instant ago; it is moved by the next run.
            unbind(self, leaf.oid, leaf.slot)
            if code_of(error) != CHECK_VIOLATION:
                raise
            return False
        wanted = [Sent("convert", "disinherit", slots), Sent("convert", "drop_leaf", slots)]
        try:
            with_moment(self, live.slot, [leaf.slot], wanted)
        except BackendError as error:
            if code_of(error) != DEPENDENT_OBJECTS:
                raise
            raise BackendRefused(
                f"{leaf.sql_name} is empty, but something depends on it: {error}",
                "drop the view that was made of it, and undo again",
            ) from error
        return True

    def _named(self, connection: Connection, table: Converted) -> LiveTable:
        for live in find_tables(self, connection).tables:
            if live.holds == table:
                return live
        raise BackendRefused(
            f"there is no {table} table {getattr(self.tables, table)!r}", "name it under `tables:` of the backend"
        )


def _names(connection: Connection, live: LiveTable, state: LiveState, base: Leaf) -> tuple[tuple[Index, str], ...]:
    """Of the base's indexes: as they were called before the conversion, or as Celery would, where that is free."""
    renamed = state.marker.renamed if state.marker and base is state.first else {}
    parent = list_indexes(connection, live.oid)
    free = FreeNames(connection, live.schema, (one.constraint or one.name for one in parent))
    found = []
    for index in list_indexes(connection, base.oid):
        old = index.constraint or index.name
        new = renamed.get(old) or _usual_name(live, index)
        if new is not None and new != old:
            found.append((index, free.take(new)))
    return tuple(found)


def _usual_name(live: LiveTable, index: Index) -> str | None:
    if index.is_primary:
        return fit(live.name, "_pkey")
    if index.columns == (live.key_column,) and index.is_unique:
        return fit(live.name, f"_{live.key_column}_key")
    if index.columns == ("date_done",):
        return index_name(live)
    return None


def _unready(live: LiveTable, state: LiveState) -> Iterator[Finding]:
    """What an operator has to see to first."""
    if state.unmarked:
        yield not_marked(live, state.unmarked)
    yield from (pending(live, one) for one in state.pending)


def _planned(undoing: Undoing) -> Iterator[PlannedStatement]:
    leaves = undoing.state.leaves
    hold = f"about {10 + 2 * len(leaves)} ms, waited for 2 s at most,"
    return planned_moment(undoing.live.slot, [leaf.slot for leaf in leaves], undoing.swap(), hold)
