"""CanArchive: every due result is moved, none is lost, none is in both places, at every place where a run can stop."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg2
import pytest
from sqlalchemy import Connection

from backendops.backends.postgres import PostgresBackend
from backendops.backends.postgres.archive_table import create_partition, find_archive
from backendops.backends.postgres.tables import find_table
from backendops.contracts.capabilities import ArchivePlan, CanArchive
from backendops.contracts.errors import BackendBusy, BackendError, BackendRefused, BackendUnreachable
from backendops.contracts.retention import Retention
from backendops.contracts.run import Limits
from backendops.engine.pacing import TimedPace
from tests.celery_rows import celery_results, ensure_tables, fill_celery_table
from tests.conformance.postgres_store import cut_short_detach, in_transaction, until
from tests.conformance.stores import ARCHIVE, GROUP_ARCHIVE, GROUPS, LIVE, FixedPace, TableStore, drive
from tests.pgbouncer import PgBouncer
from tests.servers import Postgres

CAPABILITY = CanArchive

PLAN = ArchivePlan()
WEEK = timedelta(days=7)


def older_than(age: timedelta = WEEK) -> Retention:
    return Retention(datetime.now(UTC) - age)


def test_every_stop_leaves_every_result_in_one_place(tables: TableStore) -> None:
    fill_celery_table(tables.url, 260, started=7, groups=40)
    celery_results(tables.url, 10, started=2, groups=2)
    every, groups, young, before = tables.ids(), tables.ids(GROUPS), tables.young(), tables.checksum(LIVE)
    moved, stop_after = 0, 1
    while tables.ids() != young:
        with tables.opened() as backend:
            moved += sum(step.rows for step in drive(backend.archive(older_than(), PLAN, FixedPace(20)), stop_after))
        assert sorted(tables.ids() + tables.ids(ARCHIVE)) == every
        assert sorted(tables.ids(GROUPS) + tables.ids(GROUP_ARCHIVE)) == groups
        assert not set(tables.ids()) & set(tables.ids(ARCHIVE))
        assert tables.checksum(LIVE, ARCHIVE) == before
        assert moved == len(tables.ids(ARCHIVE)) + len(tables.ids(GROUP_ARCHIVE))
        stop_after += 1
        assert stop_after < 50, "the runs make no progress"
    with tables.opened() as backend:
        drive(backend.archive(older_than(), PLAN, FixedPace(20)))
    assert len(tables.ids(GROUP_ARCHIVE)) == 20
    assert tables.ids() == young


def test_a_second_run_has_nothing_to_do(tables: TableStore) -> None:
    fill_celery_table(tables.url, 50)
    for expected in (25, 0):
        with tables.opened() as backend:
            assert sum(step.rows for step in drive(backend.archive(older_than(), PLAN, FixedPace(10)))) == expected


def test_a_task_that_ran_again_under_its_id_is_archived_again(tables: TableStore) -> None:
    fill_celery_table(tables.url, 20)
    with tables.opened() as backend:
        drive(backend.archive(older_than(), PLAN, FixedPace(100)))
    for row in tables.execute(f"SELECT task_id FROM {ARCHIVE}"):
        tables.execute(
            f"UPDATE {LIVE} SET task_id = :id WHERE id = (SELECT max(id) FROM {LIVE} WHERE length(task_id) > 31 "
            f"AND task_id NOT IN (SELECT task_id FROM {ARCHIVE}))",
            id=row.task_id,
        )
    with tables.opened() as backend:
        drive(backend.archive(Retention(datetime.now(UTC) + timedelta(days=1)), PLAN, FixedPace(3)))
    assert tables.ids() == []
    assert {row[0] for row in tables.execute(f"SELECT count(*) FROM {ARCHIVE} GROUP BY task_id")} == {2}


def test_a_preview_says_what_would_be_moved_and_changes_nothing(tables: TableStore) -> None:
    fill_celery_table(tables.url, 100, started=3, groups=10)
    before = tables.checksum(LIVE)
    with tables.previewing() as backend:
        preview = backend.preview_archive(older_than(), PLAN)
    assert preview.rows == 50 + 5
    assert preview.cutoff is not None
    assert preview.oldest is not None
    assert timedelta(days=26) < datetime.now(UTC) - preview.oldest < timedelta(days=28)
    assert any("celery_taskmeta_archive" in statement for statement in preview.statements)
    assert tables.checksum(LIVE) == before
    assert not tables.has_table(ARCHIVE)


def test_without_an_index_on_date_done(tables: TableStore) -> None:
    fill_celery_table(tables.url, 200, started=5)
    tables.execute("DROP INDEX ix_celery_taskmeta_date_done")
    every, young, before = tables.ids(), tables.young(), tables.checksum(LIVE)
    with tables.opened() as backend:
        drive(backend.archive(older_than(), PLAN, FixedPace(30)))
    assert tables.ids() == young
    assert sorted(tables.ids() + tables.ids(ARCHIVE)) == every
    assert tables.checksum(LIVE, ARCHIVE) == before


def test_columns_that_a_celery_upgrade_adds_are_added_to_the_archive(tables: TableStore) -> None:
    fill_celery_table(tables.url, 20)
    tables.execute(f"ALTER TABLE {LIVE} DROP COLUMN stamps")
    with tables.opened() as backend:
        drive(backend.archive(older_than(), PLAN, FixedPace(100)))
    tables.execute(f"ALTER TABLE {LIVE} ADD COLUMN stamps {'bytea' if tables.is_postgres else 'BLOB'}")
    fill_celery_table(tables.url, 20)
    tables.execute(f"UPDATE {LIVE} SET stamps = kwargs")
    with tables.opened() as backend:
        drive(backend.archive(older_than(), PLAN, FixedPace(100)))
    assert tables.execute(f"SELECT count(*), count(stamps) FROM {ARCHIVE}") == [(20, 10)]


def test_a_table_that_is_no_archive_is_refused_before_the_first_row(tables: TableStore) -> None:
    fill_celery_table(tables.url, 20)
    tables.execute(f"CREATE TABLE {ARCHIVE} (something int)")
    with tables.opened() as backend, pytest.raises(BackendRefused) as refusal:
        drive(backend.archive(older_than(), PLAN, FixedPace(100)))
    assert ARCHIVE in str(refusal.value)
    assert refusal.value.hint
    assert len(tables.ids()) == 20


def test_a_missing_table_is_nothing_to_do_and_is_said(tables: TableStore) -> None:
    ensure_tables(tables.url)
    with tables.opened(tables={"task": "celery_taskmeat"}) as backend:
        steps = drive(backend.archive(older_than(), PLAN, FixedPace(100)))
    said = " ".join(finding.sentence + finding.fix for step in steps for finding in step.findings)
    assert "celery_taskmeat" in said
    assert "celery_taskmeta" in said.replace("celery_taskmeat", "")


# What only PostgreSQL has.


HOSTILE = (
    'we"ird',
    "with space",
    "Größe☃",
    "per%cent%s",
    "a:b::c:d",
    "back\\slash:x",
    "x" * 63,
    "{brace}",
    "drop;--",
    "'",
)


def test_hostile_names(postgres: TableStore) -> None:
    fill_celery_table(postgres.url, 20)
    postgres.execute('CREATE SCHEMA "sche ma:"')
    for name in HOSTILE:
        quoted = name.replace('"', '""').replace(":", r"\:")
        postgres.execute(f'CREATE TABLE "sche ma\\:"."{quoted}" (LIKE {LIVE} INCLUDING ALL)')
        postgres.execute(f'INSERT INTO "sche ma\\:"."{quoted}" SELECT * FROM {LIVE}')
        keys = {"tables": {"task": name, "group": "none"}, "schemas": {"task": "sche ma:"}}
        with postgres.previewing(**keys) as backend:
            assert backend.preview_archive(older_than(), PLAN).rows == 10
        with postgres.opened(**keys) as backend, backend.lock() as lock:
            assert lock.still_held()
            assert sum(step.rows for step in drive(backend.archive(older_than(), PLAN, FixedPace(4)))) == 10
        assert postgres.execute(f'SELECT count(*) FROM "sche ma\\:"."{quoted}"') == [(10,)]
    archives = postgres.execute(
        "SELECT count(*) FROM pg_class WHERE relkind = 'p' AND relnamespace = '\"sche ma\\:\"'\\:\\:regnamespace"
    )
    assert archives == [(len(HOSTILE),)]


def test_the_archive_may_be_in_another_schema_and_have_another_name(postgres: TableStore) -> None:
    fill_celery_table(postgres.url, 20, groups=4)
    postgres.execute("CREATE SCHEMA history")
    plan = ArchivePlan("old_{table}", "history", "day")
    with postgres.opened() as backend:
        drive(backend.archive(older_than(), plan, FixedPace(100)))
    assert postgres.execute("SELECT count(*) FROM history.old_celery_taskmeta") == [(10,)]
    assert postgres.execute("SELECT count(*) FROM history.old_celery_tasksetmeta") == [(2,)]
    names = [row[0] for row in postgres.execute("SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r'")]
    assert all(name.startswith("old_celery_task") for name in names)
    assert len(names) == 10 + 2


def test_one_name_for_two_archives_is_refused(postgres: TableStore) -> None:
    fill_celery_table(postgres.url, 20, groups=4)
    with postgres.opened() as backend, pytest.raises(BackendRefused, match="one archive for the task and the group"):
        drive(backend.archive(older_than(), ArchivePlan("results_archive"), FixedPace(100)))
    assert len(postgres.ids()) == 20


def test_done_at_and_partitions_follow_the_backends_zone(postgres: TableStore) -> None:
    ensure_tables(postgres.url)
    zone = ZoneInfo("America/New_York")
    # The last and the first moment of months in New York, one of them in winter and one in summer time.
    for number, written in enumerate(
        ("2025-02-28 23:59:59.999999", "2025-03-01 00:00:00", "2025-06-30 23:59:59", "2025-07-01")
    ):
        postgres.execute(
            f"INSERT INTO {LIVE} (id, task_id, date_done) VALUES (:id, :task, CAST(:done AS timestamp))",
            id=number,
            task=str(number),
            done=written,
        )
    with postgres.opened(date_done_timezone="America/New_York") as backend:
        drive(backend.archive(older_than(), PLAN, FixedPace(2)))
    rows = postgres.execute(f"SELECT tableoid\\:\\:regclass\\:\\:text, done_at, date_done FROM {ARCHIVE} ORDER BY id")
    assert [row[0].removeprefix(f"{ARCHIVE}_p") for row in rows] == ["2025_02", "2025_03", "2025_06", "2025_07"]
    assert all(row.done_at == row.date_done.replace(tzinfo=zone) for row in rows)


def test_the_cutoff_is_in_the_backends_zone(postgres: TableStore) -> None:
    ensure_tables(postgres.url)
    now = datetime.now(UTC)
    # Three hours between what is young and what is due: in the hour that clocks repeat either may be meant.
    for number, hours in enumerate((1, 5)):
        postgres.execute(
            f"INSERT INTO {LIVE} (id, task_id, date_done) VALUES (:id, :task, :done)",
            id=number,
            task=str(number),
            done=(now - timedelta(hours=hours)).astimezone(ZoneInfo("America/New_York")).replace(tzinfo=None),
        )
    with postgres.opened(date_done_timezone="America/New_York") as backend:
        drive(backend.archive(older_than(timedelta(hours=3)), PLAN, FixedPace(10)))
    assert postgres.ids() == [0]


@pytest.mark.parametrize("indexed", [True, False])
def test_many_rows_of_one_moment(postgres: TableStore, indexed: bool) -> None:
    fill_celery_table(postgres.url, 300)
    postgres.execute(f"UPDATE {LIVE} SET date_done = '2026-01-15 12:00' WHERE id BETWEEN 20 AND 140")
    if not indexed:
        postgres.execute("DROP INDEX ix_celery_taskmeta_date_done")
    every, young = postgres.ids(), postgres.young()
    with postgres.opened() as backend:
        steps = drive(backend.archive(older_than(), PLAN, FixedPace(20)))
    assert max(step.rows for step in steps) <= 20
    assert postgres.ids() == young
    assert sorted(postgres.ids() + postgres.ids(ARCHIVE)) == every


@pytest.mark.parametrize("indexed", [True, False])
def test_locked_rows_are_left_and_said_and_taken_by_the_next_run(postgres: TableStore, indexed: bool) -> None:
    fill_celery_table(postgres.url, 200)
    if not indexed:
        postgres.execute("DROP INDEX ix_celery_taskmeta_date_done")
    locked = [3, 4, 60]
    holder = psycopg2.connect(postgres.url.removeprefix("db+"))
    try:
        with holder.cursor() as cursor:
            cursor.execute(f"SELECT id FROM {LIVE} WHERE id IN (3, 4, 60) FOR UPDATE")
        with postgres.opened() as backend:
            steps = drive(backend.archive(older_than(), PLAN, FixedPace(30)))
    finally:
        holder.close()
    assert sum(step.rows for step in steps) == 97
    assert [row for row in postgres.ids() if row <= 100] == locked
    assert any("what other sessions hold is left for the next run" in step.what for step in steps)
    assert [reading.value for reading in steps[-1].readings if reading.metric.name.endswith("due")] == [3]
    with postgres.opened() as backend:
        assert sum(step.rows for step in drive(backend.archive(older_than(), PLAN, FixedPace(30)))) == 3


def test_a_writer_at_the_same_time_loses_nothing(postgres: TableStore) -> None:
    """Every old row is written again while its neighbours are moved; what is fresh again stays."""
    fill_celery_table(postgres.url, 2000, due=1)
    ended, touched, failures = threading.Event(), set(), []

    def write() -> None:
        connection = psycopg2.connect(postgres.url.removeprefix("db+"))
        try:
            number = 2000
            while not ended.is_set() and number > 0:
                with connection, connection.cursor() as cursor:
                    cursor.execute(
                        f"UPDATE {LIVE} SET date_done = now() at time zone 'UTC', result = 'again' "
                        "WHERE id = ANY (%s) RETURNING id",
                        ([number, number - 7],),
                    )
                    touched.update(row[0] for row in cursor.fetchall())
                number -= 3
        except psycopg2.Error as error:
            failures.append(error)
        finally:
            connection.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with postgres.opened() as backend:
            drive(backend.archive(older_than(), PLAN, FixedPace(25)))
    finally:
        ended.set()
        writer.join()
    assert not failures
    assert sorted(postgres.ids() + postgres.ids(ARCHIVE)) == list(range(1, 2001))
    assert set(postgres.ids()) == touched
    assert touched
    assert postgres.ids(ARCHIVE), "the two never met"
    assert postgres.execute(f"SELECT count(*) FROM {ARCHIVE} WHERE result = 'again'") == [(0,)]


def test_where_serializable_is_the_default_no_writer_fails_for_a_run(postgres: TableStore) -> None:
    """A run in such a transaction is one that the server may decide against a writer for."""
    fill_celery_table(postgres.url, 20, due=1)
    name = postgres.execute("SELECT quote_ident(current_database())")[0][0]
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = serializable")
    with in_transaction(postgres.url, f"UPDATE {LIVE} SET date_done = now() WHERE id = 3") as writer:
        with postgres.opened() as backend:
            drive(backend.archive(older_than(), PLAN, FixedPace(10)))
        writer.commit()
    assert postgres.ids() == [3]


def test_types_that_do_not_fit_are_refused_with_the_fix(postgres: TableStore) -> None:
    fill_celery_table(postgres.url, 20)
    with postgres.opened() as backend:
        drive(backend.archive(older_than(), PLAN, FixedPace(4)), stop_after=1)
    postgres.execute(f"ALTER TABLE {LIVE} ALTER COLUMN id TYPE bigint")
    with postgres.opened() as backend, pytest.raises(BackendRefused) as refusal:
        drive(backend.archive(older_than(), PLAN, FixedPace(4)))
    assert "column id is bigint" in str(refusal.value)
    assert "integer" in str(refusal.value)
    postgres.execute(refusal.value.hint)
    with postgres.opened() as backend:
        assert sum(step.rows for step in drive(backend.archive(older_than(), PLAN, FixedPace(4)))) == 10


def test_an_archive_column_of_another_type_is_refused_with_a_statement_that_runs(postgres: TableStore) -> None:
    fill_celery_table(postgres.url, 20)
    with postgres.opened() as backend:
        drive(backend.archive(older_than(), PLAN, FixedPace(4)), 1)
    postgres.execute(f"ALTER TABLE {ARCHIVE} ALTER COLUMN retries TYPE text")
    with postgres.opened() as backend, pytest.raises(BackendRefused) as refusal:
        drive(backend.archive(older_than(), PLAN, FixedPace(4)))
    postgres.execute(refusal.value.hint)
    with postgres.opened() as backend:
        assert sum(step.rows for step in drive(backend.archive(older_than(), PLAN, FixedPace(4)))) == 10


SWALLOW = "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (f"CREATE UNIQUE INDEX one_of_a_kind ON {ARCHIVE} (task_id, done_at)", "unique index"),
        (f"ALTER TABLE {ARCHIVE} ADD COLUMN batch int NOT NULL", "wants a value for batch"),
        (f"ALTER TABLE {ARCHIVE} ALTER COLUMN status SET NOT NULL", "status may be empty"),
        (f"ALTER TABLE {LIVE} ADD COLUMN done_at int", "done_at of its own"),
        (f"{SWALLOW}; CREATE TRIGGER odd BEFORE INSERT ON {ARCHIVE} FOR EACH ROW EXECUTE FUNCTION swallow()", "lost"),
        (f"CREATE RULE odd AS ON INSERT TO {ARCHIVE} DO INSTEAD NOTHING", "lost"),
    ],
)
def test_an_archive_that_could_jam_is_refused(postgres: TableStore, spoil: str, words: str) -> None:
    fill_celery_table(postgres.url, 20)
    with postgres.opened() as backend:
        drive(backend.archive(older_than(), PLAN, FixedPace(4)), stop_after=1)
    postgres.execute(spoil)
    with postgres.opened() as backend, pytest.raises(BackendRefused, match=words) as refusal:
        drive(backend.archive(older_than(), PLAN, FixedPace(4)))
    assert refusal.value.hint
    assert len(postgres.ids()) == 20


def test_a_unique_index_over_all_partitions_is_named_as_it_can_be_dropped(postgres: TableStore) -> None:
    fill_celery_table(postgres.url, 20)
    with postgres.opened() as backend:
        drive(backend.archive(older_than(), PLAN, FixedPace(4)), stop_after=2)
    postgres.execute(f"CREATE UNIQUE INDEX one_of_a_kind ON {ARCHIVE} (task_id, done_at)")
    with postgres.opened() as backend, pytest.raises(BackendRefused) as refusal:
        drive(backend.archive(older_than(), PLAN, FixedPace(4)))
    postgres.execute(refusal.value.hint.partition(";")[0])
    with postgres.opened() as backend:
        assert sum(step.rows for step in drive(backend.archive(older_than(), PLAN, FixedPace(4)))) > 0


def test_the_end_of_the_session_in_mid_run_loses_nothing(postgres: TableStore) -> None:
    fill_celery_table(postgres.url, 400)
    every, before = postgres.ids(), postgres.checksum(LIVE)
    with postgres.opened() as backend, pytest.raises(BackendUnreachable) as broken:
        for number, _ in enumerate(backend.archive(older_than(), PLAN, FixedPace(20))):
            if number == 4:
                postgres.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                    "WHERE application_name = 'backendops' AND datname = current_database()"
                )
    assert "broke" in str(broken.value)
    assert sorted(postgres.ids() + postgres.ids(ARCHIVE)) == every
    assert len(postgres.ids(ARCHIVE)) == 80
    with postgres.opened() as backend:
        drive(backend.archive(older_than(), PLAN, FixedPace(100)))
    assert len(postgres.ids(ARCHIVE)) == 200
    assert postgres.checksum(LIVE, ARCHIVE) == before


SLOW = f"""
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.02); RETURN OLD; END';
CREATE TRIGGER slow BEFORE DELETE ON {LIVE} FOR EACH ROW EXECUTE FUNCTION slow();
"""


def test_a_batch_that_times_out_is_taken_again_smaller(postgres: TableStore) -> None:
    fill_celery_table(postgres.url, 60)
    for statement in SLOW.strip().split(";\n"):
        postgres.execute(statement.replace(":", r"\:"))
    pace = TimedPace(first=40)
    with postgres.opened(Limits(statement_timeout=timedelta(milliseconds=500))) as backend:
        assert sum(step.rows for step in drive(backend.archive(older_than(), PLAN, pace))) == 30
    assert len(postgres.ids()) == 30


def test_rows_that_are_slow_are_taken_in_batches_as_small_as_it_takes(postgres: TableStore) -> None:
    """Each run begins with the same size: one that gave up on the way down would never get through."""
    fill_celery_table(postgres.url, 60)
    for statement in SLOW.replace("0.02", "0.01").strip().split(";\n"):
        postgres.execute(statement.replace(":", r"\:"))
    with postgres.opened(Limits(statement_timeout=timedelta(milliseconds=250))) as backend:
        steps = drive(backend.archive(older_than(), PLAN, TimedPace(first=160)))
    assert sum(step.rows for step in steps) == 30
    # Between two tries a run can be stopped.
    assert [(step.rows, step.what) for step in steps[1:4]] == [(0, "")] * 3


def test_a_batch_that_times_out_three_times_ends_the_run(postgres: TableStore) -> None:
    fill_celery_table(postgres.url, 60)
    for statement in SLOW.replace("0.02", "5").strip().split(";\n"):
        postgres.execute(statement.replace(":", r"\:"))
    with postgres.opened(Limits(statement_timeout=timedelta(milliseconds=100))) as backend, pytest.raises(BackendBusy):
        drive(backend.archive(older_than(), PLAN, TimedPace(first=10)))
    assert len(postgres.ids()) == 60


def test_a_full_disk_is_told_with_the_way_out(postgres: TableStore) -> None:
    fill_celery_table(postgres.url, 20)
    full = "RAISE EXCEPTION USING ERRCODE = ''disk_full'', MESSAGE = ''No space left on device''"
    for statement in SLOW.replace("PERFORM pg_sleep(0.02)", full).strip().split(";\n"):
        postgres.execute(statement.replace(":", r"\:"))
    with postgres.opened() as backend, pytest.raises(BackendError, match="No space left") as told:
        drive(backend.archive(older_than(), PLAN, FixedPace(10)))
    assert "make room on the server's disk" in told.value.hint
    assert len(postgres.ids()) == 20


def test_interrupt_ends_the_statement_in_hand(postgres: TableStore) -> None:
    fill_celery_table(postgres.url, 60)
    for statement in SLOW.replace("0.02", "30").strip().split(";\n"):
        postgres.execute(statement.replace(":", r"\:"))
    asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    interrupted: list[datetime] = []

    def interrupt() -> None:
        until(lambda: postgres.execute(asleep) == [(1,)], "the statement is under way")
        interrupted.append(datetime.now(UTC))
        backend.interrupt()

    with postgres.opened() as backend:
        other = threading.Thread(target=interrupt)
        other.start()
        with pytest.raises(BackendBusy):
            drive(backend.archive(older_than(), PLAN, TimedPace(first=10)))
        other.join()
    assert datetime.now(UTC) - interrupted[0] < timedelta(seconds=5)
    assert len(postgres.ids()) == 60


def test_a_live_table_that_is_partitioned_itself(postgres: TableStore) -> None:
    """The layout an operator may have chosen: by date_done, unfinished rows in the DEFAULT partition."""
    fill_celery_table(postgres.url, 200, started=6)
    every, young, before = postgres.ids(), postgres.young(), postgres.checksum(LIVE)
    for statement in (
        f"ALTER TABLE {LIVE} RENAME TO {LIVE}_p_default",
        "ALTER INDEX ix_celery_taskmeta_date_done RENAME TO ix_default",
        f"CREATE TABLE {LIVE} (LIKE {LIVE}_p_default INCLUDING DEFAULTS) PARTITION BY RANGE (date_done)",
        f"CREATE INDEX ix_celery_taskmeta_date_done ON {LIVE} (date_done)",
        f"CREATE INDEX ON {LIVE} (id)",
        f"ALTER TABLE {LIVE} ATTACH PARTITION {LIVE}_p_default DEFAULT",
    ):
        postgres.execute(statement)
    with postgres.opened() as backend:
        drive(backend.archive(older_than(), PLAN, FixedPace(30)))
    assert postgres.ids() == young
    assert sorted(postgres.ids() + postgres.ids(ARCHIVE)) == every
    assert postgres.checksum(LIVE, ARCHIVE) == before


def test_a_missing_privilege_names_the_grant(postgres: TableStore) -> None:
    fill_celery_table(postgres.url, 20)
    role = f"reader_{postgres.url.rsplit('/', 1)[-1]}"
    postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    try:
        postgres.execute(f"GRANT SELECT ON {LIVE}, {GROUPS} TO {role}")
        least = TableStore(postgres.kind, _as_role(postgres.url, role))
        with least.opened() as backend, pytest.raises(BackendRefused) as refusal:
            drive(backend.archive(older_than(), PLAN, FixedPace(4)))
        assert f'GRANT SELECT, UPDATE, DELETE ON "public"."{LIVE}" TO "{role}"' in refusal.value.hint
        assert "secret" not in str(refusal.value) + refusal.value.hint
        postgres.execute(f"GRANT SELECT, UPDATE, DELETE ON {LIVE}, {GROUPS} TO {role}")
        with least.opened() as backend, pytest.raises(BackendRefused) as refusal:
            drive(backend.archive(older_than(), PLAN, FixedPace(4)))
        assert "CREATE ON SCHEMA" in refusal.value.hint
        postgres.execute(f"GRANT CREATE ON SCHEMA public TO {role}")
        with least.opened() as backend:
            assert sum(step.rows for step in drive(backend.archive(older_than(), PLAN, FixedPace(4)))) == 10
    finally:
        postgres.execute(f"DROP OWNED BY {role}")
        postgres.execute(f"DROP ROLE {role}")


def _as_role(url: str, role: str) -> str:
    scheme, rest = url.split("://", 1)
    return f"{scheme}://{role}:secret@{rest.rsplit('@', 1)[-1]}"


def test_a_partition_made_meanwhile_by_another_process_is_used(postgres: TableStore) -> None:
    fill_celery_table(postgres.url, 20)
    with postgres.opened() as first, postgres.opened() as second:
        steps = first.archive(older_than(), PLAN, FixedPace(4))
        next(steps)
        drive(second.archive(older_than(timedelta(days=15)), PLAN, FixedPace(4)))
        drive(steps)
    assert len(postgres.ids(ARCHIVE)) == 10


def test_changing_the_length_of_partitions_fits_new_ones_between_the_old(postgres: TableStore) -> None:
    ensure_tables(postgres.url)
    for every, done in (("month", "2026-03-10"), ("week", "2026-04-01"), ("day", "2026-04-02"), ("day", "2026-04-09")):
        postgres.execute(
            f"INSERT INTO {LIVE} (id, task_id, date_done) "
            f"VALUES (nextval('task_id_sequence'), '{every}{done}', '{done}')"
        )
        with postgres.opened() as backend:
            drive(backend.archive(older_than(), ArchivePlan(every=every), FixedPace(4)))  # type: ignore[arg-type]
    rows = postgres.execute(
        "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relispartition AND relkind = 'r' ORDER BY relname"
    )
    assert [row[0].replace(" 00:00:00+00", "") for row in rows] == [
        "FOR VALUES FROM ('2026-03-01') TO ('2026-04-01')",
        "FOR VALUES FROM ('2026-04-09') TO ('2026-04-10')",
        "FOR VALUES FROM ('2026-04-01') TO ('2026-04-06')",
    ]


def test_two_processes_that_make_the_same_partitions_at_once(postgres: TableStore) -> None:
    """Many short races: whoever comes second finds it made, and nobody fails."""
    fill_celery_table(postgres.url, 20)
    with postgres.opened() as backend:
        drive(backend.archive(older_than(), PLAN, FixedPace(100)), stop_after=1)
    days = [datetime(2025, 1, 1, 12, tzinfo=UTC) + timedelta(days=number) for number in range(12)]
    together, failures = threading.Barrier(2), []

    def make() -> None:
        try:
            with postgres.opened() as backend:
                with backend.transaction() as connection:
                    live = find_table(connection, "task", LIVE, None)
                    assert live is not None
                    archive = find_archive(connection, live, PLAN)
                    assert archive is not None
                for day in days:
                    together.wait(timeout=20)
                    archive = create_partition(backend, archive, day, "day", ZoneInfo("UTC"))
                    assert archive.covers(day, day)
        except (BackendError, AssertionError, threading.BrokenBarrierError) as error:
            failures.append(error)
            together.abort()

    racers = [threading.Thread(target=make) for _ in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert failures == []
    made = postgres.execute(
        "SELECT count(*) FROM pg_class WHERE relname LIKE 'celery_taskmeta_archive_p2025_01_%' AND relkind = 'r'"
    )
    assert made == [(12,)]


def test_a_default_partition_that_somebody_made_and_filled(postgres: TableStore) -> None:
    fill_celery_table(postgres.url, 40)
    with postgres.opened() as backend:
        drive(backend.archive(older_than(), PLAN, FixedPace(4)), stop_after=1)
    postgres.execute(f"CREATE TABLE leftovers PARTITION OF {ARCHIVE} DEFAULT")
    postgres.execute(
        f"INSERT INTO {ARCHIVE} (id, done_at) SELECT 1000, date_done AT TIME ZONE 'UTC' FROM {LIVE} WHERE id = 1"
    )
    with postgres.opened() as backend:
        assert sum(step.rows for step in drive(backend.archive(older_than(), PLAN, FixedPace(4)))) == 20
    assert len(postgres.ids(ARCHIVE)) == 21
    assert postgres.ids() == list(range(21, 41))


def test_a_default_partition_that_takes_too_long_to_read_is_told_at_once(
    postgres: TableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_celery_table(postgres.url, 40, due=1, spread=timedelta(days=60))
    with postgres.opened() as backend:
        drive(backend.archive(older_than(), PLAN, FixedPace(4)), stop_after=2)
    postgres.execute(f"CREATE TABLE leftovers PARTITION OF {ARCHIVE} DEFAULT")
    attached: list[str] = []

    def execute(self: Connection, statement: Any, *values: Any, **options: Any) -> Any:
        if "ATTACH PARTITION" in str(statement):
            attached.append(str(statement))
        return original(self, statement, *values, **options)

    original = Connection.execute
    monkeypatch.setattr(Connection, "execute", execute)
    # A reader keeps it as busy as a scan of very many rows would.
    limits = Limits(statement_timeout=timedelta(milliseconds=300))
    with (
        in_transaction(postgres.url, "SELECT FROM leftovers"),
        postgres.opened(limits) as backend,
        pytest.raises(BackendBusy, match="needs longer than statement_timeout") as busy,
    ):
        drive(backend.archive(older_than(), PLAN, TimedPace(10)))
    assert "let a `partition` job empty" in busy.value.hint
    assert len(attached) == 1
    with postgres.opened() as backend:
        drive(backend.archive(older_than(), PLAN, FixedPace(10)))
    assert len(postgres.ids(ARCHIVE)) == 40


def test_a_partition_that_is_being_detached_takes_no_rows(postgres: TableStore) -> None:
    # All of one month, whatever day it is today.
    fill_celery_table(postgres.url, 20, now=datetime(2026, 7, 31, tzinfo=UTC))
    with postgres.opened() as backend:
        drive(backend.archive(older_than(), PLAN, FixedPace(2)), stop_after=2)
    [(partition,)] = postgres.execute("SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r'")
    cut_short_detach(postgres.url, ARCHIVE, partition)
    with postgres.opened() as backend, pytest.raises(BackendBusy, match="being detached"):
        drive(backend.archive(older_than(), PLAN, FixedPace(4)))
    assert sorted(postgres.ids() + [row[0] for row in postgres.execute(f"SELECT id FROM {partition}")]) == list(
        range(1, 21)
    )


def test_through_pgbouncer_in_transaction_mode(
    postgres18_server: Postgres, postgres18_url: str, tmp_path: Path
) -> None:
    """Two server connections for everybody: one is the lock's, the other is shared statement by statement."""
    fill_celery_table(postgres18_url, 200, started=3)
    direct = TableStore(PostgresBackend, postgres18_url)
    every, before = direct.ids(), direct.checksum(LIVE)
    with PgBouncer(tmp_path, postgres18_server, pool_size=2).start() as pooler:
        pooled = TableStore(PostgresBackend, pooler.url(postgres18_url.rsplit("/", 1)[-1]))
        stranger = psycopg2.connect(pooled.url.removeprefix("db+"))
        stranger.autocommit = True
        with pooled.opened() as backend, direct.opened() as other, stranger.cursor() as cursor:
            with backend.lock() as lock:
                for step in backend.archive(older_than(), PLAN, FixedPace(30)):
                    assert step is not None
                    assert lock.still_held()
                    cursor.execute("SELECT current_setting('statement_timeout'), current_setting('enable_seqscan')")
                    assert cursor.fetchall() == [("0", "on")]
                with other.lock() as second:
                    assert second is None
            with other.lock() as second:
                assert second is not None
        stranger.close()
    assert sorted(direct.ids() + direct.ids(ARCHIVE)) == every
    assert len(direct.ids(ARCHIVE)) == 100
    assert direct.checksum(LIVE, ARCHIVE) == before


def test_a_server_that_is_not_there_or_does_not_let_us_in(postgres18_url: str) -> None:
    for url, error in (
        (postgres18_url.rsplit("/", 1)[0] + "/no_such_database", BackendRefused),
        (_as_role(postgres18_url, "nobody"), BackendRefused),
        ("db+postgresql://user:secret@127.0.0.1:1/results", BackendUnreachable),
        (postgres18_url + "?no_such_option=secret", BackendRefused),
    ):
        with pytest.raises(error) as refusal, TableStore(PostgresBackend, url).opened():
            pass
        assert refusal.value.hint
        assert ":secret" not in str(refusal.value)
