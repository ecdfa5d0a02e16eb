"""An archive in files, as one job and source see it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final, Self, get_args
from zoneinfo import ZoneInfo

from backendops.backends.files.check import check_period
from backendops.backends.files.disk import (
    UNFINISHED,
    Hold,
    check_directory,
    disk_errors,
    held,
    is_there,
    make_directory,
    sync_directory,
)
from backendops.backends.files.manifest import Lines, Manifest, Part, as_lines, directories, load, manifests, numbers_of
from backendops.backends.files.parts import read_rows, write_part
from backendops.backends.files.rows import DONE_AT, FORMATS, Format
from backendops.backends.postgres.periods import next_period, period_start
from backendops.contracts.archive import ArchiveStore, Batch, Checked, Copy, Row, Selection, Shape, fingerprint
from backendops.contracts.capabilities import Every
from backendops.contracts.errors import BackendRefused
from backendops.contracts.run import Limits, Pace

# A file of so many rows packs well and is read in seconds; more would only take more memory to write.
WRITE_ROWS: Final = 20_000
# Found in pieces that a backend takes back in one short transaction.
FIND_ROWS: Final = 1000


@dataclass(frozen=True, slots=True)
class Place:
    """Where the rows of a copy are: the number of each in its file."""

    directory: Path
    part: str
    numbers: tuple[int, ...]


class FileStore(ArchiveStore):
    """Files under `path`/table/period: new ones with each run, and a manifest that says what of them is the archive."""

    def __init__(self, path: Path, format_name: str, every: Every, zone: ZoneInfo) -> None:
        self.path = path
        self._format: Format = FORMATS[format_name]
        self._every: Every = every
        self._zone = zone
        self._source = self._origin = ""
        self._hold: Hold | None = None

    @property
    def label(self) -> str:
        return f"files in {self.path}"

    @property
    def write_rows(self) -> int:
        return WRITE_ROWS

    @contextmanager
    def open(self, source: str, limits: Limits, *, origin: str = "") -> Iterator[Self]:
        check_directory(self.path, writing=not limits.read_only)
        opened = type(self)(self.path, self._format.suffix, self._every, self._zone)
        opened._source, opened._origin = source, origin
        if limits.read_only:
            yield opened
            return
        with held(self.path) as opened._hold:
            yield opened

    def prepare(self, shape: Shape) -> str:
        if DONE_AT in shape.names:
            raise BackendRefused(
                f"{shape.table} has a column {DONE_AT} of its own, which the archive needs for itself",
                f"rename the column {DONE_AT}",
            )
        if "/" in shape.table or shape.table.startswith("."):
            raise BackendRefused(f"{shape.table!r} cannot be the name of a directory", "archive this table elsewhere")
        folder = self.path / shape.table
        if folder.is_dir():
            return ""
        with disk_errors(folder):
            make_directory(folder)
        return f"made {folder}"

    def unfinished(self) -> Iterator[Copy]:
        for directory, manifest in self._manifests():
            with disk_errors(directory):
                for left in directory.glob(f"*{UNFINISHED}"):
                    left.unlink()
            for part in manifest.parts:
                if not part.archived or (part.state == "arriving" and not is_there(directory / part.name)):
                    # Emptied, or taken down and dead before it was there: no row is in it and nowhere else.
                    _forget(directory, part.name)
                elif part.state == "arriving":
                    yield _copy(directory, manifest, part, ((0, part.rows - 1),))
                elif part.leaving:
                    yield replace(_copy(directory, manifest, part, part.leaving), restoring=True)

    def write(self, batch: Batch, *, unless_there: bool = False) -> Sequence[Copy]:
        assert self._hold is not None  # noqa: S101 - whoever writes has opened it for that
        self._hold.require()
        by_period: dict[datetime, list[Row]] = defaultdict(list)
        for row in batch.rows:
            by_period[period_start(row.done_at, self._every, self._zone)].append(row)
        copies = []
        for start, rows in sorted(by_period.items()):
            directory = self.path / batch.shape.table / self._period(start, self._every)
            manifest = self._ready(directory, batch.shape, start)
            new = self._not_there(batch.shape, start, rows) if unless_there else rows
            if new:
                part = Batch(batch.shape, tuple(new))
                name = write_part(directory, manifest, self._format, part, self._origin)
                copies.append(Copy(part, Place(directory, name, tuple(range(len(new))))))
        return copies

    def _ready(self, directory: Path, shape: Shape, start: datetime) -> Manifest:
        """The directory of a period, made where it is missing, and its manifest."""
        with disk_errors(directory):
            make_directory(directory)
        manifest = load(directory)
        if manifest is None:
            with disk_errors(directory):
                # Also where a run made it that died before it had made it durable.
                sync_directory(directory.parent)
                sync_directory(self.path)
            end = next_period(start, self._every, self._zone)
            manifest = Manifest(self._source, shape.holds, shape.table, directory.name, start, end)
        self._check_source(directory, manifest)
        return manifest

    def settle(self, copy: Copy, kept: Collection[int]) -> None:
        place: Place = copy.place
        gone = {number for position, number in enumerate(place.numbers) if position not in kept}

        def settled(manifest: Manifest) -> Manifest:
            part = _part(manifest, place.part)
            if part is None:
                return manifest
            part = replace(
                part,
                state="kept",
                without=as_lines(numbers_of(part.without) | gone),
                leaving=as_lines(numbers_of(part.leaving) - set(place.numbers)),
            )
            return manifest.with_part(part)

        part = _part(_change(place.directory, settled), place.part)
        if part is not None and not part.archived:
            _forget(place.directory, part.name)

    def find(self, selection: Selection, pace: Pace) -> Iterator[Copy]:  # noqa: ARG002 - reading a file disturbs nobody
        # A task that ran again was archived again later, from a later run: its newest result is in the newest file.
        newest_first = sorted(self._manifests(), key=lambda found: found[1].start, reverse=True)
        for directory, manifest in sorted(newest_first, key=lambda found: found[1].table):
            for part in sorted(manifest.parts, key=lambda part: part.last_done_at, reverse=True):
                if selection.since is not None and part.last_done_at < selection.since:
                    continue
                if selection.until is not None and part.first_done_at >= selection.until:
                    continue
                yield from _find(directory, manifest, part, selection)

    def begin_restore(self, copy: Copy, positions: Collection[int]) -> Copy:
        assert self._hold is not None  # noqa: S101 - whoever restores has opened it for that
        self._hold.require()
        numbers = tuple(copy.place.numbers[position] for position in sorted(positions))
        place = replace(copy.place, numbers=numbers)

        def leaving(manifest: Manifest) -> Manifest:
            part = _part(manifest, place.part)
            if part is None:
                raise BackendRefused(f"{place.directory / place.part} is no longer in its manifest", "try again")
            lines = as_lines(numbers_of(part.leaving) | {*place.numbers})
            return manifest.with_part(replace(part, leaving=lines, origin=self._origin))

        _change(place.directory, leaving)
        return Copy(copy.batch.only(positions), place, restoring=True)

    def check(self) -> Iterator[Checked]:
        for table in directories(self.path):
            is_empty = True
            for directory in directories(table):
                for checked in check_period(directory, self.path):
                    is_empty = False
                    yield checked
            if is_empty:
                yield Checked(table.name, 0)

    def _manifests(self) -> Iterator[tuple[Path, Manifest]]:
        for directory, manifest in manifests(self.path):
            self._check_source(directory, manifest)
            yield directory, manifest

    def _check_source(self, directory: Path, manifest: Manifest) -> None:
        """Two sources in one directory would each take the other's unfinished copies for its own."""
        if manifest.source != self._source:
            raise BackendRefused(
                f"{directory} is the archive of the backend {manifest.source!r}, not of {self._source!r}",
                "give each backend a directory of its own under `to: {files: …}`, or, where the backend was renamed in "
                "the policy, its old name",
            )

    def _not_there(self, shape: Shape, start: datetime, rows: Sequence[Row]) -> list[Row]:
        """The rows that no file has with the same content, though it be of another length of period."""
        first, last = min(row.done_at for row in rows), max(row.done_at for row in rows)
        end = next_period(start, self._every, self._zone)
        there: set[bytes] = set()
        for name in sorted(self._periods_within(start, end)):
            directory = self.path / shape.table / name
            manifest = load(directory) if is_there(directory) else None
            for part in manifest.parts if manifest else ():
                if manifest is not None and part.first_done_at <= last and part.last_done_at >= first:
                    there |= _fingerprints(directory, manifest, part)
        return [row for row in rows if fingerprint(shape, row) not in there]

    def _periods_within(self, start: datetime, end: datetime) -> Iterator[str]:
        """The names of every month, week and day that has a part of this time."""
        for every in get_args(Every):
            moment = start
            while moment < end:
                yield self._period(moment, every)
                moment = next_period(period_start(moment, every, self._zone), every, self._zone)

    def _period(self, start: datetime, every: Every) -> str:
        local = start.astimezone(self._zone)
        if every == "month":
            return f"{local:%Y-%m}"
        if every == "week":
            year, week, _ = local.isocalendar()
            return f"{year:04}-W{week:02}"
        return f"{local:%Y-%m-%d}"


def _part(manifest: Manifest, name: str) -> Part | None:
    return next((part for part in manifest.parts if part.name == name), None)


def _forget(directory: Path, name: str) -> None:
    with disk_errors(directory):
        (directory / name).unlink(missing_ok=True)
    _change(directory, lambda manifest: manifest.without_part(name))


def _change(directory: Path, change: Callable[[Manifest], Manifest]) -> Manifest:
    manifest = load(directory)
    if manifest is None:
        raise BackendRefused(f"the manifest of {directory} is gone", "bring it back from a backup")
    changed = change(manifest)
    if changed != manifest:
        changed.save(directory)
    return changed


def _copy(directory: Path, manifest: Manifest, part: Part, lines: Lines) -> Copy:
    meant = numbers_of(lines)
    found = [(number, row) for number, row in read_rows(directory, manifest, part) if number in meant]
    batch = Batch(manifest.shape(part), tuple(row for _, row in found))
    place = Place(directory, part.name, tuple(number for number, _ in found))
    return Copy(batch, place, origin=part.origin, way_on=part.settled_by_hand(directory))


def _find(directory: Path, manifest: Manifest, part: Part, selection: Selection) -> Iterator[Copy]:
    shape, without = manifest.shape(part), numbers_of(part.without)
    meant = [
        (number, row)
        for number, row in read_rows(directory, manifest, part, selection.ids)
        if number not in without and selection.has(shape, row)
    ]
    meant.sort(key=lambda found: found[1].done_at, reverse=True)
    for start in range(0, len(meant), FIND_ROWS):
        found = meant[start : start + FIND_ROWS]
        place = Place(directory, part.name, tuple(number for number, _ in found))
        yield Copy(Batch(shape, tuple(row for _, row in found)), place)


def _fingerprints(directory: Path, manifest: Manifest, part: Part) -> set[bytes]:
    shape, without = manifest.shape(part), numbers_of(part.without)
    return {fingerprint(shape, row) for number, row in read_rows(directory, manifest, part) if number not in without}
