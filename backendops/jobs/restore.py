"""restore: put archived results back among the live ones. It is no entry of a policy: an operator asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, ClassVar, Final

from pydantic import PrivateAttr

from backendops.contracts.archive import (
    ArchiveStore,
    CanHandOver,
    CanRestore,
    CanTakeBack,
    Copy,
    PutBack,
    Quarantined,
    Restoring,
    Row,
    Selection,
    Shape,
)
from backendops.contracts.errors import BackendRefused
from backendops.contracts.job import Job
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.run import Pace, Preview, Step, Steps
from backendops.jobs.archive import Archive
from backendops.jobs.moving import finish, stays_archived

# A sentence of more ids is not read; --json has them all.
_IDS_SHOWN: Final = 5


class Restore(Job):
    """Put results back that one archive job has moved, wherever it keeps them."""

    kind_name: ClassVar[str] = "restore"
    needs: ClassVar[type] = CanTakeBack
    changes: ClassVar[bool] = True
    minds_the_clock: ClassVar[bool] = False

    _archive: Archive = PrivateAttr()
    _selection: Selection = PrivateAttr()
    _names_all: bool = PrivateAttr(True)
    _left: int = PrivateAttr(0)
    _restored: list[str] = PrivateAttr(default_factory=list)
    _live_again: list[str] = PrivateAttr(default_factory=list)
    _quarantined: list[Quarantined] = PrivateAttr(default_factory=list)

    @classmethod
    def of(cls, archive: Archive, selection: Selection, *, names_all: bool = True) -> Restore:
        """What `archive` has of the selection. Without `names_all` no list of ids grows with what is put back."""
        restore = cls.model_construct(
            time_budget=archive.time_budget,
            statement_timeout=archive.statement_timeout,
            batch_time=archive.batch_time,
            batch_size=archive.batch_size,
        )
        restore._archive, restore._selection, restore._names_all = archive, selection, names_all
        return restore

    @property
    def restored(self) -> list[str]:
        """The ids that were put back; none where not all are to be named."""
        return self._restored

    @property
    def live_again(self) -> list[str]:
        """The ids that were left in the archive, as there is a live result of theirs; the first few, likewise."""
        return self._live_again

    @property
    def left(self) -> int:
        """How many were left, as they are live again."""
        return self._left

    @property
    def quarantined(self) -> list[Quarantined]:
        """What is meant and not in the archive: in retired partitions, which a restore does not take from."""
        return self._quarantined

    def preview(self, backend: Any, now: datetime) -> Preview:
        if self._archive.store is None:
            here = _here(backend)
            preview = here.preview_restore(self._selection, self._archive.plan)
            return self._with_quarantined(preview, here.find_quarantined(self._selection, self._archive.plan))
        rows, oldest = 0, None
        with self._archive.store.open(self._archive.source, replace(self._archive.limits, read_only=True)) as store:
            for copy in store.find(self._selection, _LargePace()):
                rows += len(copy.batch.rows)
                first = min(row.done_at for row in copy.batch.rows)
                oldest = first if oldest is None else min(oldest, first)
            quarantined = store.find_quarantined(self._selection)
        said = f"would put back {rows:,} results from {self._archive.store.label}"
        return self._with_quarantined(Preview(said, rows=rows, oldest=oldest), quarantined)

    def _with_quarantined(self, preview: Preview, found: Sequence[Quarantined]) -> Preview:
        self._quarantined.extend(found)
        return replace(preview, findings=(*preview.findings, *self._out_of_reach()))

    def run(self, backend: Any, now: datetime, pace: Pace) -> Steps:
        if self._archive.store is None:
            here = _here(backend)
            yield from self._told(here.restore(self._selection, self._archive.plan, pace), "the archive table")
            self._quarantined.extend(here.find_quarantined(self._selection, self._archive.plan))
            yield Step(findings=tuple(self._out_of_reach()))
            return
        if not isinstance(backend, CanTakeBack):
            raise BackendRefused(
                f"{type(backend).__name__} cannot take results back", "restore them to a backend that keeps tables"
            )
        origin = backend.origin if isinstance(backend, CanHandOver) else ""
        with self._archive.store.open(self._archive.source, self._archive.limits, origin=origin) as store:
            yield from finish(backend, store, pace)
            yield from self._told(self._from_store(backend, store, pace), store.label)
            self._quarantined.extend(store.find_quarantined(self._selection))
        yield Step(findings=tuple(self._out_of_reach()))

    def _out_of_reach(self) -> Iterator[Finding]:
        elsewhere = self._archive.to.backend if self._archive.to else None
        for one in self._quarantined:
            many = "an unknown number of" if one.rows is None else f"{one.rows:,}"
            until = f", which is dropped after {one.drop_after:%Y-%m-%d %H:%M} UTC" if one.drop_after else ""
            first = "run the partition job, which finishes its detach; then " if one.detaching else ""
            where = f" --backend {elsewhere}" if elsewhere else ""
            if one.returning:
                yield Finding(
                    Severity.WARNING,
                    "restore.not-yet-moved-back",
                    f"{many} results that are meant were left, as they are in {one.name}, whose rows are on their way "
                    "back into the archive",
                    "run the partition job, which moves them, then restore again",
                )
                continue
            yield Finding(
                Severity.WARNING,
                "restore.in-quarantine",
                f"{many} results that are meant were left, as they are in the retired partition {one.name}{until}",
                f"{first}`backendops partitions reattach {one.name}{where}`, then restore again before "
                "the partition job's next run (`backendops pause` holds it)",
            )

    def _told(self, restoring: Restoring, where: str) -> Steps:
        for put_back in restoring:
            self._left += len(put_back.live_again)
            if self._names_all:
                self._restored.extend(put_back.restored)
            most = None if self._names_all else max(_IDS_SHOWN - len(self._live_again), 0)
            self._live_again.extend(put_back.live_again[:most])
            count = len(put_back.restored)
            yield Step(rows=count, what=f"put back from {where}" if count else "")
        if self._left:
            yield Step(findings=(_left_out(self._left, self._live_again),))

    def _from_store(self, backend: CanTakeBack, store: ArchiveStore, pace: Pace) -> Restoring:
        for copy in store.find(self._selection, pace):
            backend.check_take_back(copy.batch)
            for row in copy.batch.rows:
                self._refuse_due(copy.batch.shape, row)
            yield from _put_back(backend, store, copy)

    def _refuse_due(self, shape: Shape, row: Row) -> None:
        asked = (shape.value(row, name) for name in ("status", "name", "queue"))
        texts = (value if isinstance(value, str) else None for value in asked)
        self._selection.refuse_due(shape.value(row, shape.key), row.done_at, *texts)


def _put_back(backend: CanTakeBack, store: ArchiveStore, copy: Copy) -> Restoring:
    """One batch: taken down, put in, read back, and only then taken out of the archive."""
    shape = copy.batch.shape
    keys = [str(shape.value(row, shape.key)) for row in copy.batch.rows]
    there = backend.look_up(copy.batch)
    # The newest of an id comes first; the others stay archived.
    firsts = {key: at for at, key in reversed(list(enumerate(keys)))}
    chosen = sorted(at for at in firsts.values() if at not in there)
    live_again = {keys[at] for at in there}
    if chosen:
        leaving = store.begin_restore(copy, chosen)
        yield PutBack()
        backend.take_back(leaving.batch)
        yield PutBack()
        same = {at for at, is_same in backend.look_up(leaving.batch).items() if is_same}
        store.settle(leaving, [at for at in range(len(chosen)) if at not in same or stays_archived(backend)])
        live_again |= {keys[chosen[at]] for at in range(len(chosen)) if at not in same}
        yield PutBack(restored=tuple(keys[chosen[at]] for at in sorted(same)))
    if live_again:
        yield PutBack(live_again=tuple(sorted(live_again)))


def _left_out(count: int, ids: list[str]) -> Finding:
    shown = ", ".join(ids[:_IDS_SHOWN]) + (" …" if count > _IDS_SHOWN else "")
    return Finding(
        Severity.INFO,
        "restore.live-again",
        f"{count:,} archived results were left, as there is a live result of their id: {shown}",
        "delete the live result first where the archived one is wanted",
    )


def _here(backend: Any) -> CanRestore:
    if not isinstance(backend, CanRestore):
        raise BackendRefused(
            f"{type(backend).__name__} cannot restore from an archive table",
            "copy the rows with SQL, naming the columns",
        )
    return backend


class _LargePace(Pace):
    """For reading alone, which nobody waits behind."""

    @property
    def size(self) -> int:
        return 5000

    def measured(self, rows: int, seconds: float) -> None:
        pass

    def timed_out(self) -> None:
        pass
