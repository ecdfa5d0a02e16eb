"""Moving due results to an archive outside their backend: copied, read back, removed if unchanged, settled."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import Any, Final

from backendops.contracts import metrics
from backendops.contracts.archive import ArchiveStore, Batch, CanHandOver, CanTakeBack, Copy, Row, fingerprint
from backendops.contracts.errors import BackendBusy, BackendRefused
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.retention import Retention
from backendops.contracts.run import Pace, Step, Steps

# What is gathered for one write is in memory: with what is read at once, the whole run stays below a hundred MiB.
GATHER_BYTES: Final = 32 * 1024**2

# A removal that fails three times, and cannot be smaller, meets something that no waiting cures within this run.
TRIES: Final = 3


def move(source: CanHandOver, store: ArchiveStore, due: Retention, pace: Pace) -> Steps:
    """Move everything that is due. A stop between two steps leaves each result in one place, or a copy to finish."""
    yield from finish(source, store, pace)
    source.begin_hand_over(store.identity)
    found = source.find_due(due)
    made = [done for done in (store.prepare(shape) for shape in source.shapes_due(due)) if done]
    about = "" if found.exact else "about "
    yield Step(
        what="; ".join([f"{about}{found.rows:,} results are due", *made]),
        readings=(metrics.RESULTS_DUE.read(found.rows),),
        findings=found.findings,
    )
    left = 0
    for batch in _gathered(source.read_due(due, pace), store.write_rows):
        if isinstance(batch, Step):
            yield batch
            continue
        if source.only_copies:
            # What goes by itself is gone through without a lock, and may be met twice.
            batch = _each_once(batch)  # noqa: PLW2901 - the same, without its repetitions
        copies = store.write(batch, unless_there=source.only_copies)
        # From here on a run that ends leaves them unfinished, and the next one begins with them.
        yield Step()
        for copy in copies:
            for step, stayed in _settled(source, store, copy, pace):
                left += stayed
                yield step
    said = f"{left:,} due results are left: they changed, or other sessions hold them" if left else ""
    yield Step(
        what=said or "nothing that is due is left",
        readings=(metrics.RESULTS_DUE.read(left), *source.oldest_ages()),
        findings=source.end_hand_over(),
    )


def finish(source: Any, store: ArchiveStore, pace: Pace) -> Steps:
    """Finish what an earlier run was writing, or putting back, when it ended."""
    for copy in store.unfinished():
        if _is_of_another_database(source, copy):
            yield Step(findings=(_of_another_database(copy, store.label),))
            continue
        if not copy.restoring:
            for step, _ in _settled(source, store, copy, pace):
                yield Step(rows=step.rows, what="finished what an earlier run had begun" if step.rows else "")
            continue
        if not isinstance(source, CanTakeBack):
            raise BackendRefused(
                f"a restore from {store.label} did not end, and this backend cannot take results back",
                "run `backendops restore` with the policy that began it",
            )
        there = {} if stays_archived(source) else source.look_up(copy.batch)
        store.settle(copy, [at for at in range(len(copy.batch.rows)) if not there.get(at)])
        yield Step(what="finished a restore that an earlier run had begun")


def _is_of_another_database(source: Any, copy: Copy) -> bool:
    """Were the results live in another database than this one is, or is a copy of?

    That these are not live here says nothing then: there they may be, and would be archived twice.
    """
    if not (isinstance(source, CanHandOver) and isinstance(source, CanTakeBack) and copy.batch.rows):
        return False
    return "" not in {copy.origin, source.origin} and copy.origin != source.origin and not source.look_up(copy.batch)


def _of_another_database(copy: Copy, where: str) -> Finding:
    doing = "putting back" if copy.restoring else "archiving"
    return Finding(
        Severity.WARNING,
        "archive.of-another-database",
        f"{len(copy.batch.rows):,} results in {where} are of another database than the one that this backend's `url` "
        f"leads to now: a run was {doing} them when it ended, and they may still be live there",
        f"run the job once with the `url` of then, which finishes them; or, where that database is gone: {copy.way_on}",
    )


def stays_archived(source: Any) -> bool:
    """Does what is put back stay in the archive too, as it goes by itself again?"""
    return isinstance(source, CanHandOver) and source.only_copies


def _each_once(batch: Batch) -> Batch:
    firsts = {fingerprint(batch.shape, row): at for at, row in reversed(list(enumerate(batch.rows)))}
    return batch.only(firsts.values())


def _settled(source: CanHandOver, store: ArchiveStore, copy: Copy, pace: Pace) -> Iterator[tuple[Step, int]]:
    """The steps of removing what was copied, each with how many rows stayed."""
    total = len(copy.batch.rows)
    kept: set[int] = set(range(total)) if source.only_copies else set()
    start = total if source.only_copies else 0
    failures = 0
    while start < total:
        size, began = pace.size, monotonic()
        end = min(start + size, total)
        try:
            gone = source.remove(Batch(copy.batch.shape, copy.batch.rows[start:end]))
        except BackendBusy:
            failures += 1
            if failures == TRIES:
                raise
            pace.timed_out()
            if pace.size < size:
                # Each run begins with the same size: who gives up on the way down never gets through.
                failures = 0
            yield Step(), 0
            continue
        failures = 0
        kept |= {start + at for at in gone}
        pace.measured(end - start, monotonic() - began)
        start = end
        yield Step(), 0
    store.settle(copy, kept)
    done = "copied" if source.only_copies else "moved"
    yield Step(rows=len(kept), what=f"{done} to {store.label}" if kept else ""), total - len(kept)


def _gathered(batches: Iterator[Batch], rows: int) -> Iterator[Batch | Step]:
    """Batches as large as one write should be; a Step for each read in between, where stopping is safe."""
    gathered: list[Row] = []
    shape, size = None, 0
    for batch in batches:
        if shape is not None and batch.shape != shape and gathered:
            yield Batch(shape, tuple(gathered))
            gathered, size = [], 0
        shape = batch.shape
        for row in batch.rows:
            gathered.append(row)
            size += _bytes(row)
            if len(gathered) >= rows or size >= GATHER_BYTES:
                yield Batch(shape, tuple(gathered))
                gathered, size = [], 0
        yield Step()
    if shape is not None and gathered:
        yield Batch(shape, tuple(gathered))


def _bytes(row: Row) -> int:
    return sum(len(value) if isinstance(value, bytes | str) else 8 for value in row.values)
