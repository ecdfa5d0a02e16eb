"""The manifest of one period of an archive: which files it has, what is in them, and which of their rows count."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, get_args

from backendops.backends.files.disk import UNFINISHED, disk_errors, is_there, write_whole
from backendops.contracts.archive import KEYS, Column, Holds, Kind, Shape
from backendops.contracts.errors import BackendRefused

NAME: Final = "manifest.json"
VERSION: Final = 1
PART: Final = "part-"
"""What the names of our files begin with."""
_FROM_BACKUP: Final = "bring it back from a backup: without it nobody knows which rows of the files are the archive's"
# A file system's own, which only root may look into; what is hidden is never ours.
_NOT_OURS: Final = "lost+found"

State = Literal["arriving", "kept"]
Lines = tuple[tuple[int, int], ...]
"""Numbers of rows in a file, counted from 0, as ranges with both ends."""


def as_lines(numbers: Iterable[int]) -> Lines:
    """Row numbers as ranges."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return tuple(ranges)


def numbers_of(lines: Lines) -> set[int]:
    """The row numbers in the ranges."""
    return {number for first, last in lines for number in range(first, last + 1)}


@dataclass(frozen=True, slots=True)
class Part:
    """One file. It is never changed; what is no longer the archive's of it is in `without`."""

    name: str
    format: str
    state: State
    """`arriving`: its rows may still be live. The next run finds out, and settles it."""
    rows: int
    bytes: int
    sha256: str
    first_done_at: datetime
    last_done_at: datetime
    written_at: datetime
    columns: tuple[Column, ...]
    without: Lines = ()
    """Rows that are not in the archive: they had changed in the live table, or went back there."""
    leaving: Lines = ()
    """Rows that a restore was putting back; the next run finds out where they are."""
    origin: str = ""
    """The database that its rows came from, or were going back to, where that is known."""

    @property
    def archived(self) -> int:
        """How many of its rows are in the archive."""
        return self.rows - sum(last - first + 1 for first, last in self.without)

    def settled_by_hand(self, directory: Path) -> str:
        """What a person writes where no run can find out where its rows are, and they are to be the archive's."""
        key, value = ("leaving", "[]") if self.leaving else ("state", '"kept"')
        return f'in {directory / NAME} write "{key}": {value} for {self.name}'


@dataclass(frozen=True, slots=True)
class Manifest:
    """One period of one table, from `start` up to `end`."""

    source: str
    """The backend that its rows came from."""
    holds: Holds
    table: str
    period: str
    start: datetime
    end: datetime
    parts: tuple[Part, ...] = ()

    @property
    def rows(self) -> int:
        """How many archived rows the period has."""
        return sum(part.archived for part in self.parts)

    def shape(self, part: Part) -> Shape:
        """What the rows of a part look like."""
        return Shape(self.holds, self.table, part.columns)

    def with_part(self, part: Part) -> Manifest:
        """The same with this part, in the place of the one of its name."""
        others = [each for each in self.parts if each.name != part.name]
        return replace(self, parts=tuple(sorted([*others, part], key=lambda each: each.name)))

    def without_part(self, name: str) -> Manifest:
        """The same without the part of that name."""
        return replace(self, parts=tuple(part for part in self.parts if part.name != name))

    def save(self, directory: Path) -> None:
        """Write it: from this moment on it is what the archive holds."""
        document = {"backendops_archive": VERSION, "rows": self.rows, **asdict(self)}
        content = json.dumps(document, indent=1, default=_as_json)
        with disk_errors(directory):
            write_whole(directory / NAME, content.encode())


def load(directory: Path) -> Manifest | None:
    """The manifest of a period; None where the period is empty.

    Raises BackendRefused where it is gone from beside its files, or does not agree with itself.
    """
    path = directory / NAME
    if not is_there(path):
        with disk_errors(directory):
            files = [each.name for each in os.scandir(directory) if each.name.startswith(PART)]
        if files := [name for name in files if not name.endswith(UNFINISHED)]:
            raise BackendRefused(f"there is no {NAME} in {directory}, beside {len(files)} files", _FROM_BACKUP)
        return None
    with disk_errors(path):
        content = path.read_bytes()
    try:
        document = json.loads(content)
        said = document["rows"]
        manifest = _from_document(document)
        _check(manifest, said)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BackendRefused(
            f"{path} is not a manifest of backendops ({type(error).__name__}: {error})", _FROM_BACKUP
        ) from None
    if (manifest.table, manifest.period) != (directory.parent.name, directory.name):
        raise BackendRefused(
            f"{path} is the manifest of {manifest.table}/{manifest.period}",
            "a copy of a period would be archived twice: move it out of the archive's directory",
        )
    return manifest


def _check(manifest: Manifest, rows: object) -> None:
    """Raise ValueError or TypeError for what no run of ours writes: by it rows would be forgotten, files deleted."""
    if manifest.holds not in KEYS:
        raise ValueError(f"it holds {manifest.holds!r}")
    if not manifest.start < manifest.end or manifest.start.tzinfo is None:
        raise ValueError("its period has no length, or no time zone")
    if len({part.name for part in manifest.parts}) < len(manifest.parts):
        raise ValueError("it names a file twice")
    for part in manifest.parts:
        if part.state not in get_args(State):
            raise ValueError(f"{part.name} is {part.state!r}")
        if part.rows < 1 or not part.first_done_at <= part.last_done_at or part.first_done_at.tzinfo is None:
            raise ValueError(f"{part.name} has no rows, or no dates")
        if any(column.kind not in get_args(Kind) for column in part.columns):
            raise ValueError(f"{part.name} has columns of a kind that is not known")
        for lines in (part.without, part.leaving):
            ends = [-1, *(end for line in lines for end in line), part.rows]
            if not all(first <= last for first, last in lines) or any(
                before >= after for before, after in zip(ends[::2], ends[1::2], strict=True)
            ):
                raise ValueError(f"of {part.name} it speaks of rows that it does not have, or twice of the same")
    if rows != manifest.rows:
        raise ValueError(f"its files have {manifest.rows:,} archived rows, and it says {rows!r}")


def _from_document(document: dict[str, Any]) -> Manifest:
    if document.pop("backendops_archive") != VERSION:
        raise ValueError("it is of another version of backendops")
    document.pop("rows")
    parts = tuple(_part(part) for part in document.pop("parts"))
    for moment in ("start", "end"):
        document[moment] = datetime.fromisoformat(document[moment])
    return Manifest(parts=parts, **document)


def _part(document: dict[str, Any]) -> Part:
    for moment in ("first_done_at", "last_done_at", "written_at"):
        document[moment] = datetime.fromisoformat(document[moment])
    for lines in ("without", "leaving"):
        document[lines] = tuple((int(first), int(last)) for first, last in document[lines])
    if Path(document["name"]).name != document["name"]:
        raise ValueError(f"{document['name']!r} is not a file beside it")
    columns = tuple(Column(**column) for column in document.pop("columns"))
    return Part(columns=columns, **document)


def manifests(directory: Path, tables: Collection[str] | None = None) -> Iterator[tuple[Path, Manifest]]:
    """Every period of every table below the archive's directory, in order."""
    for period in periods(directory):
        if tables is None or period.parent.name in tables:
            manifest = load(period)
            if manifest is not None:
                yield period, manifest


def periods(directory: Path) -> list[Path]:
    """Every directory of a period, in order; raises BackendError where one cannot be looked into."""
    return [period for table in directories(directory) for period in directories(table)]


def directories(path: Path) -> list[Path]:
    """Those below another that are the archive's: of its tables, or of the periods of one."""
    with disk_errors(path):
        there = [each for each in os.scandir(path) if not each.name.startswith(".") and each.name != _NOT_OURS]
        return sorted(Path(each.path) for each in there if each.is_dir())


def digest(path: Path) -> tuple[str, int]:
    """SHA-256 and size of a file."""
    with path.open("rb") as file:
        summed = hashlib.file_digest(file, "sha256")
        return summed.hexdigest(), file.tell()


def _as_json(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not for a manifest")
