"""run-once, plan, status and their like, as cron and people call them: exit codes, silence, one clear line."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import resource
import select
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg2
import pytest

from backendops.backends.postgres import PostgresBackend
from backendops.contracts.run import Limits, NoWatermarks
from tests.acceptance.installed import COMMAND, Installed

# Nobody listens on port 1.
DEAD = "db+postgresql://me:hunter22@127.0.0.1:1/nothing"


@pytest.fixture
def results(postgres18_url: str, fill_celery_table: Callable[..., None]) -> str:
    fill_celery_table(postgres18_url, 1000, due=0.5)
    return postgres18_url


@pytest.fixture
def command(results: str, tmp_path: Path) -> Installed:
    return Installed.with_policy(
        tmp_path,
        f"""
backends:
  results: {{url: '{results}'}}
  dead: {{url: '{DEAD}'}}
jobs:
  archive: {{backend: results, older_than: 7d, schedule: every 15m}}
  archive-dead: {{kind: archive, backend: dead, older_than: 7d}}
  archive-both: {{kind: archive, backend: [results, dead], older_than: 7d}}
  careful: {{kind: archive, backend: results, older_than: 7d, max_rows: 10}}
  pool-health: {{backend: [results, dead]}}
""",
    )


def counts(url: str) -> tuple[int, int | None]:
    """Rows in the live table and in the archive; None where there is no archive."""
    connection = psycopg2.connect(url.removeprefix("db+"))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(*), to_regclass('celery_taskmeta_archive') FROM celery_taskmeta")
            live, archive = cursor.fetchone() or (0, None)
            if archive is not None:
                cursor.execute("SELECT count(*) FROM celery_taskmeta_archive")
                (archive,) = cursor.fetchone() or (0,)
            return live, archive
    finally:
        connection.close()


def one_line(ended: subprocess.CompletedProcess[str]) -> str:
    """What it said: one line on stderr, nothing else, and no secret."""
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert "hunter22" not in line
    return line


def test_success_is_silent_and_in_the_ledger(command: Installed, results: str) -> None:
    ended = command.run("run-once", "archive")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert counts(results) == (500, 500)
    again = command.run("run-once", "archive")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    runs = json.loads(command.run("history", "archive", "--json").stdout)
    assert [(run["outcome"], run["rows"], run["trigger"]) for run in runs] == [
        ("completed", 0, "command"),
        ("completed", 500, "command"),
    ]


def test_a_dead_backend_is_3_with_one_clear_line(command: Installed) -> None:
    ended = command.run("run-once", "archive-dead")
    assert ended.returncode == 3
    assert one_line(ended).startswith("backendops: archive-dead on dead: unreachable: ")


def test_a_dead_backend_is_what_a_probe_is_there_to_say(command: Installed) -> None:
    ended = command.run("run-once", "pool-health", "--backend", "dead")
    assert ended.returncode == 0
    assert "pool-health on dead: critical: " in one_line(ended)


def test_some_failed_and_the_rest_ran_is_4(command: Installed, results: str) -> None:
    ended = command.run("run-once", "archive-both")
    assert ended.returncode == 4
    assert "archive-both on dead: unreachable" in one_line(ended)
    assert counts(results) == (500, 500)


def test_a_safety_limit_is_5_and_names_the_way_on(command: Installed, results: str) -> None:
    ended = command.run("run-once", "careful")
    assert ended.returncode == 5
    assert "refused: 500 rows are due, more than max_rows (10); look at" in one_line(ended)
    assert counts(results) == (1000, None)


def test_locked_is_75(command: Installed, results: str) -> None:
    with (
        PostgresBackend.model_validate({"url": results}).open(Limits(), NoWatermarks()) as backend,
        backend.lock() as lock,
    ):
        assert lock is not None
        ended = command.run("run-once", "archive")
    assert ended.returncode == 75
    assert "archive on results: locked: another run" in one_line(ended)
    assert command.run("run-once", "archive").returncode == 0


def test_a_ledger_that_cannot_be_opened_is_1_before_anything_runs(tmp_path: Path, results: str) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "ledger.sqlite3").write_text("something else")
    command = Installed.with_policy(
        tmp_path, f"backends: {{results: {{url: '{results}'}}}}\njobs: {{archive: {{older_than: 7d}}}}"
    )
    ended = command.run("run-once", "archive")
    assert ended.returncode == 1
    assert "ledger.sqlite3 is damaged or no ledger" in one_line(ended)
    assert counts(results) == (1000, None)


def test_pause_resume_cancel_status(command: Installed, results: str) -> None:
    assert "archive is paused" in command.run("pause", "archive").stdout
    ended = command.run("run-once", "archive")
    assert ended.returncode == 75
    assert "not started: paused by" in one_line(ended)
    assert counts(results) == (1000, None)

    status = json.loads(command.run("status", "--json").stdout)
    archive = next(job for job in status["jobs"] if job["job"] == "archive")
    assert archive["paused"]["by"]
    assert archive["next_run"] is None
    assert archive["last_run"] is None

    assert "runs again" in command.run("resume", "archive").stdout
    assert command.run("run-once", "archive").returncode == 0
    table = command.run("status").stdout
    assert re.search(r"^archive\s+results\s+\S.* ago\s+completed\s+500\s+in ", table, re.MULTILINE)


def test_cancel_ends_a_run_that_is_going_on(
    results: str, tmp_path: Path, fill_celery_table: Callable[..., None]
) -> None:
    fill_celery_table(results, 20_000, due=1)
    job = "{backend: results, older_than: 7d, batch_size: 1, batch_time: 1ms}"
    command = Installed.with_policy(tmp_path, f"backends: {{results: {{url: '{results}'}}}}\njobs: {{archive: {job}}}")
    process = command.start("run-once", "archive")
    deadline = time.monotonic() + 60
    while "1 run(s)" not in command.run("cancel", "archive").stdout:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "archive on results: cancelled: " in err
    live, archive = counts(results)
    assert live + (archive or 0) == 21_000


def test_plan_tells_and_changes_nothing(command: Installed, results: str, tmp_path: Path) -> None:
    before = dump(results)
    ended = command.run("plan", "archive", "careful")
    assert ended.returncode == 0
    assert "500" in ended.stdout
    assert "oldest" in ended.stdout
    assert "cutoff" in ended.stdout
    assert re.search(r"next run  \S.* \(in .*; every 15m\)", ended.stdout)
    assert "DELETE FROM" in ended.stdout
    assert dump(results) == before
    assert not (tmp_path / "state").exists()

    both = command.run("plan", "archive", "archive-dead", "--json")
    assert both.returncode == 4
    archive, dead = json.loads(both.stdout)
    assert (archive["rows"], archive["error"]) == (500, None)
    assert archive["statements"]
    assert dead["rows"] is None
    assert dead["error"]
    assert "hunter22" not in both.stdout + both.stderr
    assert dump(results) == before


def dump(url: str) -> list[object]:
    """Every row and every relation of the database, and which transactions have written to it."""
    connection = psycopg2.connect(url.removeprefix("db+"))
    try:
        with connection, connection.cursor() as cursor:
            found = []
            for statement in (
                "SELECT xmin::text, * FROM celery_taskmeta ORDER BY id",
                "SELECT xmin::text, * FROM celery_tasksetmeta ORDER BY id",
                "SELECT oid, relname, relfilenode FROM pg_class WHERE oid >= 16384 ORDER BY oid",
                "SELECT last_value FROM task_id_sequence",
            ):
                cursor.execute(statement)
                found.append(
                    [tuple(bytes(v) if isinstance(v, memoryview) else v for v in row) for row in cursor.fetchall()]
                )
            return found
    finally:
        connection.close()


def test_the_textfile_is_whole_readable_and_says_what_ran(command: Installed, tmp_path: Path) -> None:
    file = tmp_path / "backendops.prom"
    assert command.run("run-once", "archive", "--textfile", str(file)).returncode == 0
    text = file.read_text()
    assert 'backendops_job_runs_total{backend="results",job="archive",outcome="completed"} 1.0' in text
    assert 'backendops_job_rows_total{backend="results",job="archive"} 500.0' in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert [f.name for f in tmp_path.iterdir() if "prom" in f.name] == ["backendops.prom"]


def test_verbose_logs_json_lines_with_the_run(command: Installed) -> None:
    ended = command.run("run-once", "archive", "-v")
    assert (ended.returncode, ended.stdout) == (0, "")
    started, *_, last = [json.loads(line) for line in ended.stderr.splitlines()]
    assert (started["event"], last["event"], last["outcome"], last["rows"]) == (
        "run.started",
        "run.ended",
        "completed",
        500,
    )
    assert started["run"] == last["run"] == 1


@contextmanager
def terminal(*arguments: str) -> Iterator[Callable[[], str]]:
    """The command on a terminal of its own; calling gives all that it wrote there, once it has ended."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)

    def screen() -> str:
        written, deadline = b"", time.monotonic() + 60
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    written += os.read(ours, 65536)
                except OSError:  # Linux: the other side is closed
                    break
        assert process.wait(10) == 0
        return written.decode()

    try:
        yield screen
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_on_a_terminal_it_says_what_it_did(command: Installed) -> None:
    with terminal("--policy", str(command.policy), "run-once", "archive") as screen:
        said = screen()
    assert "archive on results: completed, 500 rows in " in said
    assert "celery_taskmeta_archive" in said


def test_help_is_quick_and_lists_what_there_is() -> None:
    def once() -> float:
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = subprocess.run([COMMAND, "--help"], capture_output=True, text=True, check=True)
        assert "run-once" in ended.stdout
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime - began.ru_utime - began.ru_stime

    # What it takes of a processor, and the best of five: what else the machine does is not the command's fault.
    assert min(once() for _ in range(5)) < timedelta(milliseconds=300).total_seconds()


def test_help_imports_no_backend_and_no_command() -> None:
    script = (
        "import sys; from backendops.cli import cli; cli.main(['--help'], standalone_mode=False); "
        "print(sorted(n for n in sys.modules if n.startswith('backendops')), file=sys.stderr); "
        "assert not {'sqlalchemy', 'pydantic', 'rich', 'structlog', 'redis', 'celery'} & set(sys.modules)"
    )
    python = COMMAND.with_name("python")
    ended = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.fixture
def small(tmp_path: Path, sqlite_url: str) -> Installed:
    text = f"backends: {{results: {{url: '{sqlite_url}'}}}}\njobs: {{pool-health: }}\n"
    return Installed.with_policy(tmp_path, "http: {listen: '127.0.0.1:0'}\n" + text)


def shell(text: str, encoding: str = "utf-8") -> subprocess.CompletedProcess[str]:
    given = {"PATH": f"{COMMAND.parent}:/usr/bin:/bin", "HOME": "/nowhere", "PYTHONIOENCODING": encoding}
    return subprocess.run(
        ["bash", "-c", text], capture_output=True, encoding=encoding, errors="replace", env=given, check=False
    )


@pytest.mark.parametrize("arguments", ["status", "history --json"])  # by rich, and by click
def test_an_early_reader_is_no_failure(small: Installed, arguments: str) -> None:
    ended = shell(f"backendops {arguments} --policy '{small.policy}' | true; exit ${{PIPESTATUS[0]}}")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_closed_streams(small: Installed) -> None:
    for arguments in ("status", "run-once pool-health"):
        ended = shell(f"backendops {arguments} --policy '{small.policy}' <&- >&- 2>&-")
        assert ended.returncode == 0


def test_what_an_old_terminal_cannot_write(small: Installed) -> None:
    umlaut = small.policy.with_name("Prüfung-→.yaml")
    umlaut.write_bytes(small.policy.read_bytes())
    ended = shell(f"backendops validate --policy '{umlaut}'", "ascii")
    assert (ended.returncode, ended.stderr) == (0, "")
    ended = shell(f"backendops validate --json --policy '{umlaut}'", "latin-1")
    assert json.loads(ended.stdout)["policy"] == str(umlaut)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run-once", "pool-health"], 75, "ended by SIGTERM; what is done is kept: run it again for the rest\n"),
        (["--log-format", "json", "run"], 0, "service.stopped"),
    ],
)
def test_a_signal_while_it_starts(small: Installed, arguments: list[str], code: int, said: str) -> None:
    """A policy that is a pipe holds it at its beginning for as long as the test needs."""
    pipe = small.policy.with_name("pipe")
    os.mkfifo(pipe)
    with subprocess.Popen([COMMAND, *arguments, "--policy", pipe], stderr=subprocess.PIPE, text=True) as process:
        with contextlib.suppress(BrokenPipeError), pipe.open("w") as writing:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
            writing.write(small.policy.read_text())
        err = process.communicate(timeout=30)[1]
    assert process.returncode == code, err
    assert said in err
