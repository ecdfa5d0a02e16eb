"""What the keys of a cache server are: how many of each kind, how large, and when they go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

KEY_KINDS: Final = ("task", "group", "chord", "rpc", "broker", "foreign")
"""Celery's task results, saved groups, parts of chords, replies of RPC; a broker's keys; everything else."""

BOUNDS: Final = tuple(
    timedelta(**length)
    for length in (
        {"minutes": 1}, {"hours": 1}, {"hours": 6}, {"days": 1}, {"days": 7}, {"days": 30}, {"days": 90},
    )
)  # fmt: skip
BUCKETS: Final = ("1m", "1h", "6h", "1d", "7d", "30d", "90d", "more")
"""The classes of a time to live or an age: up to so much, and more than the last."""


@dataclass(frozen=True, slots=True)
class KindOfKeys:
    """The keys of one kind. `size_error` is half of the interval that the true size is in, nineteen times of twenty."""

    keys: int = 0
    without_ttl: int = 0
    ttl: tuple[int, ...] = (0,) * len(BUCKETS)
    size: int = 0
    size_error: int = 0
    weighed: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """Keys and bytes of one state or one task, as far as the weighed results tell."""

    name: str
    keys: int
    size: int


@dataclass(frozen=True, slots=True)
class Keyspace:
    """One survey. Numbers of keys are counted, sizes and what a value tells are measured on a sample of them."""

    keys: int
    part: float
    """The part of the keyspace that was gone through, 0 to 1; every number is scaled up to the whole."""
    seconds: float
    kinds: Mapping[str, KindOfKeys]
    states: tuple[Share, ...] = ()
    tasks: tuple[Share, ...] = ()
    """The largest by bytes; the last is `other`, where there are more."""
    ages: tuple[int, ...] = (0,) * len(BUCKETS)
    """Finished results by the time since date_done."""
    largest: tuple[tuple[str, int], ...] = ()
    """Name and bytes of the largest results that were weighed."""
    longest_call: float = 0.0
    """Seconds of the slowest call, the way to the server and back included."""
    notes: tuple[str, ...] = ()
    """What could not be read and why."""


class CanSurveyKeys(ABC):
    """Can its keys be gone through without holding the server?"""

    @abstractmethod
    def survey_keys(
        self,
        time_limit: timedelta | None = None,
        *,
        top: int = 10,
        weigh_all: bool = False,
        progress: Callable[[float], None] | None = None,
    ) -> Keyspace:
        """Go through the keys for at most `time_limit`; `progress` is told the part that is done, 0 to 1."""
