"""SQLite's own: nothing lost at kill -9, Celery writing all the while, and what an archive table must be."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
import threading
import time
from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest

from backendops.backends.sqlite import SqliteBackend, search
from backendops.contracts.capabilities import ArchivePlan
from backendops.contracts.errors import BackendBusy, BackendRefused
from backendops.contracts.run import Limits, NoWatermarks
from backendops.engine.pacing import TimedPace
from tests.celery_rows import celery_app, celery_results, ensure_tables, fill_celery_table
from tests.conformance.sqlite_store import (
    ARCHIVE,
    DAY,
    LIVE,
    PLAN,
    SmallPace,
    archive,
    dated,
    ids,
    older_than,
    opened,
    path_of,
    raw,
    retry_after_start,
    shift,
    store,
    vacuum_plan,
)


def test_every_column_arrives_as_it_was(sqlite_url: str) -> None:
    celery_results(sqlite_url, 9, groups=2)
    retry_after_start(sqlite_url)
    with raw(sqlite_url) as connection:
        connection.execute(f"UPDATE {LIVE} SET result = ? WHERE id = 3", (b"\x80\x05\x00not unpickled\xff",))
        connection.execute(f"UPDATE {LIVE} SET task_id = '0123', result = 'text' WHERE id = 4")
    shift(sqlite_url, 10 * DAY)

    def content(suffix: str) -> list[object]:
        with raw(sqlite_url) as connection:
            rows: list[object] = []
            for table in (LIVE, "celery_tasksetmeta"):
                names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
                columns = ", ".join(f"{name}, typeof({name})" for name in names)
                rows += connection.execute(f"SELECT {columns} FROM {table}{suffix} ORDER BY id").fetchall()
            return rows

    before = content("")
    archive(sqlite_url, older_than(DAY))
    assert content("_archive") == before
    assert content("") == []


def test_stopping_after_any_step_loses_and_doubles_nothing(sqlite_url: str) -> None:
    celery_results(sqlite_url, 30, started=1)
    shift(sqlite_url, 10 * DAY)
    everything, due = ids(sqlite_url, LIVE), dated(sqlite_url)
    assert len(due) == 27
    taken = 0
    # After its first step, its second, and so on, every run goes on where the one before was stopped.
    for stop_after in range(1, 20):
        with (
            opened(sqlite_url) as backend,
            contextlib.closing(backend.archive(older_than(DAY), PLAN, SmallPace(4))) as run,
        ):
            taken += sum(step.rows for step in islice(run, stop_after))
        live, archived = ids(sqlite_url, LIVE), ids(sqlite_url, ARCHIVE)
        assert sorted(live + archived) == everything
        assert len(archived) == taken
    assert ids(sqlite_url, ARCHIVE) == due


_KILLED_AT = """
    import os, signal, sys
    from datetime import UTC, datetime, timedelta
    from backendops.backends.sqlite import SqliteBackend
    from backendops.contracts.capabilities import ArchivePlan
    from backendops.contracts.retention import Retention
    from backendops.contracts.run import Limits, NoWatermarks
    from backendops.engine.pacing import TimedPace
    word, count = sys.argv[2], 0
    def trace(sql):
        global count
        if word in sql:
            count += 1
            if count == 3:
                os.kill(os.getpid(), signal.SIGKILL)
    with SqliteBackend(url=sys.argv[1]).open(Limits(), NoWatermarks()) as backend, backend.lock() as lock:
        assert lock is not None
        backend._file._raw.set_trace_callback(trace)
        for step in backend.archive(Retention(datetime.now(UTC) - timedelta(days=1)), ArchivePlan(), TimedPace(100)):
            print(step.rows, flush=True)
"""


def test_kill_9_at_any_statement_loses_and_doubles_nothing_and_frees_the_lock(sqlite_url: str) -> None:
    fill_celery_table(sqlite_url, 4000, 1.0)
    everything = ids(sqlite_url, LIVE)
    command = [sys.executable, "-c", textwrap.dedent(_KILLED_AT), sqlite_url]
    # The third of each: there are batches before it, and more to do after it. Commits of the two archives come first.
    for word in ("INSERT INTO", "DELETE FROM", "COMMIT", "BEGIN IMMEDIATE"):
        before = ids(sqlite_url, ARCHIVE)
        run = subprocess.run([*command, word], capture_output=True, text=True, check=False)
        assert run.returncode == -9, run.stderr
        live, archived = ids(sqlite_url, LIVE), ids(sqlite_url, ARCHIVE)
        assert sorted(live + archived) == everything
        assert sum(map(int, run.stdout.split())) == len(archived) - len(before)
    with opened(sqlite_url) as backend, backend.lock() as lock:
        assert lock is not None
        list(backend.archive(older_than(DAY), PLAN, TimedPace()))
    assert (ids(sqlite_url, LIVE), ids(sqlite_url, ARCHIVE)) == ([], everything)


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_celery_writes_all_the_while_and_never_finds_the_file_locked_for_long(sqlite_url: str, journal: str) -> None:
    fill_celery_table(sqlite_url, 10_000, 1.0, payload=300)
    with raw(sqlite_url) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal}")
    # NullPool and Celery's own 5 s busy timeout, as a worker has them; no retry would hide an error.
    app = celery_app(sqlite_url, result_backend_always_retry=False)
    waits: list[float] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.is_set():
            began = time.monotonic()
            try:
                store(app, f"live-{number}")
            except Exception as error:  # noqa: BLE001 - whatever it is, the test must see it
                failures.append(error)
            waits.append(time.monotonic() - began)
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        archive(sqlite_url, older_than(DAY), TimedPace())
    finally:
        done.set()
        writer.join()
        app.close()
    assert failures == []
    assert len(ids(sqlite_url, ARCHIVE)) == 10_000
    assert len(ids(sqlite_url, LIVE)) == len(waits) > 5
    # Most find it free: what a write takes beside an archive is still about what it takes alone.
    assert sorted(waits)[len(waits) // 2] < 0.5


def test_another_writer_is_waited_for_three_times_and_then_named(sqlite_url: str) -> None:
    fill_celery_table(sqlite_url, 10, 1.0)
    pace = SmallPace()
    with raw(sqlite_url) as other, opened(sqlite_url, lock_timeout=0.05) as backend:
        steps = backend.expire(older_than(DAY), pace)
        other.execute("BEGIN IMMEDIATE")
        # Counting takes no lock.
        assert next(steps).what == "10 results are due"
        assert [next(steps).what, next(steps).what] == ["waited for another writer"] * 2
        with pytest.raises(BackendBusy, match="locked"):
            next(steps)
        assert pace.timeouts == 3
        other.execute("COMMIT")
        assert sum(step.rows for step in backend.expire(older_than(DAY), pace)) == 10
    assert ids(sqlite_url, LIVE) == []


def test_a_file_that_is_locked_whole_between_two_looks_is_busy(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "LOOK_ROWS", 10)
    fill_celery_table(sqlite_url, 30, 1.0)
    with raw(sqlite_url) as other, opened(sqlite_url, lock_timeout=0.05) as backend:
        steps = backend.expire(older_than(DAY), SmallPace())
        assert [next(steps).rows, next(steps).rows] == [0, 10]
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(BackendBusy, match="locked"):
            next(steps)
        other.execute("COMMIT")
    assert len(ids(sqlite_url, LIVE)) == 20


def test_a_statement_that_takes_too_long_is_ended(sqlite_url: str) -> None:
    ensure_tables(sqlite_url)
    limits = Limits(statement_timeout=timedelta(milliseconds=100))
    with SqliteBackend(url=sqlite_url).open(limits, NoWatermarks()) as backend:  # type: ignore[arg-type]
        from backendops.backends.sqlite.errors import translated  # noqa: PLC0415

        began = time.monotonic()
        with pytest.raises(BackendBusy, match="interrupted"), translated(backend.path):
            backend._opened.connection.exec_driver_sql(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
            )
        assert time.monotonic() - began < 2


def test_a_preview_writes_nothing(sqlite_url: str) -> None:
    celery_results(sqlite_url, 9, groups=1)
    shift(sqlite_url, 10 * DAY)
    before = path_of(sqlite_url).read_bytes()
    with opened(sqlite_url, read_only=True) as backend:
        preview = backend.preview_archive(older_than(DAY), PLAN)
        assert preview.rows == 9 + 3 + 1
        assert preview.oldest is not None
        assert datetime.now(UTC) - preview.oldest > 9 * DAY
        assert backend.preview_expire(older_than(DAY)).rows == preview.rows
        backend.preview_vacuum(vacuum_plan())
        with pytest.raises(Exception, match="readonly"):
            list(backend.expire(older_than(DAY), SmallPace()))
    assert path_of(sqlite_url).read_bytes() == before
    assert sorted(path.name for path in path_of(sqlite_url).parent.iterdir()) == ["results.db"]


def test_columns_that_an_upgrade_added_are_added_to_the_archive(sqlite_url: str) -> None:
    celery_results(sqlite_url, 5)
    shift(sqlite_url, 10 * DAY)
    archive(sqlite_url, older_than(DAY))
    with raw(sqlite_url) as connection:
        connection.execute(f'ALTER TABLE {LIVE} ADD COLUMN "new: one" BLOB')
    celery_results(sqlite_url, 5)
    with raw(sqlite_url) as connection:
        connection.execute(f"""UPDATE {LIVE} SET "new: one" = x'00ff'""")
    shift(sqlite_url, 10 * DAY)
    steps = archive(sqlite_url, older_than(DAY))
    assert steps[0].what == f"added new: one to {ARCHIVE}"
    with raw(sqlite_url) as connection:
        values = connection.execute(f'SELECT "new: one", count(*) FROM {ARCHIVE} GROUP BY 1').fetchall()
    assert values == [(None, 5), (b"\x00\xff", 5)]


def test_a_task_that_ran_again_is_archived_again(sqlite_url: str) -> None:
    for _ in range(2):
        app = celery_app(sqlite_url)
        store(app, "same")
        app.close()
        shift(sqlite_url, 10 * DAY)
        archive(sqlite_url, older_than(DAY))
    with raw(sqlite_url) as connection:
        assert connection.execute(f"SELECT count(*) FROM {ARCHIVE} WHERE task_id = 'same'").fetchone() == (2,)
        plan = connection.execute(f"EXPLAIN QUERY PLAN SELECT * FROM {ARCHIVE} WHERE task_id = 'x'").fetchone()
    assert "USING INDEX" in plan[3]


@pytest.mark.parametrize(
    ("ddl", "plan", "said"),
    [
        ("CREATE TABLE kept (id, task_id)", ArchivePlan("kept_{table}"), None),
        (f"CREATE TABLE {ARCHIVE} (id, task_id)", PLAN, "no column done_at"),
        (f"CREATE VIEW {ARCHIVE} AS SELECT 1", PLAN, "is a view"),
        ("", ArchivePlan("{table}"), "another table already"),
        ("", ArchivePlan("results_archive"), "another table already"),
        ("", ArchivePlan("{table}_archive", schema="cold"), "no schemas"),
        (f"CREATE TABLE {ARCHIVE} (task_id INTEGER, done_at TEXT, archived_at TEXT)", PLAN, "not be kept as they are"),
        (f"CREATE TABLE {ARCHIVE} (why TEXT NOT NULL, done_at TEXT, archived_at TEXT)", PLAN, "must not be empty"),
    ],
)
def test_an_archive_that_cannot_fit_is_refused_before_the_first_row(
    sqlite_url: str, ddl: str, plan: ArchivePlan, said: str | None
) -> None:
    celery_results(sqlite_url, 5)
    shift(sqlite_url, 10 * DAY)
    with raw(sqlite_url) as connection:
        connection.execute(ddl)
    if said is None:
        assert sum(step.rows for step in archive(sqlite_url, older_than(DAY), plan=plan)) == 5
        return
    with pytest.raises(BackendRefused, match=said):
        archive(sqlite_url, older_than(DAY), plan=plan)
    with opened(sqlite_url, read_only=True) as backend, pytest.raises(BackendRefused, match=said):
        backend.preview_archive(older_than(DAY), plan)
    assert len(ids(sqlite_url, LIVE)) == 5


def test_a_unique_archive_rolls_the_batch_back_and_says_what_to_drop(sqlite_url: str) -> None:
    celery_results(sqlite_url, 5)
    shift(sqlite_url, 10 * DAY)
    archive(sqlite_url, older_than(DAY))
    with raw(sqlite_url) as connection:
        connection.execute(f"INSERT INTO {LIVE} ({(c := 'id, task_id, status, date_done')}) SELECT {c} FROM {ARCHIVE}")
        connection.execute(f"CREATE UNIQUE INDEX no_two ON {ARCHIVE} (task_id)")
    with pytest.raises(BackendRefused, match=f"UNIQUE constraint failed: {ARCHIVE}.task_id") as refused:
        archive(sqlite_url, older_than(DAY))
    assert "drop its constraint" in refused.value.hint
    assert (len(ids(sqlite_url, LIVE)), len(ids(sqlite_url, ARCHIVE))) == (5, 5)
