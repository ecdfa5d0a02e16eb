"""What a command does to partitions: run like any job, with lock and ledger, though no policy names it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import ClassVar

from backendops.contracts.capabilities import Every
from backendops.contracts.job import Job
from backendops.contracts.partitions import CanConvert, CanShowPartitions, ConversionPlan, ConvertBy, Converted
from backendops.contracts.run import Pace, Preview, Steps
from backendops.contracts.units import FixedDuration


class ByHand(Job):
    """Work that only a command asks for."""

    changes: ClassVar[bool] = True
    # A person waits for it and can end it; it is the person who knows how long is too long.
    time_budget: FixedDuration = timedelta(days=1)

    def preview(self, backend: object, now: datetime) -> Preview:
        return Preview("asked for by hand")


class Reattach(ByHand):
    """Take a partition back out of quarantine."""

    kind_name: ClassVar[str] = "partitions-reattach"
    needs: ClassVar[type] = CanShowPartitions
    minds_the_clock: ClassVar[bool] = False

    name: str

    def run(self, backend: CanShowPartitions, now: datetime, pace: Pace) -> Steps:
        return backend.reattach(self.name)


class DropQuarantined(ByHand):
    """Drop a partition in quarantine."""

    kind_name: ClassVar[str] = "partitions-drop"
    needs: ClassVar[type] = CanShowPartitions

    name: str
    before_its_time: bool = False

    def run(self, backend: CanShowPartitions, now: datetime, pace: Pace) -> Steps:
        return backend.drop_quarantined(self.name, now, self.before_its_time)


class Convert(ByHand):
    """Make a live table a partitioned one."""

    kind_name: ClassVar[str] = "partition-convert"
    needs: ClassVar[type] = CanConvert

    table: Converted = "task"
    by: ConvertBy = "id"
    every: Every = "month"
    rows: int | None = None
    ahead: int = 3

    def plan(self, now: datetime) -> ConversionPlan:
        """How it is to be partitioned."""
        return ConversionPlan(now, self.table, self.by, self.every, self.rows, self.ahead)

    def run(self, backend: CanConvert, now: datetime, pace: Pace) -> Steps:
        return backend.convert(self.plan(now), pace)


class Undo(ByHand):
    """Make a converted live table plain again."""

    kind_name: ClassVar[str] = "partition-undo"
    needs: ClassVar[type] = CanConvert
    minds_the_clock: ClassVar[bool] = False

    table: Converted = "task"

    def run(self, backend: CanConvert, now: datetime, pace: Pace) -> Steps:
        return backend.undo(self.table, pace)
