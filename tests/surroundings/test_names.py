"""Celery's tables and their archive under names that have to be quoted right: every job, and every statement shown."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest

from backendops.backends.postgres import PostgresBackend
from backendops.contracts.run import Outcome, Trigger
from backendops.engine.ledger import Ledger
from backendops.engine.runner import Runner
from backendops.jobs.partitions_by_hand import Convert, Undo
from backendops.policy.model import Pair
from tests.acceptance.installed import Installed
from tests.celery_rows import celery_results
from tests.conformance.postgres_store import sql
from tests.surroundings.running import Results, preview, prove_every_job, quoted, restore, run

# A task table, a group table, the schema of both, the schema of their archives.
HOSTILE = {
    "quotes": ('it\'s "done"', "'; DROP TABLE x; --", 'sche"ma', "arc'hive"),
    "spaces, a percent, a colon, a backslash": (" 100% :of\\it ", "%(name)s :id", "a:b %s", "\\x :y::text"),
    "reserved words": ("select", "group", "user", "table"),
    "63 bytes, alike but for the last": ("t" * 62 + "1", "t" * 62 + "2", "s" * 63, "a" * 63),
    "63 bytes of Unicode, right to left too": ("é" * 31 + "1", "☃" * 21, "Ünïcode", "ארכיון"),
    "a comment, a slot and braces": ("/* live */ x -- y", "{table}", "{0}", "$1 $$"),
}


@pytest.fixture(params=list(HOSTILE.values()), ids=list(HOSTILE))
def results(request: pytest.FixtureRequest, postgres18_url: str) -> Results:
    return _made(postgres18_url, *request.param)


def _made(url: str, task: str, group: str, schema: str, archive_schema: str) -> Results:
    sql(url, f"CREATE SCHEMA {quoted(schema)}", f"CREATE SCHEMA {quoted(archive_schema)}")
    celery = {
        "database_table_names": {"task": task, "group": group},
        "database_table_schemas": {"task": schema, "group": schema},
    }
    return Results(url, task, group, schema, archive_schema, celery)


def keys_of(results: Results, kind: str) -> dict[str, Any]:
    return {"schema": results.archive_schema} if kind in ("archive", "partition") else {}


def test_every_job(results: Results) -> None:
    reports = prove_every_job(results, lambda kind: run(results.url, kind, results.backend, **keys_of(results, kind)))
    assert reports["pool-health"].findings == ()
    assert sql(results.url, f"SELECT count(*) FROM {results.archive} WHERE result IS NOT NULL") == [(5,)]
    back = restore(results.url, results.backend, **keys_of(results, "archive"))
    assert (back.outcome, back.rows) == (Outcome.COMPLETED, 5), str(back)
    assert (results.count(results.live), results.count(results.archive)) == (6, 0)


@pytest.mark.parametrize("table", ["task", "group"])
def test_a_live_table_is_converted_and_undone(results: Results, table: Literal["task", "group"]) -> None:
    results.stored()
    live = results.live if table == "task" else results.groups
    before = sql(results.url, f"SELECT * FROM {live} ORDER BY id")
    backend = PostgresBackend.model_validate({"url": results.url, **results.backend})
    for by in ("id", "date_done"):
        for job in (Convert(by=by, table=table), Undo(table=table)):
            report = Runner(Ledger.in_memory()).run(Pair("by-hand", job, "results", backend, None), Trigger.COMMAND)
            assert report.outcome is Outcome.COMPLETED, str(report)
            assert sql(results.url, f"SELECT * FROM {live} ORDER BY id") == before
            celery_results(results.url, 1, groups=1, **results.celery)
            before = sql(results.url, f"SELECT * FROM {live} ORDER BY id")


def test_what_plan_shows_is_sql_as_it_stands(results: Results) -> None:
    results.stored()
    shown = {
        kind: preview(results.url, kind, results.backend, **keys_of(results, kind)).statements
        for kind in ("expire", "archive", "partition", "vacuum")
    }
    made = run(results.url, "partition", results.backend, **keys_of(results, "partition"))
    assert made.outcome is Outcome.COMPLETED
    for (partition,) in sql(
        results.url,
        "SELECT inhrelid::regclass::text FROM pg_inherits JOIN pg_class ON oid = inhparent WHERE relkind = 'p'",
    ):
        sql(results.url, f"DROP TABLE {partition}")
    # A range's ends are all that is not known beforehand.
    known = {r"(?<== ):low\b": "'-infinity'", r"(?<=< ):high\b": "'infinity'", r"(?<=CAST\():settled\b": "'{}'"}
    for kind in ("expire", "archive"):
        assert len(shown[kind]) == 2
        for statement in shown[kind]:
            whole = re.sub("^--.*$", "", statement, flags=re.MULTILINE)
            for name, value in known.items():
                whole = re.sub(name, value, whole)
            sql(results.url, f"EXPLAIN {whole}")
    assert len(shown["partition"]) == 2 * 2 * 2
    assert shown["vacuum"]
    for statement in (*shown["partition"], *shown["vacuum"]):
        sql(results.url, statement)
    assert any(results.live in statement for statement in shown["vacuum"])


def test_they_can_be_written_in_a_policy(postgres18_url: str, tmp_path: Path) -> None:
    """Each of them as task table and as schema, in one policy; $ is the policy's own."""
    results = _made(postgres18_url, *HOSTILE["a comment, a slot and braces"])
    results.stored()
    results.date(timedelta(days=10), "id % 2 = 1 AND id > 1")

    def text(value: object) -> str:
        return json.dumps(value).replace("$", "$$")

    schema = text(results.archive_schema)
    command = Installed.with_policy(
        tmp_path,
        f"""
backends: {{results: {{url: {text(results.url)}, {text(results.backend)[1:-1]}}}}}
jobs:
  expire: {{keep: 30d, allow_unarchived: true}}
  archive: {{older_than: 7d, schema: {schema}}}
  partition: {{keep: 3 months, schema: {schema}}}
  vacuum: {{dead_rows: 1, dead_ratio: 0}}
  pool-health: {{}}
""",
    )
    ended = command.run("plan", "--sql")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"DELETE FROM {results.live}" in ended.stdout
    assert f"CREATE TABLE {quoted(results.archive_schema)}." in ended.stdout
    for words in (
        ("run-once", "expire", "partition", "archive", "vacuum", "pool-health"),
        ("archive", "verify"),
        ("restore", "--from", "2000-01-01", "--although-expired"),
    ):
        ended = command.run(*words)
        assert ended.returncode == 0, (words, ended.stderr)
    assert (results.count(results.live), results.count(results.archive)) == (7, 0)
