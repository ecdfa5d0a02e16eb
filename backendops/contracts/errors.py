"""The error tree. Ending early (locked, out of time, stopped) is an Outcome, never an exception.

BackendopsError             1
├── PolicyError             2   problems: every fault of a policy, each with its place
└── BackendError            1   carries a hint: what the operator can do
    ├── BackendUnreachable  3   no connection, or the connection was lost
    ├── BackendBusy        75   a lock or a statement took too long; trying again may work
    │   └── BackendLocked  75   another run has what this one needs
    └── BackendRefused      5   a safety limit, a missing privilege or table, columns that do not fit
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


class BackendopsError(Exception):
    """Anything backendops itself raises; its text is written for an operator."""

    exit_code: ClassVar[int] = 1


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One fault of a policy, with its place."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}"


class PolicyError(BackendopsError):
    """The policy cannot be used; `problems` has every fault, sorted by place."""

    exit_code = 2

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = sorted(problems)
        super().__init__("\n".join(map(str, self.problems)))


class BackendError(BackendopsError):
    """A backend could not do what was asked; `hint` is the way out."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class BackendUnreachable(BackendError):
    """The backend does not answer, or the connection broke."""

    exit_code = 3


class BackendBusy(BackendError):
    """A lock or a statement took longer than allowed; trying again later may work."""

    exit_code = 75


class BackendLocked(BackendBusy):
    """Another run has the lock of what this one needs beside its backend; the run counts as locked."""


class BackendRefused(BackendError):
    """Going on would be unsafe or is not permitted; nothing was changed by this step."""

    exit_code = 5
