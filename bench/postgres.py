"""Removing and moving half of a large table beside a writer: ours against what people use."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
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
    # A server that has run for a while writes over old files of its log; a new one would make each first.
    "min_wal_size": "6GB",
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
    """From its first word to the server to its last."""
    at_work: float
    """Seconds of these in which rows went."""
    rows: int
    longest: float
    """The longest statement, in seconds."""
    waits: list[float]
    """What each write of the application took meanwhile, in seconds."""
    peak_bytes: int
    steps: list[tuple[float, int]]

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.rows / self.at_work

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
    )
    yield url
    sql(admin, "DROP DATABASE run WITH (FORCE)")


@contextmanager
def writing(url: str) -> Iterator[list[tuple[float, float]]]:
    """The writer beside the block; when it wrote, and how long each took, afterwards."""
    as_writer = url.replace(url.partition("://")[2].partition("@")[0], "writer:w", 1)
    command = [sys.executable, "-m", "bench.writer", as_writer]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None  # noqa: S101 - it is a pipe
    writer.stdout.readline()
    writes: list[tuple[float, float]] = []
    try:
        yield writes
    finally:
        writer.terminate()
        writes.extend((moment, took) for moment, took in json.loads(writer.communicate()[0]))


def p99(latencies: list[float]) -> float:
    """Seconds that 99 of 100 writes stay under."""
    return statistics.quantiles(latencies, n=100)[98]


def idle(postgres: PostgresServer, seconds: float) -> list[float]:
    """What the writes take with nothing else going on."""
    with copied(postgres) as url:
        with writing(url) as writes:
            sql(url, f"SELECT pg_sleep({seconds})")
        return [took for _, took in writes]


def run(postgres: PostgresServer, name: str, *prepare: str) -> Result:
    """One contestant, beside the writer, on a fresh copy."""
    with copied(postgres, *prepare) as url:
        return beside_writer(url, name)


def run_again(postgres: PostgresServer, name: str, rows: int) -> Result:
    """One contestant on a copy where it has done the same before: into an archive that is not empty."""
    with copied(postgres) as url:
        contestant(url, name)
        fill_celery_table(url.replace("postgresql://", "db+postgresql://"), rows, payload=PAYLOAD)
        sql(url, "VACUUM (ANALYZE) celery_taskmeta", "CHECKPOINT")
        return beside_writer(url, name)


def contestant(url: str, name: str) -> dict[str, Any]:
    """Run one in a process of its own; what it printed."""
    command = [sys.executable, "-m", "bench.contestants", name, url]
    measured: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return measured


def beside_writer(url: str, name: str) -> Result:
    """One contestant on this database, beside the writer."""
    results = "SELECT count(*) FROM celery_taskmeta WHERE name IS DISTINCT FROM 'bench.write'"
    before = sql(url, results)[0][0]
    # From here to the reading of it, all that is not the writer's is the contestant's, whatever it begins with.
    sql(url, "SELECT pg_stat_statements_reset()")
    with writing(url) as writes:
        measured = contestant(url, name)
    longest = sql(
        url,
        "SELECT max(max_exec_time) FROM pg_stat_statements AS s JOIN pg_roles AS r ON r.oid = s.userid "
        "JOIN pg_database AS d ON d.oid = s.dbid WHERE d.datname = 'run' AND r.rolname <> 'writer'",
    )[0][0]
    after = sql(url, results)[0][0]
    began, ended = measured["began"], measured["ended"]
    return Result(
        name=name,
        seconds=ended - began,
        at_work=ended - measured.get("at_work", began),
        rows=before - after,
        longest=longest / 1000,
        waits=[took for moment, took in writes if began <= moment <= ended],
        peak_bytes=measured["peak_bytes"],
        steps=[(moment, rows) for moment, rows in measured.get("steps", [])],
    )


def rounds(postgres: PostgresServer, names: list[str], count: int) -> tuple[dict[str, list[Result]], list[float]]:
    """Every contestant in turn, so that a machine that slows down slows all of them; and the writer alone."""
    results: dict[str, list[Result]] = {name: [] for name in names}
    alone: list[float] = []
    for _ in range(count):
        # As long as an archive takes: the disk has its moods.
        alone += idle(postgres, seconds=6)
        for name in names:
            results[name].append(run(postgres, name))
    return results, alone


__all__ = ["CONTESTANTS", "Result", "copied", "fill", "p99", "rounds", "run", "run_again", "server", "sql"]
