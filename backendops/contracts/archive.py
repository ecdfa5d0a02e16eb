"""Results on their way between two stores: who gives them, who keeps them, who takes them back.

A move is: read, write (durable, read back and compared), remove at the source what has not changed since, settle. A
crash after the write leaves an unfinished copy, which the next run finishes first; a crash before it leaves nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self
from zoneinfo import ZoneInfo

from backendops.contracts.capabilities import ArchivePlan
from backendops.contracts.readings import Finding, Reading
from backendops.contracts.records import KEYS, Batch, Column, Holds, Kind, Row, Shape, Value, fingerprint
from backendops.contracts.retention import Retention
from backendops.contracts.run import Limits, Pace, Preview
from backendops.contracts.selection import Removal, Selection

__all__ = [
    "KEYS",
    "ArchiveStore",
    "Batch",
    "CanHandOver",
    "CanKeepArchive",
    "CanRestore",
    "CanTakeBack",
    "Checked",
    "Column",
    "Copy",
    "DueFound",
    "Holds",
    "Kind",
    "PutBack",
    "Quarantined",
    "Removal",
    "Restoring",
    "Row",
    "Selection",
    "Shape",
    "Value",
    "fingerprint",
]


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

    @property
    def origin(self) -> str:
        """What tells the database that its results are in from every other; empty where that cannot be known."""
        return ""

    def begin_hand_over(self, where: str) -> None:  # noqa: B027 - most need not know
        """Told first, with the `identity` of the archive: who only copies may remember what is there already."""

    def end_hand_over(self) -> tuple[Finding, ...]:
        """Told last, when everything that was read is settled; what it met that an operator should know."""
        return ()

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
    def check_take_back(self, batch: Batch) -> None:
        """Raise BackendRefused, with the way out, where these rows could not be put back whole."""

    @abstractmethod
    def look_up(self, batch: Batch) -> dict[int, bool]:
        """The positions of those whose id is live now; True where the live result is this very one, but for `id`."""

    @abstractmethod
    def take_back(self, batch: Batch) -> frozenset[int]:
        """Put the rows back, each with its own `id` where that is free; the positions of those that are in now.

        An id that is live again is left as it is. Committed when it returns.
        """


@dataclass(frozen=True, slots=True)
class Copy:
    """Rows that are in an archive, and where: `place` means something only to the store that gave it."""

    batch: Batch
    place: Any
    restoring: bool = False
    """Was it being put back, not brought in, when a run ended in the middle?"""
    origin: str = ""
    """The `origin` of its source when it was written; empty where that is not known."""
    way_on: str = ""
    """What makes an unfinished one the archive's, by hand."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Results that are meant, in a table that was a partition: in no archive now, and not dropped."""

    name: str
    """The table, as `partitions reattach` takes it."""
    rows: int | None
    """How many; None where counting took too long."""
    ids: tuple[str, ...] = ()
    """Which of the ids that were asked for; none where none were."""
    drop_after: datetime | None = None
    detaching: bool = False
    """Is its detach still to be finished, so that it cannot be taken back yet?"""
    returning: bool = False
    """Are its rows on their way back into the archive, by runs of the partition job?"""


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
    def identity(self) -> str:
        """What tells it from every other archive; no other has the same."""
        return self.label

    @property
    @abstractmethod
    def write_rows(self) -> int:
        """How many rows are worth one write: files should not be many and small."""

    @abstractmethod
    def open(self, source: str, limits: Limits, *, origin: str = "") -> AbstractContextManager[Self]:
        """Open it for one run for the source of that name (with that `origin`), and keep other runs out.

        Raises BackendUnreachable or BackendRefused where it cannot be used, BackendLocked where another run has it.
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
        """The archived rows that are meant, a batch at a time; of each table the newest first."""

    def find_quarantined(self, selection: Selection) -> tuple[Quarantined, ...]:  # noqa: ARG002 - most have none
        """What is meant and was taken out of the archive, by its age, and is not gone yet."""
        return ()

    @abstractmethod
    def begin_restore(self, copy: Copy, positions: Collection[int]) -> Copy:
        """Take down that the rows at these positions are being put back, so that a crash is seen; settle ends it."""

    @abstractmethod
    def check(self) -> Iterator[Checked]:
        """Read everything again and compare it with what was taken down when it was written."""


class CanRestore(ABC):
    """Can it put back, and verify, what it keeps in an archive of its own, beside the live tables?"""

    @abstractmethod
    def preview_restore(self, selection: Selection, plan: ArchivePlan) -> Preview:
        """What would be put back, from a read-only connection."""

    @abstractmethod
    def restore(self, selection: Selection, plan: ArchivePlan, pace: Pace) -> Restoring:
        """Put results back, of each table the newest first; every item is committed."""

    def find_quarantined(self, selection: Selection, plan: ArchivePlan) -> tuple[Quarantined, ...]:  # noqa: ARG002 - most have none
        """What is meant and was taken out of the archive, by its age, and is not gone yet."""
        return ()

    @abstractmethod
    def check_archive(self, plan: ArchivePlan) -> Iterator[Checked]:
        """Count every partition, and compare it with what it must be."""


@dataclass(frozen=True, slots=True)
class PutBack:
    """What one committed step of a restore did, by the ids that results are asked for by."""

    restored: tuple[str, ...] = ()
    live_again: tuple[str, ...] = ()
    """Left in the archive: there is a live result of that id."""


Restoring = Iterator[PutBack]


class CanKeepArchive(ABC):
    """Can it keep what another backend archives?"""

    @abstractmethod
    def archive_store(self, plan: ArchivePlan) -> ArchiveStore:
        """The archive in it, not yet opened."""
