"""How archive moves a batch on PostgreSQL: two statements on one snapshot, and filters instead of an index by id."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Connection

from backendops.contracts.capabilities import ArchivePlan
from backendops.contracts.retention import Retention
from tests.celery_rows import fill_celery_table
from tests.conformance.postgres_store import in_transaction, until
from tests.conformance.stores import ARCHIVE, LIVE, FixedPace, TableStore, drive

PLAN = ArchivePlan()
# So many of these rows fill more ranges of pages than one partition of them could have without filters.
MANY = 12_000
MISSING = f"""
SELECT count(*) FROM (
    SELECT i.indexrelid, generate_series(0, pg_relation_size(i.indrelid) / 8192 / 32 - 1) * 32 AS page
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_am AS a ON a.oid = c.relam
    WHERE a.amname = 'brin' AND i.indrelid IN (SELECT relid FROM pg_partition_tree('{ARCHIVE}'))
) AS ranges
WHERE brin_summarize_range(CAST(indexrelid AS regclass), page) > 0
"""


def due() -> Retention:
    return Retention(datetime.now(UTC) - timedelta(days=7))


def between_the_statements(monkeypatch: pytest.MonkeyPatch, do: Callable[[], None]) -> None:
    """Have `do` done once, by another session, when a batch is copied and not yet removed."""
    left = [do]

    def execute(self: Connection, statement: Any, *values: Any, **options: Any) -> Any:
        if left and "DELETE FROM" in str(statement) and "RETURNING" not in str(statement):
            left.pop()()
        return original(self, statement, *values, **options)

    original = Connection.execute
    monkeypatch.setattr(Connection, "execute", execute)


@pytest.mark.parametrize("change", ["UPDATE celery_taskmeta SET result = '\\x414141'", "DELETE FROM celery_taskmeta"])
def test_a_row_that_changes_while_its_batch_is_copied(
    postgres: TableStore, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    fill_celery_table(postgres.url, 60)
    (changed,) = postgres.execute(f"SELECT id, task_id FROM {LIVE} ORDER BY date_done LIMIT 1")
    everything = postgres.ids()

    def write() -> None:
        with psycopg2.connect(postgres.url.removeprefix("db+")) as other, other.cursor() as cursor:
            cursor.execute(f"{change} WHERE id = %s", [changed.id])

    between_the_statements(monkeypatch, write)
    with postgres.opened() as backend:
        moved = sum(step.rows for step in drive(backend.archive(due(), PLAN, FixedPace(10))))
    monkeypatch.undo()
    gone = change.startswith("DELETE")
    assert moved == 30 - gone
    assert sorted(postgres.ids() + postgres.ids(ARCHIVE)) == [
        one for one in everything if not gone or one != changed.id
    ]
    kept = postgres.execute(f"SELECT result FROM {ARCHIVE} WHERE task_id = '{changed.task_id}'")
    assert [bytes(row.result) for row in kept] == ([] if gone else [b"AAA"])


def test_a_row_that_comes_while_its_batch_is_copied_stays_or_is_moved(
    postgres: TableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_celery_table(postgres.url, 60)
    before = len(postgres.ids())

    def write() -> None:
        with psycopg2.connect(postgres.url.removeprefix("db+")) as other, other.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {LIVE} (id, task_id, status, date_done) SELECT nextval('task_id_sequence'), 'late', "
                f"'SUCCESS', min(date_done) + interval '1 second' FROM {LIVE}"
            )

    between_the_statements(monkeypatch, write)
    with postgres.opened() as backend:
        drive(backend.archive(due(), PLAN, FixedPace(10)))
    monkeypatch.undo()
    everywhere = postgres.ids() + postgres.ids(ARCHIVE)
    assert len(everywhere) == len(set(everywhere)) == before + 1


def test_rows_that_others_hold_do_not_fill_the_archive_with_dead_ones(postgres: TableStore) -> None:
    """A batch that meets a lock is rolled back after it was copied: not every one, where one after another would."""
    fill_celery_table(postgres.url, 400)
    held = f"SELECT FROM {LIVE} WHERE mod(id, 10) = 0 AND id <= 200 FOR UPDATE"
    with in_transaction(postgres.url, held), postgres.opened() as backend:
        steps = drive(backend.archive(due(), PLAN, FixedPace(20)))
    assert sum(step.rows for step in steps) == 180
    assert "20 due results are left, locked by other sessions" in steps[-1].what
    assert len({step.what for step in steps}) < 6
    put_in = f"SELECT sum(n_tup_ins) FROM pg_stat_user_tables WHERE relname LIKE '{ARCHIVE}%'"
    until(lambda: (postgres.execute(put_in)[0][0] or 0) >= 180, "the ended session has told what it did")
    assert postgres.execute(put_in)[0][0] <= 180 + 20


def test_rows_that_a_trigger_keeps_are_in_one_place(postgres: TableStore) -> None:
    fill_celery_table(postgres.url, 40)
    every = postgres.ids()
    (held,) = postgres.execute(f"SELECT id FROM {LIVE} ORDER BY date_done LIMIT 1")
    postgres.execute(
        f"CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF OLD.id = {held.id} THEN RETURN NULL; "
        f"END IF; RETURN OLD; END'; CREATE TRIGGER hold BEFORE DELETE ON {LIVE} FOR EACH ROW EXECUTE FUNCTION hold()"
    )
    with postgres.opened() as backend:
        steps = drive(backend.archive(due(), PLAN, FixedPace(10)))
    assert sum(step.rows for step in steps) == 19
    assert held.id in postgres.ids()
    assert sorted(postgres.ids() + postgres.ids(ARCHIVE)) == every


@pytest.mark.parametrize("stop_after", [None, 1, 2])
def test_filters_are_made_of_what_was_added(postgres: TableStore, stop_after: int | None) -> None:
    with postgres.opened() as backend:
        fill_celery_table(postgres.url, 20)
        drive(backend.archive(due(), PLAN, FixedPace(1000)))
        fill_celery_table(postgres.url, MANY, payload=900)
        steps = backend.archive(due(), PLAN, FixedPace(2000))
        moved = 0
        for step in steps:
            moved += step.rows
            if moved == MANY / 2 and stop_after is not None:
                break
        if stop_after is not None:
            # Ended among the filters: the next run that adds anything makes what is missing.
            for _ in range(stop_after):
                next(steps)
            steps.close()
            fill_celery_table(postgres.url, 20)
            drive(backend.archive(due(), PLAN, FixedPace(1000)))
    assert postgres.execute(MISSING) == [(0,)]
    (one,) = postgres.execute(f"SELECT task_id FROM {ARCHIVE} OFFSET 5000 LIMIT 1")
    with psycopg2.connect(postgres.url.removeprefix("db+")) as other, other.cursor() as cursor:
        cursor.execute("SET enable_seqscan = off")
        cursor.execute(f"EXPLAIN (ANALYZE) SELECT * FROM {ARCHIVE} WHERE task_id = '{one.task_id}'")
        plan = " ".join(row[0] for row in cursor.fetchall())
    read = sum(int(pages) for pages in re.findall(r"lossy=(\d+)", plan))
    (size,) = postgres.execute(f"SELECT sum(pg_relation_size(relid)) / 8192 FROM pg_partition_tree('{ARCHIVE}')")
    # One range of pages and what fills no whole one, of each partition.
    assert 0 < read <= 32 * 2 * plan.count("Bitmap Heap Scan") < size[0], plan


def test_filters_wait_for_nobody(postgres: TableStore) -> None:
    fill_celery_table(postgres.url, MANY, payload=900)
    with postgres.opened() as backend:
        drive(backend.archive(due(), PLAN, FixedPace(1000)), 3)
        vacuum = psycopg2.connect(postgres.url.removeprefix("db+"))
        try:
            with vacuum.cursor() as cursor:
                for row in postgres.execute(
                    f"SELECT relid::regclass::text AS name FROM pg_partition_tree('{ARCHIVE}')"
                ):
                    cursor.execute(f"LOCK TABLE ONLY {row.name} IN SHARE UPDATE EXCLUSIVE MODE")
            began = datetime.now(UTC)
            steps = drive(backend.archive(due(), PLAN, FixedPace(10_000)))
            assert datetime.now(UTC) - began < timedelta(seconds=5)
        finally:
            vacuum.close()
    assert sum(step.rows for step in steps) > 0
    assert sum(row[0] for row in postgres.execute(f"SELECT count(*) FROM {ARCHIVE}")) == MANY / 2


def test_ids_of_other_types_are_found_too(postgres: TableStore) -> None:
    fill_celery_table(postgres.url, 20)
    postgres.execute(f"ALTER TABLE {LIVE} ALTER task_id TYPE uuid USING md5(task_id)::uuid")
    with postgres.opened() as backend:
        drive(backend.archive(due(), PLAN, FixedPace(1000)))
    (made,) = postgres.execute(
        f"SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = '{ARCHIVE}'::regclass "
        "AND pg_get_indexdef(indexrelid) LIKE '%task_id%'"
    )
    assert "uuid_bloom_ops" in made[0]


def test_an_expiry_waits_for_the_disk_once_and_at_its_end(
    postgres: TableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_celery_table(postgres.url, 60)
    said: list[str] = []

    def execute(self: Connection, statement: Any, *values: Any, **options: Any) -> Any:
        said.append(str(statement))
        return original(self, statement, *values, **options)

    original = Connection.execute
    monkeypatch.setattr(Connection, "execute", execute)
    with postgres.opened() as backend:
        drive(backend.expire(due(), FixedPace(10)))
    (waited,) = (at for at, one in enumerate(said) if "pg_current_xact_id" in one)
    batches = [at for at, one in enumerate(said) if "'synchronous_commit', 'off'" in one]
    assert len(batches) >= 3
    assert max(batches) < waited
    said.clear()
    with postgres.opened() as backend:
        steps = backend.expire(due(), FixedPace(10))
        drive(steps)
    assert not [one for one in said if "pg_current_xact_id" in one], "nothing was removed"
