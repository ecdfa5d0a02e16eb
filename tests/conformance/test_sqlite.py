"""What is SQLite's own: one file, one writer, text dates in two time zones."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import pytest
from celery import Celery, states
from celery.app.task import Context
from pydantic import ValidationError

from backendops.backends.sqlite import SqliteBackend
from backendops.contracts.backend import Standing
from backendops.contracts.capabilities import ArchivePlan, VacuumPlan
from backendops.contracts.errors import BackendBusy, BackendRefused, BackendUnreachable
from backendops.contracts.retention import Retention, Rule
from backendops.contracts.run import Limits, NoWatermarks, Pace, Step
from backendops.engine.pacing import TimedPace
from tests.celery_rows import celery_app, celery_results, ensure_tables, fill_celery_table

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
LIVE, ARCHIVE = "celery_taskmeta", "celery_taskmeta_archive"
PLAN = ArchivePlan()


class SmallPace(Pace):
    """Batches of a fixed size, so that a test has many steps."""

    def __init__(self, size: int = 10) -> None:
        self._size = size
        self.timeouts = 0

    @property
    def size(self) -> int:
        return self._size

    def measured(self, rows: int, seconds: float) -> None:
        pass

    def timed_out(self) -> None:
        self.timeouts += 1


def path_of(url: str) -> Path:
    return Path(url.removeprefix("db+sqlite:///"))


@contextlib.contextmanager
def raw(url: str) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path_of(url), isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def ids(url: str, table: str) -> list[int]:
    with raw(url) as connection:
        try:
            return sorted(row[0] for row in connection.execute(f"SELECT id FROM {table}"))
        except sqlite3.OperationalError as error:
            assert "no such table" in str(error)
            return []


@contextlib.contextmanager
def opened(url: str, read_only: bool = False, lock_timeout: float = 2, **settings: object) -> Iterator[SqliteBackend]:
    limits = Limits(read_only=read_only, lock_timeout=timedelta(seconds=lock_timeout))
    with SqliteBackend(url=url, **settings).open(limits, NoWatermarks()) as backend:  # type: ignore[arg-type]
        yield backend


def older_than(age: timedelta, *rules: Rule) -> Retention:
    return Retention(datetime.now(UTC) - age, rules)


def archive(
    url: str, due: Retention, pace: Pace | None = None, plan: ArchivePlan = PLAN, **settings: object
) -> list[Step]:
    with opened(url, **settings) as backend:  # type: ignore[arg-type]
        return list(backend.archive(due, plan, pace or SmallPace()))


def store(app: Celery, task_id: str, state: str = states.SUCCESS) -> None:
    """A result through Celery's own backend."""
    app.backend.store_result(task_id, ValueError(1) if state == states.RETRY else 1, state, request=Context(id=task_id))


def retry_after_start(url: str, **conf: object) -> None:
    """The one way to a RETRY row that has a date: NULL stays NULL, so the column's own default in UTC fires."""
    app = celery_app(url, **conf)
    for state in (states.STARTED, states.RETRY):
        store(app, "retried", state)
    app.close()


def dated(url: str) -> list[int]:
    with raw(url) as connection:
        return [row[0] for row in connection.execute(f"SELECT id FROM {LIVE} WHERE date_done > '' ORDER BY id")]


def shift(url: str, age: timedelta) -> None:
    """Let everything have finished that much earlier, each row still in the zone Celery wrote it in."""
    with raw(url) as connection:
        for table in (LIVE, "celery_tasksetmeta"):
            for id_, text in connection.execute(f"SELECT id, date_done FROM {table} WHERE date_done > ''").fetchall():
                earlier = datetime.fromisoformat(text) - age
                connection.execute(
                    f"UPDATE {table} SET date_done = ? WHERE id = ?",
                    (earlier.isoformat(" ", "microseconds"), id_),
                )


# -- URLs and files


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


# -- time zones: rows by Celery with the application's own timezone


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York", "UTC"])
def test_fresh_results_are_never_due_and_old_ones_are_placed_exactly(sqlite_url: str, zone: str) -> None:
    stored_at = datetime.now(UTC)
    celery_results(sqlite_url, 9, groups=1, timezone=zone)
    retry_after_start(sqlite_url, timezone=zone)
    hour_ago = older_than(HOUR)
    with opened(sqlite_url, read_only=True, date_done_timezone=zone) as backend:
        assert backend.preview_expire(hour_ago).rows == 0
        standing: Standing = backend.standing()
        assert standing.newest_done is not None
        assert abs(standing.newest_done - stored_at) < timedelta(minutes=1)
    shift(sqlite_url, 2 * DAY)
    archive(sqlite_url, hour_ago, date_done_timezone=zone)
    with raw(sqlite_url) as connection:
        moments = connection.execute(
            f"SELECT done_at FROM {ARCHIVE} UNION ALL SELECT done_at FROM celery_tasksetmeta_archive"
        ).fetchall()
    # Retries and groups are in UTC, the rest in Celery's zone; each is placed by its own.
    assert len(moments) == 9 + 3 + 1 + 1
    for (done_at,) in moments:
        assert abs(datetime.fromisoformat(done_at) + 2 * DAY - stored_at) < timedelta(minutes=1)


def test_a_retry_is_due_only_when_it_is_due_in_both_zones(sqlite_url: str) -> None:
    celery_results(sqlite_url, 9, groups=1, timezone="America/New_York")
    retry_after_start(sqlite_url, timezone="America/New_York")
    shift(sqlite_url, 2 * HOUR)
    archive(sqlite_url, older_than(HOUR), date_done_timezone="America/New_York")
    with raw(sqlite_url) as connection:
        assert connection.execute(f"SELECT DISTINCT status FROM {LIVE}").fetchall() == [("RETRY",)]
        assert connection.execute("SELECT count(*) FROM celery_tasksetmeta").fetchone() == (1,)


def test_a_wrong_zone_shows_as_results_from_the_future(sqlite_url: str) -> None:
    celery_results(sqlite_url, 3, timezone="Asia/Tokyo")
    with opened(sqlite_url, date_done_timezone="UTC") as backend:
        standing = backend.standing()
    assert standing.newest_done is not None
    assert standing.newest_done - standing.server_now > 8 * HOUR


def test_the_hour_that_a_clock_change_repeats_is_read_as_the_later_one(sqlite_url: str) -> None:
    celery_results(sqlite_url, 1)
    with raw(sqlite_url) as connection:
        connection.execute(f"UPDATE {LIVE} SET date_done = '2025-11-02 01:30:00.000000'")
    first_pass = datetime(2025, 11, 2, 5, 45, tzinfo=UTC)  # 01:45 EDT, an hour before 01:45 EST
    for cutoff, rows in ((first_pass, 0), (first_pass + HOUR, 1)):
        with opened(sqlite_url, date_done_timezone="America/New_York") as backend:
            assert backend.preview_expire(Retention(cutoff)).rows == rows


# -- which rows


@pytest.mark.parametrize("index", [True, False])
def test_rules_decide_as_the_retention_says_with_and_without_an_index(sqlite_url: str, index: bool) -> None:
    celery_results(sqlite_url, 40, started=2, groups=1)
    shift(sqlite_url, 10 * DAY)
    with raw(sqlite_url) as connection:
        if not index:
            connection.execute("DROP INDEX ix_celery_taskmeta_date_done")
        rows = connection.execute(f"SELECT id, status, name, queue, date_done FROM {LIVE}").fetchall()
    now = datetime.now(UTC)
    due = Retention(
        now - 5 * DAY,
        (
            Rule(None, state="FAILURE", task="reports.*"),
            Rule(now - 20 * DAY, task="mail.?end", state="SUCCESS"),
            Rule(now - 1 * DAY, queue="cel*"),
        ),
    )
    expected = [
        id_ for id_, status, name, queue, done in rows
        if done is not None and (cutoff := due.cutoff_of(status, name, queue)) is not None and now - 10 * DAY < cutoff
    ]  # fmt: skip
    assert 0 < len(expected) < len(rows)
    with opened(sqlite_url, read_only=True) as backend:
        assert backend.preview_archive(due, PLAN).rows == len(expected) + 1
    archive(sqlite_url, due, SmallPace(7))
    assert ids(sqlite_url, ARCHIVE) == sorted(expected)
    assert ids(sqlite_url, LIVE) == sorted({row[0] for row in rows} - set(expected))


def test_the_index_is_what_a_search_walks(sqlite_url: str) -> None:
    ensure_tables(sqlite_url)
    with opened(sqlite_url, read_only=True) as backend:
        look = backend.preview_expire(older_than(DAY)).statements[0]
    values = {"after_date": "", "after_id": 0, "latest": "2026", "rows": 10}
    with raw(sqlite_url) as connection:
        plan = [row[3] for row in connection.execute("EXPLAIN QUERY PLAN " + look, values)]
    assert plan == ["SEARCH celery_taskmeta USING INDEX ix_celery_taskmeta_date_done (date_done>? AND date_done<?)"]


def test_what_is_no_date_is_left_alone_and_reported(sqlite_url: str) -> None:
    celery_results(sqlite_url, 4)
    shift(sqlite_url, 10 * DAY)
    with raw(sqlite_url) as connection:
        connection.execute("DROP INDEX ix_celery_taskmeta_date_done")
        connection.execute(f"UPDATE {LIVE} SET date_done = 5 WHERE id = 1")
        connection.execute(f"UPDATE {LIVE} SET date_done = '0000-00-00 00:00:00' WHERE id = 2")
        connection.execute(f"UPDATE {LIVE} SET date_done = '2025-01-01 10:00:00' WHERE id = 3")
    steps = archive(sqlite_url, older_than(DAY))
    assert (ids(sqlite_url, LIVE), ids(sqlite_url, ARCHIVE)) == ([1, 2], [3, 4])
    assert "2 rows of celery_taskmeta" in steps[-1].findings[0].sentence


def test_a_task_that_runs_again_between_look_and_lock_stays(sqlite_url: str) -> None:
    fill_celery_table(sqlite_url, 20, 1.0)
    with opened(sqlite_url) as backend:
        steps = backend.archive(older_than(DAY), PLAN, SmallPace(10))
        while next(steps).rows == 0:
            pass
        # The other ten are found already; one of them changes before its batch.
        with raw(sqlite_url) as connection:
            fresh = datetime.now(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
            connection.execute(f"UPDATE {LIVE} SET date_done = ? WHERE id = 15", (fresh,))
        assert sum(step.rows for step in steps) == 9
    assert ids(sqlite_url, LIVE) == [15]


# -- none lost, none twice


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


# -- the application does not notice


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_celery_writes_all_the_while_and_never_finds_the_file_locked_for_long(sqlite_url: str, journal: str) -> None:
    fill_celery_table(sqlite_url, 30_000, 1.0, payload=300)
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
    assert len(ids(sqlite_url, ARCHIVE)) == 30_000
    assert len(ids(sqlite_url, LIVE)) == len(waits) > 5
    # A batch, the poll of SQLite's busy handler, a slow disk's syncs; Celery gives up after five seconds.
    assert max(waits) < 2.5


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


# -- the archive table


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


# -- the lock


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


# -- vacuum


def vacuum_plan(full: bool = False) -> VacuumPlan:
    return VacuumPlan(datetime.now(UTC), dead_rows=1000, dead_ratio=0.1, analyze_after=7 * DAY, full=full)


def emptied(url: str) -> int:
    """Results come and go; the size of the file that they leave."""
    fill_celery_table(url, 3000, 1.0, payload=500)
    with opened(url) as backend:
        list(backend.expire(older_than(DAY), TimedPace()))
    return path_of(url).stat().st_size


def test_free_pages_are_given_back_in_steps_where_the_file_allows_it(sqlite_url: str) -> None:
    with raw(sqlite_url) as connection:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("VACUUM")
    before = emptied(sqlite_url)
    with opened(sqlite_url) as backend:
        steps = list(backend.vacuum(vacuum_plan(), SmallPace(100)))
    given_back = [step for step in steps if "gave free pages back" in step.what]
    assert len(given_back) > 2
    assert path_of(sqlite_url).stat().st_size < before / 5
    assert steps[-1].findings == ()
    assert any("analyzed" in step.what for step in steps)


def test_a_file_that_cannot_shrink_is_a_finding_and_is_rewritten_only_in_the_window(sqlite_url: str) -> None:
    before = emptied(sqlite_url)
    with opened(sqlite_url) as backend:
        steps = list(backend.vacuum(vacuum_plan(), SmallPace()))
        assert path_of(sqlite_url).stat().st_size >= before
        assert [finding.code for finding in steps[-1].findings] == ["sqlite.free-pages"]
        assert "VACUUM" not in backend.preview_vacuum(vacuum_plan()).statements
        assert any("VACUUM" in sql for sql in backend.preview_vacuum(vacuum_plan(full=True)).statements)
        steps = list(backend.vacuum(vacuum_plan(full=True), SmallPace()))
        # Statistics were refreshed a moment ago.
        assert not any("analyzed" in step.what for step in steps)
    assert path_of(sqlite_url).stat().st_size < before / 5
    sizes = {dict(reading.labels)["table"]: reading.value for reading in steps[-1].readings}
    assert set(sizes) == {LIVE, "celery_tasksetmeta"}
    assert sizes[LIVE] > 0


def test_a_rewrite_that_may_fill_the_disk_is_not_begun(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = emptied(sqlite_url)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 4096})())
    with opened(sqlite_url) as backend:
        steps = list(backend.vacuum(vacuum_plan(full=True), SmallPace()))
    assert [finding.code for finding in steps[-1].findings] == ["sqlite.no-room-to-rewrite"]
    assert path_of(sqlite_url).stat().st_size >= before


def test_the_write_ahead_log_is_cut(sqlite_url: str) -> None:
    ensure_tables(sqlite_url)
    with raw(sqlite_url) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        # From its first read on this connection keeps the log from being removed with the last other one.
        connection.execute(f"SELECT count(*) FROM {LIVE}").fetchone()
        celery_results(sqlite_url, 20)
        log = path_of(sqlite_url + "-wal")
        assert log.stat().st_size > 0
        with opened(sqlite_url) as backend:
            steps = list(backend.vacuum(vacuum_plan(), SmallPace()))
        assert log.stat().st_size == 0
    assert any(step.what == "checkpointed the write-ahead log" for step in steps)


# -- pool-health


def test_a_probe_reads_the_file_and_a_missing_one_is_unreachable(sqlite_url: str) -> None:
    ensure_tables(sqlite_url)
    with opened(sqlite_url, read_only=True) as backend:
        report = backend.report_pool()
        assert 0 < report.roundtrip_seconds < 1
        assert (report.connections, report.connections_limit) == ({}, 0)
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
