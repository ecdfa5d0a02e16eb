"""Removing and moving half of a large table beside a writer: ours against what people use."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2

from backendops.embedded import PostgresServer, start_postgres
from bench.contestants import CONTESTANTS
from tests.celery_rows import fill_celery_table

# Durable, as in production; the cache holds the table, so that the disk's mood is not what is measured.
SETTINGS = {
    "shared_buffers": "2GB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
    "shared_preload_libraries": "pg_stat_statements",
    "max_connections": "50",
}
PAYLOAD = 256


@dataclass
class Result:
    """One contestant on one copy of the table."""

    name: str
    seconds: float
    rows: int
    longest: float
    """The longest statement, in seconds."""
    writer_p99: float
    peak_bytes: int
    steps: list[tuple[float, int]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.rows / self.seconds

    @property
    def last_to_first(self) -> float:
        """The rate of the last tenth of the rows divided by that of the first tenth."""
        moved = [(moment, rows) for moment, rows in self.steps if rows]
        total = sum(rows for _, rows in moved)
        first = _seconds_between(moved, 0, total / 10)
        last = _seconds_between(moved, total * 0.9, total)
        return first / last


def _seconds_between(steps: list[tuple[float, int]], low: float, high: float) -> float:
    """Seconds in which the rows from `low` to `high` were moved, parts of a step in proportion."""
    seconds = done = 0.0
    before = steps[0][0]
    for number, (moment, rows) in enumerate(steps):
        # The first step's own beginning is not known: it counts like the one after it.
        took = (steps[1][0] - steps[0][0]) * rows / steps[1][1] if number == 0 else moment - before
        share = max(0.0, min(high, done + rows) - max(low, done)) / rows
        seconds += took * share
        done, before = done + rows, moment
    return seconds


@contextmanager
def server(directory: Path) -> Iterator[PostgresServer]:
    """A private server with durable settings."""
    with start_postgres(directory, settings=SETTINGS) as started:
        yield started


def sql(url: str, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements in autocommit; the rows of the last one."""
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def fill(postgres: PostgresServer, rows: int) -> None:
    """The database `filled`: the tables that Celery makes, half of their rows due."""
    sql(postgres.superuser_url(), "CREATE DATABASE filled", "CREATE ROLE writer SUPERUSER LOGIN PASSWORD 'w'")
    url = postgres.superuser_url("filled")
    fill_celery_table(url.replace("postgresql://", "db+postgresql://"), rows, payload=PAYLOAD)
    sql(url, "CREATE EXTENSION pg_stat_statements", "CREATE EXTENSION pg_prewarm", "VACUUM (FREEZE, ANALYZE)")


@contextmanager
def copied(postgres: PostgresServer, *prepare: str) -> Iterator[str]:
    """A fresh copy of `filled`, in the cache, with nothing left to write back."""
    admin = postgres.superuser_url()
    sql(admin, "DROP DATABASE IF EXISTS run WITH (FORCE)", "CREATE DATABASE run TEMPLATE filled STRATEGY FILE_COPY")
    url = postgres.superuser_url("run")
    sql(
        url,
        *prepare,
        "SELECT pg_prewarm(oid::regclass) FROM pg_class WHERE relname LIKE '%celery%' AND relkind IN ('r', 'i')",
        "CHECKPOINT",
        "SELECT pg_stat_statements_reset()",
    )
    yield url
    sql(admin, "DROP DATABASE run WITH (FORCE)")


@contextmanager
def writing(url: str) -> Iterator[list[float]]:
    """The writer beside the block; its latencies afterwards."""
    as_writer = url.replace(url.partition("://")[2].partition("@")[0], "writer:w", 1)
    command = [sys.executable, "-m", "bench.writer", as_writer]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None  # noqa: S101 - it is a pipe
    writer.stdout.readline()
    latencies: list[float] = []
    try:
        yield latencies
    finally:
        writer.terminate()
        latencies.extend(json.loads(writer.communicate()[0]))


def p99(latencies: list[float]) -> float:
    """Seconds that 99 of 100 writes stay under."""
    return statistics.quantiles(latencies, n=100)[98]


def idle_p99(postgres: PostgresServer, seconds: float) -> float:
    """The writer's p99 with nothing else going on."""
    with copied(postgres) as url:
        with writing(url) as latencies:
            sql(url, f"SELECT pg_sleep({seconds})")
        return p99(latencies)


def run(postgres: PostgresServer, name: str, *prepare: str) -> Result:
    """One contestant, beside the writer, on a fresh copy."""
    with copied(postgres, *prepare) as url:
        before = sql(url, "SELECT count(*) FROM celery_taskmeta WHERE name IS DISTINCT FROM 'bench.write'")[0][0]
        with writing(url) as latencies:
            done = subprocess.run(
                [sys.executable, "-m", "bench.contestants", name, url], stdout=subprocess.PIPE, text=True, check=True
            )
        after = sql(url, "SELECT count(*) FROM celery_taskmeta WHERE name IS DISTINCT FROM 'bench.write'")[0][0]
        longest = sql(
            url,
            "SELECT max(max_exec_time) FROM pg_stat_statements AS s JOIN pg_roles AS r ON r.oid = s.userid "
            "JOIN pg_database AS d ON d.oid = s.dbid WHERE d.datname = 'run' AND r.rolname <> 'writer' "
            "AND query !~* '^(CHECKPOINT|SELECT (count|pg_prewarm|pg_stat|max))'",
        )[0][0]
    measured = json.loads(done.stdout)
    return Result(
        name=name,
        seconds=measured["seconds"],
        rows=before - after,
        longest=longest / 1000,
        writer_p99=p99(latencies),
        peak_bytes=measured["peak_bytes"],
        steps=[(moment, rows) for moment, rows in measured.get("steps", [])],
    )


def rounds(postgres: PostgresServer, names: list[str], count: int) -> dict[str, list[Result]]:
    """Every contestant in turn, `count` times, so that a machine that slows down slows all of them."""
    results: dict[str, list[Result]] = {name: [] for name in names}
    for _ in range(count):
        for name in names:
            results[name].append(run(postgres, name))
    return results


__all__ = ["CONTESTANTS", "Result", "copied", "fill", "idle_p99", "rounds", "run", "server", "sql"]
