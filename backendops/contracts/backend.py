"""A backend is one result store. It is a pydantic model: its fields are its policy keys."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from backendops.contracts.run import Limits, Watermarks
from backendops.contracts.units import Keep


@dataclass(frozen=True, slots=True)
class Standing:
    """How a backend stands before a changing run: the facts behind the engine's safety limits.

    `newest_done` is the newest finish time it holds, in UTC; None where that cannot be known cheaply.
    """

    server_now: datetime
    newest_done: datetime | None = None
    read_only_because: str = ""


class Lock(ABC):
    """A lock in the backend that it protects."""

    @abstractmethod
    def still_held(self) -> bool:
        """Is the lock certainly still ours? Asked after every step."""


class Backend(BaseModel, ABC):
    """One result store as the policy describes it; `open` gives a connected copy for one run."""

    # An error never shows what was written: it may be a URL with its password.
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, hide_input_in_errors=True)

    kind: ClassVar[str]
    schemes: ClassVar[tuple[str, ...]]
    driver: ClassVar[tuple[str, str]] = ("", "")
    """The module its driver is imported from, and the extra that installs it."""

    url: SecretStr = Field(
        description="Where results are: any Celery result_backend URL.",
    )
    result_expires: Keep | None = Field(
        None,
        description="What the Celery application's result_expires is set to; jobs that conflict with it are problems.",
    )

    pause_file: Path | None = Field(
        None,
        description="While this file is there, every run that changes this backend rests, whichever host it is on "
        "that sees the file; beside the file `pause` in the state directory, which is for every backend.",
        examples=["/run/backendops/pause-results"],
    )

    @field_validator("pause_file")
    @classmethod
    def _pause_file_is_absolute(cls, value: Path | None) -> Path | None:
        # The daemon, cron and a person run in different directories, and must all mean the same file.
        if value is not None and not value.is_absolute():
            raise ValueError(f"pause_file must be a whole path that begins with /, not {str(value)!r}")
        return value

    @classmethod
    def missing_driver(cls) -> str | None:
        """The extra that installs this backend's driver, where it is not installed."""
        module, extra = cls.driver
        return extra if module and importlib.util.find_spec(module) is None else None

    @property
    @abstractmethod
    def display_url(self) -> str:
        """The URL without its secrets, for log lines and reports."""

    def table_names(self) -> tuple[str, ...]:
        """The tables it keeps results in, as labels of metrics; none where it has no tables."""
        return ()

    @abstractmethod
    def open(self, limits: Limits, watermarks: Watermarks) -> AbstractContextManager[Self]:
        """Connect and yield a copy for one run, used by one thread; closed on leaving.

        Raises BackendUnreachable within `limits.connect_timeout` and a second, BackendRefused where logging in
        is refused. A URL may be wrong, a server absent: nothing is tried before this.
        """

    @abstractmethod
    def standing(self) -> Standing:
        """The server's clock and the newest result, on an opened copy."""

    @abstractmethod
    def lock(self) -> AbstractContextManager[Lock | None]:
        """Take the one lock of this backend's changing jobs without waiting; None where another run has it."""

    def interrupt(self) -> None:
        """Ask the server to end the statement in hand; called from another thread when a stop is overdue.

        Does nothing where every step is short; a backend with steps that cannot be split says how to end one.
        """
