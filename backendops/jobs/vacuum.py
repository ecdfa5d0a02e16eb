"""vacuum: make the space of removed results reusable and keep the planner's statistics current."""

from __future__ import annotations

from datetime import datetime, time, timedelta
from typing import Annotated, ClassVar
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, field_validator

from backendops.contracts import metrics
from backendops.contracts.capabilities import CanVacuum, VacuumPlan
from backendops.contracts.job import Job
from backendops.contracts.run import Pace, Preview, Steps
from backendops.contracts.units import FixedDuration
from backendops.jobs.findings import with_findings_counted


class FullWindow(BaseModel):
    """The hours in which a table may be rewritten under an exclusive lock."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: time = Field(description="First minute of the window, such as '02:00', in `timezone`.")
    end: time = Field(description="Last minute; before `start` it is on the next day.")
    timezone: str = Field("UTC", description="Time zone of the window.")

    @field_validator("timezone")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"{value!r} is not a time zone: write one such as Europe/Berlin") from None
        return value

    def contains(self, now: datetime) -> bool:
        """Is `now` inside the window?"""
        local = now.astimezone(ZoneInfo(self.timezone)).time()
        if self.start <= self.end:
            return self.start <= local <= self.end
        return local >= self.start or local <= self.end


class Vacuum(Job):
    """VACUUM (ANALYZE) the tables and partitions that need it."""

    kind_name: ClassVar[str] = "vacuum"
    needs: ClassVar[type] = CanVacuum
    changes: ClassVar[bool] = True
    minds_the_clock: ClassVar[bool] = False
    metrics: ClassVar = (metrics.TABLE_BYTES, metrics.TABLE_DEAD_ROWS, metrics.FINDINGS)

    # Below a thousand dead rows the pages hardly change; autovacuum's own floor is 50.
    dead_rows: Annotated[int, Field(ge=1)] = Field(
        1000, description="A table with fewer dead rows than this is left alone."
    )
    # Half of autovacuum's default scale factor (0.2): this job comes before it, at a quiet hour.
    dead_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="Vacuum where dead rows are at least this part of the table."
    )
    analyze_after: FixedDuration = Field(
        timedelta(days=7), description="Analyze where the statistics are older than this."
    )
    full: FullWindow | None = Field(
        None,
        description="A window in which tables may be rewritten (VACUUM FULL) under an exclusive lock; left out: never.",
    )

    def plan(self, now: datetime) -> VacuumPlan:
        """The thresholds of a run that starts at `now`."""
        return VacuumPlan(
            now=now,
            dead_rows=self.dead_rows,
            dead_ratio=self.dead_ratio,
            analyze_after=self.analyze_after,
            full=self.full is not None and self.full.contains(now),
        )

    def preview(self, backend: CanVacuum, now: datetime) -> Preview:
        return backend.preview_vacuum(self.plan(now))

    def run(self, backend: CanVacuum, now: datetime, pace: Pace) -> Steps:
        yield from with_findings_counted(backend.vacuum(self.plan(now), pace))
