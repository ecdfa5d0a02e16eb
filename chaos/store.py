"""One database under chaos: filled, summed up over every table that holds results, and emptied again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg2

from backendops.embedded import PostgresServer
from tests.celery_rows import fill_celery_table

# Every plain table with results or groups: live ones or their leaves, archives' partitions, quarantined ones. Of each
# the columns but the archive's own, by name: everywhere the same ones, or the sums differ.
HOLDERS = """
SELECT c.oid::regclass::text, max(quote_ident(a.attname)) FILTER (WHERE a.attname IN ('task_id', 'taskset_id')),
       string_agg(quote_ident(a.attname), ', ' ORDER BY a.attname)
           FILTER (WHERE a.attname NOT IN ('done_at', 'archived_at', 'stuck'))
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE c.relkind = 'r' AND n.nspname = 'public' AND a.attnum > 0 AND NOT a.attisdropped
GROUP BY c.oid
HAVING bool_or(a.attname IN ('task_id', 'taskset_id'))
ORDER BY 1
"""
# Every column's value in its place, NULL told from empty, in any order of rows: a sum does not mind where a row is, and
# a doubled row changes it.
SUM = """
SELECT count(*), coalesce(sum(hashtextextended(CAST(ROW({columns}) AS text), 0)), 0) FROM {table} WHERE {which}
"""
# Of some rows also those columns differ that all others have alike, and some have none; groups are of many days, too.
VARY = """
UPDATE celery_taskmeta SET worker = NULL, children = NULL, stamps = convert_to('{"of": ' || id || '}', 'UTF8')
WHERE id % 3 = 0;
UPDATE celery_tasksetmeta SET date_done = date_done + id % 19 * interval '1 day'
WHERE date_done < now() AT TIME ZONE 'UTC' - interval '20 days'
"""
# A session of ours that has written and not committed.
AT_WORK = """
SELECT EXISTS (
    SELECT FROM pg_stat_activity AS a JOIN pg_locks AS l ON l.pid = a.pid JOIN pg_class AS c ON c.oid = l.relation
    WHERE a.application_name = 'backendops' AND a.datname = current_database() AND a.backend_xid IS NOT NULL
      AND c.relname LIKE 'celery\\_%' AND l.granted AND l.mode NOT IN ('AccessShareLock', 'RowShareLock')
)
"""


@dataclass(frozen=True)
class Sum:
    """What all results together come to."""

    rows: int
    checksum: int
    doubled: int
    """Ids that are in more than one place."""


class Store:
    """The database `chaos` of one private server."""

    def __init__(self, postgres: PostgresServer) -> None:
        self.postgres = postgres

    @property
    def url(self) -> str:
        """For psycopg2; the server's port stays the same when it is killed and started again."""
        return self.postgres.superuser_url("chaos")

    @property
    def celery_url(self) -> str:
        """For a policy."""
        return self.url.replace("postgresql://", "db+postgresql://")

    def fill(self, rows: int, due: float, spread: timedelta) -> None:
        """A fresh database with `rows` results, a part of them due, and some that never finished."""
        self._admin("DROP DATABASE IF EXISTS chaos WITH (FORCE)", "CREATE DATABASE chaos")
        some = rows // 100
        fill_celery_table(self.celery_url, rows, due=due, spread=spread, started=some, groups=5 * some, payload=200)
        self.query(VARY)

    def sum(self, which: str = "true") -> Sum:
        """Everything that is there, live, archived and in quarantine alike; waits for a server that recovers."""
        with closing(self._connected()) as connection:
            # One snapshot for all tables: a session of the killed process may still be rolling back.
            connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
            cursor = connection.cursor()
            cursor.execute(HOLDERS)
            tables = cursor.fetchall()
            rows, checksum = 0, 0
            for table, _, columns in tables:
                cursor.execute(SUM.format(table=table, columns=columns, which=which))
                some, part = cursor.fetchone() or (0, 0)
                rows, checksum = rows + some, checksum + int(part)
            union = " UNION ALL ".join(f"SELECT {key} FROM {table}" for table, key, _ in tables)
            cursor.execute(
                f"SELECT count(*) FROM (SELECT FROM ({union}) AS a (key) GROUP BY key HAVING count(*) > 1) AS b"
            )
            doubled = (cursor.fetchone() or (0,))[0]
        return Sum(rows, checksum, doubled)

    def settle(self) -> None:
        """Wait until no session of a killed process is left on the server: it may commit what it was told last."""
        deadline = time.monotonic() + 30
        while self.query("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'backendops'")[0][0]:
            if time.monotonic() > deadline:
                raise SystemExit("a session of a killed process is still there after 30 s")
            time.sleep(0.02)

    @contextmanager
    def watched(self) -> Iterator[Callable[[], bool]]:
        """Tells as often as it is asked whether a session of ours is in the middle of its work."""
        with closing(self._connected()) as connection:
            connection.autocommit = True

            def at_work() -> bool:
                cursor = connection.cursor()
                cursor.execute(AT_WORK)
                return bool((cursor.fetchone() or (False,))[0])

            yield at_work

    def kill_server(self) -> None:
        """Every process of the server at once, as when the machine goes down: none may finish what it is at."""
        pid = self.postgres.pid
        # It would start others in the place of those that are gone.
        os.kill(pid, signal.SIGSTOP)
        for child in _children(pid):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self.postgres.kill()

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """The rows of one statement."""
        with closing(self._connected()) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def _connected(self) -> Any:
        deadline = time.monotonic() + 30
        while True:
            try:
                return psycopg2.connect(self.url, connect_timeout=3)
            except psycopg2.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _admin(self, *statements: str) -> None:
        with closing(psycopg2.connect(self.postgres.superuser_url())) as connection:
            connection.autocommit = True
            for statement in statements:
                connection.cursor().execute(statement)


def _children(pid: int) -> list[int]:
    """The processes that this one has started and that are still there."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # After the name, which may hold anything but is in parentheses: state, parent.
            parent = status.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]
            if int(parent) == pid:
                found.append(int(status.parent.name))
    return found
