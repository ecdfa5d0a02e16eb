"""Statements that no transaction can hold (VACUUM, CONCURRENTLY), ended when the run's time is over."""

from __future__ import annotations

from datetime import datetime, timedelta
from time import monotonic

from sqlalchemy import TextClause

from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.errors import STATEMENT_TIMEOUT, code_of
from backendops.contracts.errors import BackendBusy


class Ended(Exception):
    """The statement in hand was ended because the run is over: its time is used up, or somebody stopped it."""


class LongStatements(PostgresSession):
    """One statement at a time, outside any transaction."""

    def send(self, statement: TextClause, what: str, deadline: float) -> None:
        """Send it; raises Ended where the run's time is over, before or while it runs."""
        left = deadline - monotonic()
        if left <= 0:
            raise Ended(f"did not begin {what}: the time is used up")
        try:
            with self.autocommit(timedelta(seconds=left)) as connection:
                connection.execute(statement)
        except BackendBusy as error:
            if self._interrupted.is_set() or monotonic() >= deadline:
                raise Ended(f"ended the {what}: the run's time is over") from error
            if code_of(error) != STATEMENT_TIMEOUT:
                raise
            raise BackendBusy(
                f"{what} was cancelled by the server or by somebody",
                "is a statement_timeout set for backendops' role or database? "
                "ALTER ROLE … SET statement_timeout = 0; every statement of backendops has a limit of its own",
            ) from error


def not_after(deadline: float, end: datetime | None, now: datetime) -> float:
    """The deadline, or the end of a window where that comes first; `now` is the run's."""
    return deadline if end is None else min(deadline, monotonic() + (end - now).total_seconds())
