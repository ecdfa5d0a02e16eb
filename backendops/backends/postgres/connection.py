"""Connections to PostgreSQL whose every transaction is bounded, through PgBouncer too."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import Any, ClassVar, Final, Self

import psycopg2
from pydantic import PrivateAttr, SecretStr, field_validator
from sqlalchemy import Connection, Engine, NullPool, TextClause, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from backendops.backends.postgres.deadline import answers_within
from backendops.backends.postgres.errors import driver_errors
from backendops.backends.sql import SqlBackend
from backendops.backends.sql_files import load, together
from backendops.contracts.errors import BackendBusy, BackendUnreachable
from backendops.contracts.run import Limits, Watermarks

APPLICATION_NAME: Final = "backendops"
# A process of ours that was stopped in mid-batch (SIGSTOP, a frozen VM) must not hold its rows' locks for ever.
IDLE_IN_TRANSACTION: Final = timedelta(minutes=1)


def milliseconds(length: timedelta) -> str:
    """A timeout as the server takes it; never 0, which would mean without end."""
    return f"{max(1, round(length.total_seconds() * 1000))}ms"


@cache
def _opening(names: tuple[str, ...]) -> TextClause:
    # In one round trip: of a small batch they are most of the time.
    return together(*(load("postgres", "session", name) for name in names))


class PostgresSession(SqlBackend):
    """What every capability on PostgreSQL stands on: one connection per run, used in bounded transactions."""

    kind: ClassVar[str] = "postgresql"
    schemes: ClassVar[tuple[str, ...]] = (
        "db+postgresql",
        "db+postgresql+psycopg2",
        "db+postgresql+psycopg",
        "db+postgres",
        "postgresql",
        "postgresql+psycopg2",
    )
    driver: ClassVar[tuple[str, str]] = ("psycopg2", "postgresql")
    drivername: ClassVar[str] = "postgresql+psycopg2"

    _connection: Connection | None = PrivateAttr(None)
    _interrupted: threading.Event = PrivateAttr(default_factory=threading.Event)

    @field_validator("url")
    @classmethod
    def _names_a_server(cls, value: SecretStr) -> SecretStr:
        try:
            url = make_url(value.get_secret_value().removeprefix("db+").removeprefix("database+"))
            # Several hosts, ports and options are read only here; nothing is connected.
            create_engine(url.set(drivername=cls.drivername), poolclass=NullPool)
        except (ArgumentError, ValueError):
            raise ValueError(
                "this is not a URL of PostgreSQL: write db+postgresql://user:password@host:5432/database, "
                "with @ / : ? # % of the password as %40 %2F %3A %3F %23 %25"
            ) from None
        return value

    @contextmanager
    def open(self, limits: Limits, watermarks: Watermarks) -> Iterator[Self]:
        opened = self.model_copy()
        opened._limits, opened._watermarks = limits, watermarks
        opened._interrupted = threading.Event()
        opened._engine = self.make_engine(limits)
        try:
            with driver_errors(self.display_url), self._first_answer(opened._engine, limits.connect_timeout):
                opened._connection = opened._engine.connect()
            yield opened
        finally:
            if opened._connection is not None:
                opened._connection.close()
            opened._engine.dispose()

    @contextmanager
    def _first_answer(self, engine: Engine, limit: timedelta) -> Iterator[None]:
        """Give up on a pooler that takes the connection while the server behind it is gone.

        SQLAlchemy asks for the server's version first, with no limit but the pooler's: PgBouncer's is two minutes.
        """
        with ExitStack() as held:
            expired: list[threading.Event] = []

            @event.listens_for(engine, "connect", insert=True)
            def begin(raw: Any, record: object) -> None:  # noqa: ARG001 - the shape that SQLAlchemy calls
                if not expired:
                    expired.append(held.enter_context(answers_within(raw.fileno(), limit.total_seconds())))

            try:
                yield
            except DBAPIError as error:
                if not (expired and expired[0].is_set()):
                    raise
                raise BackendUnreachable(
                    f"{self.display_url} took the connection, then gave no answer in {limit.total_seconds():.0f} s",
                    "is it a pooler whose server is gone, or whose pool is full? See SHOW POOLS of PgBouncer",
                ) from error
            finally:
                event.remove(engine, "connect", begin)

    def answer_beside_the_lock(self) -> None:
        """Raise BackendUnreachable soon where a pooler has no server connection for the run while the lock has one."""
        raw: Any = self._connection and self._connection.connection.dbapi_connection
        limit = self._limits.connect_timeout.total_seconds()
        with answers_within(raw.fileno(), limit) as expired:
            try:
                with self.transaction(read_only=True):
                    pass
            except BackendUnreachable as error:
                if not expired.is_set():
                    raise
                raise BackendUnreachable(
                    f"{self.display_url} gave no answer in {limit:.0f} s once the run's lock had its connection",
                    "a run that changes something takes two server connections of a pooler, and for moments a third: "
                    "raise its pool_size (or default_pool_size), or see with SHOW POOLS who has them",
                ) from error

    @property
    def limits(self) -> Limits:
        """The bounds of this run's statements."""
        return self._limits

    @property
    def watermarks(self) -> Watermarks:
        """What this backend remembers between runs."""
        return self._watermarks

    def make_engine(self, limits: Limits) -> Engine:
        """An engine that keeps no connection: a fresh one each time, which the caller closes."""
        return create_engine(
            self.sqlalchemy_url,
            poolclass=NullPool,
            connect_args=self._connect_args(limits),
            # Whatever the default is: in a serializable transaction of ours the server may decide against a writer.
            isolation_level="READ COMMITTED",
        )

    def _connect_args(self, limits: Limits) -> Mapping[str, Any]:
        ours: dict[str, Any] = {
            # libpq counts whole seconds, and takes 1 for 2.
            "connect_timeout": max(2, int(limits.connect_timeout.total_seconds())),
            "application_name": APPLICATION_NAME,
            # Whatever Celery stored can be read, also where the role, the database or PGCLIENTENCODING says less.
            "client_encoding": "utf8",
            # A peer that vanished without a word is noticed within half a minute instead of hours.
            "keepalives": 1,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 25_000,
        }
        return {name: value for name, value in ours.items() if name not in self.sqlalchemy_url.query}

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """A connection of its own beside the run's, outside any transaction; closed on leaving."""
        assert self._engine is not None, "the backend is not open"  # noqa: S101 - a fault of ours, never of a user
        with driver_errors(self.display_url), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def transaction(  # noqa: PLR0913 - the one place of what a transaction can be
        self,
        *,
        statement_timeout: timedelta | None = None,
        lock_timeout: timedelta | None = None,
        read_only: bool = False,
        one_state: bool = False,
        prefer_indexes: bool = False,
        lazily: bool = False,
    ) -> Iterator[Connection]:
        """One bounded transaction on the run's connection, committed on leaving, rolled back on an error.

        With `one_state` all its statements see the rows as the first one sees them, and fail where they changed since;
        with `prefer_indexes` they go by their indexes whatever the statistics say; with `lazily` its commit does not
        wait for the disk.

        Raises BackendBusy, BackendRefused or BackendUnreachable for what the driver reports.
        """
        if self._interrupted.is_set():
            raise BackendBusy("the run was asked to end", "the next run goes on where this ended")
        assert self._connection is not None, "the backend is not open"  # noqa: S101 - a fault of ours
        opening = {
            "see_one_state": one_state,
            "bound_transaction": True,
            "prefer_indexes": prefer_indexes,
            "commit_lazily": lazily,
            "make_read_only": read_only or self._limits.read_only,
        }
        with driver_errors(self.display_url), self._connection.begin():
            self._connection.execute(
                _opening(tuple(name for name, wanted in opening.items() if wanted)),
                self._bounds(statement_timeout, lock_timeout, IDLE_IN_TRANSACTION),
            )
            yield self._connection

    def bound(
        self,
        connection: Connection,
        statement_timeout: timedelta | None = None,
        lock_timeout: timedelta | None = None,
        idle_timeout: timedelta | None = IDLE_IN_TRANSACTION,
    ) -> None:
        """Bound the statements of the transaction that `connection` is in; None takes the run's own limits."""
        connection.execute(
            load("postgres", "session", "bound_transaction"),
            self._bounds(statement_timeout, lock_timeout, idle_timeout),
        )

    def _bounds(
        self, statement_timeout: timedelta | None, lock_timeout: timedelta | None, idle_timeout: timedelta | None
    ) -> Mapping[str, str]:
        return {
            "statement_timeout": milliseconds(statement_timeout or self._limits.statement_timeout),
            "lock_timeout": milliseconds(lock_timeout or self._limits.lock_timeout),
            "idle_timeout": milliseconds(idle_timeout) if idle_timeout else "0",
        }

    @contextmanager
    def autocommit(self, limit: timedelta) -> Iterator[Connection]:
        """The run's connection without a transaction, for VACUUM and CONCURRENTLY; cancelled after `limit`.

        The clock is ours: outside a transaction a timeout could only be set for the session, which leaks through
        PgBouncer. Raises BackendBusy where the limit is met.
        """
        assert self._connection is not None, "the backend is not open"  # noqa: S101 - a fault of ours
        if self._interrupted.is_set():
            raise BackendBusy("the run was asked to end", "the next run goes on where this ended")
        clock = threading.Timer(limit.total_seconds(), self._cancel)
        clock.daemon = True
        with driver_errors(self.display_url):
            autocommitting = self._connection.execution_options(isolation_level="AUTOCOMMIT")
            clock.start()
            try:
                yield autocommitting
            finally:
                clock.cancel()
                if not self._connection.invalidated:
                    # SQLAlchemy begins a transaction of its own around every statement, in autocommit too.
                    self._connection.rollback()
                    self._connection.execution_options(isolation_level="READ COMMITTED")

    @property
    def interrupted(self) -> bool:
        """Was the run asked to end?"""
        return self._interrupted.is_set()

    def rest(self, seconds: float) -> None:
        """Wait, but no longer than until the run is asked to end."""
        self._interrupted.wait(seconds)

    def interrupt(self) -> None:
        self._interrupted.set()
        self._cancel()

    def _cancel(self) -> None:
        # From another thread: the run may be closing the connection this very moment; then there is nothing to do.
        with suppress(psycopg2.Error, SQLAlchemyError, AttributeError):
            if self._connection is not None and not self._connection.closed and not self._connection.invalidated:
                raw: Any = self._connection.connection.dbapi_connection
                raw.cancel()
