"""A second look at the server while a run goes on: asked every second from a connection and a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from time import monotonic
from typing import Final

from sqlalchemy import Connection

from backendops.backends.postgres.deadline import answers_within
from backendops.contracts.capabilities import Pressure
from backendops.contracts.errors import BackendBusy, BackendError, BackendUnreachable

# What an application notices begins at about a second; asking more often would be part of the load.
EVERY: Final = 1.0
# The server answers within a second or gives up; the rest is a pooler's queue, or a network that is gone.
SILENCE: Final = 5.0


class Watch:
    """Keeps the latest answer, and until it is read the worst: a wait between two readings is not missed."""

    def __init__(
        self,
        connect: Callable[[], AbstractContextManager[Connection]],
        ask: Callable[[Connection], Pressure],
        unwatched: Callable[[BackendError], Pressure],
    ) -> None:
        self._connect = connect
        self._ask = ask
        self._unwatched = unwatched
        self._lock = threading.Lock()
        self._worst = self._last = Pressure()
        self._failure: Exception | None = None
        self._answered_at = monotonic()
        self._answered = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pressure", daemon=True)
        self._thread.start()

    def latest(self) -> Pressure:
        """The worst since the last reading; raises what the asking raised, such as BackendRefused."""
        self._answered.wait(SILENCE)
        with self._lock:
            found, self._worst = self._worst, self._last
            if self._failure is not None:
                raise self._failure
            silent = monotonic() - self._answered_at
        if silent > SILENCE:
            return Pressure("no-answer", f"the server has given no answer for {silent:.0f} s")
        return found

    def close(self) -> None:
        """End the thread and its connection."""
        self._over.set()
        self._thread.join(SILENCE)

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                with ExitStack() as held:
                    connection = held.enter_context(self._connect())
                    connection = connection.execution_options(isolation_level="AUTOCOMMIT")
                    while not self._over.is_set():
                        self._put(self._answer(connection))
                        self._over.wait(EVERY)
            except (BackendUnreachable, BackendBusy) as error:
                self._put(self._unwatched(error))
                self._over.wait(EVERY)
            except Exception as error:  # noqa: BLE001 - raised on the run's own thread, where the engine makes it an outcome
                self._failure = error
                self._answered.set()
                return

    def _answer(self, connection: Connection) -> Pressure:
        raw = connection.connection.dbapi_connection
        assert raw is not None  # noqa: S101 - a connection that was just made, or has just answered
        with answers_within(raw.fileno(), SILENCE):
            return self._ask(connection)

    def _put(self, found: Pressure) -> None:
        with self._lock:
            self._answered_at = monotonic()
            self._last = found
            if _weight(found) >= _weight(self._worst):
                self._worst = found
        self._answered.set()


def _weight(found: Pressure) -> int:
    return 2 if found.end is not None else 1 if found.wait is not None else 0
