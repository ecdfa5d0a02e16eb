"""What SQLite's errors mean to an operator."""

from __future__ import annotations

import os
import pwd
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy.exc import DBAPIError

from backendops.contracts.errors import BackendBusy, BackendError, BackendRefused, BackendUnreachable

# The low byte is the kind of error, the rest of an extended code says more about it.
_PRIMARY: Final = 0xFF
_CUT_OFF: Final = (sqlite3.SQLITE_READONLY_ROLLBACK, sqlite3.SQLITE_READONLY_RECOVERY)


def user_name() -> str:
    """Who the program runs as: the name a file's owner has to let in."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise a BackendError with the way out in place of what SQLite or its driver raises."""
    try:
        yield
    except DBAPIError as error:
        raise as_backend_error(error.orig, path) from error
    except sqlite3.Error as error:
        raise as_backend_error(error, path) from error


def as_backend_error(error: BaseException | None, path: Path) -> BackendError:
    """The error in the operator's words."""
    code = getattr(error, "sqlite_errorcode", 0) or 0
    if code in _CUT_OFF:
        return BackendBusy(
            f"{path}: a process was killed in the middle of a transaction",
            "the next program that opens the file for writing rolls it back, such as a Celery worker; then try again",
        )
    kind, hint = _MEANINGS.get(code & _PRIMARY, (BackendError, ""))
    return kind(f"{path}: {error}", hint)


_LET_IN: Final = (BackendRefused, f"let {user_name()} write the file and its directory")
_GONE: Final = (BackendUnreachable, "is its file system there, mounted and healthy?")
_LOCKED: Final = (BackendBusy, "another program holds its lock: `fuser -v` on the file shows who has it open")
_MEANINGS: Final[Mapping[int, tuple[type[BackendError], str]]] = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_INTERRUPT: (BackendBusy, "the statement took longer than statement_timeout: raise that"),
    sqlite3.SQLITE_CANTOPEN: _GONE,
    sqlite3.SQLITE_IOERR: _GONE,
    sqlite3.SQLITE_NOTADB: (BackendRefused, "check the path in the backend's url: this is no SQLite database"),
    sqlite3.SQLITE_CORRUPT: (
        BackendRefused,
        "stop the writers and run `PRAGMA integrity_check` in sqlite3; restore a backup, or try its .recover",
    ),
    sqlite3.SQLITE_FULL: (BackendRefused, "make room on its file system; nothing of the batch was changed"),
    sqlite3.SQLITE_READONLY: _LET_IN,
    sqlite3.SQLITE_PERM: _LET_IN,
    sqlite3.SQLITE_AUTH: _LET_IN,
    sqlite3.SQLITE_CONSTRAINT: (
        BackendRefused,
        "an archive must take a task_id twice and any column empty: drop its constraint, or name another table",
    ),
}
