"""The ranges that a walk cuts a table into, and what became of one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

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
