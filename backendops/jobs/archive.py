"""archive: move old finished results out of the live tables, none lost and none twice."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from backendops.contracts import metrics
from backendops.contracts.capabilities import ArchivePlan, CanArchive, Every
from backendops.contracts.job import Job
from backendops.contracts.retention import Retention
from backendops.contracts.run import Pace, Preview, Steps
from backendops.contracts.units import Duration, Keep


class Archive(Job):
    """Move results that finished more than `older_than` ago into the archive table."""

    kind_name: ClassVar[str] = "archive"
    needs: ClassVar[type] = CanArchive
    changes: ClassVar[bool] = True
    metrics: ClassVar = (metrics.RESULTS_DUE, metrics.RESULTS_OLDEST_AGE)

    older_than: Duration = Field(description="Results that finished longer ago than this are moved.")
    table: Annotated[str, StringConstraints(min_length=1, max_length=63)] = Field(
        "{table}_archive",
        description="Name of the archive table; {table} stands for the live table's name.",
    )
    table_schema: str | None = Field(
        None, alias="schema", description="Schema of the archive table; left out: the live table's."
    )
    every: Every = Field("month", description="One partition of the archive per month, week or day.")

    def keeps(self) -> Mapping[str, Keep]:
        return {"older_than": self.older_than}

    @property
    def plan(self) -> ArchivePlan:
        """Where archived results go."""
        return ArchivePlan(self.table, self.table_schema, self.every)

    def preview(self, backend: CanArchive, now: datetime) -> Preview:
        return backend.preview_archive(Retention(now - self.older_than), self.plan)

    def run(self, backend: CanArchive, now: datetime, pace: Pace) -> Steps:
        yield from backend.archive(Retention(now - self.older_than), self.plan, pace)
