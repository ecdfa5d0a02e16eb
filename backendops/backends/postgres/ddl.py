"""DDL under a lock that others may hold, or that another process of ours is making at the same moment."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final, TypeVar

from sqlalchemy import Connection

from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.errors import DEADLOCK, LOCK_NOT_AVAILABLE, MADE_MEANWHILE, code_of
from backendops.contracts.errors import BackendBusy, BackendError

# Five tries of lock_timeout (2 s) with rests between: a busy table lets DDL in within a quarter of a minute, or the
# next run tries again. A single long wait would make Celery's writers queue behind it.
DDL_TRIES: Final = 5

T = TypeVar("T")


def with_ddl(
    session: PostgresSession,
    work: Callable[[Connection], T],
    patience: Sequence[timedelta | None] = (None,) * DDL_TRIES,
) -> T:
    """Run DDL in a transaction of its own under lock_timeout, again where a lock or another process was in the way.

    `patience` has a lock_timeout for each try, None for the run's own.
    """
    for attempt, lock_timeout in enumerate(patience, 1):
        try:
            with session.transaction(lock_timeout=lock_timeout) as connection:
                return work(connection)
        except BackendError as error:
            code = code_of(error)
            busy = isinstance(error, BackendBusy) and code in (LOCK_NOT_AVAILABLE, DEADLOCK)
            if attempt == len(patience) or not (busy or code in MADE_MEANWHILE):
                raise
        # Uneven rests, so that two processes do not meet again in step.
        session.rest(random.uniform(0.1, 0.5) * attempt)  # noqa: S311 - no secret depends on it
    raise AssertionError("the last attempt returns or raises")
