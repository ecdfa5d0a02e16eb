"""Restore: what comes back is what went, byte for byte, from wherever it is, and never over what is live."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from backendops.backends.postgres import PostgresBackend
from backendops.contracts.archive import CanTakeBack, Removal, Selection
from backendops.contracts.capabilities import ArchivePlan, KeptFor
from backendops.contracts.errors import BackendError, BackendRefused
from backendops.contracts.retention import Retention, Rule
from backendops.contracts.run import Limits, Step
from backendops.engine.pacing import TimedPace
from backendops.jobs.archive import Archive
from backendops.jobs.moving import finish
from backendops.jobs.partition import Partition
from backendops.jobs.restore import Restore
from tests.celery_rows import back_date, celery_results, fill_celery_table
from tests.conformance.destinations import SOURCE, Destination, Files, Tables, checksum, die_at, is_free, live_rows
from tests.conformance.postgres_store import cut_short_detach, other_role, until
from tests.conformance.stores import ARCHIVE, GROUPS, LIVE, FixedPace, TableStore, drive
from tests.servers import Postgres

CAPABILITY = CanTakeBack

EVERYTHING = Selection(since=datetime(2000, 1, 1, tzinfo=UTC))
PLACES = ["here", "jsonl.gz", "parquet", "tables"]


class Place:
    """A source with its archive, wherever that is."""

    def __init__(self, source: TableStore, destination: Destination | None) -> None:
        self.source = source
        self.destination = destination

    @property
    def job(self) -> Archive:
        job = Archive.model_validate({"older_than": "7d"})
        return job if self.destination is None else job.sent_to(self.destination.store, SOURCE)

    def archive(self, **keys: Any) -> int:
        """Archive everything that finished over a week ago."""
        with self.source.opened(**keys) as backend:
            return sum(step.rows for step in drive(self.job.run(backend, datetime.now(UTC), FixedPace(50))))

    def restore(
        self, selection: Selection = EVERYTHING, stop_after: int | None = None, size: int = 50, **keys: Any
    ) -> tuple[Restore, list[Step]]:
        """Restore, or the first steps of it."""
        job = Restore.of(self.job, selection)
        with self.source.opened(**keys) as backend:
            return job, drive(job.run(backend, datetime.now(UTC), FixedPace(size)), stop_after)

    def rows(self, table: str = LIVE) -> list[dict[str, Any]]:
        """What is archived."""
        if self.destination is not None:
            return self.destination.rows(table)
        archive = f"{table}_archive"
        if not self.source.has_table(archive):
            return []
        return [dict(row._mapping) for row in self.source.execute(f"SELECT * FROM {archive}")]

    def ids(self, table: str = LIVE) -> list[int]:
        """The ids of what is archived, sorted."""
        return sorted(row["id"] for row in self.rows(table))


@pytest.fixture(params=PLACES)
def place(
    request: pytest.FixtureRequest, tmp_path: Path, postgres18_server: Postgres, postgres18_url: str
) -> Iterator[Place]:
    """A source, and its archive in each place there is."""
    source = TableStore(PostgresBackend, postgres18_url)
    if request.param == "here":
        yield Place(source, None)
    elif request.param == "tables":
        name = postgres18_server.create_database()
        yield Place(source, Tables(postgres18_server.celery_url(name)))
        postgres18_server.drop_database(name)
    else:
        yield Place(source, Files(tmp_path, request.param))


def test_what_celery_wrote_comes_back_to_the_byte(place: Place) -> None:
    ids = celery_results(place.source.url, 20, groups=2)
    ids += celery_results(place.source.url, 10, result_serializer="pickle", accept_content=["pickle"])
    back_date(place.source.url, ids, timedelta(days=30))
    place.source.execute(f"UPDATE {GROUPS} SET date_done = date_done - interval '30 days'")
    before, groups = checksum(live_rows(place.source)), live_rows(place.source, GROUPS)
    place.archive()
    assert place.source.ids() == []
    job, _ = place.restore()
    assert sorted(job.restored) == sorted([*ids, *(row["taskset_id"] for row in groups)])
    assert checksum(live_rows(place.source)) == before
    assert {bytes(row["result"]) for row in live_rows(place.source, GROUPS)} == {bytes(r["result"]) for r in groups}
    assert place.rows() == place.rows(GROUPS) == []


def test_every_stop_keeps_every_result_and_the_next_run_has_it_once(place: Place) -> None:
    fill_celery_table(place.source.url, 70, groups=4)
    place.archive()
    every, before = list(range(1, 71)), checksum(live_rows(place.source), place.rows())
    stop_after = 1
    while place.ids():
        place.restore(stop_after=stop_after, size=20)
        assert sorted({*place.source.ids(), *place.ids()}) == every
        assert checksum(live_rows(place.source), place.rows()) == before
        stop_after += 1
        assert stop_after < 40, "the runs make no progress"
    place.restore()
    assert place.source.ids() == every
    assert place.rows(GROUPS) == []
    assert checksum(live_rows(place.source)) == before


# Beside the live table it is one statement, which cannot die in the middle.
@pytest.mark.parametrize("place", PLACES[1:], indirect=True)
def test_a_restore_that_died_is_finished_by_the_next_archive_run(place: Place) -> None:
    assert place.destination is not None
    fill_celery_table(place.source.url, 40)
    place.archive()
    stop_after = 1
    while len(place.source.ids()) == 20:
        place.restore(stop_after=stop_after)
        stop_after += 1
    assert set(place.source.ids()) & set(place.ids()), "nothing is in both: it did not die in the middle"
    with place.source.opened() as backend, place.destination.opened() as archive:
        drive(finish(backend, archive, FixedPace(50)))
    assert sorted(place.source.ids() + place.ids()) == list(range(1, 41))
    back_again = len(place.source.ids()) - 20
    assert place.archive() == back_again > 0
    assert sorted(place.source.ids() + place.ids()) == list(range(1, 41))


KILLED = {
    "begun and nothing put back": ("begin_restore", None),
    "put back and still archived": ("take_back", PostgresBackend),
    "just after settling": ("settle", None),
}


@pytest.mark.parametrize("moment", KILLED)
@pytest.mark.parametrize("place", ["jsonl.gz", "tables"], indirect=True)
def test_kill_9_at_the_dangerous_moments(place: Place, moment: str) -> None:
    assert place.destination is not None
    fill_celery_table(place.source.url, 60)
    place.archive()
    before = checksum(live_rows(place.source), place.rows())
    name, owner = KILLED[moment]
    die_at(owner or type(place.destination.store), name, "after", lambda: place.restore(size=10))
    assert sorted({*place.source.ids(), *place.ids()}) == list(range(1, 61))
    assert checksum(live_rows(place.source), place.rows()) == before
    until(lambda: is_free(place.destination), "the dead process's lock is gone")
    place.restore()
    assert place.source.ids() == list(range(1, 61))
    assert place.rows() == []
    assert checksum(live_rows(place.source)) == before


def test_ids_that_are_live_again_are_left_and_told(place: Place) -> None:
    fill_celery_table(place.source.url, 40)
    place.archive()
    again = sorted(row["task_id"] for row in place.rows())[:3]
    for number, task_id in enumerate(again):
        place.source.execute(
            f"INSERT INTO {LIVE} (id, task_id, status, result) VALUES (:id, :task_id, 'SUCCESS', 'new')",
            id=1000 + number,
            task_id=task_id,
        )
    job, steps = place.restore()
    assert sorted(job.live_again) == again
    assert len(job.restored) == 17
    assert sorted(row["task_id"] for row in place.rows()) == again
    assert place.source.execute(f"SELECT count(*) FROM {LIVE} WHERE result = 'new'") == [(3,)]
    (finding,) = (finding for step in steps for finding in step.findings)
    assert again[0] in finding.sentence


def test_by_id_and_by_time(place: Place) -> None:
    fill_celery_table(place.source.url, 60)
    place.archive()
    rows = sorted(place.rows(), key=lambda row: row["done_at"])
    wanted = [rows[3]["task_id"], rows[20]["task_id"]]
    job, _ = place.restore(Selection(ids=(*wanted, "no-such-id")))
    assert sorted(job.restored) == sorted(wanted)
    job, _ = place.restore(Selection(since=rows[10]["done_at"], until=rows[14]["done_at"]))
    assert sorted(job.restored) == sorted(row["task_id"] for row in rows[10:14])
    assert len(place.rows()) == 30 - 2 - 4


def test_of_an_id_that_was_archived_twice_the_newest_comes_back(place: Place) -> None:
    fill_celery_table(place.source.url, 20)
    place.archive()
    (older,) = [row for row in place.rows() if row["id"] == 5]
    fill_celery_table(place.source.url, 2, due=1, older_than=timedelta(days=7), spread=timedelta(minutes=1))
    place.source.execute(
        f"UPDATE {LIVE} SET task_id = :task_id, result = 'newer' WHERE id = 21", task_id=older["task_id"]
    )
    place.archive()
    job, _ = place.restore(Selection(ids=(older["task_id"],)))
    assert job.restored == [older["task_id"]]
    assert place.source.execute(f"SELECT id FROM {LIVE} WHERE result = 'newer'") == [(21,)]
    assert [row["id"] for row in place.rows() if row["task_id"] == older["task_id"]] == [5]


def test_an_id_that_is_taken_or_still_to_come_is_replaced_by_the_sequence(place: Place) -> None:
    fill_celery_table(place.source.url, 20)
    place.archive()
    # Another result has the id 3 by now; and of what was lost, the sequence is behind 9 again.
    place.source.execute(f"INSERT INTO {LIVE} (id, task_id, status) VALUES (3, 'stranger', 'STARTED')")
    place.source.execute("SELECT setval('task_id_sequence', 8)")
    place.source.execute(f"DELETE FROM {LIVE} WHERE id > 8")
    job, _ = place.restore()
    assert len(job.restored) == 10
    ids = place.source.ids()
    assert len(ids) == len(set(ids)) == 11
    assert {1, 2, 3, 4, 5, 6, 7, 8} <= set(ids)
    assert place.source.execute("SELECT last_value FROM task_id_sequence")[0][0] == max(ids)
    celery_results(place.source.url, 3)
    assert place.rows() == []


def test_a_column_that_the_live_table_lacks(place: Place) -> None:
    fill_celery_table(place.source.url, 20)
    place.source.execute(f"UPDATE {LIVE} SET stamps = 'kept' WHERE id = 4")
    place.archive()
    lost = next(row["task_id"] for row in place.rows() if row["id"] == 4)
    place.source.execute(f"ALTER TABLE {LIVE} DROP COLUMN stamps")
    others = tuple(row["task_id"] for row in place.rows() if row["id"] != 4)
    job, _ = place.restore(Selection(ids=others))
    assert len(job.restored) == 9
    with pytest.raises(BackendRefused, match="a value for stamps") as refusal:
        place.restore(Selection(ids=(lost,)))
    assert "ADD COLUMN" in refusal.value.hint
    assert place.ids() == [4]
    place.source.execute(f"ALTER TABLE {LIVE} ADD COLUMN stamps bytea")
    place.restore(Selection(ids=(lost,)))
    assert place.source.execute(f"SELECT id FROM {LIVE} WHERE stamps = 'kept'") == [(4,)]


def test_what_would_be_gone_at_once_is_refused(place: Place) -> None:
    fill_celery_table(place.source.url, 20)
    place.source.execute(f"UPDATE {LIVE} SET queue = 'bulk' WHERE id % 2 = 0")
    place.archive()
    rows = sorted(place.rows(), key=lambda row: row["done_at"])
    limit = rows[5]["done_at"]
    removal = Removal("the next run of the job 'expire'", Retention(limit), "pause it")
    with pytest.raises(BackendRefused, match="is removed by the next run of the job 'expire'") as refusal:
        place.restore(replace(EVERYTHING, removals=(removal,)))
    assert rows[4]["task_id"] in str(refusal.value)
    job, _ = place.restore(Selection(since=limit, removals=(removal,)))
    assert {*job.restored} <= {row["task_id"] for row in rows[5:]}
    # A rule for some results says nothing of the others.
    only_bulk = replace(removal, due=Retention(None, (Rule(limit, queue="bulk"),)))
    other = Selection(ids=(rows[0]["task_id"],), removals=(only_bulk,))
    bulk = Selection(ids=(rows[1]["task_id"],), removals=(only_bulk,))
    if rows[0]["queue"] == "bulk":
        other, bulk = bulk, other
    assert place.restore(other)[0].restored == [*other.ids]
    with pytest.raises(BackendRefused):
        place.restore(bulk)


def test_a_restore_that_need_not_name_every_id_remembers_none(place: Place) -> None:
    fill_celery_table(place.source.url, 40)
    place.archive()
    for number, row in enumerate(place.rows()[:8]):
        place.source.execute(
            f"INSERT INTO {LIVE} (id, task_id, status) VALUES (:id, :task_id, 'SUCCESS')",
            id=1000 + number,
            task_id=row["task_id"],
        )
    job = Restore.of(place.job, EVERYTHING, names_all=False)
    with place.source.opened() as backend:
        steps = drive(job.run(backend, datetime.now(UTC), FixedPace(3)))
    assert sum(step.rows for step in steps) == 12
    assert (job.restored, len(job.live_again), job.left) == ([], 5, 8)
    assert "8 archived results were left" in steps[-2].findings[0].sentence


# Files have no partitions.
@pytest.mark.parametrize("place", ["here", "tables"], indirect=True)
def test_what_is_in_quarantine_is_told_with_the_way_back(place: Place) -> None:
    fill_celery_table(place.source.url, 60, older_than=timedelta(days=70), spread=timedelta(days=60))
    place.archive()
    partition = Partition.model_validate({"keep": "100d"})
    keeper = place.source
    if isinstance(place.destination, Tables):
        keeper = place.destination.tables
        partition = partition.looking_after((KeptFor(SOURCE, ArchivePlan()),))
    rows = sorted(place.rows(), key=lambda row: row["done_at"])
    with keeper.opened() as backend:
        drive(partition.run(backend, datetime.now(UTC), FixedPace(100)))
    left = {row["task_id"] for row in place.rows()}
    retired = [row["task_id"] for row in rows if row["task_id"] not in left]
    assert 0 < len(retired) < 30
    with place.source.previewing() as backend:
        preview = Restore.of(place.job, EVERYTHING).preview(backend, datetime.now(UTC))
    assert preview.rows == 30 - len(retired)
    assert {finding.code for finding in preview.findings} == {"restore.in-quarantine"}
    job, steps = place.restore(Selection(ids=(retired[0], next(iter(left)), "no-such-id")))
    assert len(job.restored) == 1
    (one,) = job.quarantined
    assert (one.rows, one.ids) == (1, (retired[0],))
    (finding,) = (finding for step in steps for finding in step.findings)
    assert f"`backendops partitions reattach {one.name}" in finding.fix
    # What finished when none of it is meant is not counted.
    job, _ = place.restore(Selection(since=rows[-1]["done_at"]))
    assert job.quarantined == []
    job, _ = place.restore()
    assert sum(one.rows or 0 for one in job.quarantined) == len(retired)
    with keeper.opened() as backend:
        for one in job.quarantined:
            drive(backend.reattach(one.name))
    job, _ = place.restore()
    assert (sorted(job.restored), job.quarantined) == (sorted(retired), [])
    assert len(place.source.ids()) == 60


@pytest.mark.parametrize("place", ["here"], indirect=True)
def test_what_a_detach_that_was_cut_short_hides_is_told(place: Place) -> None:
    fill_celery_table(place.source.url, 20, older_than=timedelta(days=40), spread=timedelta(hours=1))
    place.archive()
    (task_id, part) = place.source.execute(f"SELECT task_id, tableoid::regclass::text FROM {ARCHIVE} LIMIT 1")[0]
    cut_short_detach(place.source.url, ARCHIVE, part)
    job, steps = place.restore(Selection(ids=(task_id,)))
    assert [(one.name, one.ids, one.detaching) for one in job.quarantined] == [(part, (task_id,), True)]
    (finding,) = (finding for step in steps for finding in step.findings)
    assert "run the partition job, which finishes its detach" in finding.fix


@pytest.mark.parametrize("place", ["here", "tables"], indirect=True)
def test_what_is_still_to_be_moved_back_into_the_archive_is_told(place: Place) -> None:
    fill_celery_table(place.source.url, 20, older_than=timedelta(days=40), spread=timedelta(hours=1))
    place.archive()
    keeper, partition = place.source, Partition.model_validate({"keep": "13 months"})
    if isinstance(place.destination, Tables):
        keeper = place.destination.tables
        partition = partition.looking_after((KeptFor(SOURCE, ArchivePlan()),))
    (task_id, part) = keeper.execute(f"SELECT task_id, tableoid::regclass::text FROM {ARCHIVE} LIMIT 1")[0]
    keeper.execute(f"ALTER TABLE {ARCHIVE} DETACH PARTITION {part}")
    keeper.execute(f"ALTER TABLE {ARCHIVE} ATTACH PARTITION {part} DEFAULT")
    with keeper.opened() as backend:
        # The first step takes it out; the run ends before its rows are where they belong.
        drive(partition.run(backend, datetime.now(UTC), FixedPace(5)), 1)
    with place.source.previewing() as backend:
        preview = Restore.of(place.job, EVERYTHING).preview(backend, datetime.now(UTC))
    assert [finding.code for finding in preview.findings] == ["restore.not-yet-moved-back"]
    job, steps = place.restore(Selection(ids=(task_id,)))
    assert [(one.name, one.ids, one.returning) for one in job.quarantined] == [(part, (task_id,), True)]
    (finding,) = (finding for step in steps for finding in step.findings)
    assert "run the partition job" in finding.fix
    with keeper.opened() as backend:
        drive(partition.run(backend, datetime.now(UTC), FixedPace(5)))
    job, _ = place.restore(Selection(ids=(task_id,)))
    assert (job.restored, job.quarantined) == ([task_id], [])


def test_a_preview_counts_and_changes_nothing(place: Place) -> None:
    fill_celery_table(place.source.url, 30)
    place.archive()
    oldest = min(row["done_at"] for row in place.rows())
    with place.source.previewing() as backend:
        preview = Restore.of(place.job, EVERYTHING).preview(backend, datetime.now(UTC))
    assert (preview.rows, preview.oldest) == (15, oldest)
    assert len(place.rows()) == 15


def test_on_every_postgresql(postgres: TableStore) -> None:
    fill_celery_table(postgres.url, 60, groups=4)
    place = Place(postgres, None)
    before = checksum(live_rows(postgres))
    place.archive()
    job, _ = place.restore(size=7)
    assert len(job.restored) == 32
    assert checksum(live_rows(postgres)) == before
    with postgres.opened() as backend:
        checked = list(backend.check_archive(place.job.plan))
    assert [one.wrong for one in checked if one.wrong] == []


def test_verify_of_tables_says_what_is_wrong(postgres18_url: str) -> None:
    source = TableStore(PostgresBackend, postgres18_url)
    fill_celery_table(source.url, 60)
    place = Place(source, None)
    place.archive()
    source.execute(f"UPDATE {ARCHIVE} SET date_done = date_done + interval '1 hour' WHERE id = 3")
    columns = "id, task_id, status, result, date_done, traceback, children, name, args, kwargs, worker, retries, queue"
    source.execute(f"INSERT INTO {LIVE} ({columns}) SELECT {columns} FROM {ARCHIVE} WHERE id IN (7, 8)")
    with source.opened() as backend:
        wrong = [said for one in backend.check_archive(place.job.plan) for said in one.wrong]
    assert sorted(wrong) == [
        "1 rows have a done_at that is not their date_done in UTC",
        "2 of its results are live as well, with the same id and date",
    ]


SLOW = f"""
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.01); RETURN NEW; END $$;
CREATE TRIGGER slow BEFORE INSERT ON {LIVE} FOR EACH ROW EXECUTE FUNCTION slow()
"""


@pytest.mark.parametrize("place", ["here"], indirect=True)
def test_rows_that_are_slow_come_back_in_batches_as_small_as_it_takes(place: Place) -> None:
    fill_celery_table(place.source.url, 60, due=1)
    place.archive()
    place.source.execute(SLOW)
    job = Restore.of(place.job, EVERYTHING)
    with place.source.opened(Limits(statement_timeout=timedelta(milliseconds=250))) as backend:
        drive(job.run(backend, datetime.now(UTC), TimedPace(first=320)))
    assert len(job.restored) == 60
    assert place.rows() == []


@pytest.mark.parametrize("place", ["here"], indirect=True)
@pytest.mark.parametrize(
    ("ours", "way_out"), [("CHECK (worker = 'nobody')", "DROP CONSTRAINT"), ("UNIQUE (status)", "not Celery's")]
)
def test_a_constraint_of_somebody_elses_is_told_with_the_way_out(place: Place, ours: str, way_out: str) -> None:
    fill_celery_table(place.source.url, 20, due=1)
    place.archive()
    place.source.execute(f"ALTER TABLE {LIVE} ADD CONSTRAINT ours {ours}")
    with pytest.raises(BackendError, match="ours") as told:
        place.restore()
    assert way_out in told.value.hint
    assert len(place.rows()) == 20


class WatchedPace(FixedPace):
    """Remembers what it is told."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.seconds: list[float] = []

    def measured(self, rows: int, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.mark.parametrize("place", ["here"], indirect=True)
def test_a_rest_between_two_batches_is_no_part_of_either(place: Place) -> None:
    fill_celery_table(place.source.url, 20, due=1)
    place.archive()
    pace = WatchedPace(5)
    with place.source.opened() as backend:
        for _ in Restore.of(place.job, EVERYTHING).run(backend, datetime.now(UTC), pace):
            time.sleep(0.5)
    assert len(pace.seconds) == 4
    assert max(pace.seconds) < 0.5


def test_missing_privileges_name_the_grant(postgres18_url: str) -> None:
    source = TableStore(PostgresBackend, postgres18_url)
    fill_celery_table(source.url, 20)
    Place(source, None).archive()
    url = other_role(source.url, "reader", f"GRANT SELECT ON {LIVE}, {GROUPS}, {ARCHIVE} TO reader")
    source.execute(f"DROP TABLE {GROUPS}_archive")
    poor = Place(TableStore(PostgresBackend, url), None)
    with pytest.raises(BackendRefused, match="may not put rows into") as refusal:
        poor.restore()
    source.execute(refusal.value.hint.split("; ")[1].removesuffix(";"))
    with pytest.raises(BackendRefused, match="may not use the sequence") as refusal:
        poor.restore()
    source.execute(refusal.value.hint.removesuffix(";"))
    with pytest.raises(BackendRefused) as refusal:
        poor.restore()
    assert "DELETE" in refusal.value.hint
    source.execute(f"GRANT DELETE ON {ARCHIVE} TO reader")
    job, _ = poor.restore()
    assert len(job.restored) == 10


def test_a_live_table_in_ranges_of_ids_takes_old_results_under_new_ids(postgres18_url: str) -> None:
    source = TableStore(PostgresBackend, postgres18_url)
    fill_celery_table(source.url, 20)
    place = Place(source, None)
    place.archive()
    source.execute(f"ALTER TABLE {LIVE} RENAME TO plain")
    source.execute(f"CREATE TABLE {LIVE} (LIKE plain) PARTITION BY RANGE (id)")
    source.execute(f"CREATE TABLE newer PARTITION OF {LIVE} (PRIMARY KEY (id)) FOR VALUES FROM (15) TO (1000)")
    job, _ = place.restore()
    assert len(job.restored) == 10
    assert min(source.ids()) > 20
