"""The safety limits and the policy's own questions as a person meets them: the sentence, the exit code, the way on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from tests.acceptance.installed import Installed

ROWS = 2000


@pytest.fixture
def results(postgres18_url: str, fill_celery_table: Callable[..., None]) -> str:
    """Two thousand results that finished between one and three weeks ago."""
    fill_celery_table(postgres18_url, ROWS, due=1)
    return postgres18_url


@pytest.fixture
def policy(results: str, tmp_path: Path) -> Callable[..., Installed]:
    """The command, with an expire job and a backend of these keys."""

    def written(job: str, backend: str = "") -> Installed:
        return Installed.with_policy(
            tmp_path,
            f"backends:\n  results: {{url: '{results}', {backend}}}\njobs:\n  expire: {{{job}}}\n",
        )

    return written


def execute(url: str, *statements: str) -> None:
    with closing(psycopg2.connect(url.removeprefix("db+"))) as session, session, session.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def query(url: str, statement: str) -> int:
    with closing(psycopg2.connect(url.removeprefix("db+"))) as session, session.cursor() as cursor:
        cursor.execute(statement)
        (rows,) = cursor.fetchone() or (0,)
        return int(rows)


def left(url: str) -> int:
    return query(url, "SELECT count(*) FROM celery_taskmeta")


def said(ended: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line on stderr of a run that ended with this exit code."""
    assert (ended.returncode, ended.stdout) == (code, "")
    (line,) = ended.stderr.splitlines()
    return line


def test_a_keep_under_an_hour(policy: Callable[..., Installed], results: str) -> None:
    line = said(policy("keep: 30m").run("run-once", "expire"), 5)
    assert "refused: keep is 30m: results would go less than an hour after they finished; write a longer keep" in line
    assert "`allow_short_keep: true`" in line
    assert left(results) == ROWS
    assert policy("keep: 30m, allow_short_keep: true").run("run-once", "expire").returncode == 0
    assert left(results) == 0


def test_a_keep_that_got_shorter(policy: Callable[..., Installed], results: str) -> None:
    assert policy("keep: 30d").run("run-once", "expire").returncode == 0
    command = policy("keep: 7d")
    line = said(command.run("run-once", "expire"), 5)
    assert "refused: keep went from 30d to 1w, and now 2,000 rows are due: more than 20 times the largest" in line
    assert "`backendops accept expire`" in line
    plan = command.run("plan", "expire")
    assert plan.returncode == 0
    assert "would be refused: keep went from 30d to 1w" in plan.stdout
    (planned,) = json.loads(command.run("plan", "expire", "--json").stdout)
    assert planned["refused"].startswith("keep went from 30d to 1w")
    assert planned["rows"] == left(results) == ROWS

    accepted = command.run("accept", "expire")
    assert (accepted.returncode, accepted.stdout) == (0, "expire on results: accepted (keep 1w)\n")
    assert command.run("run-once", "expire").returncode == 0
    assert left(results) == 0


@pytest.mark.parametrize("key", ["keep", "keep_live"])
def test_partitions_are_kept_by_the_same_limits(results: str, tmp_path: Path, key: str) -> None:
    def written(keep: str) -> Installed:
        jobs = "  archive: {older_than: 1d, every: day}\n" if key == "keep" else ""
        return Installed.with_policy(
            tmp_path,
            f"backends:\n  results: {{url: '{results}'}}\njobs:\n{jobs}  partition: {{every: day, {key}: {keep}}}\n",
        )

    command = written("30d")
    if key == "keep":
        assert command.run("run-once", "archive").returncode == 0
    else:
        assert command.run("partition", "convert", "results").returncode == 0
        # Everything has been stored in the next one for a while.
        execute(results, "SELECT setval('task_id_sequence', 2000000)")
    assert command.run("run-once", "partition").returncode == 0
    count = "SELECT count(*) FROM celery_taskmeta" + ("_archive" if key == "keep" else "")
    assert query(results, count) == ROWS
    command = written("3d")
    line = said(command.run("run-once", "partition"), 5)
    assert f"refused: {key} went from 30d to 3d, and now " in line
    assert "`backendops accept partition`" in line
    assert query(results, count) == ROWS
    (planned,) = json.loads(command.run("plan", "partition", "--json").stdout)
    assert planned["rows"] > 1000

    assert command.run("accept", "partition").returncode == 0
    assert command.run("run-once", "partition").returncode == 0
    assert query(results, count) < 200
    (newest, *_) = json.loads(command.run("history", "partition", "--json").stdout)
    assert newest["rows"] == planned["rows"]


def test_accepting_at_once(policy: Callable[..., Installed], results: str) -> None:
    command = policy("keep: 7d, max_rows: 10")
    assert "--accept-volume" in said(command.run("run-once", "expire"), 5)
    assert command.run("run-once", "expire", "--accept-volume").returncode == 0
    assert left(results) == 0


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_disagrees(policy: Callable[..., Installed], results: str, hours: int) -> None:
    name = results.rpartition("/")[2]
    execute(
        results,
        "CREATE SCHEMA shifted",
        "CREATE FUNCTION shifted.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS "
        f"'SELECT pg_catalog.clock_timestamp() + interval ''{hours} hours'''",
        f"ALTER DATABASE {name} SET search_path = shifted, pg_catalog, public",
    )
    line = said(policy("keep: 7d").run("run-once", "expire"), 5)
    assert "refused: the server's clock is " in line
    assert ("ahead of" if hours > 0 else "behind") in line
    assert "set the wrong one right" in line
    assert left(results) == ROWS


def test_a_result_of_tomorrow(policy: Callable[..., Installed], results: str) -> None:
    execute(
        results, "UPDATE celery_taskmeta SET date_done = now() AT TIME ZONE 'UTC' + interval '2 hours' WHERE id = 7"
    )
    line = said(policy("keep: 7d").run("run-once", "expire"), 5)
    assert "refused: the newest result finished 1h 59m in the future" in line
    assert "date_done_timezone" in line
    assert left(results) == ROWS


def test_stop_when_and_pause_when(policy: Callable[..., Installed], results: str) -> None:
    line = said(policy("keep: 7d", "stop_when: SELECT count(*) FROM celery_taskmeta").run("run-once", "expire"), 75)
    assert "stopped: stop_when of the backend says so: 2000; what is done is committed" in line
    waiting = policy("keep: 7d, time_budget: 1s", "pause_when: SELECT true")
    assert "out-of-time" in said(waiting.run("run-once", "expire"), 75)
    (newest, *_) = json.loads(waiting.run("history", "expire", "--json").stdout)
    assert newest["throttled"] == {"pause-when": pytest.approx(1, abs=0.9)}
    assert "would wait: pause_when says so: true" in waiting.run("plan", "expire").stdout
    line = said(policy("keep: 7d", "pause_when: SELECT nonsense").run("run-once", "expire"), 5)
    assert 'refused: pause_when of the backend cannot be answered: column "nonsense" does not exist' in line
    assert left(results) == ROWS


def test_what_is_no_query_is_a_problem_with_its_place(policy: Callable[..., Installed]) -> None:
    ended = policy("keep: 7d", "pause_when: DROP TABLE celery_taskmeta").run("validate")
    assert ended.returncode == 2
    assert "policy.yaml:4:" in ended.stderr
    assert "is no query: write one that begins with SELECT" in ended.stderr
