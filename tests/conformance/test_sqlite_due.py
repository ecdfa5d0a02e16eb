"""SQLite's own: which rows are due, with text dates in two time zones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from backendops.contracts.backend import Standing
from backendops.contracts.retention import Retention, Rule
from tests.celery_rows import celery_results, ensure_tables, fill_celery_table
from tests.conformance.sqlite_store import (
    ARCHIVE,
    DAY,
    HOUR,
    LIVE,
    PLAN,
    SmallPace,
    archive,
    ids,
    older_than,
    opened,
    raw,
    retry_after_start,
    shift,
)


# East and west, and without clock changes: two days earlier in a zone must be two days earlier.
@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Bogota", "UTC"])
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
    celery_results(sqlite_url, 9, groups=1, timezone="America/Bogota")
    retry_after_start(sqlite_url, timezone="America/Bogota")
    shift(sqlite_url, 2 * HOUR)
    archive(sqlite_url, older_than(HOUR), date_done_timezone="America/Bogota")
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


@pytest.mark.parametrize(
    ("zone", "date", "left"), [("Asia/Tokyo", "0001-01-01 01:00:00", 0), ("America/New_York", "9999-12-31 23:00:00", 1)]
)
def test_a_date_that_another_zone_does_not_have_ends_no_run(sqlite_url: str, zone: str, date: str, left: int) -> None:
    fill_celery_table(sqlite_url, 4, 1.0, failures=0)
    with raw(sqlite_url) as connection:
        connection.execute(f"UPDATE {LIVE} SET date_done = '{date}' WHERE id = 1")
    with opened(sqlite_url, date_done_timezone=zone) as backend:
        newest = backend.standing().newest_done
        assert newest is not None
        assert (newest.year == 9999) == bool(left)
        assert sum(step.rows for step in backend.expire(older_than(DAY), SmallPace())) == 4 - left


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
