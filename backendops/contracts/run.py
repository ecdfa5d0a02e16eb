"""One execution of a job on a backend: who asked, what each step did, why it ended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from backendops.contracts.readings import Finding, Reading


class Trigger(StrEnum):
    """Who asked for the run?"""

    SCHEDULE = "schedule"
    COMMAND = "command"
    CELERY = "celery"


class Outcome(StrEnum):
    """Why did the run end?"""

    COMPLETED = "completed"
    OUT_OF_TIME = "out-of-time"
    STOPPED = "stopped"
    CANCELLED = "cancelled"
    LOCKED = "locked"
    LOST_LOCK = "lost-lock"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    BUSY = "busy"
    FAILED = "failed"

    @property
    def exit_code(self) -> int:
        """What `run-once` exits with when this is how the run ended."""
        return _EXIT_CODES[self]

    @property
    def is_failure(self) -> bool:
        """Does a person or a retry have to do something about it?"""
        return self in {Outcome.REFUSED, Outcome.UNREACHABLE, Outcome.BUSY, Outcome.FAILED, Outcome.LOST_LOCK}


_EXIT_CODES = {
    Outcome.COMPLETED: 0,
    Outcome.FAILED: 1,
    Outcome.UNREACHABLE: 3,
    Outcome.REFUSED: 5,
    Outcome.OUT_OF_TIME: 75,
    Outcome.STOPPED: 75,
    Outcome.CANCELLED: 75,
    Outcome.LOCKED: 75,
    Outcome.LOST_LOCK: 75,
    Outcome.BUSY: 75,
}


@dataclass(frozen=True, slots=True)
class Step:
    """A committed piece of work; after a step it is always safe to stop.

    `what` says in plain words what was done, for the log and the terminal: "moved to celery_taskmeta_archive".
    """

    rows: int = 0
    what: str = ""
    readings: tuple[Reading, ...] = ()
    findings: tuple[Finding, ...] = ()


Steps = Generator[Step, None, None]


@dataclass(frozen=True, slots=True)
class Preview:
    """What a run would do now, found without changing anything.

    `rows` counts what is due; `oldest` is the oldest of it; `statements` is the SQL (or commands) a run would send.
    """

    summary: str
    rows: int = 0
    oldest: datetime | None = None
    cutoff: datetime | None = None
    statements: tuple[str, ...] = ()
    readings: tuple[Reading, ...] = ()
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of every statement of a run, enforced by the server where it can.

    `budget` is what the whole run may take: a step that cannot be split (a VACUUM) is bounded by it.
    """

    statement_timeout: timedelta = timedelta(seconds=30)
    # Celery's writers queue behind a waiting DDL statement; 2 s is the most an application may notice.
    lock_timeout: timedelta = timedelta(seconds=2)
    # A dead backend is answered within 5 s, the connection attempt included.
    connect_timeout: timedelta = timedelta(seconds=4)
    budget: timedelta = timedelta(hours=1)
    read_only: bool = False


class Pace(ABC):
    """How large the next batch should be; batches aim at a time, not at a size."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Rows (or keys) the next batch should take."""

    @abstractmethod
    def measured(self, rows: int, seconds: float) -> None:
        """Tell what the last batch took, for the size of the next one."""

    @abstractmethod
    def timed_out(self) -> None:
        """The batch met a timeout: halve, and recover with the batches that follow."""


class Watermarks(ABC):
    """Small values a backend remembers between runs; losing them costs speed, never data."""

    failed = False
    """Could the last one not be recalled, whether there is one or not?"""

    @abstractmethod
    def recall(self, key: str) -> str | None: ...

    @abstractmethod
    def remember(self, key: str, value: str) -> None: ...


class NoWatermarks(Watermarks):
    """Remembers for as long as the object lives: for previews and probes."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def recall(self, key: str) -> str | None:
        return self._values.get(key)

    def remember(self, key: str, value: str) -> None:
        self._values[key] = value
