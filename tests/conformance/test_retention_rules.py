"""Rules by task, queue and state, and keep_newest, on every backend that expires."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from backendops.backends.sql_files import statements
from backendops.contracts.capabilities import ArchivePlan, CanExpire
from backendops.contracts.retention import Retention, Rule
from backendops.jobs.archive import Archive
from backendops.jobs.expire import Expire
from tests.celery_rows import back_date, celery_app, celery_results, fill_celery_table
from tests.conformance.stores import ARCHIVE, GROUPS, LIVE, FixedPace, Store, TableStore, drive

CAPABILITY = CanExpire
DAY = timedelta(days=1)


def expire(store: Store, **keys: Any) -> list[Any]:
    job = Expire.model_validate(keys)
    with store.opened() as backend:
        return drive(job.run(backend, datetime.now(UTC), FixedPace(7)))


def test_rules_of_a_policy_on_every_backend(store: Store) -> None:
    """Results by real Celery ten days old: even ones are of mail.send, 3 and 7 of ten are failures, 9 is a retry."""
    ids = celery_results(store.url, 20, result_expires=None)
    back_date(store.url, ids, 10 * DAY)
    rules = [
        {"task": "reports.*", "state": "FAILURE", "keep": "forever"},
        {"task": "?ail.*", "queue": "cel*", "keep": "1d"},
    ]
    expire(store, keep="90d", keep_by_state={"SUCCESS": "5d"}, rules=rules)
    # Of the reports failures stay for ever, successes go by their state; mail goes by its rule.
    stay = {number for number in range(20) if number % 10 in (3, 7)}
    if isinstance(store, TableStore):
        left = {row[0] for row in store.execute(f"SELECT task_id FROM {LIVE} WHERE status <> 'RETRY'")}
    else:
        client = redis.Redis.from_url(store.url)
        try:
            left = {id_ for id_ in ids if client.ttl(f"celery-task-meta-{id_}") == -1}
            left -= {ids[9], ids[19]}  # retries are not finished
        finally:
            client.close()
    assert {ids.index(id_) for id_ in left} == stay


def test_an_archive_job_leaves_what_its_rules_keep_out(tables: TableStore) -> None:
    fill_celery_table(tables.url, 40, due=1, failures=0)
    job = Archive.model_validate({"older_than": "7d", "rules": [{"task": "mail.*", "older_than": "forever"}]})
    with tables.previewing() as backend:
        assert job.preview(backend, datetime.now(UTC)).rows == 20
    with tables.opened() as backend:
        drive(job.run(backend, datetime.now(UTC), FixedPace(7)))
    assert tables.execute(f"SELECT DISTINCT name FROM {ARCHIVE}") == [("reports.build",)]
    assert tables.execute(f"SELECT name, count(*) FROM {LIVE} GROUP BY name") == [("mail.send", 20)]


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
def test_a_date_without_an_end_is_no_age(postgres: TableStore, indexed: bool, zone: str) -> None:
    fill_celery_table(postgres.url, 40)
    postgres.execute(f"UPDATE {LIVE} SET date_done = '-infinity' WHERE id IN (1, 30)")
    if not indexed:
        postgres.execute("DROP INDEX ix_celery_taskmeta_date_done")
    every = postgres.ids()
    now = datetime.now(UTC)
    archive, remove = Retention(now - 14 * DAY), Retention(now - 7 * DAY)
    with postgres.previewing(date_done_timezone=zone) as backend:
        preview = backend.preview_expire(remove)
    assert [finding.code for finding in preview.findings] == ["retention.no-age"]
    assert "2 results" in preview.findings[0].sentence
    assert preview.rows == 19
    for run in ("archive", "expire"):
        with postgres.opened(date_done_timezone=zone) as backend:
            steps = drive(
                backend.archive(archive, ArchivePlan(), FixedPace(4))
                if run == "archive"
                else backend.expire(remove, FixedPace(4))
            )
        assert [finding.code for step in steps for finding in step.findings] == ["retention.no-age"]
        assert {1, 30} < set(postgres.ids())
        if run == "archive":
            assert sorted(postgres.ids() + postgres.ids(ARCHIVE)) == every
            assert postgres.ids(ARCHIVE)
    assert postgres.ids() == [1, *range(21, 41)]


@pytest.mark.parametrize("columns", [True, False])
def test_rules_by_a_name_that_celery_does_not_store_are_a_finding(tables: TableStore, columns: bool) -> None:
    fill_celery_table(tables.url, 40, due=1, failures=0)
    due = Retention(datetime.now(UTC) - 7 * DAY, (Rule(None, task="*"), Rule(None, queue="*")))
    with tables.previewing() as backend:
        assert backend.preview_expire(due).findings == ()
    if columns:
        tables.execute(f"UPDATE {LIVE} SET name = NULL, queue = NULL")
    else:
        for column in ("name", "queue"):
            tables.execute(f"ALTER TABLE {LIVE} DROP COLUMN {column}")
    with tables.previewing() as backend:
        preview = backend.preview_expire(due)
        assert [finding.code for finding in preview.findings] == ["retention.no-task", "retention.no-queue"]
        assert "none of the last 40 results" in preview.findings[0].sentence
        assert backend.preview_expire(Retention(due.cutoff, (Rule(None, state="FAILURE"),))).findings == ()
    # "*" is a name that any task has, but these have none.
    assert preview.rows == 40
    with tables.opened() as backend:
        steps = drive(backend.expire(due, FixedPace(50)))
    assert [finding.code for step in steps for finding in step.findings] == ["retention.no-task", "retention.no-queue"]
    assert tables.ids() == []


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("newest", [1, 30, 90, 91, 500])
def test_the_newest_stay_whatever_their_age(tables: TableStore, indexed: bool, newest: int) -> None:
    fill_celery_table(tables.url, 100, due=1, failures=0.5, started=3, groups=8)
    # The last ten are retries: finished they are not, and so none of the newest.
    tables.execute(f"UPDATE {LIVE} SET status = 'RETRY' WHERE id > 90 AND date_done IS NOT NULL")
    if not indexed:
        tables.execute("DROP INDEX ix_celery_taskmeta_date_done")
        tables.execute("DROP INDEX ix_celery_tasksetmeta_date_done")
    every = tables.ids()
    with tables.previewing() as backend:
        due = Retention(datetime.now(UTC) - 7 * DAY, keep_newest=newest)
        groups_due = max(8 - newest, 0)
        assert backend.preview_expire(due).rows == max(90 - newest, 0) + groups_due
    expire(tables, keep="7d", keep_newest=newest)
    # Ids follow time: the oldest of ninety finished ones are gone, retries among the newest stay with them.
    stayed = [id_ for id_ in every if id_ > max(90 - newest, 0)]
    assert tables.ids() == (stayed if newest <= 90 else every)
    assert len(tables.ids(GROUPS)) == 8 - groups_due


@pytest.mark.parametrize("indexed", [True, False])
def test_a_task_that_is_under_way_is_none_of_the_newest(tables: TableStore, indexed: bool) -> None:
    """Celery dates a state of a task's own that follows STARTED, as it does RETRY."""
    fill_celery_table(tables.url, 20, due=1, failures=0)
    app = celery_app(tables.url)
    for number in range(5):
        for state in ("STARTED", "PROGRESS"):
            app.backend.store_result(f"running-{number}", {"at": 1}, state)
    app.close()
    if not indexed:
        tables.execute("DROP INDEX ix_celery_taskmeta_date_done")
    assert tables.execute(f"SELECT count(*) FROM {LIVE} WHERE status = 'PROGRESS' AND date_done IS NOT NULL") == [(5,)]
    expire(tables, keep="7d", keep_newest=5)
    assert tables.execute(f"SELECT status, count(*) FROM {LIVE} GROUP BY status ORDER BY status") == [
        ("PROGRESS", 5),
        ("SUCCESS", 5),
    ]


def test_newest_and_rules_together(tables: TableStore) -> None:
    fill_celery_table(tables.url, 100, due=1, failures=0)
    expire(tables, keep="7d", keep_newest=10, rules=[{"task": "mail.*", "keep": "forever"}])
    assert tables.execute(f"SELECT name, count(*) FROM {LIVE} GROUP BY name ORDER BY name") == [
        ("mail.send", 50),
        ("reports.build", 5),
    ]


def test_what_is_newest_is_read_from_the_end_of_the_index(postgres: TableStore) -> None:
    fill_celery_table(postgres.url, 3000, due=1)
    find = statements("postgres", "walk")["find_newest_by_date"].replace(":keep", "20")
    plan = [line for (line,) in postgres.execute(f"EXPLAIN (COSTS off) {find}")]
    assert any(line.strip().startswith("->  Index Scan Backward using ix_celery_taskmeta_date_done") for line in plan)
    assert not any("Sort" in line for line in plan)
