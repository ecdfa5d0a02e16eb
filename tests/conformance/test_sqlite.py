"""SQLite's own: which files it opens, its lock, its probe, and the engine's jobs on it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import time
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from backendops.backends.sql_files import statements
from backendops.backends.sqlite import SqliteBackend
from backendops.contracts.errors import BackendBusy, BackendRefused, BackendUnreachable
from backendops.contracts.job import Job
from backendops.contracts.run import Outcome, Trigger
from backendops.engine.ledger import Ledger
from backendops.engine.runner import Runner
from backendops.jobs.archive import Archive
from backendops.jobs.expire import Expire
from backendops.jobs.pool_health import PoolHealth
from backendops.jobs.vacuum import Vacuum
from backendops.policy.model import Pair
from tests.celery_rows import celery_results, ensure_tables
from tests.conformance.sqlite_store import (
    DAY,
    SmallPace,
    archive,
    older_than,
    opened,
    path_of,
    raw,
    shift,
)


@pytest.mark.parametrize(
    "url", ["sqlite://", "db+sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"]
)
def test_a_database_in_memory_is_refused_with_the_reason(url: str) -> None:
    with pytest.raises(ValidationError, match=r"memory|plain path"):
        SqliteBackend(url=url)  # type: ignore[arg-type]


def test_schemas_are_a_problem() -> None:
    with pytest.raises(ValidationError, match="SQLite has no schemas"):
        SqliteBackend(url="sqlite:////tmp/x.db", schemas={"task": "cel"})  # type: ignore[arg-type]


@pytest.mark.parametrize("read_only", [True, False])
def test_a_missing_file_is_unreachable_and_stays_missing(sqlite_url: str, read_only: bool) -> None:
    with pytest.raises(BackendUnreachable, match="does not exist"), opened(sqlite_url, read_only):
        pass
    assert not path_of(sqlite_url).exists()


def test_a_relative_url_is_found_from_the_working_directory(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_tables(sqlite_url)
    monkeypatch.chdir(path_of(sqlite_url).parent)
    with opened("db+sqlite:///results.db") as backend:
        assert backend.path == path_of(sqlite_url).resolve()


def test_names_that_mean_something_in_a_uri_are_only_names(tmp_path: Path) -> None:
    url = f"db+sqlite:///{tmp_path}/50%25#odd name.db"
    ensure_tables(url)
    with opened(url) as backend:
        assert backend.path.exists()
        assert list(backend.expire(older_than(DAY), SmallPace()))


def test_what_is_no_database_is_refused(sqlite_url: str, tmp_path: Path) -> None:
    path_of(sqlite_url).write_text("this is a log file, and longer than the header of a database " * 10)
    with pytest.raises(BackendRefused, match="not a database"), opened(sqlite_url):
        pass
    with pytest.raises(BackendRefused, match="is not a file"), opened(f"sqlite:///{tmp_path}"):
        pass


def test_a_file_without_tables_is_nothing_to_do_and_says_so(sqlite_url: str) -> None:
    path_of(sqlite_url).touch()
    steps = archive(sqlite_url, older_than(DAY))
    assert steps[0].what == "there is no table celery_taskmeta"
    assert [finding.code for step in steps for finding in step.findings] == ["sqlite.no-table"]


def test_a_wrong_table_name_is_answered_with_the_right_one(sqlite_url: str) -> None:
    celery_results(sqlite_url, 3)
    steps = archive(sqlite_url, older_than(DAY), tables={"task": "celery_tasks"})
    assert "Celery's columns are in celery_taskmeta" in steps[-1].findings[0].sentence


_AS_NOBODY = """
    import os, sys
    from backendops.backends.sqlite import SqliteBackend
    from backendops.contracts.errors import BackendRefused
    from backendops.contracts.run import Limits, NoWatermarks
    backend = SqliteBackend(url=sys.argv[1])
    # Python may live where nobody may not look: everything is imported before.
    with backend.open(Limits(), NoWatermarks()):
        pass
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    try:
        with backend.open(Limits(read_only=sys.argv[2] == "ro"), NoWatermarks()):
            print("opened")
    except BackendRefused as error:
        print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody whom a file does not let in")
def test_a_file_that_does_not_let_the_user_in_is_refused_with_its_name() -> None:
    # Not in tmp_path: nobody may not enter pytest's own directory.
    import tempfile  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)  # noqa: PTH101, S103
        url = f"db+sqlite:///{directory}/results.db"
        ensure_tables(url)

        def answer(mode: str) -> str:
            command = [sys.executable, "-c", textwrap.dedent(_AS_NOBODY), url, mode]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

        path_of(url).chmod(0o644)
        assert answer("ro") == "opened"
        assert answer("rw") == f"{directory}/results.db cannot be written by nobody"
        path_of(url).chmod(0o666)
        assert answer("rw") == f"{directory} cannot be written by nobody, and SQLite keeps its journal beside the file"
        path_of(url).chmod(0o600)
        assert answer("ro") == f"{directory}/results.db cannot be read by nobody"


def test_a_transaction_that_a_killed_process_left_is_named(sqlite_url: str, tmp_path: Path) -> None:
    celery_results(sqlite_url, 3)
    copy = tmp_path / "copy.db"
    with raw(sqlite_url) as connection:
        # One page of cache: the transaction is written to the file, and its journal is hot, before it ends.
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE filler (x)")
        connection.executemany("INSERT INTO filler VALUES (?)", [("x" * 5000,) for _ in range(50)])
        copy.write_bytes(path_of(sqlite_url).read_bytes())
        copy.with_name("copy.db-journal").write_bytes(path_of(sqlite_url + "-journal").read_bytes())
        connection.execute("ROLLBACK")
    with pytest.raises(BackendBusy, match="killed in the middle"), opened(f"sqlite:///{copy}", read_only=True):
        pass
    with opened(f"sqlite:///{copy}"):
        pass
    with opened(f"sqlite:///{copy}", read_only=True) as backend:
        assert backend.preview_expire(older_than(timedelta())).rows >= 0


def test_the_lock_excludes_and_knows_when_it_is_lost(sqlite_url: str) -> None:
    ensure_tables(sqlite_url)
    link = path_of(sqlite_url).with_name("link.db")
    link.symlink_to(path_of(sqlite_url))
    with opened(sqlite_url) as one, opened(f"sqlite:///{link}") as two:
        with one.lock() as held:
            assert held is not None
            assert held.still_held()
            with two.lock() as other:
                assert other is None
            path_of(sqlite_url).with_name("results.db.backendops.lock").unlink()
            assert not held.still_held()
        with two.lock() as other:
            assert other is not None


def test_a_probe_reads_the_file_and_a_missing_one_is_unreachable(sqlite_url: str) -> None:
    ensure_tables(sqlite_url)
    with opened(sqlite_url, read_only=True) as backend:
        report = backend.report_pool()
        assert 0 < report.roundtrip_seconds < 1
        assert (report.connections, report.connections_limit) == ({}, None)
        path_of(sqlite_url).rename(path_of(sqlite_url).with_name("moved.db"))
        with pytest.raises(BackendUnreachable, match="does not exist"):
            backend.report_pool()


def test_a_file_that_somebody_has_locked_whole_is_busy_within_the_lock_timeout(sqlite_url: str) -> None:
    ensure_tables(sqlite_url)
    with opened(sqlite_url, read_only=True, lock_timeout=0.1) as backend, raw(sqlite_url) as other:
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        with pytest.raises(BackendBusy, match="locked"):
            backend.report_pool()
        assert time.monotonic() - began < 2


def test_every_job_of_a_policy_runs_on_it_through_the_engine(sqlite_url: str, tmp_path: Path) -> None:
    celery_results(sqlite_url, 9, groups=1)
    shift(sqlite_url, 10 * DAY)
    backend = SqliteBackend(url=sqlite_url)  # type: ignore[arg-type]
    jobs: dict[str, Job] = {
        "archive": Archive.model_validate({"older_than": "7d"}),
        "expire": Expire.model_validate({"keep": "30d"}),
        "vacuum": Vacuum(),
        "pool-health": PoolHealth(),
    }
    with contextlib.closing(Ledger.open(str(tmp_path / "state"))) as ledger:
        runner = Runner(ledger)
        for name, job in jobs.items():
            assert issubclass(SqliteBackend, job.needs)
            pair = Pair(name, job, "results", backend, None)
            assert runner.preview(pair).rows == (13 if name == "archive" else 0)
            report = runner.run(pair, Trigger.COMMAND)
            assert (report.outcome, report.error) == (Outcome.COMPLETED, "")
            assert report.rows == (13 if name == "archive" else 0)
            with opened(sqlite_url) as other, other.lock() as held:
                assert held is not None
                excluded = runner.run(pair, Trigger.COMMAND)
                assert excluded.outcome is (Outcome.LOCKED if job.changes else Outcome.COMPLETED)
        path_of(sqlite_url).unlink()
        assert runner.run(Pair("expire", jobs["expire"], "results", backend, None), Trigger.COMMAND).outcome is (
            Outcome.UNREACHABLE
        )
        probe = runner.run(Pair("pool-health", jobs["pool-health"], "results", backend, None), Trigger.COMMAND)
        assert [finding.code for finding in probe.findings] == ["pool.unreachable"]


def test_a_wrong_zone_or_clock_is_refused_by_the_engine(sqlite_url: str, tmp_path: Path) -> None:
    celery_results(sqlite_url, 3, timezone="Asia/Tokyo")
    job = Archive.model_validate({"older_than": "7d"})
    with contextlib.closing(Ledger.open(str(tmp_path / "state"))) as ledger:
        for zone, outcome in (("UTC", Outcome.REFUSED), ("Asia/Tokyo", Outcome.COMPLETED)):
            backend = SqliteBackend(url=sqlite_url, date_done_timezone=zone)  # type: ignore[arg-type]
            report = Runner(ledger).run(Pair("archive", job, "results", backend, None), Trigger.COMMAND)
            assert report.outcome is outcome


def test_every_statement_runs_as_it_is_written(sqlite_url: str) -> None:
    ensure_tables(sqlite_url)

    class Anything(dict[str, object]):
        def __missing__(self, key: str) -> object:
            return None

    with raw(sqlite_url) as connection:
        made = statements("sqlite", "archive_table")
        connection.execute(made["create_archive"])
        connection.execute(made["create_index"])
        for file in ("remove", "archive_table", "schema", "vacuum", "pool"):
            for statement in statements("sqlite", file).values():
                connection.execute(f"EXPLAIN {statement}", Anything())
