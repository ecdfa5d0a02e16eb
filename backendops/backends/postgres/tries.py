"""Trying a batch again that met a timeout or a lock: smaller where it took too long, and not for ever."""

from __future__ import annotations

from typing import Final

from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.errors import STATEMENT_TIMEOUT, code_of
from backendops.contracts.errors import BackendError
from backendops.contracts.run import Pace

# A range that fails three times, and cannot be made smaller, meets something that no waiting cures within this run.
TRIES: Final = 3


class Tries:
    """How often the batch in hand has failed."""

    def __init__(self, session: PostgresSession, pace: Pace) -> None:
        self._session, self._pace = session, pace
        self._failures = 0

    def failed(self, error: BackendError, size: int) -> None:
        """Make ready for another try of this batch; raises what it failed with where that is no use."""
        self._failures += 1
        if self._failures == TRIES or self._session.interrupted:
            raise error
        if code_of(error) == STATEMENT_TIMEOUT:
            self._pace.timed_out()
        else:
            # Long enough for the DDL or the transaction in the way to end, short enough to be no pause in a run.
            self._session.rest(0.2)
        if self._pace.size < size:
            # Each run begins with the same size: who gives up on the way down never gets through.
            self._failures = 0

    def passed(self) -> None:
        """The batch is done: the next one has its own tries."""
        self._failures = 0
