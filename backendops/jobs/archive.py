"""archive: move old finished results out of the live tables, none lost and none twice."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import Field, PrivateAttr, StringConstraints, field_validator

from backendops.contracts import metrics
from backendops.contracts.archive import ArchiveStore, CanHandOver
from backendops.contracts.capabilities import ArchivePlan, CanArchive, CanMoveStuck, Every
from backendops.contracts.job import Job
from backendops.contracts.retention import GROUP_MARGIN, Retention
from backendops.contracts.run import Limits, Pace, Preview, Steps
from backendops.contracts.units import Duration, FixedDuration, Keep
from backendops.jobs.destination import Destination
from backendops.jobs.moving import move
from backendops.jobs.rules import ArchiveRule, keep_rules, keeps_of

# As for keeping: who writes 30m has nearly always meant another unit.
SHORTEST_STUCK: Final = timedelta(hours=1)


class Archive(Job):
    """Move results that finished more than `older_than` ago into the archive: a table, another database, or files."""

    kind_name: ClassVar[str] = "archive"
    needs: ClassVar[type] = CanArchive
    changes: ClassVar[bool] = True
    takes_first: ClassVar[bool] = True
    metrics: ClassVar = (metrics.RESULTS_DUE, metrics.RESULTS_OLDEST_AGE)

    older_than: Duration = Field(description="Results that finished longer ago than this are moved.")
    rules: list[ArchiveRule] = Field(
        default_factory=list,
        description="Other times by task, queue and state, such as {queue: bulk, older_than: forever} for results that "
        "are never archived: the first that matches decides, before older_than.",
    )
    group_margin: FixedDuration = Field(
        GROUP_MARGIN,
        description="How much later than `older_than` a saved group is moved whose members cannot be read (it is "
        "pickled).",
    )
    stuck_after: FixedDuration | None = Field(
        None,
        description="Also move unfinished results that nothing was written to for so long, longer than the longest "
        "task: marked as stuck. PostgreSQL only; left out: unfinished results stay.",
        examples=["3d"],
    )
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

    @field_validator("stuck_after")
    @classmethod
    def _is_no_slip(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and value < SHORTEST_STUCK:
            raise ValueError(f"after {Duration(value)} a task is hardly stuck: write an hour at least, such as 3d")
        return value

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
        return {"older_than": self.older_than, **keeps_of(self.rules)}

    def retention(self, now: datetime) -> Retention:
        """The cutoffs of a run that starts at `now`."""
        return Retention(now - self.older_than, keep_rules(self.rules, now), group_margin=self.group_margin)

    @property
    def plan(self) -> ArchivePlan:
        """Where archived results go."""
        return ArchivePlan(self.table, self.table_schema, self.every)

    def preview(self, backend: Any, now: datetime) -> Preview:
        due = self.retention(now)
        if self._store is not None:
            handed_over: Preview = backend.preview_hand_over(due, self._store.label)
            return handed_over
        preview = _preview_here(backend, due, self.plan)
        if self.stuck_after is not None and isinstance(backend, CanMoveStuck):
            preview = _with_stuck(preview, backend.preview_stuck(self.stuck_after, self.plan))
        return preview

    def run(self, backend: Any, now: datetime, pace: Pace) -> Steps:
        due = self.retention(now)
        if self._store is None:
            yield from _move_here(backend, due, self.plan, pace)
            if self.stuck_after is not None and isinstance(backend, CanMoveStuck):
                yield from backend.move_stuck(self.stuck_after, self.plan, pace)
            return
        with self._store.open(self._source, self.limits, origin=backend.origin) as store:
            yield from move(backend, store, due, pace)

    @property
    def limits(self) -> Limits:
        """What the archive outside is opened with: as its backend."""
        return Limits(statement_timeout=self.statement_timeout, budget=self.time_budget)


def _preview_here(backend: CanArchive, due: Retention, plan: ArchivePlan) -> Preview:
    return backend.preview_archive(due, plan)


def _move_here(backend: CanArchive, due: Retention, plan: ArchivePlan, pace: Pace) -> Steps:
    return backend.archive(due, plan, pace)


def _with_stuck(preview: Preview, stuck: Preview) -> Preview:
    return replace(
        preview,
        summary=f"{preview.summary}; {stuck.summary}",
        rows=preview.rows + stuck.rows,
        statements=preview.statements + stuck.statements,
        readings=tuple(
            replace(reading, value=reading.value + stuck.rows) if reading.metric is metrics.RESULTS_DUE else reading
            for reading in preview.readings
        ),
        findings=preview.findings + stuck.findings,
    )
