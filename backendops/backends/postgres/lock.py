"""The one lock of a backend's changing jobs: a transaction's advisory lock on a connection of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from backendops.backends.sql_files import load
from backendops.contracts.backend import Lock

if TYPE_CHECKING:
    from backendops.backends.postgres.connection import PostgresSession


class TransactionLock(Lock):
    """Held exactly as long as the transaction that took it is open."""

    def __init__(self, connection: Connection, begun: datetime, pid: int) -> None:
        self._connection = connection
        self._begun = begun
        self._pid = pid

    def still_held(self) -> bool:
        """Ask the server whether this is still that transaction: one round trip."""
        try:
            return bool(
                self._connection.execute(
                    load("postgres", "lock", "is_same_transaction"), {"begun": self._begun, "pid": self._pid}
                ).scalar_one()
            )
        except DBAPIError:
            return False


@contextmanager
def take_lock(session: PostgresSession) -> Iterator[Lock | None]:
    """Take the lock without waiting; None where another run has it."""
    with _locked(session, lambda connection: lock_key(_schema(session, connection), session.tables.task)) as lock:
        yield lock


@contextmanager
def take_archive_lock(session: PostgresSession, schema: str, archive: str) -> Iterator[Lock | None]:
    """Take the lock of an archive that other backends' results come to; None where another run has it."""
    with _locked(session, lambda _: lock_key(schema, f"archive {archive}")) as lock:
        yield lock


@contextmanager
def _locked(session: PostgresSession, key_of: Callable[[Connection], int]) -> Iterator[Lock | None]:
    with session.connect() as connection:
        transaction = connection.begin()
        try:
            # The run may be long: no timeout for what is idle may end its lock.
            session.bound(connection, idle_timeout=None)
            key = key_of(connection)
            row = connection.execute(load("postgres", "lock", "take"), {"key": key}).one()
            if row.taken:
                session.answer_beside_the_lock()
            yield TransactionLock(connection, row.begun, row.pid) if row.taken else None
        finally:
            if connection.invalidated:
                transaction.close()
            else:
                transaction.rollback()


def _schema(session: PostgresSession, connection: Connection) -> str:
    names = {"name": session.tables.task, "schema": session.schemas.task}
    table = connection.execute(load("postgres", "tables", "find_table"), names).one_or_none()
    if table is not None:
        return str(table.schema)
    return session.schemas.task or connection.execute(load("postgres", "session", "current_schema")).scalar_one() or ""


def lock_key(schema: str, table: str) -> int:
    """The lock's number: the same for every policy that names this table, whatever else is in it.

    The server keeps advisory locks apart by database. Not the table's oid: a conversion to partitions changes it.
    """
    digest = hashlib.sha256(f"backendops {schema}.{table}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
