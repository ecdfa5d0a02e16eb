"""An archive in files or another database: wherever a run stops or dies, each result is kept, and then in one place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg2
import pytest

from backendops.backends.files import FileStore, parts
from backendops.backends.files.manifest import Manifest
from backendops.backends.postgres import PostgresBackend, store
from backendops.backends.postgres.records import READ_BYTES
from backendops.backends.postgres.store import TableStore as TableArchive
from backendops.contracts.archive import Batch, CanHandOver, Selection
from backendops.contracts.capabilities import ArchivePlan
from backendops.contracts.errors import BackendError, BackendLocked, BackendRefused
from backendops.contracts.retention import Retention
from backendops.contracts.run import Limits, Step
from backendops.engine.pacing import TimedPace
from backendops.jobs.archive import Archive
from backendops.jobs.moving import move
from backendops.jobs.restore import Restore
from tests.celery_rows import back_date, celery_results, fill_celery_table
from tests.conformance.destinations import SOURCE, Destination, Files, Tables, checksum, die_at, is_free, live_rows
from tests.conformance.postgres_store import other_role, until
from tests.conformance.stores import GROUPS, LIVE, FixedPace, TableStore, drive
from tests.servers import Postgres

CAPABILITY = CanHandOver

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


@pytest.fixture(params=["jsonl.gz", "parquet", "tables"])
def destination(request: pytest.FixtureRequest, tmp_path: Path, postgres18_server: Postgres) -> Iterator[Destination]:
    """Each place that an archive can be kept in."""
    if request.param != "tables":
        yield Files(tmp_path, request.param)
        return
    name = postgres18_server.create_database()
    yield Tables(postgres18_server.celery_url(name))
    postgres18_server.drop_database(name)


@pytest.fixture
def source(postgres18_url: str) -> TableStore:
    return TableStore(PostgresBackend, postgres18_url)


def older_than(age: timedelta = timedelta(days=7)) -> Retention:
    return Retention(datetime.now(UTC) - age)


def run(source: TableStore, destination: Destination, stop_after: int | None = None, size: int = 60) -> int:
    """One run, or its first steps; the rows it moved."""
    return sum(step.rows for step in run_steps(source, destination, stop_after, size))


def run_steps(
    source: TableStore, destination: Destination, stop_after: int | None = None, size: int = 60
) -> list[Step]:
    with source.opened() as backend, destination.opened(backend.origin) as archive:
        return drive(move(backend, archive, older_than(), FixedPace(size)), stop_after)


def test_every_stop_keeps_every_result_and_the_next_run_has_it_once(
    source: TableStore, destination: Destination
) -> None:
    fill_celery_table(source.url, 200, started=7, groups=20)
    every, groups, young = source.ids(), source.ids(GROUPS), source.young()
    before = checksum(live_rows(source))
    stop_after, moved = 1, 0
    while source.ids() != young:
        moved += run(source, destination, stop_after)
        live, archived = source.ids(), destination.ids()
        assert sorted({*live, *archived}) == every
        assert len(archived) == len(set(archived)), "the same result twice in the archive"
        assert checksum(live_rows(source), destination.rows()) == before
        stop_after += 1
        assert stop_after < 60, "the runs make no progress"
    moved += run(source, destination)
    assert sorted(source.ids() + destination.ids()) == every
    assert sorted(source.ids(GROUPS) + destination.ids(GROUPS)) == groups
    assert moved == len(destination.ids()) + len(destination.ids(GROUPS)) == 100 + 10
    assert checksum(live_rows(source), destination.rows()) == before
    with destination.opened() as archive:
        checked = list(archive.check())
        assert list(archive.unfinished()) == []
    assert sum(one.rows for one in checked) == 110
    assert [one.wrong for one in checked if one.wrong] == []


def test_on_every_postgresql(postgres: TableStore, tmp_path: Path) -> None:
    """Without an index, and with a payload that a text form would spoil."""
    destination = Files(tmp_path, "jsonl.gz")
    ids = celery_results(postgres.url, 20)
    celery_results(postgres.url, 10, result_serializer="pickle", accept_content=["pickle"])
    back_date(postgres.url, ids, timedelta(days=30))
    postgres.execute("DROP INDEX ix_celery_taskmeta_date_done")
    postgres.execute(f"UPDATE {LIVE} SET result = decode('00ff80041a0d0a', 'hex') WHERE id = 3")
    every, before = postgres.ids(), checksum(live_rows(postgres))
    assert run(postgres, destination, size=7) == 20
    assert sorted(postgres.ids() + destination.ids()) == every
    assert checksum(live_rows(postgres), destination.rows()) == before


def copied(source: TableStore, destination: Destination) -> int:
    """After how many steps of a run a copy is there and nothing is removed yet."""
    with source.opened() as backend, destination.opened() as archive:
        steps = move(backend, archive, older_than(), FixedPace(1000))
        count = 0
        while not destination.ids():
            next(steps)
            count += 1
        steps.close()
    return count


REWRITE = f"UPDATE {LIVE} SET status = 'FAILURE', result = 'again' WHERE id = 5"


def test_what_is_written_between_copy_and_removal_stays_live(source: TableStore, destination: Destination) -> None:
    fill_celery_table(source.url, 100)
    with source.opened() as backend, destination.opened() as archive:
        steps = move(backend, archive, older_than(), FixedPace(1000))
        while not destination.ids():
            next(steps)
        source.execute(REWRITE)
        source.execute(f"DELETE FROM {LIVE} WHERE id = 6")
        rest = drive(steps)
    assert 5 in source.ids()
    assert 5 not in destination.ids()
    # Somebody removed it while we had the only copy: it is archived.
    assert 6 in destination.ids()
    assert sorted(source.ids() + destination.ids()) == list(range(1, 101))
    assert "1 due results are left" in rest[-1].what
    assert run(source, destination) == 1
    assert [row["status"] for row in destination.rows() if row["id"] == 5] == ["FAILURE"]


def test_what_is_written_after_a_crash_stays_live_and_its_old_copy_goes(
    source: TableStore, destination: Destination
) -> None:
    fill_celery_table(source.url, 100)
    copied(source, destination)
    assert len(source.ids()) == 100
    assert len(destination.ids()) > 1
    source.execute(f"UPDATE {LIVE} SET result = 'again', date_done = now() WHERE id = 5")
    source.execute(f"DELETE FROM {LIVE} WHERE id = 6")
    run(source, destination)
    assert sorted(source.ids() + destination.ids()) == list(range(1, 101))
    assert 5 in source.ids()
    assert 6 in destination.ids()


def test_what_another_session_holds_is_left_for_the_next_run(source: TableStore, destination: Destination) -> None:
    fill_celery_table(source.url, 100)
    with closing(psycopg2.connect(source.url.removeprefix("db+"))) as holder:
        with holder.cursor() as cursor:
            cursor.execute(f"SELECT id FROM {LIVE} WHERE id IN (3, 4) FOR UPDATE")
        assert run(source, destination) == 48
    assert {3, 4} < set(source.ids())
    assert not {3, 4} & set(destination.ids())
    assert run(source, destination) == 2
    assert sorted(source.ids() + destination.ids()) == list(range(1, 101))


# Where a process is killed: before or after which call of whom.
IN_FILES = {
    "while a copy is written": (parts, "sync_file", "before"),
    "between the copy and its manifest": (parts, "_read_back", "after"),
    "between the manifest and the file's name": (Manifest, "save", "after"),
    "between copy and removal": (FileStore, "write", "after"),
    "between removal and settling": (PostgresBackend, "remove", "after"),
    "just after settling": (FileStore, "settle", "after"),
}
IN_TABLES = {
    "while a copy is written": (store, "insert_rows", "after"),
    "between the copy and reading it back": (TableArchive, "_begin", "after"),
    "between copy and removal": (TableArchive, "write", "after"),
    "between removal and settling": (PostgresBackend, "remove", "after"),
    "just after settling": (TableArchive, "settle", "after"),
}


@pytest.mark.parametrize(
    ("destination", "moment"),
    [*(("jsonl.gz", moment) for moment in IN_FILES), *(("tables", moment) for moment in IN_TABLES)],
    indirect=["destination"],
)
def test_kill_9_at_the_dangerous_moments(source: TableStore, destination: Destination, moment: str) -> None:
    moments = IN_FILES if isinstance(destination, Files) else IN_TABLES
    fill_celery_table(source.url, 120, groups=4)
    every, before = source.ids(), checksum(live_rows(source))
    die_at(*moments[moment], lambda: run(source, destination, size=20))
    archived = destination.ids()
    assert sorted({*source.ids(), *archived}) == every
    assert len(archived) == len(set(archived))
    assert checksum(live_rows(source), destination.rows()) == before
    until(lambda: is_free(destination), "the dead process's lock is gone")
    run(source, destination)
    assert sorted(source.ids() + destination.ids()) == every
    assert source.ids() == source.young()
    assert checksum(live_rows(source), destination.rows()) == before
    with destination.opened() as opened:
        assert [one.wrong for one in opened.check() if one.wrong] == []
        assert list(opened.unfinished()) == []


def test_a_copy_is_kept_where_its_ids_are_other_results_by_now(
    source: TableStore, destination: Destination, postgres18_server: Postgres
) -> None:
    """The URL was switched, or the tables were made anew: what the dead run removed is in its copy alone."""
    fill_celery_table(source.url, 100, groups=10)
    every = {row["task_id"] for row in live_rows(source)}
    die_at(PostgresBackend, "remove", "after", lambda: run(source, destination, size=20))
    removed = every - {row["task_id"] for row in live_rows(source)}
    assert 0 < len(removed) <= 20
    name = postgres18_server.create_database()
    other = TableStore(PostgresBackend, postgres18_server.celery_url(name))
    fill_celery_table(other.url, 100, groups=10)
    other.execute(f"UPDATE {LIVE} SET task_id = 'another ' || id")
    other.execute(f"UPDATE {GROUPS} SET taskset_id = 'another ' || id")
    until(lambda: is_free(destination), "the dead process's lock is gone")
    run(other, destination)
    places = (live_rows(source), live_rows(other), destination.rows())
    assert every | {f"another {number}" for number in range(1, 101)} == {r["task_id"] for rows in places for r in rows}
    postgres18_server.drop_database(name)


@pytest.mark.parametrize("killed", ["archiving", "putting back"])
def test_a_copy_of_another_database_waits_until_that_is_back(
    source: TableStore, destination: Destination, postgres18_server: Postgres, killed: str
) -> None:
    """Here its results are not live; there they are, and would be archived a second time."""
    fill_celery_table(source.url, 100, groups=10)
    before = checksum(live_rows(source))
    if killed == "archiving":
        die_at(PostgresBackend, "remove", "before", lambda: run(source, destination, size=20))
    else:
        run(source, destination)
        job = Archive.model_validate({"older_than": "7d"}).sent_to(destination.store, SOURCE)
        restore = Restore.of(job, Selection(since=LONG_AGO))

        def put_back() -> None:
            with source.opened() as backend:
                drive(restore.run(backend, datetime.now(UTC), FixedPace(20)))

        die_at(PostgresBackend, "take_back", "after", put_back)
    until(lambda: is_free(destination), "the dead process's lock is gone")
    name = postgres18_server.create_database()
    other = TableStore(PostgresBackend, postgres18_server.celery_url(name))
    fill_celery_table(other.url, 10, due=0)
    for _ in range(2):
        found = [finding for step in run_steps(other, destination) for finding in step.findings]
        assert {finding.code for finding in found} == {"archive.of-another-database"}
        assert killed in found[0].sentence
        assert "the `url` of then" in found[0].fix
    run(source, destination)
    assert len(live_rows(source)) + len(destination.rows()) == 100
    assert checksum(live_rows(source), destination.rows()) == before
    assert len(destination.rows()) == 50
    postgres18_server.drop_database(name)


def test_a_copy_is_finished_in_what_was_made_of_its_database(
    source: TableStore, destination: Destination, postgres18_server: Postgres
) -> None:
    fill_celery_table(source.url, 100)
    die_at(PostgresBackend, "remove", "before", lambda: run(source, destination, size=20))
    until(lambda: is_free(destination), "the dead process's lock is gone")
    name, template = "brought_back", source.url.rpartition("/")[2]
    postgres18_server.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    restored = TableStore(PostgresBackend, postgres18_server.celery_url(name))
    run(restored, destination)
    assert len(live_rows(restored)) == len(destination.rows()) == 50
    postgres18_server.drop_database(name)


def test_columns_that_celery_added_and_that_somebody_added(source: TableStore, destination: Destination) -> None:
    fill_celery_table(source.url, 20)
    source.execute(f"ALTER TABLE {LIVE} DROP COLUMN stamps")
    run(source, destination)
    source.execute(f"ALTER TABLE {LIVE} ADD COLUMN stamps bytea")
    source.execute(f'ALTER TABLE {LIVE} ADD COLUMN "cost; in €" numeric(8, 3)')
    fill_celery_table(source.url, 20)
    source.execute(f'UPDATE {LIVE} SET stamps = kwargs, "cost; in €" = 12.5')
    assert run(source, destination) == 10
    assert len(destination.ids()) == 20
    assert sorted(str(row.get("cost; in €")) for row in destination.rows()) == ["12.500"] * 10 + ["None"] * 10


def test_a_result_without_an_id_is_archived_and_stays_there(source: TableStore, destination: Destination) -> None:
    """Celery never writes one, and its tables allow it."""
    fill_celery_table(source.url, 100)
    source.execute(f"UPDATE {LIVE} SET task_id = NULL WHERE id IN (3, 4, 90)")
    copied(source, destination)
    source.execute(f"UPDATE {LIVE} SET date_done = now() WHERE id = 4")
    run(source, destination)
    assert {4, 90} <= set(source.ids())
    assert sorted(source.ids() + destination.ids()) == list(range(1, 101))
    assert source.ids() == source.young()
    source.execute(f"DELETE FROM {LIVE}")
    restore = Restore.of(
        Archive.model_validate({"older_than": "7d"}).sent_to(destination.store, SOURCE), Selection(since=LONG_AGO)
    )
    with source.opened() as backend:
        drive(restore.run(backend, datetime.now(UTC), FixedPace(100)))
    assert destination.ids() == [3]
    assert len(source.ids()) == len(restore.restored) == 48


def test_a_table_that_changes_what_it_is_given_is_found_out(source: TableStore, postgres18_server: Postgres) -> None:
    name = postgres18_server.create_database()
    destination = Tables(postgres18_server.celery_url(name))
    fill_celery_table(source.url, 20)
    run(source, destination)
    fill_celery_table(source.url, 20)
    destination.tables.execute(
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.result := 'spoiled'; RETURN NEW; END $$"
    )
    destination.tables.execute(
        "CREATE TRIGGER spoil BEFORE INSERT ON celery_taskmeta_archive FOR EACH ROW EXECUTE FUNCTION spoil()"
    )
    with pytest.raises(BackendError, match="10 of 10 rows were not read back"):
        run(source, destination)
    assert len(source.ids()) == 30
    assert len(destination.ids()) == 10, "what the trigger made of the rows has stayed"
    postgres18_server.drop_database(name)


NOTE = """
CREATE TABLE noted (setting text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO noted VALUES (current_setting('synchronous_commit')); RETURN coalesce(NEW, OLD); END $$;
CREATE TRIGGER note BEFORE INSERT OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION note()
"""


def test_a_server_that_may_forget_its_last_commits_does_not_forget_these(
    source: TableStore, postgres18_server: Postgres
) -> None:
    """Two servers with synchronous_commit = off: the crash of either would lose results, or have them twice."""
    name = postgres18_server.create_database()
    destination = Tables(postgres18_server.celery_url(name))
    for each in (source, destination.tables):
        (database,) = each.execute("SELECT quote_ident(current_database())")[0]
        each.execute(f"ALTER DATABASE {database} SET synchronous_commit = off")
    fill_celery_table(source.url, 20)
    run(source, destination)
    fill_celery_table(source.url, 20)
    source.execute(NOTE.format(table=LIVE))
    destination.tables.execute(NOTE.format(table="celery_taskmeta_archive"))
    assert run(source, destination) == 10
    restore = Restore.of(
        Archive.model_validate({"older_than": "7d"}).sent_to(destination.store, SOURCE), Selection(since=LONG_AGO)
    )
    with source.opened() as backend:
        drive(restore.run(backend, datetime.now(UTC), FixedPace(100)))
    assert len(restore.restored) == 20
    noted = [{row[0] for row in each.execute("SELECT setting FROM noted")} for each in (source, destination.tables)]
    # Settling may be forgotten: the next run does it again.
    assert noted == [{"local"}, {"local", "off"}]
    assert destination.tables.execute("SELECT count(*) FROM noted WHERE setting = 'local'") == [(10,)]
    postgres18_server.drop_database(name)


def test_one_job_finishes_what_another_of_the_same_backend_began(
    source: TableStore, postgres18_server: Postgres
) -> None:
    name = postgres18_server.create_database()
    destination, other = (Tables(postgres18_server.celery_url(name)) for _ in range(2))
    other.plan = ArchivePlan("other_{table}")
    fill_celery_table(source.url, 100)
    copied(source, destination)
    assert run(source, other) == 50
    assert sorted(source.ids() + destination.ids()) == list(range(1, 101))
    with other.opened() as archive:
        assert list(archive.unfinished()) == []
        assert list(archive.find(Selection(since=LONG_AGO), FixedPace(100))) == []
    # An archive that somebody dropped with a copy in it keeps nobody from working.
    fill_celery_table(source.url, 20)
    copied(source, destination)
    destination.tables.execute("DROP TABLE celery_taskmeta_archive")
    assert run(source, other) == 10
    postgres18_server.drop_database(name)


def test_an_archive_that_is_the_databases_own_is_not_filled_with_anothers(
    source: TableStore, postgres18_server: Postgres
) -> None:
    name = postgres18_server.create_database()
    destination = Tables(postgres18_server.celery_url(name))
    fill_celery_table(destination.tables.url, 20)
    with destination.tables.opened() as backend:
        drive(backend.archive(older_than(), ArchivePlan(), FixedPace(100)))
    fill_celery_table(source.url, 20)
    with pytest.raises(BackendRefused, match="has results already") as refusal:
        run(source, destination)
    assert len(source.ids()) == 20
    # Where it is that backend's after all, the register was lost, and a person says so.
    destination.tables.execute(refusal.value.hint.partition("where it is: ")[2])
    assert run(source, destination) == 10
    postgres18_server.drop_database(name)


def test_one_run_at_a_time_and_one_source_per_archive(source: TableStore, destination: Destination) -> None:
    fill_celery_table(source.url, 20)
    run(source, destination)
    with destination.opened(), pytest.raises(BackendLocked, match="another run"), destination.opened():
        pass
    with (
        pytest.raises(BackendRefused, match="the archive of the backend 'results', not of 'others'"),
        source.opened() as backend,
        destination.store.open("others", backend.limits) as archive,
    ):
        drive(move(backend, archive, older_than(), FixedPace(100)))


def size_of(batch: Batch) -> int:
    """How many bytes of results are in memory at once."""
    return sum(len(value) for row in batch.rows for value in row.values if isinstance(value, bytes))


def test_what_is_read_at_once_fits_into_memory(source: TableStore, postgres18_server: Postgres) -> None:
    """Small results first, then large ones: what came before says nothing of the next. One too large comes alone."""
    name = postgres18_server.create_database()
    destination = Tables(postgres18_server.celery_url(name))
    fill_celery_table(source.url, 300, due=1)
    source.execute(f"UPDATE {LIVE} SET result = convert_to(repeat('x', 1000000), 'UTF8') WHERE id > 270")
    source.execute(f"UPDATE {LIVE} SET result = convert_to(repeat('x', 17000000), 'UTF8') WHERE id = 280")
    with source.opened() as backend:
        read = list(backend.read_due(older_than(), FixedPace(2000)))
    assert run(source, destination, size=2000) == 300
    with destination.opened() as archive:
        found = [copy.batch for copy in archive.find(Selection(since=LONG_AGO), FixedPace(2000))]
    for batches in (read, found):
        assert sum(len(batch.rows) for batch in batches) == 300
        assert all(size_of(batch) <= READ_BYTES or len(batch.rows) == 1 for batch in batches)
        assert len([batch for batch in batches if batch.rows]) <= 5
    postgres18_server.drop_database(name)


@pytest.mark.parametrize("destination", ["jsonl.gz"], indirect=True)
def test_rows_that_are_slow_are_read_and_removed_in_batches_as_small_as_it_takes(
    source: TableStore, destination: Destination
) -> None:
    """Each run begins with the same size: one that gave up on the way down would never get through."""
    fill_celery_table(source.url, 120, due=1)
    slow = other_role(
        source.url,
        "slow",
        f"GRANT SELECT, UPDATE, DELETE ON {LIVE}, {GROUPS} TO slow",
        f"ALTER TABLE {LIVE} ENABLE ROW LEVEL SECURITY",
        f"CREATE POLICY slow ON {LIVE} USING (CAST(pg_sleep(0.005) AS text) IS NOT NULL)",
    )
    with (
        TableStore(PostgresBackend, slow).opened(Limits(statement_timeout=timedelta(milliseconds=250))) as backend,
        destination.opened() as archive,
    ):
        steps = drive(move(backend, archive, older_than(), TimedPace(first=640)))
    assert sum(step.rows for step in steps) == 120


def test_missing_privileges_name_the_grant(source: TableStore, postgres18_server: Postgres) -> None:
    name = postgres18_server.create_database()
    destination = Tables(postgres18_server.celery_url(name))
    fill_celery_table(source.url, 20)
    poor = Tables(other_role(destination.tables.url, "archiver"))
    with pytest.raises(BackendRefused) as refusal:
        run(source, poor)
    assert "GRANT" in refusal.value.hint
    assert "CREATE" in refusal.value.hint
    destination.tables.execute("GRANT USAGE, CREATE ON SCHEMA public TO archiver")
    assert run(source, poor) == 10
    postgres18_server.drop_database(name)
