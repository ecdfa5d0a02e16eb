"""The ranges that a walk cuts a table into, and what became of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.sql_files import load

# Small ranges are looked for several at a time: each by itself would cost as many round trips as taking it.
ROWS_AHEAD: Final = 5_000
# The size of the next batch wavers by a few rows from one to the next; a timeout halves it.
ALIKE: Final = 0.25

Key = datetime | int
"""A value of the column that is walked by: date_done, naive, or id."""


@dataclass(frozen=True, slots=True)
class Span:
    """The rows from `low` up to `high`, which is not in it."""

    low: Key
    high: Key
    size: int
    """How many rows were asked for."""
    full: bool
    """Does it have as many?"""
    crowded: bool = False
    """Do more rows than were asked for share one value, so that the range cannot be cut to size?"""

    @property
    def values(self) -> dict[str, Key]:
        """Its bounds as binds."""
        return {"low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Taken:
    """What one batch did: its rows are committed."""

    rows: int
    seconds: float
    """How long its rows were locked: only that is kept short, or a distant server's round trips would leave tiny
    batches."""
    locked: int = 0
    """Due rows that other sessions' locks kept; they wait for the next run."""
    is_done: bool = True
    """Is nothing of the range left to take?"""


class Cuts:
    """Cuts what a walk has before it into ranges of so many rows."""

    def __init__(self, session: PostgresSession, slots: Mapping[str, str]) -> None:
        self._session, self._slots = session, slots
        self._size = 0
        self._ahead: dict[Key, Key] = {}

    def cut(self, low: Key, end: Key, size: int) -> Span:
        """The range from `low` on, of about `size` rows; `end` is the end of the walk."""
        if low not in self._ahead or abs(size - self._size) > ALIKE * self._size:
            self._look_ahead(low, end, size)
        high = self._ahead.get(low)
        if high is None:
            return Span(low, end, size, full=False)
        if high != low:
            return Span(low, high, self._size, full=True)
        with self._session.transaction(prefer_indexes=True) as connection:
            find = load("postgres", "walk", "find_next", self._slots)
            following = connection.execute(find, {"low": low, "end": end}).scalar_one()
        return Span(low, end if following is None else following, size, full=True, crowded=True)

    def _look_ahead(self, low: Key, end: Key, size: int) -> None:
        values = {"low": low, "end": end, "size": size, "ranges": max(1, ROWS_AHEAD // size)}
        with self._session.transaction(prefer_indexes=True) as connection:
            bounds = connection.execute(load("postgres", "walk", "find_bounds", self._slots), values).scalars().all()
        self._size = size
        self._ahead = dict(zip([low, *bounds], bounds, strict=False))
