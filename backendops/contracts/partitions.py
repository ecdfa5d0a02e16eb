"""Partitions in an operator's hands: listed, taken back, dropped; a live table converted, and plain again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from backendops.contracts.capabilities import Every
from backendops.contracts.readings import Finding
from backendops.contracts.run import Pace, Steps

ConvertBy = Literal["id", "date_done"]
Converted = Literal["task", "group"]


@dataclass(frozen=True, slots=True)
class PartitionShown:
    """One partition, attached or in quarantine. Moments in UTC, sizes in bytes."""

    table: str
    """The table it is, or was, a part of, with its schema."""
    name: str
    schema: str
    state: str
    """attached, default, tail, detaching, retiring, quarantined or emptying (its rows go back into the archive)."""
    bounds: str
    """As the server writes them."""
    rows: int
    """The server's estimate; exact after a vacuum."""
    bytes: int
    detached_at: datetime | None = None
    drop_after: datetime | None = None
    """A quarantined one may be dropped from then on."""


class CanShowPartitions(ABC):
    """Can its partitions be listed, and those in quarantine be taken back or dropped, by name?"""

    @abstractmethod
    def show_partitions(self) -> Sequence[PartitionShown]:
        """Every partition of the archives and of converted live tables, and every table in quarantine."""

    @abstractmethod
    def reattach(self, name: str) -> Steps:
        """Take a table out of quarantine, back into the table that it was a part of.

        Raises BackendRefused where it cannot go back, with the reason.
        """

    @abstractmethod
    def drop_quarantined(self, name: str, now: datetime, before_its_time: bool) -> Steps:
        """Drop a table in quarantine; raises BackendRefused before its time, unless that is wanted."""


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """How a live table is to be partitioned."""

    now: datetime
    table: Converted
    by: ConvertBy
    every: Every
    """Length of a partition by date_done."""
    rows: int | None
    """Ids of a partition by id; None: what the last weeks' rate makes of a week."""
    ahead: int


@dataclass(frozen=True, slots=True)
class PlannedStatement:
    """One statement of a conversion: what is sent, which lock it takes, how long that is held."""

    sql: str
    lock: str
    hold: str
    """Estimated, in words."""
    together: bool = False
    """Is it in one transaction with the statement before it?"""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion, or its undoing, would do."""

    summary: str
    statements: tuple[PlannedStatement, ...] = ()
    refusals: tuple[Finding, ...] = ()
    """Each is a reason why it would not begin, with the way on."""
    findings: tuple[Finding, ...] = ()


class CanConvert(ABC):
    """Can a live table be made a partitioned one, and plain again, while Celery goes on writing to it?"""

    @abstractmethod
    def plan_conversion(self, plan: ConversionPlan) -> Conversion:
        """What `convert` would do, from a read-only connection."""

    @abstractmethod
    def convert(self, plan: ConversionPlan, pace: Pace) -> Steps:
        """Convert it, or go on where a conversion was cut short; raises BackendRefused before anything is changed."""

    @abstractmethod
    def plan_undo(self, table: Converted) -> Conversion:
        """What `undo` would do, from a read-only connection."""

    @abstractmethod
    def undo(self, table: Converted, pace: Pace) -> Steps:
        """Make it a plain table again, every row kept; goes on where an undoing was cut short."""
