"""Saved groups on PostgreSQL: which of them may go, as their members are finished or gone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import Any, Final

from sqlalchemy import Connection

from backendops.backends.group_members import MOST_READ, member_ids
from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.due import Due
from backendops.backends.postgres.tables import LiveTable
from backendops.backends.sql_files import load

# Groups listed at once: a line of each, far below what a batch of results takes in memory.
PAGE: Final = 1000
# Payloads held at once: some forty thousand members, which are looked up within about a second.
READ_BYTES: Final = 2 * 1024**2
# Members asked for at once: as many look-ups in an index take some tens of milliseconds.
ASKED: Final = 10_000
# One less would be a number of another type to the server, which no index has.
LOWEST_ID: Final = -(2**63) + 1


@dataclass(frozen=True, slots=True)
class _Listed:
    id: int
    size: int
    past_margin: bool


class Members:
    """Looks up the members of the due groups of one table. Nothing is locked."""

    def __init__(self, session: PostgresSession, live: LiveTable, tasks: LiveTable | None, due: Due) -> None:
        self._session = session
        self._live = live
        self._tasks = tasks
        self._due = due
        self._known: tuple[str, list[int]] | None = None

    def settled(self, within: str, values: Mapping[str, Any], most: int | None = None) -> list[int]:
        """The ids of the groups of a range that are due and whose members are finished or gone; `most`, or all of them.

        `within` is the range as SQL in parentheses, with its `values`.
        """
        key = f"{within} {values}"
        # A range that is larger than a batch is taken in several: what is known of all of it is known.
        if self._known is not None and self._known[0] == key:
            return self._known[1]
        found: list[int] = []
        for _, settled in self._looks(within, values):
            found += settled
            if most is not None and len(found) >= most:
                return found
        self._known = (key, found)
        return found

    def held(self, budget: timedelta) -> tuple[int, bool]:
        """How many groups are due but for their members; and whether that is all of them, as far as `budget` allows."""
        until, held = monotonic() + budget.total_seconds(), 0
        for listed, settled in self._looks("(date_done < :latest)", {"latest": self._due.latest}):
            held += listed - len(settled)
            if monotonic() > until:
                return held, False
        return held, True

    def _looks(self, within: str, values: Mapping[str, Any]) -> Iterator[tuple[int, list[int]]]:
        """How many were looked at, and the ids of those that may go; one item for each reading."""
        if not self._live.has_column("result"):
            return
        slots = {"live": self._live.slot, "range": within, "dated": self._due.dated}
        last_id, page = LOWEST_ID, PAGE
        while page == PAGE:
            bound = {**self._due.values, **values, "last_id": last_id, "page": PAGE}
            with self._transaction() as connection:
                rows = connection.execute(load("postgres", "groups", "list_groups", slots), bound).all()
            page = len(rows)
            if rows:
                last_id = rows[-1].id
            for part in _parts([_Listed(row.id, row.size, row.past_margin) for row in rows]):
                with self._transaction() as connection:
                    settled = self._settled(connection, part)
                yield len(part), settled

    def _settled(self, connection: Connection, part: Sequence[_Listed]) -> list[int]:
        members = self._members(connection, [one.id for one in part if one.size <= MOST_READ])
        unfinished = self._unfinished(connection, sorted(frozenset().union(*members.values())))
        settled = []
        for one in part:
            listed = members.get(one.id)
            # What cannot be read after all waits for the margin, as a pickled one does.
            if one.past_margin if listed is None else unfinished.isdisjoint(listed):
                settled.append(one.id)
        return settled

    def _members(self, connection: Connection, ids: list[int]) -> dict[int, frozenset[str]]:
        if self._tasks is None:
            # The table of tasks has another name than the policy says: nothing is known of any member.
            return {}
        rows = connection.execute(load("postgres", "groups", "read_payloads", {"live": self._live.slot}), {"ids": ids})
        found = ((row.id, member_ids(bytes(row.result))) for row in rows if row.result is not None)
        return {id_: listed for id_, listed in found if listed is not None}

    def _unfinished(self, connection: Connection, ids: list[str]) -> set[str]:
        found: set[str] = set()
        for start in range(0, len(ids), ASKED):
            assert self._tasks is not None  # noqa: S101 - without it there are no ids
            statement = load("postgres", "groups", "find_unfinished", {"task": self._tasks.slot})
            found |= set(connection.execute(statement, {"ids": ids[start : start + ASKED]}).scalars())
        return found

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._session.transaction(read_only=True, prefer_indexes=True) as connection:
            yield connection


def _parts(listed: Sequence[_Listed]) -> Iterator[list[_Listed]]:
    """Of each as many as may be read at once, one at least."""
    part: list[_Listed] = []
    size = 0
    for one in listed:
        if part and size + one.size > READ_BYTES:
            yield part
            part, size = [], 0
        part.append(one)
        size += one.size if one.size <= MOST_READ else 0
    if part:
        yield part
