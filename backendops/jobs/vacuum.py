"""vacuum: make the space of removed results reusable and keep the planner's statistics current."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta
from typing import Annotated, ClassVar, Self
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from backendops.contracts import metrics
from backendops.contracts.capabilities import CanVacuum, IndexPlan, VacuumPlan
from backendops.contracts.job import Job
from backendops.contracts.run import Pace, Preview, Steps
from backendops.contracts.units import FixedDuration
from backendops.jobs.findings import with_findings_counted


class Window(BaseModel):
    """Some hours of every day."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: time = Field(description="First minute of the window, such as '02:00', in `timezone`.")
    end: time = Field(description="Last minute; before `start` it is on the next day.")
    timezone: str = Field("UTC", description="Time zone of the window.")

    @field_validator("start", "end")
    @classmethod
    def _bare(cls, value: time) -> time:
        if value.tzinfo is not None:
            raise ValueError("write the time alone, such as '02:00', and its zone as `timezone` of the window")
        return value

    @field_validator("timezone")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"{value!r} is not a time zone: write one such as Europe/Berlin") from None
        return value

    def until(self, now: datetime) -> datetime | None:
        """When the window ends that `now` is in; None where it is in none."""
        local = now.astimezone(ZoneInfo(self.timezone))
        moment = local.time()
        end = datetime.combine(local.date(), self.end, ZoneInfo(self.timezone))
        if self.start <= self.end:
            inside = self.start <= moment <= self.end
        else:
            inside = moment >= self.start or moment <= self.end
            if moment >= self.start:
                end += timedelta(days=1)
        return end.astimezone(UTC) if inside else None

    def contains(self, now: datetime) -> bool:
        """Is `now` inside the window?"""
        return self.until(now) is not None


def _part(value: object) -> object:
    """`30%` is 0.3."""
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", value.strip())):
        return float(match[1]) / 100
    return value


Part = Annotated[float, BeforeValidator(_part), Field(gt=0, le=1)]
"""A part of the whole: 0.3, or 30%."""


class Indexes(BaseModel):
    """What may be done about indexes; what may not is reported with the statement that would do it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    create_missing: bool = Field(
        False,
        description="Create the index on date_done where a table of Celery's has none (before 5.6.3 there was none), "
        "CONCURRENTLY.",
    )
    drop_invalid: bool = Field(
        False, description="Drop what a cancelled CREATE INDEX or REINDEX CONCURRENTLY left behind, whoever ran it."
    )
    reindex_bloated: Part | None = Field(
        None,
        description="Rebuild an index CONCURRENTLY, inside `window` only, where at least this part of it is empty; "
        "left out: never.",
        examples=["30%"],
    )
    window: Window | None = Field(
        None,
        description="The hours in which indexes may be rebuilt; a rebuild is ended when they are over.",
        examples=[{"start": "02:00", "end": "04:00", "timezone": "UTC"}],
    )

    @model_validator(mode="after")
    def _has_hours(self) -> Self:
        if (self.reindex_bloated is None) != (self.window is None):
            raise ValueError(
                "reindex_bloated and window belong together, such as "
                "{reindex_bloated: 30%, window: {start: '02:00', end: '04:00'}}"
            )
        return self

    def plan(self, now: datetime) -> IndexPlan:
        """What a run that starts at `now` may do."""
        return IndexPlan(
            create_missing=self.create_missing,
            drop_invalid=self.drop_invalid,
            reindex_bloated=self.reindex_bloated,
            rebuild_until=None if self.window is None else self.window.until(now),
        )


class Vacuum(Job):
    """VACUUM (ANALYZE) the tables and partitions that need it."""

    kind_name: ClassVar[str] = "vacuum"
    needs: ClassVar[type] = CanVacuum
    changes: ClassVar[bool] = True
    minds_the_clock: ClassVar[bool] = False
    metrics: ClassVar = (
        metrics.TABLE_BYTES,
        metrics.TABLE_DEAD_ROWS,
        metrics.TABLE_BLOAT_BYTES,
        metrics.TABLE_FREEZE_AGE,
        metrics.TABLE_INVALID_INDEXES,
        metrics.FINDINGS,
    )

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
    # What a rewrite must give back to be worth its lock; less comes and goes with the week's writing.
    bloat_ratio: Part = Field(
        0.3,
        description="A table is bloated where dead rows and free space, TOAST included, are at least this part of it "
        "(and 16 MiB): vacuumed where that helps, rewritten in the window of `full`, otherwise reported.",
    )
    # vacuum_freeze_table_age's default: from here on a vacuum reads the whole table anyway, and autovacuum, which
    # comes at 200 million at any hour, need not.
    freeze_age: Annotated[int, Field(ge=1)] = Field(
        150_000_000,
        description="Freeze (VACUUM FREEZE) where the oldest row that is not frozen is older than this many "
        "transactions, or multixacts.",
    )
    freeze_past: bool = Field(
        True,
        description="Freeze the archive's partitions that are past, and those in quarantine, once: no vacuum against "
        "wraparound reads them again.",
    )
    indexes: Indexes = Field(
        Indexes(),
        description="What may be done about indexes; what may not is reported with the statement that would do it.",
    )
    full: Window | None = Field(
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
            full_until=None if self.full is None else self.full.until(now),
            bloat_ratio=self.bloat_ratio,
            freeze_age=self.freeze_age,
            freeze_past=self.freeze_past,
            indexes=self.indexes.plan(now),
        )

    def preview(self, backend: CanVacuum, now: datetime) -> Preview:
        return backend.preview_vacuum(self.plan(now))

    def run(self, backend: CanVacuum, now: datetime, pace: Pace) -> Steps:
        yield from with_findings_counted(backend.vacuum(self.plan(now), pace))
