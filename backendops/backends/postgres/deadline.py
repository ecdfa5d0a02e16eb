"""A deadline on this side of a connection, for a server or a pooler that took the connection and then fell silent."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Timer


@contextmanager
def answers_within(file_descriptor: int, seconds: float) -> Iterator[Event]:
    """Shut the socket down when the block takes longer: the driver then raises at once, as for a lost connection.

    statement_timeout cannot do this: it is kept by the server, and PgBouncer holds a query for query_wait_timeout
    (120 s by default) while the server behind it is dead. The event it yields is set where time ran out.
    """
    # A duplicate: the driver may have closed its own, and the number may be another connection's by then.
    duplicate = socket.socket(fileno=os.dup(file_descriptor))
    expired = Event()
    timer = Timer(seconds, _shut_down, [duplicate, expired])
    timer.daemon = True
    timer.start()
    try:
        yield expired
    finally:
        timer.cancel()
        timer.join()
        duplicate.close()


def _shut_down(connection: socket.socket, expired: Event) -> None:
    expired.set()
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the other side was quicker
