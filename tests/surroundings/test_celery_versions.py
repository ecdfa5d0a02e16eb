"""Tables and rows that older versions of Celery made: kept, moved byte by byte, and through an upgrade in place."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from backendops.contracts.partitions import ConvertBy
from backendops.contracts.run import Outcome
from backendops.jobs.partitions_by_hand import Convert, Undo
from tests.celery_rows import celery_results
from tests.conformance.postgres_store import sql
from tests.fetch_celery import CELERIES, is_complete, python_of
from tests.servers import Postgres, missing
from tests.surroundings.running import Results, by_hand, run, said

SCRIPT = Path(__file__).with_name("old_celery.py")
# Since 5.7 results are of the result_serializer; before, pickled whatever it says.
PICKLED = b"\x80"


def stored_by(version: str, url: str) -> dict[str, Any]:
    """Let that Celery make its tables and store results; "5.7" is the one that is installed."""
    python = Path(sys.executable)
    if version in CELERIES:
        if not is_complete(version):
            missing(f"Celery {version}", "make celeries installs it where a package index can be reached")
        python = python_of(version)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        [python, SCRIPT],
        env={**environment, "RESULTS_URL": url.replace("db+postgresql://", "db+postgresql+psycopg2://")},
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert ended.returncode == 0, ended.stderr
    answer: dict[str, Any] = json.loads(ended.stdout)
    assert answer["version"].startswith(version)
    return answer


@pytest.fixture(params=[*CELERIES, "5.7"], ids=lambda version: f"celery{version}")
def results(request: pytest.FixtureRequest, postgres18_server: Postgres) -> Iterator[Results]:
    """What that Celery stored."""
    name = postgres18_server.create_database()
    url = postgres18_server.celery_url(name)
    try:
        stored_by(request.param, url)
        yield Results(url)
    finally:
        postgres18_server.drop_database(name)


def content(results: Results, *tables: str) -> dict[str, str]:
    """Every row's payloads and state by its task id, over several tables, as digests of their bytes."""
    found: dict[str, str] = {}
    for table in tables:
        rows = sql(
            results.url,
            "SELECT task_id, status, result, traceback, name, args, kwargs, worker, retries, queue, date_done "
            f"FROM {table}",
        )
        for task_id, *values in rows:
            assert task_id not in found, "it is in two tables"
            texts = [bytes(value) if isinstance(value, memoryview) else str(value).encode() for value in values]
            found[task_id] = hashlib.sha256(b"|".join(texts)).hexdigest()
    return found


def columns(results: Results, table: str) -> set[str]:
    return {
        name
        for (name,) in sql(
            results.url, f"SELECT attname FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum > 0"
        )
    }


def test_its_rows_are_archived_byte_by_byte_and_expired(results: Results) -> None:
    results.date(timedelta(days=10), "status <> 'RETRY'")
    sql(results.url, f"UPDATE {results.groups} SET date_done = date_done - interval '10 days'")
    before = content(results, results.live)
    assert len(before) == 6
    report = run(results.url, "archive", group_margin="1h")
    assert report.outcome is Outcome.COMPLETED, str(report)
    # Four finished ones and their group; what has not finished, or only just, stays.
    assert report.rows == 5, said(report)
    assert content(results, results.live, results.archive) == before
    assert sorted(sql(results.url, f"SELECT status FROM {results.live}")) == [("RETRY",), ("STARTED",)]
    results.date(timedelta(days=40), "status = 'RETRY'")
    assert run(results.url, "expire").rows == 1
    for kind in ("partition", "vacuum", "pool-health"):
        report = run(results.url, kind, **({"keep": "1 year"} if kind == "partition" else {}))
        assert report.outcome is Outcome.COMPLETED, str(report)


@pytest.mark.parametrize("by", ["id", "date_done"])
def test_the_oldest_tables_are_converted_under_that_celery_and_undone(postgres18_url: str, by: ConvertBy) -> None:
    results = Results(postgres18_url)
    stored_by("5.2.7", results.url)
    results.date(timedelta(days=10), "status <> 'RETRY'")
    before = content(results, results.live)
    for job, kind in ((Convert(by=by), "p"), (Undo(), "r")):
        report = by_hand(results.url, job)
        assert report.outcome is Outcome.COMPLETED, str(report)
        assert sql(results.url, f"SELECT relkind FROM pg_class WHERE oid = '{results.live}'::regclass") == [(kind,)]
        assert content(results, results.live) == before
        if kind == "p":
            # The old one goes on, in a process that looks for its tables first.
            added = set(stored_by("5.2.7", results.url)["ids"])
            before = content(results, results.live)
            assert added < before.keys()


def test_a_celery_that_is_upgraded_in_place_is_followed(postgres18_url: str) -> None:
    results = Results(postgres18_url)
    stored_by("5.6.3", results.url)
    results.date(timedelta(days=10), "status <> 'RETRY'")
    before = content(results, results.live)
    ((first,),) = sql(results.url, f"SELECT result FROM {results.live} WHERE status = 'FAILURE'")
    assert bytes(first)[:1] == PICKLED
    assert run(results.url, "archive").rows >= 4
    added = {"children", "stamps"}
    assert not columns(results, results.archive) & added
    # The new version adds its columns to the live table by itself, with its first result.
    celery_results(results.url, 10)
    assert columns(results, results.live) >= added
    results.date(timedelta(days=10), "name = 'mail.send'")
    sql(results.url, f"UPDATE {results.live} SET children = 'c', stamps = 's' WHERE name = 'mail.send'")
    young = content(results, results.live)
    report = run(results.url, "archive")
    assert (report.outcome, report.rows) == (Outcome.COMPLETED, 5), str(report)
    assert content(results, results.live, results.archive) == {**before, **young}
    kept = f"SELECT convert_from(children, 'UTF8'), convert_from(stamps, 'UTF8'), count(*) FROM {results.archive}"
    assert sql(results.url, f"{kept} GROUP BY 1, 2 ORDER BY 3") == [(None, None, 4), ("c", "s", 5)]
