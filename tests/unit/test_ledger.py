"""The ledger: totals outlive history, processes share it, the dead are noticed, and it opens or says why not."""

from __future__ import annotations

import os
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text, update

from backendops.contracts import metrics
from backendops.contracts.errors import BackendopsError
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.run import Outcome, Trigger
from backendops.engine import ledger_file, ledger_tables
from backendops.engine.ledger import KEEP_RUNS, LAST_RUNS, Ledger
from backendops.engine.ledger_rows import ORPHANED
from backendops.engine.report import RunReport
from tests.unit.toys import ToyJob, toy_pair

NOW = datetime(2025, 6, 1, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(str(tmp_path / "state"))
    yield ledger
    ledger.close()


@pytest.fixture(params=["sqlite", "postgres"])
def any_ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    if request.param == "sqlite":
        state = str(tmp_path / "state")
    else:
        state = request.getfixturevalue("postgres18_url").removeprefix("db+")
    ledger = Ledger.open(state)
    yield ledger
    ledger.close()


def report(run_id: int, outcome: Outcome = Outcome.COMPLETED, at: datetime = NOW, **more: object) -> RunReport:
    values: dict[str, object] = {"rows": 10, "seconds": 1.5, **more}
    return RunReport(run_id, "toy", "place", Trigger.COMMAND, outcome, at, at + timedelta(seconds=2), **values)


def run(ledger: Ledger, outcome: Outcome = Outcome.COMPLETED, at: datetime = NOW, **more: object) -> RunReport:
    ended = report(ledger.started(toy_pair(), Trigger.COMMAND, at), outcome, at, **more)
    ledger.ended(ended)
    return ended


def test_a_run_is_visible_from_its_start(any_ledger: Ledger) -> None:
    run_id = any_ledger.started(toy_pair(), Trigger.SCHEDULE, NOW)
    any_ledger.progressed(run_id, 500, NOW + timedelta(seconds=3))
    (running,) = any_ledger.running()
    assert (running.run_id, running.rows, running.pid, running.trigger) == (run_id, 500, os.getpid(), Trigger.SCHEDULE)
    assert running.progressed_at == NOW + timedelta(seconds=3)
    assert any_ledger.last_runs() == {}


def test_a_report_comes_back_as_it_was(any_ledger: Ledger) -> None:
    said = run(
        any_ledger,
        Outcome.REFUSED,
        error="the clock 🕰 is wrong",
        hint="set it",
        what="half of it",
        throttled={"replica-lag": 2.5},
        findings=(Finding(Severity.WARNING, "a.code", "a sentence", "a fix"),),
    )
    assert any_ledger.history() == [said]
    assert any_ledger.history("toy") == [said]
    assert any_ledger.history("other") == []
    assert any_ledger.last_runs() == {("toy", "place"): said}
    assert any_ledger.last_success() == {}
    assert any_ledger.running() == []


def test_totals_add_up(any_ledger: Ledger) -> None:
    first = run(any_ledger, throttled={"replica-lag": 1.0})
    last = run(any_ledger, at=NOW + timedelta(hours=1), throttled={"replica-lag": 0.5, "paused": 4})
    run(any_ledger, Outcome.FAILED, at=NOW + timedelta(hours=2))
    totals = {total.outcome: (total.runs, total.rows) for total in any_ledger.totals()}
    assert totals == {Outcome.COMPLETED: (2, 20), Outcome.FAILED: (1, 10)}
    assert {t.reason: t.seconds for t in any_ledger.throttled()} == {"replica-lag": 1.5, "paused": 4.0}
    assert any_ledger.last_success() == {("toy", "place"): last.ended_at}
    # Told twice, as when a run that was taken for dead ends after all: corrected, never counted again.
    any_ledger.ended(first)
    assert {total.outcome: total.runs for total in any_ledger.totals()} == {Outcome.COMPLETED: 2, Outcome.FAILED: 1}


def test_readings_keep_the_latest_of_each_series(any_ledger: Ledger) -> None:
    any_ledger.record("toy", "place", [metrics.RESULTS_DUE.read(7), metrics.TABLE_BYTES.read(1e13, table="a")], NOW)
    any_ledger.record("toy", "place", [metrics.RESULTS_DUE.read(3), metrics.TABLE_BYTES.read(5, table="b")], NOW)
    series = {(reading.name, *sorted(reading.labels.items())): reading.value for reading in any_ledger.readings()}
    assert series == {
        ("backendops_results_due", ("backend", "place"), ("job", "toy")): 3,
        ("backendops_table_bytes", ("backend", "place"), ("table", "a")): 1e13,
        ("backendops_table_bytes", ("backend", "place"), ("table", "b")): 5,
    }


def test_pause_and_resume(any_ledger: Ledger) -> None:
    any_ledger.pause("toy", "ann@db1")
    any_ledger.pause("toy", "bob@db1")
    assert any_ledger.paused()["toy"].by == "bob@db1"
    assert any_ledger.resume("toy")
    assert not any_ledger.resume("toy")
    assert any_ledger.paused() == {}


def test_cancel_reaches_every_run_of_the_job(any_ledger: Ledger) -> None:
    ended = run(any_ledger)
    running = any_ledger.started(toy_pair(), Trigger.SCHEDULE, NOW)
    assert any_ledger.request_cancel("other") == 0
    assert any_ledger.request_cancel("toy") == 1
    assert any_ledger.cancel_requested(running)
    assert not any_ledger.cancel_requested(ended.run_id)


def test_a_slot_is_claimed_once_by_whoever_is_first(any_ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda _: any_ledger.claim_slot("toy", "place", NOW), range(16)))
    assert claims.count(True) == 1
    assert any_ledger.claim_slot("toy", "other place", NOW)
    assert any_ledger.claim_slot("toy", "place", NOW + timedelta(minutes=15))


def test_watermarks(any_ledger: Ledger) -> None:
    marks = any_ledger.watermarks("place")
    assert marks.recall("cursor") is None
    marks.remember("cursor", "1")
    marks.remember("cursor", "2")
    assert any_ledger.watermarks("place").recall("cursor") == "2"
    assert any_ledger.watermarks("other").recall("cursor") is None


def test_threads_and_processes_write_at_once(ledger: Ledger, tmp_path: Path) -> None:
    """What a daemon, a cron run and `status` do to each other, made worse."""
    script = (
        "import sys; from pathlib import Path; from tests.unit.test_ledger import Ledger, run\n"
        "ledger = Ledger.open(sys.argv[1])\n"
        "for _ in range(30): run(ledger); ledger.last_runs(); ledger.watermarks('place').remember('x', 'y')\n"
    )
    others = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "state")], cwd=Path(__file__).parents[2])
        for _ in range(2)
    ]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: (run(ledger), ledger.running(), ledger.totals()), range(40)))
    assert [other.wait(60) for other in others] == [0, 0]
    assert [(total.runs, total.rows) for total in ledger.totals()] == [(100, 1000)]
    assert len(ledger.history(limit=1000)) == 100


def test_a_new_ledger_is_made_once_by_many(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        ledgers = list(pool.map(lambda _: Ledger.open(str(tmp_path / "state")), range(8)))
    for ledger in ledgers:
        run(ledger)
        ledger.close()


def test_a_new_shared_ledger_is_made_once_by_many(postgres18_url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        ledgers = list(pool.map(lambda _: Ledger.open(postgres18_url), range(6)))
    for ledger in ledgers:
        run(ledger)
        ledger.close()


def test_purge_keeps_totals_successes_and_the_newest(ledger: Ledger) -> None:
    old = NOW - timedelta(days=30)
    success = run(ledger, at=old)
    with ledger._engine.begin() as connection:
        columns = "job, backend, trigger, host, world, pid, process_start, started_at, due_to_end_at, progressed_at, "
        columns += "cancel_requested, ended_at, outcome, rows, seconds, what, error, hint, throttled, findings"
        copies = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {KEEP_RUNS + 50}) "
        connection.execute(
            text(f"INSERT INTO backendops_runs ({columns}) {copies} SELECT {columns} FROM backendops_runs, n")
        )
    recent = run(ledger, Outcome.FAILED, at=NOW - timedelta(days=1))
    totals = ledger.totals()
    ledger.claim_slot("toy", "place", old)
    ledger.purge(NOW)
    assert len(ledger.history(limit=10_000)) == KEEP_RUNS
    assert ledger.history(limit=1) == [recent]
    assert ledger.totals() == totals
    assert ledger.last_success() == {("toy", "place"): success.ended_at}
    assert ledger.claim_slot("toy", "place", old), "an old slot was not forgotten"


def test_the_run_of_a_killed_process_is_recorded_as_failed(ledger: Ledger, tmp_path: Path) -> None:
    script = (
        "import os, sys; from tests.unit.test_ledger import *\n"
        "ledger = Ledger.open(sys.argv[1])\n"
        "run_id = ledger.started(toy_pair(), Trigger.SCHEDULE, NOW)\n"
        "ledger.progressed(run_id, 300, NOW + timedelta(seconds=9))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "state")], cwd=Path(__file__).parents[2], check=False
    )
    assert killed.returncode == -9
    mine = ledger.started(toy_pair(), Trigger.COMMAND, NOW)
    assert len(ledger.running()) == 2
    assert ledger.mark_orphans() == 1
    assert ledger.mark_orphans() == 0
    assert [running.run_id for running in ledger.running()] == [mine]
    (dead,) = ledger.history()
    assert (dead.outcome, dead.error, dead.rows, dead.seconds) == (Outcome.FAILED, ORPHANED, 300, 9.0)
    assert [(total.outcome, total.runs, total.rows) for total in ledger.totals()] == [(Outcome.FAILED, 1, 300)]


@pytest.mark.parametrize(("ago", "orphans"), [(timedelta(minutes=70), 0), (timedelta(minutes=80), 1)])
def test_of_another_host_only_the_time_is_known(ledger: Ledger, ago: timedelta, orphans: int) -> None:
    """An hour's budget and a quarter of an hour on top."""
    run_id = ledger.started(toy_pair(ToyJob(time_budget=timedelta(hours=1))), Trigger.SCHEDULE, datetime.now(UTC) - ago)
    with ledger._engine.begin() as connection:
        mine = ledger_tables.runs.c.id == run_id
        connection.execute(update(ledger_tables.runs).where(mine).values(host="elsewhere", pid=1))
    assert ledger.mark_orphans() == orphans


def test_the_file_is_private(ledger: Ledger, tmp_path: Path) -> None:
    run(ledger)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    files = list((tmp_path / "state").iterdir())
    assert len(files) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_looking_makes_nothing(tmp_path: Path) -> None:
    ledger = Ledger.open(str(tmp_path / "state"), create=False)
    assert ledger.history() == []
    assert ledger.last_runs() == {}
    ledger.close()
    assert not (tmp_path / "state").exists()


def test_looking_makes_no_tables_behind_a_url_either(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    ledger = Ledger.open(url, create=False)
    assert ledger.history() == []
    ledger.close()
    with closing(sqlite3.connect(tmp_path / "shared.db")) as file:
        assert file.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    made = Ledger.open(url)
    said = run(made)
    made.close()
    ledger = Ledger.open(url, create=False)
    assert ledger.history() == [said]
    ledger.close()


def test_the_largest_of_the_last_runs(any_ledger: Ledger) -> None:
    assert any_ledger.largest_run("toy", "place") == 0
    run(any_ledger, rows=7000)
    for hour in range(LAST_RUNS - 1):
        run(any_ledger, at=NOW + timedelta(hours=hour))
    assert any_ledger.largest_run("toy", "place") == 7000
    assert any_ledger.largest_run("toy", "elsewhere") == 0
    run(any_ledger, Outcome.STOPPED, at=NOW + timedelta(days=9))
    assert any_ledger.largest_run("toy", "place") == 10, "that backlog is long ago"


@pytest.mark.parametrize(
    ("state", "sentences"),
    [
        ("/proc/nowhere/state", ["cannot write the ledger /proc/nowhere", "`state:`"]),
        ("postgresql://me:hunter22@127.0.0.1:1/x", ["me:***@127.0.0.1", "refused", "`state:`"]),
        ("nosuch://me:hunter22@host/x", ["no database that can be opened", "postgresql://user@host/database"]),
    ],
)
def test_what_cannot_be_opened_says_why(state: str, sentences: list[str]) -> None:
    with pytest.raises(BackendopsError) as raised:
        Ledger.open(state)
    for sentence in sentences:
        assert sentence in str(raised.value)
    assert "hunter22" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite3").write_bytes(b"this is no database at all " * 100)
    with pytest.raises(BackendopsError, match=r"damaged or no ledger.*move it away"):
        Ledger.open(str(tmp_path))


def test_a_damaged_ledger(tmp_path: Path) -> None:
    ledger = Ledger.open(str(tmp_path))
    run(ledger)
    ledger.close()
    file = tmp_path / "ledger.sqlite3"
    file.write_bytes(file.read_bytes()[:4096] + b"\xaa" * (file.stat().st_size - 4096))
    with pytest.raises(BackendopsError, match=r"damaged or no ledger.*move it away"):
        Ledger.open(str(tmp_path))


def test_a_locked_ledger_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_file, "_BUSY_TIMEOUT_MS", 2000)
    monkeypatch.setattr(ledger_file, "_RACE_SECONDS", 1.0)
    Ledger.open(str(tmp_path)).close()
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite3")) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with pytest.raises(BackendopsError, match="another process has locked it"):
            Ledger.open(str(tmp_path))
        assert time.monotonic() - began < 3.9, "not once for each attempt at a race"


def test_a_shared_ledger_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ledger_file._BOUNDS["postgresql+psycopg2"], "connect_timeout", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(BackendopsError, match="timeout expired"):
            Ledger.open(f"postgresql://me:hunter22@127.0.0.1:{silent.getsockname()[1]}/x")
        assert time.monotonic() - began < 5


def test_opening_it_again_leaves_its_locks(ledger: Ledger, tmp_path: Path) -> None:
    """Closing any descriptor of a file ends the locks of the whole process on it: fcntl(2)."""
    run(ledger)
    Ledger.open(str(tmp_path / "state")).close()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: run(ledger), range(4)))
    look = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM backendops_runs'); c.close()"
    )
    file = tmp_path / "state" / "ledger.sqlite3"
    subprocess.run([sys.executable, "-c", look, str(file)], check=True)
    assert file.with_name("ledger.sqlite3-wal").exists(), "who looks and leaves is not the last one"


def test_who_removes_the_ledger_gets_a_new_one(ledger: Ledger, tmp_path: Path) -> None:
    """The way out of a damaged one, without a new start of the daemon."""
    run(ledger)
    for file in (tmp_path / "state").iterdir():
        file.unlink()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: run(ledger), range(8)))
    assert len(ledger.history()) == 8
    other = Ledger.open(str(tmp_path / "state"))
    assert other.history() == ledger.history()
    other.close()
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "state").iterdir()} == {0o600}


def test_a_ledger_from_the_future(tmp_path: Path) -> None:
    Ledger.open(str(tmp_path)).close()
    connection = sqlite3.connect(tmp_path / "ledger.sqlite3")
    connection.execute("UPDATE backendops_ledger SET version = 99")
    connection.commit()
    connection.close()
    with pytest.raises(BackendopsError, match=r"newer backendops.*99.*upgrade"):
        Ledger.open(str(tmp_path))
