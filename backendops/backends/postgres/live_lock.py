"""A moment's exclusive lock on a live table: asked for briefly and often, held for milliseconds, measured."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from time import monotonic, sleep
from typing import Final

from sqlalchemy import Connection

from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.errors import DEADLOCK, LOCK_NOT_AVAILABLE, code_of
from backendops.backends.postgres.sent import SHARE_UPDATE, Sent, leaf, rendered, send_rendered
from backendops.backends.sql_files import load
from backendops.contracts.errors import BackendBusy, BackendError
from backendops.contracts.partitions import PlannedStatement

# While it is waited for, every writer of the table waits behind it: a tenth of a second first, 2 s at the very most.
PATIENCE: Final = tuple(timedelta(seconds=seconds) for seconds in (0.1, 0.1, 0.25, 0.25, 0.5, 0.5, 1, 1, 2, 2))


# Taking a CHECK away that stayed behind: for under two seconds of locks altogether, as the process may be asked to end.
UNBIND_PATIENCE: Final = PATIENCE[:6]

_HURRY: Final = leaf("hurry", {})


class _Unwanted(Exception):
    """The check said no: what was sent before the lock is rolled back."""


def with_moment(  # noqa: PLR0913, PLR0917 - what is sent, before the lock and under it
    session: PostgresSession,
    live: str,
    quiet: Iterable[str],
    statements: Iterable[Sent],
    check: Callable[[Connection], bool] | None = None,
    before: Iterable[Sent] = (),
) -> float | None:
    """Send the statements while everybody else is kept from the table `live`; for how many seconds that was.

    `quiet` are the tables that are freed of autovacuum beforehand; both are slots. `before` is sent in the same
    transaction before the lock: what makes new tables that nobody knows of yet. Where `check`, asked under the lock,
    says no, nothing is changed and the answer is None. Raises BackendBusy, with nothing changed, where ten tries met
    a transaction that does not end.
    """
    tables, first, wanted = tuple(quiet), tuple(before), (_HURRY, *statements)
    for attempt, patience in enumerate(PATIENCE, 1):
        try:
            with session.transaction() as connection:
                for table in tables:
                    leaf("quiet", {"leaf": table}).send(connection)
                for one in first:
                    one.send(connection)
                text = rendered(connection, wanted)
                session.bound(connection, lock_timeout=patience)
                leaf("lock_live", {"live": live}).send(connection)
                began = monotonic()
                if check is not None:
                    _HURRY.send(connection)
                    if not check(connection):
                        raise _Unwanted  # noqa: TRY301 - the transaction must not be committed
                send_rendered(connection, text)
            return monotonic() - began
        except _Unwanted:
            return None
        except BackendBusy as busy:
            if attempt == len(PATIENCE) or code_of(busy) not in (LOCK_NOT_AVAILABLE, DEADLOCK):
                raise
        # Uneven rests: what is in the way may come again and again in a rhythm of its own.
        session.rest(random.uniform(0.1, 0.5) * attempt)  # noqa: S311 - no secret depends on it
    raise AssertionError("the last attempt returns or raises")


def planned_moment(
    live: str, quiet: Iterable[str], statements: Iterable[Sent], hold: str, before: Iterable[Sent] = ()
) -> Iterator[PlannedStatement]:
    """What `with_moment` sends, for people; `hold` is how long the lock is held."""
    first = True
    for table in quiet:
        free = "nothing that reads or writes; autovacuum and DDL, until the commit"
        yield Sent("live_partition", "quiet", {"leaf": table}, lock=SHARE_UPDATE, hold=free).planned(together=not first)
        first = False
    for sent in before:
        yield sent.planned(together=not first)
        first = False
    lock = Sent("live_partition", "lock_live", {"live": live}, hold=f"{hold} until the commit: no row is read")
    yield lock.planned(together=not first)
    for sent in statements:
        yield sent.planned(together=True)


def unbind(session: PostgresSession, oid: int, table: str) -> bool:
    """Take our CHECK off a table, on a connection of its own, as the run's may be cancelled or lost; is it gone?"""
    for patience in UNBIND_PATIENCE:
        try:
            with session.connect() as connection, connection.begin():
                session.bound(connection, lock_timeout=patience)
                if connection.execute(load("postgres", "live_partition", "is_bound"), {"oid": oid}).scalar_one():
                    leaf("drop_bound", {"leaf": table}).send(connection)
        except BackendBusy:
            # Not the run's own rest, which a run that is asked to end does not take.
            sleep(random.uniform(0.1, 0.2))  # noqa: S311 - no secret depends on it
        except BackendError:
            return False
        else:
            return True
    return False


def still_bound(table: str, bound: object, error: BackendError) -> BackendError:
    """The error, and what was left behind for as long as its cause lasts."""
    return type(error)(
        f"{error}; and the CHECK backendops_bound is still on {table}: results from {bound} on would be refused",
        "run the same command again when what was in the way is gone, or `backendops partition undo`: each takes the "
        f"CHECK away, as does the next `partition` job. {error.hint}".strip(),
    )


def held(seconds: float | None) -> str:
    """For the end of a sentence."""
    return f"; exclusive lock held for {(seconds or 0.0) * 1000:.1f} ms"
