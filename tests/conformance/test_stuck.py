"""stuck_after on PostgreSQL: only what nothing was written to since is moved, however old its id."""

from __future__ import annotations

import json
import re
from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg2
import pytest

from backendops.backends.postgres import stuck
from backendops.backends.postgres.stuck import Mark, Marks, Now
from backendops.backends.sql_files import statements
from backendops.contracts.archive import Selection
from backendops.contracts.capabilities import ArchivePlan, CanMoveStuck
from backendops.contracts.run import NoWatermarks, Outcome, Trigger
from backendops.engine.ledger import Ledger as EngineLedger
from backendops.engine.runner import Runner
from backendops.jobs.archive import Archive
from backendops.policy.model import Pair
from tests.celery_rows import _close, celery_app, celery_results, fill_celery_table
from tests.conformance.postgres_store import in_transaction, opened, other_role
from tests.conformance.stores import ARCHIVE, GROUPS, LIVE, FixedPace, TableStore, drive

CAPABILITY = CanMoveStuck
DAY = timedelta(days=1)
AFTER = 3 * DAY
PLAN = ArchivePlan()


class Ledger(NoWatermarks):
    """What is remembered, and how a test lets it have been so long ago."""

    def age(self, by: timedelta) -> None:
        for key, told in list(self._values.items()):
            if key.startswith("stuck "):
                line, marks, passed = json.loads(told)
                marks = [[_earlier(at, by), oldest, last_id] for at, oldest, last_id in marks]
                self._values[key] = json.dumps([line, marks, passed and _earlier(passed, by)])


def _earlier(moment: str, by: timedelta) -> str:
    return (datetime.fromisoformat(moment) - by).isoformat()


def run(store: TableStore, ledger: Ledger, size: int = 100, stop_after: int | None = None) -> int:
    with store.opened(watermarks=ledger) as backend:
        return sum(step.rows for step in drive(backend.move_stuck(AFTER, PLAN, FixedPace(size)), stop_after))


def counted(store: TableStore, ledger: Ledger) -> int:
    with store.previewing() as backend:
        backend._watermarks = ledger
        rows: int = backend.preview_stuck(AFTER, PLAN).rows
        return rows


def store_state(url: str, task_id: str, *states: str) -> None:
    app = celery_app(url)
    for state in states:
        app.backend.store_result(task_id, ValueError(1) if state == "RETRY" else {"done": 1}, state)
    _close(app)


@pytest.mark.parametrize("indexed", [True, False])
def test_what_nothing_was_written_to_is_moved_with_a_mark(postgres: TableStore, indexed: bool) -> None:
    ids = celery_results(postgres.url, 6, started=5)
    fill_celery_table(postgres.url, 50, started=20)
    if not indexed:
        postgres.execute("DROP INDEX ix_celery_taskmeta_date_done")
    before, finished = (
        postgres.checksum(LIVE),
        postgres.execute(f"SELECT count(*) FROM {LIVE} WHERE date_done IS NOT NULL"),
    )
    ledger = Ledger()
    assert run(postgres, ledger) == 0
    ledger.age(2 * DAY)
    assert (counted(postgres, ledger), run(postgres, ledger)) == (0, 0)
    ledger.age(DAY)
    store_state(postgres.url, "young", "STARTED")
    assert counted(postgres, ledger) == 25
    began = datetime.now(UTC)
    assert run(postgres, ledger, size=7) == 25
    assert postgres.execute(f"SELECT task_id FROM {LIVE} WHERE date_done IS NULL") == [("young",)]
    assert postgres.execute(f"SELECT count(*) FROM {LIVE} WHERE date_done IS NOT NULL") == finished
    rows = postgres.execute(f"SELECT task_id, status, date_done, stuck, done_at FROM {ARCHIVE}")
    assert set(ids[6:]) <= {row.task_id for row in rows}
    assert {(row.status, row.date_done, row.stuck) for row in rows} == {("STARTED", None, True)}
    assert all(began - DAY < row.done_at < datetime.now(UTC) + DAY for row in rows)
    postgres.execute(f"DELETE FROM {LIVE} WHERE task_id = 'young'")
    assert postgres.checksum(LIVE, ARCHIVE) == before


def test_a_plan_and_max_rows_count_what_a_run_would_find_stuck(postgres: TableStore) -> None:
    celery_results(postgres.url, 2, started=9)
    ledger, remembered = EngineLedger.in_memory(), Ledger()
    runner = Runner(ledger)

    def pair(**keys: int) -> Pair:
        job = Archive.model_validate({"older_than": "7d", "stuck_after": "3d", **keys})
        return Pair("archive", job, "results", postgres.backend(), None)

    assert runner.run(pair(), Trigger.COMMAND).outcome is Outcome.COMPLETED
    marks = ledger.watermarks("results")
    key = f'stuck {AFTER.total_seconds():.0f} "public"."{LIVE}"'
    remembered.remember(key, marks.recall(key) or "")
    remembered.age(4 * DAY)
    marks.remember(key, remembered._values[key])
    assert runner.preview(pair()).rows == 9
    assert marks.recall(key) == remembered._values[key], "looking leaves no trace"
    assert runner.run(pair(max_rows=8), Trigger.COMMAND).outcome is Outcome.REFUSED
    report = runner.run(pair(max_rows=9), Trigger.COMMAND)
    assert (report.outcome, report.rows) == (Outcome.COMPLETED, 9)
    ledger.close()


def test_a_task_that_is_retried_for_days_is_not_stuck(postgres: TableStore) -> None:
    """It keeps its old id, and its row is written again and again."""
    ids = celery_results(postgres.url, 0, started=4)
    ledger = Ledger()
    run(postgres, ledger)
    store_state(postgres.url, ids[0], "RETRY", "STARTED")
    store_state(postgres.url, ids[1], "PROGRESS", "STARTED")
    store_state(postgres.url, ids[2], "SUCCESS")
    ledger.age(4 * DAY)
    assert run(postgres, ledger) == 1
    assert postgres.execute(f"SELECT task_id FROM {ARCHIVE}") == [(ids[3],)]
    # What was written after that mark is stuck only by a mark that was taken after it.
    ledger.age(4 * DAY)
    assert run(postgres, ledger) == 2
    assert {row[0] for row in postgres.execute(f"SELECT task_id FROM {ARCHIVE}")} == {ids[0], ids[1], ids[3]}


def test_a_transaction_that_was_open_at_the_mark_is_after_it(postgres: TableStore) -> None:
    celery_results(postgres.url, 1)
    ledger = Ledger()
    insert = f"INSERT INTO {LIVE} (id, task_id, status) VALUES (-1, 'slow', 'STARTED')"
    with in_transaction(postgres.url, f"SAVEPOINT s; {insert}; RELEASE s") as writer:
        # A later one that has ended: the open one is not simply the last.
        postgres.execute("SELECT CAST(pg_current_xact_id() AS text)")
        run(postgres, ledger)
        writer.commit()
    ledger.age(4 * DAY)
    assert run(postgres, ledger) == 0
    assert postgres.execute(f"SELECT count(*) FROM {LIVE} WHERE id = -1") == [(1,)]


def test_frozen_rows_still_say_when_they_were_written(postgres: TableStore) -> None:
    celery_results(postgres.url, 0, started=2)
    ledger = Ledger()
    run(postgres, ledger)
    celery_results(postgres.url, 0, started=3)
    with closing(psycopg2.connect(postgres.url.removeprefix("db+"))) as session:
        session.autocommit = True
        with session.cursor() as cursor:
            cursor.execute(f"VACUUM FREEZE {LIVE}")
    ledger.age(4 * DAY)
    assert run(postgres, ledger) == 2


def test_a_row_that_another_session_holds_waits(postgres: TableStore) -> None:
    ids = celery_results(postgres.url, 0, started=3)
    ledger = Ledger()
    run(postgres, ledger)
    ledger.age(4 * DAY)
    with in_transaction(postgres.url, f"UPDATE {LIVE} SET worker = 'w' WHERE task_id = '{ids[1]}'"):
        assert run(postgres, ledger) == 2
    assert run(postgres, ledger) == 1


def test_marks_of_another_table_or_history_say_nothing(postgres: TableStore) -> None:
    celery_results(postgres.url, 0, started=3)
    ledger = Ledger()
    run(postgres, ledger)
    ledger.age(4 * DAY)
    (key,) = ledger._values
    line, marks, passed = json.loads(ledger._values[key])
    for told in (
        json.dumps([line + "0", marks, passed]),
        json.dumps([line, [[at, oldest + 10**9, last] for at, oldest, last in marks], passed]),
        "of another version",
        "[]",
        "null",
        "",
    ):
        ledger._values[key] = told
        assert (counted(postgres, ledger), run(postgres, ledger)) == (0, 0), told
    # The same rows in a table that took its name.
    ledger._values[key] = json.dumps([line, marks, passed])
    postgres.execute(f"CREATE TABLE copy (LIKE {LIVE} INCLUDING ALL)")
    postgres.execute(f"ALTER TABLE {LIVE} RENAME TO old")
    postgres.execute(f"ALTER TABLE copy RENAME TO {LIVE}")
    postgres.execute(f"INSERT INTO {LIVE} SELECT * FROM old")
    assert run(postgres, ledger) == 0


def test_an_archive_from_before_gets_the_mark_and_a_restore_takes_it_off(postgres: TableStore) -> None:
    fill_celery_table(postgres.url, 20, started=4)
    ids = [row[0] for row in postgres.execute(f"SELECT task_id FROM {LIVE} WHERE date_done IS NULL")]
    before, ledger = postgres.checksum(LIVE), Ledger()
    job = Archive.model_validate({"older_than": "7d", "stuck_after": "3d"})
    for _ in range(2):
        with postgres.opened(watermarks=ledger) as backend:
            steps = drive(job.run(backend, datetime.now(UTC), FixedPace(100)))
        if postgres.ids(ARCHIVE):
            postgres.execute(f"ALTER TABLE {ARCHIVE} DROP COLUMN stuck")
        ledger.age(4 * DAY)
        with postgres.previewing() as backend:
            backend._watermarks = ledger
            preview = job.preview(backend, datetime.now(UTC))
    assert sum(step.rows for step in steps) == 4
    assert preview.rows == 0
    assert len(postgres.ids(ARCHIVE)) == 14
    with postgres.opened() as backend:
        put_back = list(backend.restore(Selection(ids=tuple(ids)), PLAN, FixedPace(10)))
    assert {id_ for each in put_back for id_ in each.restored} == set(ids)
    assert postgres.checksum(LIVE, ARCHIVE) == before
    assert len(postgres.execute(f"SELECT FROM {LIVE} WHERE date_done IS NULL")) == 4


def test_a_late_result_of_a_stuck_task_is_stored_as_ever(postgres: TableStore) -> None:
    (task_id,) = celery_results(postgres.url, 0, started=1)
    ledger = Ledger()
    run(postgres, ledger)
    ledger.age(4 * DAY)
    assert run(postgres, ledger) == 1
    store_state(postgres.url, task_id, "SUCCESS")
    assert postgres.execute(f"SELECT task_id, status FROM {LIVE}") == [(task_id, "SUCCESS")]


def test_every_stop_leaves_each_row_in_one_place(postgres: TableStore) -> None:
    fill_celery_table(postgres.url, 5, started=23, groups=3)
    every, ledger = postgres.ids(), Ledger()
    run(postgres, ledger)
    ledger.age(4 * DAY)
    for stop_after in range(1, 9):
        run(postgres, ledger, size=5, stop_after=stop_after)
        assert sorted(postgres.ids() + postgres.ids(ARCHIVE)) == every
    assert len(postgres.ids(ARCHIVE)) == 23
    assert len(postgres.ids(GROUPS)) == 3


def test_a_table_without_the_index_is_looked_through_once_a_day(postgres: TableStore) -> None:
    celery_results(postgres.url, 3, started=2)
    postgres.execute("DROP INDEX ix_celery_taskmeta_date_done")
    ledger = Ledger()
    run(postgres, ledger)
    ledger.age(4 * DAY)
    assert run(postgres, ledger) == 2
    ids = celery_results(postgres.url, 0, started=1)
    ledger.age(timedelta(hours=4))
    run(postgres, ledger)
    for by, rows in ((timedelta(hours=1), 0), (4 * DAY, 1)):
        ledger.age(by)
        assert run(postgres, ledger) == rows
    assert postgres.execute(f"SELECT count(*) FROM {ARCHIVE} WHERE task_id = '{ids[0]}'") == [(1,)]


def test_a_role_with_the_privileges_of_an_archive_is_enough(postgres: TableStore) -> None:
    celery_results(postgres.url, 0, started=2)
    ledger = Ledger()
    url = other_role(
        postgres.url,
        "keeper",
        f"GRANT SELECT, UPDATE, DELETE ON {LIVE} TO keeper",
        "GRANT CREATE, USAGE ON SCHEMA public TO keeper",
    )
    for rows in (0, 2):
        with opened(url) as backend:
            backend._watermarks = ledger
            assert sum(step.rows for step in drive(backend.move_stuck(AFTER, PLAN, FixedPace(9)))) == rows
        ledger.age(4 * DAY)


CYCLE = 2**32


AGES = [
    (1000, 2000, 999, True), (1000, 2000, 1000, False), (1000, 2000, 1999, False), (1000, 2000, 2000, False),
    (1000, 1000, 999, True), (1000, 2000, 2, True),
    # Past the first four thousand million, xmin has begun again from 0.
    (CYCLE - 5, CYCLE + 10, CYCLE - 6, True), (CYCLE - 5, CYCLE + 10, CYCLE - 5, False),
    (CYCLE - 5, CYCLE + 10, 9, False),
    (3 * CYCLE + 7, 3 * CYCLE + 10, 6, True), (3 * CYCLE + 7, 3 * CYCLE + 9, 8, False),
    # More transactions since the mark than xmin can tell apart: nothing is proven.
    (1000, CYCLE + 2000, 999, False),
    # Written after this run began, or after its batch did.
    (1000, 2000, 2001, False), (CYCLE + 1000, CYCLE + 2000, 2001, False),
    (CYCLE + 1000, CYCLE + 2000, 90_000_000, False),
    (CYCLE + 1000, CYCLE + 2000, 900, True), (CYCLE + 1000, CYCLE + 2000, CYCLE - 5, True),
]  # fmt: skip


def test_how_long_ago_a_row_was_written(postgres: TableStore) -> None:
    ours = (statements("postgres", "stuck")[name] for name in ("count_stuck", "move_stuck"))
    (condition,) = {found for statement in ours for found in re.findall(r"mod\(.*", statement)}
    for oldest, upcoming, xmin, old in AGES:
        asked = condition.replace("CAST(CAST(xmin AS text) AS bigint)", f"CAST({xmin} AS bigint)")
        assert postgres.execute(f"SELECT {asked}", next=upcoming, oldest=oldest) == [(old,)], (oldest, upcoming, xmin)


def test_a_pass_that_takes_longer_than_a_period_has_its_partitions(
    postgres: TableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    celery_results(postgres.url, 0, started=9)
    ledger = Ledger()
    run(postgres, ledger)
    ledger.age(4 * DAY)
    partitions = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'celery_taskmeta_archive'::regclass"
    with postgres.opened(watermarks=ledger) as backend:
        steps = backend.move_stuck(AFTER, PLAN, FixedPace(3))
        while not next(steps).rows:
            pass
        ((before,),) = postgres.execute(partitions.replace(":", r"\:"))
        # As if it were the end of the third month from now.
        monkeypatch.setattr(stuck, "AROUND_NOW", 70 * DAY)
        assert sum(step.rows for step in drive(steps)) == 6
    assert postgres.execute(partitions.replace(":", r"\:")) == [(before + 1,)]


def test_few_marks_are_remembered_and_one_of_them_is_always_old_enough() -> None:
    start = datetime(2026, 11, 1, tzinfo=UTC)
    marks, longest = Marks("line"), timedelta()
    for number in range(2000):
        mark = Mark(start + number * timedelta(minutes=15), number, number)
        marks = Marks.read(marks.written(), Now(mark, number + 1, "line")).with_one_more(mark, AFTER)
        proven = marks.proven(mark.at, AFTER)
        assert len(marks.taken) < 28
        if mark.at - start >= AFTER:
            assert proven is not None
            longest = max(longest, mark.at - proven.at)
    assert AFTER <= longest < AFTER * 1.05
    assert Marks.read(marks.written(), Now(mark, 2000, "another")).taken == ()
