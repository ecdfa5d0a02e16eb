"""Opening the ledger: a private SQLite file in the state directory, or a database that several hosts share."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, StaticPool, create_engine, event, func, insert, make_url, select
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DisconnectionError,
    IntegrityError,
    NoSuchModuleError,
    SQLAlchemyError,
)
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.schema import CreateIndex, CreateTable

from backendops.contracts.errors import BackendopsError
from backendops.engine.ledger_tables import VERSION, metadata, version

FILE_NAME: Final = "ledger.sqlite3"

# Every write is one short transaction of a few rows: after ten seconds the other process is not slow but stuck.
_BUSY_TIMEOUT_MS: Final = 10_000
# Two processes that open a new ledger at the same moment both create its tables: the loser looks again.
_ATTEMPTS: Final = 5
# SQLite's -shm alone begins with as much.
_SMALLEST_ROOM: Final = 64 * 1024
# A race is over by then; what is still locked has waited out the timeout above, and would do so each time.
_RACE_SECONDS: Final = 5.0

# SQLAlchemy 2.1 would pick drivers that are not installed.
_DRIVERS: Final = {
    "postgresql": "postgresql+psycopg2",
    "postgres": "postgresql+psycopg2",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}

# A server that is gone without a word: without these a call would wait for it for a quarter of an hour.
_BOUNDS: Final[dict[str, dict[str, Any]]] = {
    "postgresql+psycopg2": {"connect_timeout": 5, "tcp_user_timeout": 10_000, "keepalives_idle": 10}
}


def open_directory(directory: Path, create: bool) -> Engine:
    """The ledger in a state directory; where there is none and it may not be made, an empty one in memory."""
    file = directory / FILE_NAME
    if not create and not file.exists():
        return open_memory()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_private(file)
    except OSError as error:
        raise BackendopsError(
            f"cannot write the ledger {file}: {error.strerror}; "
            "run as the user that owns it, or name a directory of your own as `state:` in the policy"
        ) from None
    engine = prepared(_sqlite(URL.create("sqlite", database=str(file))), str(file))
    _made_again_where_it_is_removed(engine, file)
    return engine


def open_memory() -> Engine:
    """An empty ledger in memory."""
    return prepared(_sqlite(URL.create("sqlite"), poolclass=StaticPool), "in memory")


def open_url(state: str, create: bool = True) -> Engine:
    """The ledger in a database; raises BackendopsError that never shows the password.

    Where there is none and it may not be made, an empty one in memory.
    """
    try:
        url = make_url(state.removeprefix("db+"))
        url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
        if url.get_backend_name() == "sqlite":
            return prepared(_sqlite(url), str(url), create)
        # A shared ledger's server restarts now and then; pre-ping notices before a run does.
        bounds = {key: value for key, value in _BOUNDS.get(url.drivername, {}).items() if key not in url.query}
        engine = create_engine(url, pool_pre_ping=True, hide_parameters=True, connect_args=bounds)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise BackendopsError(
            f"`state:` of the policy is no database that can be opened: {error}; "
            "write a directory, or a URL such as postgresql://user@host/database"
        ) from None
    return prepared(engine, url.render_as_string(hide_password=True), create)


def prepared(engine: Engine, where: str, create: bool = True) -> Engine:
    """The engine, once every table is there in the version that this backendops knows."""
    began = time.monotonic()
    for attempt in range(_ATTEMPTS):
        try:
            with engine.begin() as connection:
                is_new = not connection.dialect.has_table(connection, version.name)
                if create or not is_new:
                    _create(connection, where)
            if is_new and not create:
                engine.dispose()
                return open_memory()
        except BackendopsError:
            engine.dispose()
            raise
        except SQLAlchemyError as error:
            in_time = attempt + 1 < _ATTEMPTS and time.monotonic() - began < _RACE_SECONDS
            if in_time and isinstance(error, (IntegrityError, DatabaseError)) and _is_race(error):
                time.sleep(0.05 * (attempt + 1))
                continue
            engine.dispose()
            raise BackendopsError(_sentence(error, where)) from None
        else:
            return engine
    raise AssertionError("the last attempt returns or raises")


def first_line(error: SQLAlchemyError) -> str:
    """What the driver said, without the statement that SQLAlchemy adds."""
    said = str(getattr(error, "orig", None) or error).strip()
    return said.splitlines()[0] if said else type(error).__name__


def _create(connection: Connection, where: str) -> None:
    if not connection.dialect.has_table(connection, version.name):
        for table in metadata.sorted_tables:
            connection.execute(CreateTable(table, if_not_exists=True))
            for index in sorted(table.indexes, key=lambda index: str(index.name)):
                # MySQL knows no IF NOT EXISTS here; a race is told by the error and tried again.
                connection.execute(CreateIndex(index, if_not_exists=connection.dialect.name != "mysql"))
    found = connection.scalar(select(func.max(version.c.version)))
    if found is None:
        connection.execute(insert(version).values(version=VERSION))
    elif found > VERSION:
        raise BackendopsError(
            f"the ledger {where} was written by a newer backendops (its version is {found}, this one knows {VERSION}); "
            "upgrade backendops here, or name another `state:` in the policy"
        )


def _is_race(error: SQLAlchemyError) -> bool:
    said = first_line(error)
    return isinstance(error, IntegrityError) or "already exists" in said or "locked" in said or "Duplicate" in said


def _sentence(error: SQLAlchemyError, where: str) -> str:
    said = first_line(error)
    if isinstance(getattr(error, "orig", None), sqlite3.DatabaseError):
        if "not a database" in said or "malformed" in said:
            return f"{where} is damaged or no ledger; it holds history, no results: move it away, a new one is made"
        if "is locked" in said:
            return (
                f"cannot use the ledger {where}: another process has locked it: end that one (`fuser {where}` names it)"
            )
        # With a -wal that cannot grow, SQLite tells of a full disk as of any other fault of it.
        if "is full" in said or ("disk I/O" in said and _no_room(where)):
            return f"cannot use the ledger {where}: its disk is full: make room, or name another `state:` in the policy"
    return f"cannot use the ledger {where}: {said}; check `state:` in the policy and that it is writable"


def _no_room(file: str) -> bool:
    with suppress(OSError):
        return shutil.disk_usage(Path(file).parent).free < _SMALLEST_ROOM
    return False


def _sqlite(url: URL, **options: Any) -> Engine:
    engine = create_engine(url, hide_parameters=True, connect_args={"check_same_thread": False}, **options)

    @event.listens_for(engine, "connect")
    def bounded(connection: sqlite3.Connection, _record: object) -> None:
        # The timeout comes first: switching to WAL takes a lock itself.
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        # With WAL, status and metrics read while a run writes.
        connection.execute("PRAGMA journal_mode = WAL")
        # A power cut may cost the last moments of history; the file stays whole, and no run waits for a disk.
        connection.execute("PRAGMA synchronous = NORMAL")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        # A transaction that reads first and then writes would fail at once when another has written meanwhile.
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _make_private(file: Path) -> None:
    """Be first: SQLite gives its -wal and -shm files the mode of the database. Raises OSError.

    Where there is a file it is not even opened: closing it would end the locks of this process's other connections
    to it (fcntl(2)), and another process would then take the ledger for unused and remove its -wal.
    """
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    if not os.access(file, os.R_OK | os.W_OK):
        why = errno.EROFS if os.statvfs(file).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(why, os.strerror(why))


def _made_again_where_it_is_removed(engine: Engine, file: Path) -> None:
    """Who removes a damaged ledger need not start the daemon again: it goes on with a new one in its place."""

    def inode() -> int | None:
        try:
            return file.stat().st_ino
        except OSError:
            return None

    @event.listens_for(engine, "checkout")
    def is_there(_connection: sqlite3.Connection, record: ConnectionPoolEntry, _proxy: object) -> None:
        here = inode()
        if record.info.setdefault("inode", here) != here or here is None:
            raise DisconnectionError("the ledger's file was removed or replaced")

    @event.listens_for(engine, "do_connect")
    def is_private(*_: object) -> None:
        with suppress(OSError):  # SQLite says it better
            _make_private(file)

    @event.listens_for(engine, "connect")
    def is_whole(connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
        record.info["inode"] = inode()
        there = "SELECT 1 FROM sqlite_master WHERE name = ?"
        if connection.execute(there, (version.name,)).fetchone():
            return
        # All of it at once: another thread, or process, is just finding out the same.
        connection.execute("BEGIN IMMEDIATE")
        for table in metadata.sorted_tables:
            connection.execute(str(CreateTable(table, if_not_exists=True).compile(engine)))
            for index in table.indexes:
                connection.execute(str(CreateIndex(index, if_not_exists=True).compile(engine)))
        connection.execute(f"INSERT OR IGNORE INTO {version.name} VALUES ({VERSION})")  # noqa: S608 - a constant of ours
        connection.commit()
