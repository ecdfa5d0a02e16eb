"""Moving the rows of a former partition into the plain table that shows them already, in batches."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from datetime import timedelta
from time import monotonic
from typing import Final

from sqlalchemy import Connection

from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.errors import DEADLOCK, LOCK_NOT_AVAILABLE, STATEMENT_TIMEOUT, code_of
from backendops.backends.postgres.live_lock import planned_moment
from backendops.backends.postgres.live_table import Leaf
from backendops.backends.postgres.sent import ROW_EXCLUSIVE, SHARE_UPDATE, Sent
from backendops.backends.postgres.tables import LiveTable, list_columns, quoted
from backendops.backends.sql_files import literal, load
from backendops.contracts.errors import BackendBusy, BackendError
from backendops.contracts.partitions import PlannedStatement
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.run import Pace, Step
from backendops.contracts.units import format_seconds

UNIQUE_VIOLATION: Final = "23505"
# A batch that others' locks keep from moving is tried again a few times; then the next run has its turn.
ROUNDS: Final = 5
# A batch that fails ten times in a row, each time smaller, meets something that waiting for will not cure.
TRIES: Final = 10
# So many rows of a batch in which one is there twice are tried alone, each in a transaction.
ONE_BY_ONE: Final = 200
# Below every id there may be.
LOWEST: Final = -(2**62)


def planned_emptying(live: LiveTable, leaf: Leaf) -> Iterator[PlannedStatement]:
    """The statements that bring one leaf's rows back and drop it, for people."""
    columns = literal(", ".join(quoted(column.name) for column in live.columns))
    slots = {"live": live.slot, "leaf": leaf.slot, "columns": columns}
    batch = f"of the rows of a batch; again and again until none of about {leaf.rows:,} is left"
    yield Sent("convert", "keep_columns", slots, lock=ROW_EXCLUSIVE, hold=batch).planned()
    yield Sent("convert", "move_back", slots, lock=ROW_EXCLUSIVE).planned(together=True)
    closing = Sent("live_partition", "drop_bound", slots), Sent("convert", "close_leaf", slots)
    yield from planned_moment(live.slot, [leaf.slot], closing, "about 5 ms")
    yield Sent("live_partition", "validate_bound", slots, lock=SHARE_UPDATE, hold="none; reads what is dead").planned()
    dropping = Sent("convert", "disinherit", slots), Sent("convert", "drop_leaf", slots)
    yield from planned_moment(live.slot, [leaf.slot], dropping, "about 5 ms")


class Mover:
    """One leaf's rows on their way."""

    def __init__(self, session: PostgresSession, live: LiveTable, leaf: Leaf, pace: Pace) -> None:
        self._session = session
        self._live = live
        self._leaf = leaf
        self._pace = pace
        self._columns: tuple[str, ...] = tuple(column.name for column in live.columns)
        self._conflicts: set[int] = set()
        """Ids of rows that the plain table has already, by their id or their task id."""

    def all_rows(self) -> Generator[Step, None, int]:
        """Every row that nobody holds, in batches; gives how many could not be moved because they are there twice."""
        failures = 0
        for _ in range(ROUNDS):
            low = self._next_id(LOWEST)
            while low is not None:
                began, size = monotonic(), self._pace.size
                try:
                    moved, reached = self._move_batch(low, size)
                except BackendBusy as busy:
                    failures += 1
                    again = code_of(busy) in (LOCK_NOT_AVAILABLE, DEADLOCK, STATEMENT_TIMEOUT)
                    if failures == TRIES or self._session.interrupted or not again:
                        raise
                    self._pace.timed_out()
                    self._session.rest(0.2)
                    continue
                failures = 0
                self._pace.measured(moved, monotonic() - began)
                yield Step(rows=moved, what=f"moved back to {self._live.sql_name}")
                # What others hold is behind us now: the next round looks for it again.
                low = None if reached is None else self._next_id(reached + 1)
            if self._only_conflicts():
                break
            self._session.rest(0.1)
        return len(self._conflicts)

    def _move_batch(self, low: int, size: int) -> tuple[int, int | None]:
        """How many rows were moved, and up to which id; None where others hold all that is left."""
        try:
            with self._session.transaction() as connection:
                self._look_at_columns(connection)
                statement = load("postgres", "convert", "move_back", self._slots)
                moved = connection.execute(statement, {"low": low, "size": size}).scalars().all()
            return len(moved), max(moved, default=None)
        except BackendError as error:
            if code_of(error) != UNIQUE_VIOLATION:
                raise
        ids = self._ids(low, min(size, ONE_BY_ONE))
        alone = 0
        for number in ids:
            try:
                with self._session.transaction() as connection:
                    self._look_at_columns(connection)
                    connection.execute(load("postgres", "convert", "move_one_back", self._slots), {"id": number})
                alone += 1
            except BackendError as error:
                if code_of(error) != UNIQUE_VIOLATION:
                    raise
                self._conflicts.add(number)
        return alone, max(ids, default=None)

    @property
    def _slots(self) -> dict[str, str]:
        columns = literal(", ".join(quoted(name) for name in self._columns))
        return {"leaf": self._leaf.slot, "live": self._live.slot, "columns": columns}

    def _look_at_columns(self, connection: Connection) -> None:
        """A Celery that is upgraded meanwhile adds columns: locked against that, the leaf says which there are."""
        connection.execute(load("postgres", "convert", "keep_columns", self._slots))
        self._columns = tuple(column.name for column in list_columns(connection, self._leaf.oid))

    def _next_id(self, low: int) -> int | None:
        with self._session.transaction() as connection:
            statement = load("postgres", "convert", "find_next_id", self._slots)
            following: int | None = connection.execute(statement, {"low": low}).scalar_one()
        return following

    def _ids(self, low: int, size: int) -> list[int]:
        with self._session.transaction() as connection:
            statement = load("postgres", "convert", "list_batch", self._slots)
            return list(connection.execute(statement, {"low": low, "size": size}).scalars())

    def _only_conflicts(self) -> bool:
        """Is nothing left but what is there twice?"""
        return set(self._ids(LOWEST, len(self._conflicts) + 1)) <= self._conflicts


def twins_unseen(live: LiveTable, budget: timedelta) -> Finding:
    """What is not known before a large table is made plain again."""
    return Finding(
        Severity.WARNING,
        "undo.twins-unseen",
        f"{live.sql_name} is too large to look for tasks that are in two partitions within "
        f"{format_seconds(budget.total_seconds())}",
        "nothing: where one is met, its second row stays where it is, and is told of",
    )


def rows_left(live: LiveTable, leaf: Leaf, conflicts: int) -> Finding:
    """Why a leaf could not be emptied."""
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
