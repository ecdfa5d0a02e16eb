"""A PostgreSQL result store of a test, seen from beside backendops."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from typing import Any

import psycopg2
from psycopg2 import extensions

from backendops.backends.postgres import PostgresBackend
from backendops.contracts.run import Limits, NoWatermarks
from tests.celery_rows import FIRST_TO_TELL, TELL

# A test that waits longer for what another session does has failed.
PATIENCE = timedelta(seconds=30)


def connect(url: str, **options: Any) -> extensions.connection:
    """A session of somebody else's, in autocommit."""
    session = psycopg2.connect(url.removeprefix("db+"), **options)
    session.autocommit = True
    return session


def sql(url: str, *statements: str) -> list[tuple[Any, ...]]:
    """Run the statements, each by itself; the rows of the last."""
    with closing(connect(url)) as session, session.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        rows = cursor.fetchall() if cursor.description else []
        if session.server_version >= FIRST_TO_TELL:
            cursor.execute(TELL)
        return rows


@contextmanager
def in_transaction(url: str, statement: str, **options: Any) -> Iterator[extensions.connection]:
    """A session that ran a statement in a transaction and then fell idle in it."""
    with closing(psycopg2.connect(url.removeprefix("db+"), **options)) as session:
        with session.cursor() as cursor:
            cursor.execute(statement)
        yield session
        session.rollback()


@contextmanager
def opened(url: str, limits: Limits | None = None, **fields: Any) -> Iterator[PostgresBackend]:
    """The backend, open for one run."""
    with PostgresBackend(url=url, **fields).open(limits or Limits(), NoWatermarks()) as backend:
        yield backend


@contextmanager
def alone(url: str) -> Iterator[Callable[[int], None]]:
    """A session that waits until so many others are there, itself not counted: one that was closed ends a moment later.

    It is there as long as the block, so what counts sessions counts one more each time.
    """
    with closing(connect(url)) as session, session.cursor() as cursor:

        def others() -> int:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
            return int(cursor.fetchall()[0][0])

        def wait_for(count: int) -> None:
            until(lambda: others() == count, f"{count} other sessions")

        wait_for(0)
        yield wait_for


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that another thread or the server does."""
    deadline = time.monotonic() + PATIENCE.total_seconds()
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.005)


def cut_short_detach(url: str, archive: str, partition: str) -> None:
    """A detach that ends between its two transactions: a reader holds it up there until it is cancelled."""
    with in_transaction(url, f"SELECT FROM {archive}"), closing(connect(url)) as session:

        def detach() -> None:
            with suppress(psycopg2.errors.QueryCanceled), session.cursor() as cursor:
                cursor.execute(f"ALTER TABLE {archive} DETACH PARTITION {partition} CONCURRENTLY")

        thread = threading.Thread(target=detach, daemon=True)
        thread.start()
        pending = f"SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = '{partition}'::regclass"
        until(lambda: sql(url, pending) == [(True,)], "its first half is done")
        session.cancel()
        thread.join(PATIENCE.total_seconds())
    assert sql(url, pending) == [(True,)], "it was cut short"


def other_role(url: str, name: str, *grants: str) -> str:
    """The URL of a role without any privilege but `grants`; made where it is not there."""
    host = url.split("@", 1)[1]
    if not sql(url, f"SELECT 1 FROM pg_roles WHERE rolname = '{name}'"):
        sql(url, f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
    for grant in grants:
        sql(url, grant)
    return f"db+postgresql://{name}:x@{host}"
