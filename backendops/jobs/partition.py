"""partition: make the archive's partitions ahead of time and retire the old ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Annotated, ClassVar, Self

from pydantic import Field, PrivateAttr, StringConstraints

from backendops.contracts import metrics
from backendops.contracts.capabilities import ArchivePlan, CanPartition, Every, KeptFor, PartitionPlan
from backendops.contracts.job import Job
from backendops.contracts.order import Behind, ComesBehind, is_far_behind, reached, unarchived
from backendops.contracts.readings import Finding
from backendops.contracts.run import Pace, Preview, Step, Steps
from backendops.contracts.units import FOREVER, Duration, Forever, Keep
from backendops.jobs.findings import with_findings_counted


class Partition(Job, ComesBehind):
    """Keep the archive's partitions `ahead` of time, and retire those past `keep` through quarantine.

    On a backend that keeps archives of others, theirs too.
    """

    kind_name: ClassVar[str] = "partition"
    needs: ClassVar[type] = CanPartition
    changes: ClassVar[bool] = True
    metrics: ClassVar = (metrics.PARTITIONS_AHEAD, metrics.PARTITIONS_QUARANTINED, metrics.FINDINGS)

    every: Every = Field("month", description="One partition per month, week or day; as in the archive job.")
    # Three months give a team on holiday a quarter to notice that the job stopped.
    ahead: Annotated[int, Field(ge=1, le=400)] = Field(3, description="How many future partitions there are.")
    keep: Keep = Field(
        FOREVER,
        description="Partitions whose every row is older than this are retired; on a backend that keeps archives of "
        "others (`to:`), theirs too.",
    )
    keep_live: Keep = Field(
        FOREVER,
        description="The same for a live table that `backendops partition convert` partitioned: its partitions are "
        "retired whole once every result in them finished before this, and an archive job has taken what is its.",
        examples=["30d"],
    )
    allow_unarchived: bool = Field(
        False,
        description="Retire partitions of a live table although an archive job of the same backend has still to take "
        "results of them; otherwise they stay until a run of it has completed.",
    )
    quarantine: Duration = Field(
        Duration.parse("7d"),
        description="How long a retired partition stays, detached and restorable, before it is dropped.",
    )
    table: Annotated[str, StringConstraints(min_length=1, max_length=63)] = Field(
        "{table}_archive",
        description="Name of the archive table; {table} stands for the live table's name.",
    )
    table_schema: str | None = Field(
        None, alias="schema", description="Schema of the archive table; left out: the live table's."
    )

    _kept_for: tuple[KeptFor, ...] = PrivateAttr(())
    _behind: tuple[Behind, ...] = PrivateAttr(())
    _completed: Mapping[str, datetime] = PrivateAttr(default_factory=dict)

    def looking_after(self, kept_for: tuple[KeptFor, ...]) -> Self:
        """The same job for one backend, with the archives that other backends send there."""
        job = self.model_copy()
        job._kept_for = kept_for
        return job

    def behind_these(self, behind: tuple[Behind, ...]) -> Self:
        """The same job where archive jobs take results of its live partitions first."""
        job = self.model_copy()
        job._behind = behind
        return job

    @property
    def behind(self) -> Collection[Behind]:
        return self._behind

    def knowing(self, completed: Mapping[str, datetime]) -> Self:
        job = self.model_copy()
        job._completed = completed
        return job

    def held_back(self, now: datetime) -> Collection[str]:
        return {"keep_live"} if is_far_behind(self._live_cutoff(now), self.plan(now).live_cutoff) else set()

    def keeps(self) -> Mapping[str, Keep]:
        # Both, always: a key that came or went would be compared with the other one, which is about other tables.
        return {"keep": self.keep, "keep_live": self.keep_live}

    def plan(self, now: datetime) -> PartitionPlan:
        """Which partitions there should be at `now`."""
        return PartitionPlan(
            now=now,
            archive=ArchivePlan(self.table, self.table_schema, self.every),
            ahead=self.ahead,
            cutoff=None if isinstance(self.keep, Forever) else now - self.keep,
            quarantine=self.quarantine,
            kept_for=self._kept_for,
            live_cutoff=reached(self._live_cutoff(now), self._behind, self._completed),
        )

    def _live_cutoff(self, now: datetime) -> datetime | None:
        return None if isinstance(self.keep_live, Forever) else now - self.keep_live

    def _waiting(self, now: datetime) -> tuple[Finding, ...]:
        """What is past keeping and stays, as an archive job has still to take it."""
        if self.plan(now).live_cutoff == self._live_cutoff(now):
            return ()
        return (unarchived("partition.unarchived", "live partitions", self._behind, self._completed),)

    def preview(self, backend: CanPartition, now: datetime) -> Preview:
        preview = backend.preview_partitions(self.plan(now))
        return replace(preview, findings=(*preview.findings, *self._waiting(now)))

    def run(self, backend: CanPartition, now: datetime, pace: Pace) -> Steps:
        yield from with_findings_counted(self._steps(backend, now, pace))

    def _steps(self, backend: CanPartition, now: datetime, pace: Pace) -> Steps:
        if findings := self._waiting(now):
            yield Step(findings=findings)
        yield from backend.maintain_partitions(self.plan(now), pace)
