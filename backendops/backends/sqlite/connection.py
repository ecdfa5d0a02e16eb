"""One connection to the file for one run: never creates it, waits shortly for locks, ends what takes too long."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import Connection, StaticPool, create_engine, event

from backendops.backends.sqlite.errors import translated, user_name
from backendops.contracts.errors import BackendRefused, BackendUnreachable
from backendops.contracts.run import Limits

# The clock is looked at every 10,000 instructions of SQLite's machine: about a millisecond.
INSTRUCTIONS: Final = 10_000


class StatementClock:
    """SQLite has no statement timeout; this ends a statement from its progress callback."""

    def __init__(self, limit: timedelta) -> None:
        self.limit = limit
        self._deadline = float("inf")

    def start(self) -> None:
        self._deadline = time.monotonic() + self.limit.total_seconds()

    def expired(self) -> bool:
        """Should SQLite give the statement up? Any true value makes it do so."""
        return time.monotonic() > self._deadline

    @contextmanager
    def limited(self, limit: timedelta) -> Iterator[None]:
        """Another limit for the statements inside."""
        before, self.limit = self.limit, limit
        try:
            yield
        finally:
            self.limit = before


class File:
    """The opened file: SQLAlchemy's connection and what bounds its statements."""

    def __init__(self, path: Path, raw: sqlite3.Connection, limits: Limits) -> None:
        self.path = path
        self._raw = raw
        self.clock = StatementClock(limits.statement_timeout)
        raw.set_progress_handler(self.clock.expired, INSTRUCTIONS)
        # AUTOCOMMIT: a transaction begins where `writing` says so, never by itself under a statement that reads.
        self._engine = create_engine(
            "sqlite://", creator=lambda: raw, poolclass=StaticPool, isolation_level="AUTOCOMMIT"
        )
        event.listen(self._engine, "before_cursor_execute", self._start_clock)
        self.connection: Connection = self._engine.connect()

    def _start_clock(self, *_: Any) -> None:
        self.clock.start()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction that holds the write lock from its beginning, so that what it read cannot change."""
        # A deferred transaction that writes after a read would be refused, not queued, behind another writer.
        self.connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield
            # Where readers keep the commit from finishing, the transaction stays open and is rolled back below.
            self.connection.exec_driver_sql("COMMIT")
        except BaseException:
            # A full disk has rolled back already; a second ROLLBACK would hide the reason.
            if self._raw.in_transaction:
                self.connection.exec_driver_sql("ROLLBACK")
            raise

    def run_to_end(self, statement: str) -> None:
        """Run a statement that goes on for as long as it is asked to, yet has no columns to ask for."""
        self.clock.start()
        # The driver's execute() asks once, as PRAGMA incremental_vacuum has no result: one page would be freed.
        self._raw.executescript(statement)

    def interrupt(self) -> None:
        """End the statement in hand; its transaction is rolled back."""
        self._raw.interrupt()

    def close(self) -> None:
        self.connection.close()
        self._engine.dispose()
        self._raw.close()


def check_file(path: Path, read_only: bool) -> None:
    """Raise what is wrong with the file before SQLite would say `unable to open database file`."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise BackendUnreachable(
            f"{path} does not exist", "check the backend's url; Celery makes the file when its first worker starts"
        ) from None
    except OSError as error:
        raise BackendRefused(
            f"{path}: {error.strerror} for {user_name()}", "let that user into the file's directory"
        ) from None
    if not stat.S_ISREG(mode):
        raise BackendRefused(f"{path} is not a file", "check the path of the backend's url")
    if not os.access(path, os.R_OK):
        raise BackendRefused(f"{path} cannot be read by {user_name()}", "give that user read and write access")
    if read_only:
        return
    if not os.access(path, os.W_OK):
        raise BackendRefused(f"{path} cannot be written by {user_name()}", "give that user write access")
    if not os.access(path.parent, os.W_OK):
        raise BackendRefused(
            f"{path.parent} cannot be written by {user_name()}, and SQLite keeps its journal beside the file",
            "give that user write access to the directory",
        )


@contextmanager
def opened(path: Path, limits: Limits) -> Iterator[File]:
    """The file, opened for one run; raises BackendUnreachable, BackendRefused or BackendBusy."""
    check_file(path, limits.read_only)
    mode = "ro" if limits.read_only else "rw"
    with translated(path):
        raw = sqlite3.connect(
            f"file:{quote(str(path))}?mode={mode}",
            uri=True,
            timeout=limits.lock_timeout.total_seconds(),
            isolation_level=None,
            # `interrupt` comes from another thread; everything else stays on the run's own.
            check_same_thread=False,
        )
        try:
            # Opening reads nothing: the first statement finds out whether this is a database.
            raw.execute("PRAGMA schema_version").fetchone()
            file = File(path, raw, limits)
        except BaseException:
            raw.close()
            raise
    try:
        yield file
    finally:
        file.close()
