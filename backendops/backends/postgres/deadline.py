"""A deadline on this side of a connection, for a server or a pooler that took the connection and then fell silent."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer


@contextmanager
def answers_within(file_descriptor: int, seconds: float) -> Iterator[None]:
    """Shut the socket down when the block takes longer: the driver then raises at once, as for a lost connection.

    statement_timeout cannot do this: it is kept by the server, and PgBouncer holds a query for query_wait_timeout
    (120 s by default) while the server behind it is dead.
    """
    # A duplicate: the driver may have closed its own, and the number may be another connection's by then.
    duplicate = socket.socket(fileno=os.dup(file_descriptor))
    timer = Timer(seconds, _shut_down, [duplicate])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        duplicate.close()


def _shut_down(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the other side was quicker
