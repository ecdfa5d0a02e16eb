"""What the driver raises, told to an operator: the one place where psycopg2's errors become ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psycopg2
from sqlalchemy.exc import DBAPIError

from backendops.backends.postgres.login import no_session, role_in
from backendops.contracts.errors import BackendBusy, BackendError, BackendRefused, BackendUnreachable

LOCK_NOT_AVAILABLE: Final = "55P03"
DEADLOCK: Final = "40P01"
SERIALIZATION: Final = "40001"
STATEMENT_TIMEOUT: Final = "57014"
UNIQUE_VIOLATION: Final = "23505"
DEPENDENT_OBJECTS: Final = "2BP01"
CHECK_VIOLATION: Final = "23514"
"""Also raised for a row that no partition takes."""
MADE_MEANWHILE: Final = frozenset({"42P07", "42701", "23505"})
"""Another process made the same table or column: told of by name, or by the catalog's own unique index."""

_BUSY: Final = {
    LOCK_NOT_AVAILABLE: "another session holds a lock longer than backendops may wait for it",
    DEADLOCK: "a deadlock with another session was broken in its favour",
    SERIALIZATION: "another session changed the same rows at the same moment",
    STATEMENT_TIMEOUT: "a statement was cancelled: it took longer than statement_timeout, or was asked to end",
    "55006": "an object is in use by another session",
}
_DAMAGED: Final = (
    "the server's files are damaged: stop what writes to this table, keep a copy of the data directory, and restore a "
    "backup; pg_amcheck says what else is"
)
_WAYS_OUT: Final = {
    UNIQUE_VIOLATION: "another row has the same value, under the index or constraint that it names: drop it where it "
    "is not Celery's, or move that row away; nothing of this step was changed",
    CHECK_VIOLATION: "drop the constraint that it names (ALTER TABLE … DROP CONSTRAINT …), as it refuses what Celery "
    "stored; where a partition is missing, run the partition job; nothing of this step was changed",
    "53100": "make room on the server's disk; nothing of this step was changed, and the next run goes on from there",
    "53200": "give the server more memory, or lower batch_size; nothing of this step was changed",
    "XX001": _DAMAGED,
    "XX002": "REINDEX the index that it names; nothing of this step was changed",
}
# The driver tells nothing but the end, whoever ended it.
_BROKE: Final = (
    "the next run goes on where this ended; the server's log says who ended it: a restart, an administrator, or a "
    "limit such as idle_session_timeout of this role"
)
_LOST: Final = {"57P01", "57P02", "57P03", "57P05", "25P03", "25P04"}


@contextmanager
def driver_errors(where: str) -> Iterator[None]:
    """Raise the driver's errors as BackendError; `where` is the backend's URL without its secrets."""
    try:
        yield
    except DBAPIError as error:
        raise translated(error.orig, where, error.connection_invalidated) from error
    except psycopg2.Error as error:
        raise translated(error, where) from error


def code_of(error: BaseException | None) -> str | None:
    """The SQLSTATE behind an error of ours or the driver's; None where the server gave none."""
    while error is not None:
        code = getattr(getattr(error, "orig", error), "pgcode", None)
        if code is not None:
            return str(code)
        error = error.__cause__
    return None


def translated(error: BaseException | None, where: str, lost: bool = False) -> BackendError:
    """The error in an operator's words, with the way out."""
    code = getattr(error, "pgcode", None)
    said = _first_line(error)
    if lost or (code is not None and (code.startswith("08") or code in _LOST)):
        return BackendUnreachable(f"the connection to {where} broke: {said}", _BROKE)
    if code is None and said.startswith("invalid dsn"):
        return BackendRefused(f"{where}: {said}", "take the option out of the URL, or correct it")
    if code is None:
        return no_session(str(error), said, where)
    if code in _BUSY:
        return BackendBusy(f"{_BUSY[code]} ({said})", "try again later; nothing of this step was changed")
    return _refused(code, said, where) or BackendError(f"the server reported {code}: {said}", _WAYS_OUT.get(code, ""))


def _refused(code: str, said: str, where: str) -> BackendRefused | None:
    role = role_in(where)
    if code == "42501":
        return BackendRefused(said, _grant(said, role))
    if code == "42P01":
        return BackendRefused(said, "name Celery's tables under `tables:` and `schemas:` of the backend")
    if code == "42703":
        return BackendRefused(said, "is this a table that Celery made? See `tables:` of the backend")
    if code == "3F000":
        missing = re.search(r"schema (\".+\")", said)
        made = f"CREATE SCHEMA {missing[1]} AUTHORIZATION {role};" if missing else "create it,"
        return BackendRefused(said, f"{made} or name another one under `schema:`")
    if code == "25006":
        return BackendRefused(
            # An archive elsewhere has a server of its own.
            f"{where} takes no changes: {said}",
            "the server or the role is read-only: point the URL at the primary, and check that "
            "default_transaction_read_only is off",
        )
    return None


def _grant(said: str, role: str) -> str:
    if other := re.search(r"must be (?:able to SET ROLE|member of role) (\".+\")", said):
        # With GRANT ... WITH SET FALSE a member may use what the role owns, and not make anything that it is to own.
        return f"GRANT {other[1]} TO {role} WITH SET TRUE; (before PostgreSQL 16: without WITH SET TRUE)"
    if owned := re.search(r"(?:must be owner of|permission denied for) index (.+)", said):
        return f"GRANT the role that owns the table of {owned[1]} TO {role}"
    if function := re.search(r"permission denied for function (.+)", said):
        return f"GRANT EXECUTE ON FUNCTION {function[1]} TO {role};"
    match = re.search(r"permission denied for (\w+) (.+)|must be owner of (?:\w+ )?(.+)", said)
    if match is None:
        return f"GRANT {role} what the server names; docs/privileges.md has the SQL of each job"
    if match[3]:
        return f"GRANT the role that owns {match[3]} TO {role}, or ALTER TABLE {match[3]} OWNER TO {role}"
    rights = {"schema": "USAGE, CREATE", "database": "CONNECT, CREATE", "sequence": "USAGE"}
    what = match[1] if match[1] in rights else "table"
    return f"GRANT {rights.get(what, 'SELECT, INSERT, UPDATE, DELETE')} ON {what.upper()} {match[2]} TO {role};"


def _first_line(error: BaseException | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
