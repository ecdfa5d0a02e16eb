"""Statements that no transaction can hold (VACUUM, CONCURRENTLY), ended when the run's time is over."""

from __future__ import annotations

import math
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Final

from sqlalchemy import TextClause

from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.errors import LOCK_NOT_AVAILABLE, STATEMENT_TIMEOUT, code_of
from backendops.backends.sql_files import load
from backendops.contracts.errors import BackendBusy, BackendError, BackendRefused, BackendUnreachable
from backendops.contracts.readings import Finding

# Outside a transaction only the role's and the database's own settings can end a statement.
_LIMITS_OF_OTHERS: Final = {STATEMENT_TIMEOUT: "statement_timeout", LOCK_NOT_AVAILABLE: "lock_timeout"}


class Ended(Exception):
    """The statement in hand was ended because the run is over: its time is used up, or somebody stopped it."""

    def __init__(self, said: str, *findings: Finding) -> None:
        super().__init__(said)
        self.findings = findings


class WindowClosed(Ended):
    """It was ended, or not begun, because the hours in which it may run are over; the run itself may go on."""


class LongStatements(PostgresSession):
    """One statement at a time, outside any transaction."""

    def send(self, statement: TextClause, what: str, deadline: float, until: datetime | None = None) -> None:
        """Send it; raises Ended where the run is over, WindowClosed where `until` is past, before or while it runs."""
        closes = _closes(until)
        left = min(deadline, closes) - monotonic()
        if left <= 0 and closes < deadline:
            raise WindowClosed(f"did not begin the {what}: its window is over")
        if left <= 0:
            raise Ended(f"did not begin the {what}: the time is used up")
        try:
            with self.autocommit(timedelta(seconds=left)) as connection:
                connection.execute(statement)
        except BackendBusy as error:
            if self._interrupted.is_set() or monotonic() >= deadline:
                raise Ended(f"ended the {what}: the run's time is over") from error
            if monotonic() >= closes:
                raise WindowClosed(f"ended the {what}: its window is over") from error
            if (setting := _LIMITS_OF_OTHERS.get(code_of(error) or "")) is None:
                raise
            raise BackendBusy(
                f"{what} was cancelled by the server or by somebody",
                f"is a {setting} set for backendops' role or database? {_lifted(setting)}",
            ) from error
        except BackendUnreachable as error:
            if not self._limits_transactions():
                raise
            raise BackendRefused(
                f"the server ended the session in the middle of the {what}: a transaction_timeout is set for "
                "backendops' role or database",
                _lifted("transaction_timeout"),
            ) from error

    def _limits_transactions(self) -> bool:
        """Would the server end a session of ours by that? The driver cannot say: it is told nothing but the end."""
        with suppress(BackendError), self.connect() as connection, connection.begin():
            self.bound(connection)
            return bool(connection.execute(load("postgres", "vacuum", "limits_transactions")).scalar_one())
        return False


def _lifted(setting: str) -> str:
    return f"ALTER ROLE … SET {setting} = 0; every statement of backendops has a limit of its own"


def _closes(until: datetime | None) -> float:
    """When the window ends; by the clock on the wall, as its hours are, and looked at for every statement anew."""
    return math.inf if until is None else monotonic() + (until - datetime.now(UTC)).total_seconds()
