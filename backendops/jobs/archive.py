"""archive: move old finished results out of the live tables, none lost and none twice."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, PrivateAttr, StringConstraints

from backendops.contracts import metrics
from backendops.contracts.archive import ArchiveStore, CanHandOver
from backendops.contracts.capabilities import ArchivePlan, CanArchive, Every
from backendops.contracts.job import Job
from backendops.contracts.retention import Retention
from backendops.contracts.run import Limits, Pace, Preview, Steps
from backendops.contracts.units import Duration, Keep
from backendops.jobs.destination import Destination
from backendops.jobs.moving import move


class Archive(Job):
    """Move results that finished more than `older_than` ago into the archive: a table, another database, or files."""

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
    every: Every = Field("month", description="One partition (or directory) of the archive per month, week or day.")
    to: Destination | None = Field(
        None,
        description="Where the archive is: {backend: NAME} or {files: PATH}; left out: a table in the same database.",
        examples=[{"files": "/srv/archive"}],
    )

    _store: ArchiveStore | None = PrivateAttr(None)
    _source: str = PrivateAttr("")

    @classmethod
    def ability(cls, keys: Collection[str]) -> type:
        return CanHandOver if "to" in keys else cls.needs

    @property
    def store(self) -> ArchiveStore | None:
        """The archive outside the backend; None where it is a table in it."""
        return self._store

    @property
    def source(self) -> str:
        """The backend's name in the policy, by which the archive outside knows whose rows it has."""
        return self._source

    def sent_to(self, store: ArchiveStore, source: str) -> Self:
        """The same job for one backend, with its archive in `store`."""
        sent = self.model_copy()
        sent._store, sent._source = store, source
        return sent

    def keeps(self) -> Mapping[str, Keep]:
        return {"older_than": self.older_than}

    @property
    def plan(self) -> ArchivePlan:
        """Where archived results go."""
        return ArchivePlan(self.table, self.table_schema, self.every)

    def preview(self, backend: Any, now: datetime) -> Preview:
        due = Retention(now - self.older_than)
        if self._store is not None:
            preview: Preview = backend.preview_hand_over(due, self._store.label)
            return preview
        return _preview_here(backend, due, self.plan)

    def run(self, backend: Any, now: datetime, pace: Pace) -> Steps:
        due = Retention(now - self.older_than)
        if self._store is None:
            yield from _move_here(backend, due, self.plan, pace)
            return
        with self._store.open(self._source, self.limits) as store:
            yield from move(backend, store, due, pace)

    @property
    def limits(self) -> Limits:
        """What the archive outside is opened with: as its backend."""
        return Limits(statement_timeout=self.statement_timeout, budget=self.time_budget)


def _preview_here(backend: CanArchive, due: Retention, plan: ArchivePlan) -> Preview:
    return backend.preview_archive(due, plan)


def _move_here(backend: CanArchive, due: Retention, plan: ArchivePlan, pace: Pace) -> Steps:
    return backend.archive(due, plan, pace)
