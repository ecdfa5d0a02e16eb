"""Results on their way between two stores: rows as neutral values, who gives them, who keeps them, who takes them back.

A move is: read, write (durable, read back and compared), remove at the source what has not changed since, settle. A
crash after the write leaves an unfinished copy, which the next run finishes first; a crash before it leaves nothing.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, Self
from zoneinfo import ZoneInfo

from backendops.contracts.capabilities import ArchivePlan
from backendops.contracts.readings import Finding, Reading
from backendops.contracts.retention import Retention
from backendops.contracts.run import Limits, Pace, Preview

Holds = Literal["task", "group"]
Kind = Literal["integer", "text", "bytes", "timestamp", "other"]
"""`timestamp` is naive, as Celery's date_done; `other` travels as the text that its store writes it as."""
Value = int | str | bytes | datetime | None

KEYS: Final[dict[Holds, str]] = {"task": "task_id", "group": "taskset_id"}
"""Celery's own column of the id that results are asked for by (celery/backends/database/models.py)."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column by Celery's name for it."""

    name: str
    kind: Kind
    declared: str = ""
    """The type in the store it came from, such as `character varying(155)`; empty where that has none."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the rows of one live table look like. A store without an `id` leaves that column out."""

    holds: Holds
    table: str
    """The live table's name, or the word that stands for it: the archive is named after it."""
    columns: tuple[Column, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns, in the order of a row's values."""
        return tuple(column.name for column in self.columns)

    @property
    def key(self) -> str:
        """The column that results are asked for by."""
        return KEYS[self.holds]

    def value(self, row: Row, name: str) -> Value:
        """One value of a row; None where there is no such column."""
        return row.values[self.names.index(name)] if name in self.names else None


@dataclass(frozen=True, slots=True)
class Row:
    """One result: payloads are the bytes they were stored as, never decoded."""

    values: tuple[Value, ...]
    """In the order of the shape's columns."""
    done_at: datetime
    """When it finished, with a time zone: what periods and ranges go by."""
    mark: str = ""
    """The source's own sign of this version of the row; empty where the content is all there is to compare."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one shape. Rows are spoken of by their position in it."""

    shape: Shape
    rows: tuple[Row, ...]

    def only(self, positions: Collection[int]) -> Batch:
        """The rows at these positions, in their order."""
        return Batch(self.shape, tuple(self.rows[position] for position in sorted(positions)))


def fingerprint(shape: Shape, row: Row, *, leaving_out: Collection[str] = ()) -> bytes:
    """SHA-256 of a row's content: of what is not NULL, by column name, whatever the order of the columns.

    So a column that a Celery upgrade added, empty in old rows, changes nothing.
    """
    digest = hashlib.sha256()
    for name, value in sorted(zip(shape.names, row.values, strict=True), key=lambda pair: pair[0]):
        if value is None or name in leaving_out:
            continue
        written = value if isinstance(value, bytes) else _text(value).encode("utf-8", "surrogatepass")
        digest.update(f"{name}:{'b' if isinstance(value, bytes) else 't'}:{len(written)}:".encode())
        digest.update(written)
    return digest.digest()


def _text(value: int | str | datetime) -> str:
    return value.isoformat(" ", "microseconds") if isinstance(value, datetime) else str(value)


@dataclass(frozen=True, slots=True)
class DueFound:
    """What there is to hand over: how much, counted or guessed, and what is odd about the tables."""

    rows: int
    exact: bool = True
    findings: tuple[Finding, ...] = ()


class CanHandOver(ABC):
    """Can due results be read whole and, once they are kept elsewhere, be removed if they are still the same?"""

    @property
    @abstractmethod
    def zone(self) -> ZoneInfo:
        """The zone whose months, weeks and days its archive has."""

    @property
    def only_copies(self) -> bool:
        """Do its results go by themselves (a TTL), so that they are copied and never removed?

        Then `remove` is not called, and what the archive has already is not written again.
        """
        return False

    @abstractmethod
    def preview_hand_over(self, due: Retention, where: str) -> Preview:
        """What would be moved to `where`, from a read-only connection."""

    @abstractmethod
    def find_due(self, due: Retention) -> DueFound:
        """How much is due; raises BackendRefused where the rows could not be removed afterwards."""

    def oldest_ages(self) -> tuple[Reading, ...]:
        """The age of the oldest live result of each table, for the end of a run; none where that is not cheap."""
        return ()

    @abstractmethod
    def shapes_due(self, due: Retention) -> tuple[Shape, ...]:
        """The shapes of what `read_due` will give, so that the archive can be made ready before the first row."""

    @abstractmethod
    def read_due(self, due: Retention, pace: Pace) -> Iterator[Batch]:
        """Read what is due, once, oldest first; each item is one bounded read and may be empty. Nothing is locked."""

    @abstractmethod
    def remove(self, batch: Batch) -> frozenset[int]:
        """Remove the rows that are still as they are in `batch`; the positions of all that are no longer here.

        A row with a mark is compared by it, one without by its content. Rows that changed, or that another session
        holds at this moment, stay and are not among them. Committed when it returns.
        """


class CanTakeBack(ABC):
    """Can archived results be put back among the live ones?"""

    @abstractmethod
    def check_take_back(self, shape: Shape) -> None:
        """Raise BackendRefused, with the way out, where rows of this shape could not be put back whole."""

    @abstractmethod
    def look_up(self, batch: Batch) -> dict[int, bool]:
        """The positions of those whose id is live now; True where the live result is this very one, but for `id`."""

    @abstractmethod
    def take_back(self, batch: Batch) -> frozenset[int]:
        """Put the rows back, each with its own `id` where that is free; the positions of those that are in now.

        An id that is live again is left as it is. Committed when it returns.
        """


@dataclass(frozen=True, slots=True)
class Selection:
    """Which archived results are meant: those of some ids, or those that finished from `since` and before `until`."""

    ids: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None

    def has(self, shape: Shape, row: Row) -> bool:
        """Is this row meant?"""
        if self.ids:
            return shape.value(row, shape.key) in self.ids
        return (self.since is None or row.done_at >= self.since) and (self.until is None or row.done_at < self.until)


@dataclass(frozen=True, slots=True)
class Copy:
    """Rows that are in an archive, and where: `place` means something only to the store that gave it."""

    batch: Batch
    place: Any
    restoring: bool = False
    """Was it being put back, not brought in, when a run ended in the middle?"""


@dataclass(frozen=True, slots=True)
class Checked:
    """One file or partition that was verified; `wrong` says what is not as it should be, a sentence each."""

    name: str
    rows: int
    wrong: tuple[str, ...] = ()


class ArchiveStore(ABC):
    """A place outside the source where archived results are kept, as one job and source see it."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Where it is, for people; without a secret."""

    @property
    @abstractmethod
    def write_rows(self) -> int:
        """How many rows are worth one write: files should not be many and small."""

    @abstractmethod
    def open(self, source: str, limits: Limits) -> AbstractContextManager[Self]:
        """Open it for one run for the source of that name, and keep other runs out.

        Raises BackendUnreachable or BackendRefused where it cannot be used, BackendBusy where another run has it.
        """

    @abstractmethod
    def prepare(self, shape: Shape) -> str:
        """Make it ready for rows of this shape; what was done, if anything.

        Raises BackendRefused, before any row is moved, where a row could not be kept as it is.
        """

    @abstractmethod
    def unfinished(self) -> Iterator[Copy]:
        """Copies that an earlier run wrote, or was putting back, and did not settle."""

    @abstractmethod
    def write(self, batch: Batch, *, unless_there: bool = False) -> Sequence[Copy]:
        """Write the rows and read them back; durable when it returns, and unfinished until settled.

        With `unless_there`, rows that the archive has already, with the same content, are left out. Raises
        BackendError, with nothing kept, where they cannot be written or read back otherwise.
        """

    @abstractmethod
    def settle(self, copy: Copy, kept: Collection[int]) -> None:
        """The rows at `kept` are the archive's from now on; the others are not in it. Repeating it changes nothing."""

    @abstractmethod
    def find(self, selection: Selection, pace: Pace) -> Iterator[Copy]:
        """The archived rows that are meant, a batch at a time."""

    @abstractmethod
    def begin_restore(self, copy: Copy) -> Copy:
        """Take down that these rows are being put back, so that a crash is seen; settle ends it."""

    @abstractmethod
    def check(self) -> Iterator[Checked]:
        """Read everything again and compare it with what was taken down when it was written."""


class CanKeepArchive(ABC):
    """Can it keep what another backend archives?"""

    @abstractmethod
    def archive_store(self, plan: ArchivePlan) -> ArchiveStore:
        """The archive in it, not yet opened."""
