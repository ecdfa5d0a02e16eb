"""One database under chaos: filled, summed up over every table that holds results, and emptied again."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg2

from backendops.embedded import PostgresServer
from tests.celery_rows import fill_celery_table

# Every plain table with a task_id: the live one or its leaves, the archive's partitions, the quarantined ones.
HOLDERS = """
SELECT c.oid::regclass::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname = 'public'
  AND EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname = 'task_id' AND NOT a.attisdropped)
ORDER BY 1
"""
# Ids and payload bytes, in any order: a sum does not mind where a row is, and a doubled row changes it.
SUM = """
SELECT count(*), coalesce(sum(hashtextextended(concat_ws('|', task_id, status, encode(result, 'hex'), date_done,
       traceback, encode(args, 'hex'), encode(kwargs, 'hex'), name, retries, queue), 0)), 0)
FROM {table} WHERE {which}
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
        fill_celery_table(self.celery_url, rows, due=due, spread=spread, started=rows // 100, payload=200)

    def sum(self, which: str = "true") -> Sum:
        """Everything that is there, live, archived and in quarantine alike; waits for a server that recovers."""
        with closing(self._connected()) as connection:
            # One snapshot for all tables: a session of the killed process may still be rolling back.
            connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
            cursor = connection.cursor()
            cursor.execute(HOLDERS)
            tables = [row[0] for row in cursor.fetchall()]
            rows, checksum = 0, 0
            for table in tables:
                cursor.execute(SUM.format(table=table, which=which))
                some, part = cursor.fetchone() or (0, 0)
                rows, checksum = rows + some, checksum + int(part)
            union = " UNION ALL ".join(f"SELECT task_id FROM {table}" for table in tables)
            cursor.execute(
                f"SELECT count(*) FROM (SELECT FROM ({union}) AS a GROUP BY task_id HAVING count(*) > 1) AS b"
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
