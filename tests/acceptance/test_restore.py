"""restore and archive verify as a person calls them: exit codes, what is said, --json, the lock, the history."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path

import psycopg2
import pytest

from backendops.backends.files.disk import held
from backendops.backends.postgres import PostgresBackend
from backendops.cli import main
from backendops.contracts.run import Limits, NoWatermarks
from tests.acceptance.installed import Installed


class InProcess(Installed):
    """The same command without a process of its own: most of what it takes is its imports."""

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ending:
            main([*arguments, "--policy", str(self.policy)])
        code = ending.value.code
        return subprocess.CompletedProcess(
            arguments, code if isinstance(code, int) else 1, out.getvalue(), err.getvalue()
        )


@pytest.fixture
def results(postgres18_url: str, fill_celery_table: Callable[..., None]) -> str:
    fill_celery_table(postgres18_url, 100)
    return postgres18_url


@pytest.fixture
def command(results: str, tmp_path: Path) -> Installed:
    (tmp_path / "kept").mkdir()
    archive = "{backend: results, older_than: 7d, to: {files: kept}}"
    installed = InProcess.with_policy(
        tmp_path,
        f"backends: {{results: {{url: '{results}'}}}}\n"
        f"jobs: {{archive: {archive}, expire: {{backend: results, keep: 8d, schedule: '@daily'}}}}",
    )
    archived = installed.run("run-once", "archive")
    assert (archived.returncode, archived.stdout, archived.stderr) == (0, "", "")
    return installed


def query(url: str, statement: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(url.removeprefix("db+"))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def count(url: str) -> object:
    return query(url, "SELECT count(*) FROM celery_taskmeta")[0][0]


def archived_ids(command: Installed) -> list[str]:
    """Newest first, without putting any back for good."""
    command = InProcess(command.policy)
    restored = command.run("restore", "--from", "2000-01-01", "--although-expired", "--json")
    assert restored.returncode == 0, restored.stderr
    (document,) = json.loads(restored.stdout)["restores"]
    again = command.run("run-once", "archive")
    assert again.returncode == 0, again.stderr
    return list(document["restored"])


def test_there_and_back(command: Installed, results: str) -> None:
    command = Installed(command.policy)
    ids = archived_ids(command)
    assert len(ids) == 50
    assert count(results) == 50
    looked = command.run("restore", "--task-id", ids[0], "--task-id", ids[1], "--dry-run")
    assert looked.returncode == 0
    assert "would put back 2 results from files in" in looked.stdout
    assert count(results) == 50
    restored = command.run("restore", "--task-id", ids[0], "--task-id", ids[1])
    assert (restored.returncode, restored.stderr) == (0, "")
    assert "results: 2 results put back from 'archive'" in restored.stdout
    assert "archives them again in its next run" in restored.stdout
    assert count(results) == 52
    history = json.loads(command.run("history", "restore", "--json").stdout)
    assert [(run["outcome"], run["rows"], run["trigger"]) for run in history] == [
        ("completed", 2, "command"),
        ("completed", 50, "command"),
    ]


def test_what_is_live_again_or_nowhere_is_said(command: Installed, results: str) -> None:
    ids = archived_ids(command)
    query(results, f"INSERT INTO celery_taskmeta (id, task_id, status) VALUES (5000, '{ids[0]}', 'SUCCESS')")
    left = command.run("restore", "--task-id", ids[0])
    assert (left.returncode, left.stderr) == (0, f"results: left, as it is live again: {ids[0]}\n")
    nowhere = command.run("restore", "--task-id", ids[1], "--task-id", "no-such-id")
    assert nowhere.returncode == 1
    assert nowhere.stderr == "backendops: in none of the archives: no-such-id\n"
    assert query(results, f"SELECT count(*) FROM celery_taskmeta WHERE task_id = '{ids[1]}'") == [(1,)]
    document = json.loads(command.run("restore", "--task-id", ids[0], "--task-id", "no-such-id", "--json").stdout)
    assert document["not_archived"] == ["no-such-id"]
    assert document["restores"][0]["live_again"] == [ids[0]]


def test_what_expire_would_take_again_is_5_unless_it_is_paused(command: Installed, results: str) -> None:
    refused = command.run("restore", "--from", "2000-01-01")
    assert refused.returncode == 5
    assert "is removed by the next run of the job 'expire'; pause that job first" in refused.stderr
    assert command.run("pause", "expire").returncode == 0
    assert command.run("restore", "--from", "2000-01-01").returncode == 0
    assert count(results) == 100


def test_what_celery_itself_would_take_again_is_5(command: Installed, results: str, tmp_path: Path) -> None:
    by_celery = InProcess.with_policy(
        tmp_path,
        f"backends: {{results: {{url: '{results}', result_expires: 8d}}}}\n"
        "jobs: {archive: {older_than: 7d, to: {files: kept}}}",
    )
    refused = by_celery.run("restore", "--from", "2000-01-01")
    assert refused.returncode == 5
    assert "is removed by Celery itself, once a day (result_expires of the backend is 8d)" in refused.stderr
    assert by_celery.run("restore", "--from", "2000-01-01", "--although-expired").returncode == 0
    assert count(results) == 100


def test_a_rule_for_others_does_not_refuse(command: Installed, results: str, tmp_path: Path) -> None:
    by_queue = InProcess.with_policy(
        tmp_path,
        f"backends: {{results: {{url: '{results}'}}}}\n"
        "jobs: {archive: {older_than: 7d, to: {files: kept}, rules: [{queue: bulk, older_than: 1h}]},"
        " expire: {keep: 90d, rules: [{queue: bulk, keep: 8d}]}}",
    )
    assert by_queue.run("restore", "--from", "2000-01-01").returncode == 0
    assert count(results) == 100


def test_a_taken_lock_is_75(command: Installed, results: str) -> None:
    with (
        PostgresBackend.model_validate({"url": results}).open(Limits(), NoWatermarks()) as backend,
        backend.lock() as lock,
    ):
        assert lock is not None
        locked = command.run("restore", "--from", "2000-01-01", "--although-expired")
    assert locked.returncode == 75
    assert len(locked.stderr.splitlines()) == 1
    assert count(results) == 50


def test_a_taken_archive_is_75_and_locked(command: Installed, results: str, tmp_path: Path) -> None:
    query(results, "UPDATE celery_taskmeta SET date_done = date_done - interval '9 days' WHERE date_done IS NOT NULL")
    with held(tmp_path / "kept"):
        for arguments in (("run-once", "archive"), ("restore", "--from", "2000-01-01", "--although-expired")):
            locked = command.run(*arguments)
            assert locked.returncode == 75
            assert "another run is using the archive in" in locked.stderr
            history = json.loads(command.run("history", "--json").stdout)
            assert (history[0]["outcome"], history[0]["rows"]) == ("locked", 0)
    assert count(results) == 50
    assert command.run("run-once", "archive").returncode == 0


def test_what_is_in_quarantine_is_said_with_the_command_that_brings_it_back(
    postgres18_url: str, fill_celery_table: Callable[..., None], tmp_path: Path
) -> None:
    fill_celery_table(postgres18_url, 2, due=1, older_than=timedelta(days=100), spread=timedelta(hours=1))
    command = InProcess.with_policy(
        tmp_path,
        f"backends: {{results: {{url: '{postgres18_url}'}}}}\n"
        "jobs: {archive: {older_than: 7d}, partition: {keep: 60d, quarantine: 3d}}",
    )
    (task_id,) = query(postgres18_url, "SELECT task_id FROM celery_taskmeta ORDER BY date_done DESC LIMIT 1")[0]
    # The newest partition is never retired: the first run of `partition` makes newer ones.
    for job in ("archive", "partition", "partition"):
        assert command.run("run-once", job).returncode == 0
    for arguments in (("--dry-run",), ()):
        told = command.run("restore", "--task-id", str(task_id), *arguments)
        assert told.returncode == int(not arguments)
        assert "1 results that are meant were left, as they are in the retired partition" in told.stderr
        assert "in none of the archives" not in told.stderr
    document = json.loads(command.run("restore", "--task-id", str(task_id), "--json").stdout)
    (one,) = document["restores"][0]["quarantined"]
    assert (one["rows"], one["ids"], document["not_archived"]) == (1, [task_id], [])
    assert command.run("partitions", "reattach", one["name"]).returncode == 0
    restored = command.run("restore", "--task-id", str(task_id))
    assert (restored.returncode, restored.stderr) == (0, "")
    assert count(postgres18_url) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "say which results: --task-id ID, or --from and --to"),
        (["--from", "2026-13-01"], "'2026-13-01' is no date or moment: write 2026-11-20"),
        (["--from", "2026-11-20", "--to", "2026-11-19"], "is not before"),
        (["--task-id", "x", "--job", "expire"], "'expire' is no archive job"),
        (["--task-id", "x", "--job", "archiv"], "did you mean 'archive'"),
        (["--task-id", "x", "--backend", "nowhere"], "the policy has no backend 'nowhere'"),
    ],
)
def test_misuse_is_2(tmp_path: Path, arguments: list[str], words: str) -> None:
    command = InProcess.with_policy(
        tmp_path,
        "backends: {results: {url: 'db+postgresql://me@127.0.0.1:1/nothing'}}\n"
        "jobs: {archive: {older_than: 7d}, expire: {keep: 8d}}",
    )
    ended = command.run("restore", *arguments)
    assert ended.returncode == 2
    assert words in ended.stderr


def test_verify_is_silent_about_what_is_well_and_1_with_what_is_not(command: Installed, tmp_path: Path) -> None:
    well = command.run("archive", "verify")
    assert (well.returncode, well.stderr) == (0, "")
    assert "50 rows in" in well.stdout
    assert "all as they were written" in well.stdout
    part = min((tmp_path / "kept").glob("*/*/part-*"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    damaged = command.run("archive", "verify")
    assert damaged.returncode == 1
    assert f"{part.name}: its SHA-256 is not the one it was written with" in damaged.stderr
    (document,) = json.loads(command.run("archive", "verify", "--json").stdout)
    assert document["wrong"] == 1
    restored = command.run("restore", "--from", "2000-01-01", "--although-expired")
    assert restored.returncode in (1, 5)
    assert "archive verify" in restored.stderr


def test_a_directory_that_is_gone_is_5_and_nothing_is_moved(command: Installed, results: str, tmp_path: Path) -> None:
    (tmp_path / "kept").rename(tmp_path / "unmounted")
    query(results, "UPDATE celery_taskmeta SET date_done = date_done - interval '9 days' WHERE date_done IS NOT NULL")
    gone = command.run("run-once", "archive")
    assert gone.returncode == 5
    assert "there is no directory" in gone.stderr
    assert "mount its disk, or make it" in gone.stderr
    assert count(results) == 50
    unread = command.run("archive", "verify")
    assert unread.returncode == 5
    assert "as they were written" not in unread.stdout


def test_verify_says_nothing_of_an_archive_that_it_could_not_read(tmp_path: Path) -> None:
    command = InProcess.with_policy(
        tmp_path,
        "backends: {results: {url: 'db+postgresql://me@127.0.0.1:1/nothing'}}\njobs: {archive: {older_than: 7d}}",
    )
    ended = command.run("archive", "verify")
    assert ended.returncode == 3
    assert ended.stdout == "archive on results: not read to the end: 0 rows in 0 parts before that\n"


def test_verify_of_an_archive_that_is_not_there_is_1(command: Installed, results: str, tmp_path: Path) -> None:
    (tmp_path / "another").mkdir()
    for where in ("table: 'mistyped_{table}'", "to: {files: another}"):
        mistaken = InProcess.with_policy(
            tmp_path,
            f"backends: {{results: {{url: '{results}'}}}}\njobs: {{archive: {{older_than: 7d, {where}}}}}",
        )
        ended = mistaken.run("archive", "verify")
        assert ended.returncode == 1
        assert "there is no such archive: the job has not run yet, or it names another" in ended.stderr
        assert "all as they were written" not in ended.stdout
        # Made, and nothing in it: that is an archive.
        assert mistaken.run("run-once", "archive").returncode == 0
        assert mistaken.run("archive", "verify").returncode == 0
