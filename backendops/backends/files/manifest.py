"""The manifest of one period of an archive: which files it has, what is in them, and which of their rows count."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from backendops.backends.files.disk import disk_errors, write_whole
from backendops.contracts.archive import Column, Holds, Shape
from backendops.contracts.errors import BackendRefused

NAME: Final = "manifest.json"
VERSION: Final = 1

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
    state: Literal["arriving", "kept"]
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

    @property
    def archived(self) -> int:
        """How many of its rows are in the archive."""
        return self.rows - sum(last - first + 1 for first, last in self.without)


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
    """The manifest of a period; None where there is none. Raises BackendRefused where it cannot be read."""
    path = directory / NAME
    with disk_errors(path):
        if not path.exists():
            return None
        content = path.read_bytes()
    try:
        return _from_document(json.loads(content))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackendRefused(
            f"{path} is not a manifest of backendops ({type(error).__name__}: {error})",
            "bring it back from a backup: without it nobody knows which rows of the files are the archive's",
        ) from None


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
    with disk_errors(directory):
        found = sorted(path.parent for path in directory.glob(f"*/*/{NAME}"))
    for period in found:
        if tables is None or period.parent.name in tables:
            manifest = load(period)
            if manifest is not None:
                yield period, manifest


def digest(path: Path) -> tuple[str, int]:
    """SHA-256 and size of a file."""
    with path.open("rb") as file:
        summed = hashlib.file_digest(file, "sha256")
        return summed.hexdigest(), file.tell()


def _as_json(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not for a manifest")
