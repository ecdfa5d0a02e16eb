"""CanPartition: partitions ahead of time, and old ones retired without losing a row before its time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from backendops.backends.postgres import ddl
from backendops.backends.postgres import partition as partition_module
from backendops.backends.postgres.ddl import with_ddl
from backendops.contracts.capabilities import ArchivePlan, Every, PartitionPlan
from backendops.contracts.errors import BackendBusy, BackendError, BackendRefused
from backendops.contracts.retention import Retention
from backendops.contracts.run import Limits, Step
from backendops.contracts.units import Duration
from backendops.engine.pacing import TimedPace
from tests.celery_rows import celery_results, ensure_tables, fill_celery_table
from tests.conformance.postgres_store import connect, cut_short_detach, in_transaction, opened, other_role, sql, until
from tests.servers import Postgres

NOW = datetime(2026, 11, 20, 5, tzinfo=UTC)
DAY = timedelta(days=1)
ARCHIVE = "celery_taskmeta_archive"
# Short waits: these tests meet timeouts on purpose.
IMPATIENT = Limits(statement_timeout=timedelta(milliseconds=400), lock_timeout=timedelta(milliseconds=150))


def plan(
    now: datetime = NOW, keep: str | None = None, *, every: Every = "month", ahead: int = 3, quarantine: str = "7d"
) -> PartitionPlan:
    cutoff = now - Duration.parse(keep) if keep else None
    return PartitionPlan(now, ArchivePlan(every=every), ahead, cutoff, Duration.parse(quarantine))


def maintain(url: str, wanted: PartitionPlan, limits: Limits | None = None, **fields: Any) -> list[Step]:
    with opened(url, limits, **fields) as backend:
        return list(backend.maintain_partitions(wanted, TimedPace()))


def whats(steps: list[Step]) -> list[str]:
    return [step.what for step in steps if step.what]


def reading(steps: list[Step], name: str) -> float:
    return next(one.value for one in steps[-1].readings if one.metric.name == f"backendops_{name}")


def spans(url: str, archive: str = ARCHIVE) -> list[tuple[datetime, datetime]]:
    """The bounds of every attached partition, in order, as the server has them."""
    rows = sql(
        url,
        "SET TimeZone = 'UTC'",
        f"""
        SELECT CAST(b[1] AS timestamptz), CAST(b[2] AS timestamptz)
        FROM pg_inherits JOIN pg_class AS c ON c.oid = inhrelid,
             regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \\(''(.+)''\\) TO \\(''(.+)''\\)') AS b
        WHERE inhparent = '{archive}'::regclass AND b IS NOT NULL ORDER BY 1
        """,
    )
    return [(row[0], row[1]) for row in rows]


def attached(url: str) -> list[str]:
    return [
        row[0]
        for row in sql(
            url,
            f"SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = '{ARCHIVE}'::regclass "
            "AND NOT inhdetachpending ORDER BY 1",
        )
    ]


def everything(url: str) -> tuple[int, str]:
    """How many task results there are and a checksum of them: live, archived, being detached and in quarantine."""
    tables = sql(
        url,
        "SELECT c.oid::regclass::text FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid "
        "WHERE c.relkind = 'r' AND a.attname = 'task_id' AND c.relnamespace = 'public'::regnamespace",
    )
    union = " UNION ALL ".join(f"SELECT task_id, status, result, date_done FROM ONLY {table}" for (table,) in tables)
    count, digest = sql(url, f"SELECT count(*), md5(string_agg(x::text, '|' ORDER BY x.task_id)) FROM ({union}) AS x")[
        0
    ]
    return count, digest


@pytest.fixture
def archived(postgres_server: Postgres) -> Iterator[str]:
    """300 results, finished from May to November 2026 and all archived, in seven monthly partitions and three ahead.

    Made once for each server and copied for each test: Celery's own way of making them is most of what it takes.
    """
    if not postgres_server.execute("SELECT 1 FROM pg_database WHERE datname = 'archived'"):
        postgres_server.execute("CREATE DATABASE archived")
        url = postgres_server.celery_url("archived")
        fill_celery_table(url, 300, due=1.0, older_than=DAY, spread=timedelta(days=200), now=NOW)
        with opened(url) as backend:
            list(backend.archive(Retention(NOW), ArchivePlan(), TimedPace()))
        maintain(url, plan())
        assert sql(url, f"SELECT count(*) FROM {ARCHIVE}") == [(300,)]
        assert len(attached(url)) == 10
    postgres_server.execute("DROP DATABASE IF EXISTS copied WITH (FORCE)")
    postgres_server.execute("CREATE DATABASE copied TEMPLATE archived")
    yield postgres_server.celery_url("copied")
    postgres_server.drop_database("copied")


def test_partitions_are_made_ahead_and_only_once(postgres_url: str) -> None:
    ensure_tables(postgres_url)
    steps = maintain(postgres_url, plan())
    assert [f'made "public"."{ARCHIVE}_p{month}"' for month in ("2026_11", "2026_12", "2027_01", "2027_02")] == [
        what for what in whats(steps) if f"{ARCHIVE}_p" in what
    ]
    assert reading(steps, "partitions_ahead") == 3
    assert (
        len(sql(postgres_url, "SELECT 1 FROM pg_inherits WHERE inhparent = 'celery_tasksetmeta_archive'::regclass"))
        == 4
    )
    assert whats(maintain(postgres_url, plan())) == []


def test_without_tables_there_is_nothing_to_do_and_that_is_said(postgres_url: str) -> None:
    steps = maintain(postgres_url, plan())
    assert [step.what for step in steps] == ["Celery has made no tables yet: nothing to partition"]
    assert [finding.code for finding in steps[-1].findings] == ["postgres.no-table"]


@pytest.mark.parametrize(
    ("every", "now", "hours"),
    [
        # The nights in which Berlin's clocks change: 29 March and 25 October 2026.
        ("day", datetime(2026, 3, 27, 12, tzinfo=UTC), [24, 24, 23, 24]),
        ("day", datetime(2026, 10, 24, 12, tzinfo=UTC), [24, 25, 24, 24]),
        ("week", datetime(2026, 3, 27, 12, tzinfo=UTC), [167, 168, 168, 168]),
        ("month", datetime(2026, 3, 27, 12, tzinfo=UTC), [743, 720, 744, 720]),
    ],
)
def test_boundaries_are_midnights_of_the_backends_zone(
    postgres18_url: str, every: Every, now: datetime, hours: list[int]
) -> None:
    ensure_tables(postgres18_url)
    maintain(postgres18_url, plan(now, every=every), date_done_timezone="Europe/Berlin")
    found = spans(postgres18_url)
    assert [(end - start) / timedelta(hours=1) for start, end in found] == hours
    assert all(end == start for (_, end), (start, _) in pairwise(found))
    assert all(start.astimezone(UTC).hour in (22, 23) for start, _ in found)


def test_a_gap_is_filled(archived: str) -> None:
    before = spans(archived)
    sql(archived, f"DELETE FROM {ARCHIVE}_p2026_08", f"DROP TABLE {ARCHIVE}_p2026_08")
    assert whats(maintain(archived, plan())) == [f'made "public"."{ARCHIVE}_p2026_08"']
    assert spans(archived) == before


def test_what_retirement_would_take_is_not_made(postgres_url: str) -> None:
    ensure_tables(postgres_url)
    maintain(postgres_url, plan(NOW - 400 * DAY, ahead=1))
    made = whats(maintain(postgres_url, plan(keep="3 months")))
    assert next(what for what in made if f'made "public"."{ARCHIVE}' in what).endswith('_p2026_08"')


@pytest.mark.parametrize(("first", "then"), [("month", "week"), ("month", "day"), ("week", "month"), ("day", "month")])
def test_another_length_fits_between_what_is_there(postgres18_url: str, first: Every, then: Every) -> None:
    ensure_tables(postgres18_url)
    maintain(postgres18_url, plan(every=first, ahead=2))
    maintain(postgres18_url, plan(NOW + 20 * DAY, every=then, ahead=5))
    found = spans(postgres18_url)
    assert all(end == start for (_, end), (start, _) in pairwise(found))
    assert found[-1][1] > NOW + 25 * DAY


def test_retired_partitions_are_kept_in_quarantine_and_then_dropped(archived: str) -> None:
    before = everything(archived)
    steps = maintain(archived, plan(keep="3 months"))
    assert [what.partition(";")[0] for what in whats(steps)] == [
        f'detached "public"."{ARCHIVE}_p2026_{month:02}"' for month in (5, 6, 7)
    ]
    assert reading(steps, "partitions_quarantined") == 3
    assert everything(archived) == before
    assert attached(archived)[0] == f"{ARCHIVE}_p2026_08"
    comment = json.loads(sql(archived, f"SELECT obj_description('{ARCHIVE}_p2026_05'::regclass)")[0][0])
    assert comment == {
        "backendops": "partition",
        "state": "quarantined",
        "archive": f'"public"."{ARCHIVE}"',
        "lower": "2026-05-01T00:00:00+00:00",
        "upper": "2026-06-01T00:00:00+00:00",
        "detached_at": "2026-11-20T05:00:00+00:00",
        "drop_after": "2026-11-27T05:00:00+00:00",
    }

    assert whats(maintain(archived, plan(NOW + 6 * DAY, keep="3 months"))) == []
    # A shorter quarantine in the policy does not break the promise that the comment made; a longer one extends it.
    assert whats(maintain(archived, plan(NOW + 6 * DAY, keep="3 months", quarantine="1d"))) == []
    assert whats(maintain(archived, plan(NOW + 8 * DAY, keep="3 months", quarantine="9d"))) == []
    assert everything(archived) == before

    steps = maintain(archived, plan(NOW + 8 * DAY, keep="3 months"))
    assert [what.partition(" (")[0] for what in whats(steps)] == [
        f'dropped "public"."{ARCHIVE}_p2026_{month:02}"' for month in (5, 6, 7)
    ]
    assert reading(steps, "partitions_quarantined") == 0
    assert sql(archived, "SELECT to_regclass('celery_taskmeta_archive_p2026_05')") == [(None,)]


def test_the_newest_partition_stays_whatever_the_policy_says(archived: str) -> None:
    newest = spans(archived)[-1]
    maintain(archived, plan(NOW + 3650 * DAY, keep="1d", ahead=1))
    assert spans(archived)[0] == newest


def test_stopping_after_any_step_loses_nothing(archived: str) -> None:
    before = everything(archived)
    wanted, steps_taken = plan(NOW + 60 * DAY, keep="3 months"), 0
    for stop_after in range(1, 30):
        with opened(archived) as backend:
            steps = backend.maintain_partitions(wanted, TimedPace())
            taken = 0
            for taken, _ in enumerate(steps, 1):
                if taken == stop_after:
                    break
            steps.close()
        assert everything(archived) == before
        steps_taken = max(steps_taken, taken)
        if taken < stop_after:
            break
    assert steps_taken >= 2
    assert whats(maintain(archived, wanted)) == []


class Crash(Exception):
    """The process dies here."""


def test_dying_between_any_two_statements_loses_nothing(archived: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(archived)
    # Of one partition's way out: before the comment, after it, after the detach, after the second comment; then of
    # the next ones, one more of which is due each time.
    for dies_at, month in enumerate(("2026_05", "2026_06", "2026_07", "2026_08")):
        calls = iter(range(100))

        def dying(session: Any, work: Any, calls: Any = calls, dies_at: int = dies_at) -> Any:
            if next(calls) == dies_at:
                raise Crash
            return with_ddl(session, work)

        due = plan(datetime(2026, int(month[5:]) + 2, 1, 12, tzinfo=UTC), keep="1 month", ahead=1, quarantine="900d")
        with monkeypatch.context() as patch, pytest.raises(Crash):
            patch.setattr(partition_module, "with_ddl", dying)
            maintain(archived, replace(due, cutoff=due.now - DAY))
        assert everything(archived) == before
        maintain(archived, due)
        assert everything(archived) == before
        assert f"{ARCHIVE}_p{month}" not in attached(archived)
    states = sql(archived, "SELECT (description::json)->>'state' FROM pg_description WHERE description LIKE '{%'")
    assert set(states) == {("quarantined",)}


@pytest.mark.parametrize("state", ["marked", "detached"])
def test_what_a_crash_left_behind_is_taken_up(archived: str, state: str) -> None:
    """Killed after the comment and before the detach, or after the detach and before the comment that ends it."""
    table = f"{ARCHIVE}_p2026_05"
    comment = {
        "backendops": "partition",
        "state": "retiring",
        "archive": f'"public"."{ARCHIVE}"',
        "lower": "2026-05-01T00:00:00+00:00",
        "upper": "2026-06-01T00:00:00+00:00",
    }
    sql(archived, f"COMMENT ON TABLE {table} IS '{json.dumps(comment)}'")
    if state == "detached":
        sql(archived, f"ALTER TABLE {ARCHIVE} DETACH PARTITION {table}")
    before = everything(archived)
    # Long after the crash: the quarantine begins now, when the table is found.
    steps = maintain(archived, plan(NOW + 30 * DAY, keep="6 months"))
    assert f'detached "public"."{table}"; it is kept until 2026-12-27 05:00 UTC, then dropped' in whats(steps)
    assert everything(archived) == before


def test_a_detach_that_a_reader_holds_up_is_finished_by_the_next_run(archived: str) -> None:
    before = everything(archived)
    with in_transaction(archived, f"SELECT count(*) FROM {ARCHIVE}"):
        with pytest.raises(BackendBusy, match="detach stays pending") as caught:
            maintain(archived, plan(keep="5 months"), IMPATIENT)
        assert "next run finishes it" in caught.value.hint
        assert f"{ARCHIVE}_p2026_05" not in attached(archived)
        assert everything(archived) == before
        with opened(archived) as backend:
            assert f"finish detaching {ARCHIVE}_p2026_05" in backend.preview_partitions(plan(keep="5 months")).summary
    steps = maintain(archived, plan(keep="5 months"))
    assert whats(steps)[0].startswith(f'detached "public"."{ARCHIVE}_p2026_05"')
    assert everything(archived) == before
    assert sql(archived, "SELECT count(*) FROM pg_inherits WHERE inhdetachpending") == [(0,)]


def test_a_detach_that_somebody_else_began_is_finished_but_never_dropped(archived: str) -> None:
    table = f"{ARCHIVE}_p2026_05"
    cut_short_detach(archived, ARCHIVE, table)
    steps = maintain(archived, plan())
    assert whats(steps) == [f'finished detaching "public"."{table}", which somebody else had begun']
    maintain(archived, plan(NOW + 60 * DAY, keep="1 month"))
    maintain(archived, plan(NOW + 90 * DAY, keep="1 month"))
    assert sql(archived, f"SELECT count(*) > 0 FROM {table}") == [(True,)]


def test_writers_of_the_archive_do_not_wait_for_a_detach(archived: str) -> None:
    waited: list[float] = []
    failed: list[BackendError] = []

    def retire() -> None:
        try:
            maintain(archived, plan(keep="5 months"), Limits(statement_timeout=timedelta(seconds=8)))
        except BackendError as error:
            failed.append(error)

    with in_transaction(archived, f"SELECT count(*) FROM {ARCHIVE}") as reader, closing(connect(archived)) as writer:
        thread = threading.Thread(target=retire)
        thread.start()
        until(
            lambda: bool(
                sql(
                    archived,
                    "SELECT 1 FROM pg_stat_activity WHERE application_name = 'backendops' "
                    "AND query LIKE '%CONCURRENTLY%' AND wait_event_type = 'Lock'",
                )
            ),
            "the detach waits for the reader",
        )
        for _ in range(20):
            began = time.monotonic()
            with writer.cursor() as cursor:
                cursor.execute(f"INSERT INTO {ARCHIVE} (task_id, done_at) VALUES ('late', %s)", [NOW])
                cursor.execute(f"SELECT count(*) FROM {ARCHIVE} WHERE task_id = 'late'")
            waited.append(time.monotonic() - began)
        reader.rollback()
        thread.join(timeout=20)
    assert not failed
    # Sooner than the detach gives up, which is what they would wait for.
    assert max(waited) < 4
    assert f"{ARCHIVE}_p2026_05" not in attached(archived)


def test_beside_a_default_partition_a_plain_detach_is_bounded(archived: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ddl, "DDL_TRIES", 2)
    sql(archived, f"CREATE TABLE {ARCHIVE}_rest PARTITION OF {ARCHIVE} DEFAULT")
    before = everything(archived)
    with opened(archived) as backend:
        assert not any("CONCURRENTLY" in one for one in backend.preview_partitions(plan(keep="5 months")).statements)
    with in_transaction(archived, f"SELECT count(*) FROM {ARCHIVE}"), pytest.raises(BackendBusy):
        maintain(archived, plan(keep="5 months"), IMPATIENT)
    assert whats(maintain(archived, plan(keep="5 months")))[0].startswith(f'detached "public"."{ARCHIVE}_p2026_05"')
    assert everything(archived) == before


def given_a_default(url: str, rows: int = 700) -> None:
    """Somebody gives the archive a DEFAULT partition, and rows of two months without one come to it."""
    sql(
        url,
        f"CREATE TABLE {ARCHIVE}_rest PARTITION OF {ARCHIVE} DEFAULT",
        f"INSERT INTO {ARCHIVE} (id, task_id, done_at) SELECT n, 'late ' || n, "
        f"timestamptz '2027-03-15 UTC' + n * interval '1 hour' FROM generate_series(1, {rows}) AS n",
        f"INSERT INTO {ARCHIVE} (id, task_id, done_at) SELECT n, 'same ' || n, '2027-05-05' "
        "FROM generate_series(1, 30) AS n",
    )


def archived_rows(url: str) -> str:
    """A checksum of every row that is, or was, the archive's."""
    tables = sql(
        url, "SELECT c.relname FROM pg_class AS c WHERE relkind = 'r' AND relname LIKE 'celery_taskmeta_arch%'"
    )
    union = " UNION ALL ".join(f"SELECT * FROM ONLY {table}" for (table,) in tables)
    return str(sql(url, f"SELECT md5(string_agg(x::text, '|' ORDER BY x::text)) FROM ({union}) AS x")[0][0])


def test_a_default_partition_that_somebody_filled_is_drained_in_batches(archived: str) -> None:
    given_a_default(archived)
    rows = archived_rows(archived)
    with opened(archived) as backend:
        steps = list(backend.maintain_partitions(plan(), TimedPace(100)))
    moved = [step.rows for step in steps if step.rows]
    assert (sum(moved), len(moved) >= 4) == (730, True)
    assert archived_rows(archived) == rows
    assert sql(archived, f"SELECT count(*) FROM {ARCHIVE}") == [(300 + 730,)]
    assert {f"{ARCHIVE}_p2027_03", f"{ARCHIVE}_p2027_04", f"{ARCHIVE}_p2027_05"} <= set(attached(archived))
    assert [one.code for step in steps for one in step.findings] == ["partition.default-emptied"]
    assert f"{ARCHIVE}_rest" not in attached(archived)
    # It is somebody's table, so it stays, and is not spoken of again.
    assert sql(archived, f"SELECT count(*) FROM {ARCHIVE}_rest") == [(0,)]
    assert whats(maintain(archived, plan())) == []


def test_a_draining_that_is_cut_short_is_gone_on_with(archived: str) -> None:
    given_a_default(archived)
    rows = archived_rows(archived)
    for _ in range(4):
        with opened(archived) as backend:
            steps = backend.maintain_partitions(plan(), TimedPace(100))
            next(steps)
            next(steps)
            steps.close()
        assert archived_rows(archived) == rows
    with opened(archived) as backend:
        list(backend.maintain_partitions(plan(), TimedPace(100)))
    assert archived_rows(archived) == rows
    assert sql(archived, f"SELECT count(*) FROM {ARCHIVE}") == [(300 + 730,)]


def test_a_draining_goes_on_though_the_archive_got_columns_meanwhile(archived: str) -> None:
    given_a_default(archived)
    with opened(archived) as backend:
        steps = backend.maintain_partitions(plan(), TimedPace(100))
        next(steps)
        steps.close()
    # A Celery that was upgraded: the archive has its column, and what was taken out of it has not.
    sql(archived, f"ALTER TABLE {ARCHIVE} ADD COLUMN newer text", f"ALTER TABLE {ARCHIVE}_rest ADD COLUMN own text")
    with pytest.raises(BackendRefused, match="columns of its own: own"):
        maintain(archived, plan())
    sql(archived, f"ALTER TABLE {ARCHIVE}_rest DROP COLUMN own")
    maintain(archived, plan())
    assert sql(archived, f"SELECT count(*) FROM {ARCHIVE}") == [(300 + 730,)]


def test_an_empty_default_partition_is_left_where_it_is(archived: str) -> None:
    sql(archived, f"CREATE TABLE {ARCHIVE}_rest PARTITION OF {ARCHIVE} DEFAULT")
    assert whats(maintain(archived, plan())) == []
    assert f"{ARCHIVE}_rest" in attached(archived)


def test_a_keep_that_grew_again_keeps_what_is_in_quarantine(archived: str) -> None:
    before = sql(archived, f"SELECT count(*) FROM {ARCHIVE}")
    maintain(archived, plan(keep="5 months"))
    assert sql(archived, f"SELECT count(*) FROM {ARCHIVE}") != before
    for later in (plan(NOW + 30 * DAY, keep="9 months"), plan(NOW + 30 * DAY)):
        steps = maintain(archived, later)
        assert [one.code for one in steps[-1].findings] == ["partition.kept-again"]
        assert not any(what.startswith("dropped") for what in whats(steps))
    # The fix is SQL that works as it is printed.
    sql(archived, *steps[-1].findings[0].fix.rstrip(";").split("; "))
    assert sql(archived, f"SELECT count(*) FROM {ARCHIVE}") == before
    assert maintain(archived, plan())[-1].findings == ()


def test_only_tables_with_our_comment_are_dropped(archived: str) -> None:
    sql(
        archived,
        f"CREATE TABLE {ARCHIVE}_p2020_01 (LIKE {ARCHIVE})",
        f"CREATE TABLE {ARCHIVE}_p2020_02 (LIKE {ARCHIVE})",
        f'COMMENT ON TABLE {ARCHIVE}_p2020_02 IS \'{{"backendops": "partition", "state": "quarantined"}}\'',
        f"CREATE TABLE {ARCHIVE}_p2020_03 (LIKE {ARCHIVE})",
        f"COMMENT ON TABLE {ARCHIVE}_p2020_03 IS 'backendops may drop this'",
    )
    maintain(archived, plan(NOW + 30 * DAY, keep="1 month"))
    maintain(archived, plan(NOW + 60 * DAY, keep="1 month"))
    for month in ("01", "02", "03"):
        assert sql(archived, f"SELECT count(*) FROM {ARCHIVE}_p2020_{month}") == [(0,)]


def test_a_table_that_was_attached_again_is_not_dropped(archived: str) -> None:
    maintain(archived, plan(keep="5 months"))
    bounds = "FOR VALUES FROM ('2026-05-01 00:00Z') TO ('2026-06-01 00:00Z')"
    sql(archived, f"ALTER TABLE {ARCHIVE} ATTACH PARTITION {ARCHIVE}_p2026_05 {bounds}")
    steps = maintain(archived, plan(NOW + 30 * DAY, keep="9 months"))
    assert whats(steps) == [
        f'"public"."{ARCHIVE}_p2026_05" stays: its comment of an earlier retirement is gone',
        f'made "public"."{ARCHIVE}_p2027_03"',
        'made "public"."celery_tasksetmeta_archive_p2027_03"',
    ]
    assert f"{ARCHIVE}_p2026_05" in attached(archived)


def test_what_something_depends_on_is_not_dropped(archived: str) -> None:
    maintain(archived, plan(keep="5 months"))
    sql(archived, f"CREATE VIEW may AS SELECT * FROM {ARCHIVE}_p2026_05")
    with pytest.raises(BackendRefused, match="something depends on it") as caught:
        maintain(archived, plan(NOW + 8 * DAY, keep="5 months"))
    assert "view" in caught.value.hint
    assert sql(archived, "SELECT count(*) > 0 FROM may") == [(True,)]


def test_a_preview_says_what_a_run_then_does_and_changes_nothing(archived: str) -> None:
    wanted = plan(NOW + 40 * DAY, keep="4 months")
    catalog = (
        "SELECT md5(string_agg(c::text || coalesce(obj_description(c.oid), ''), '' ORDER BY oid)) FROM pg_class AS c"
    )
    before = sql(archived, catalog)
    with opened(archived, Limits(read_only=True)) as backend:
        preview = backend.preview_partitions(wanted)
    assert sql(archived, catalog) == before
    assert f"would make {ARCHIVE}_p2027_03, detach {ARCHIVE}_p2026_05, {ARCHIVE}_p2026_06" in preview.summary
    done = " ".join(whats(maintain(archived, wanted)))
    created = [one for one in preview.statements if one.startswith("CREATE TABLE")]
    detached = [one for one in preview.statements if "DETACH" in one]
    assert len(created) == done.count("made ")
    assert len(detached) == done.count("detached ")
    # As SQL, they are good: the same on a fresh table of that name.
    sql(
        archived, f"DROP TABLE {ARCHIVE}_p2027_03", *(one for one in preview.statements if f"{ARCHIVE}_p2027_03" in one)
    )


def test_one_archive_that_is_refused_does_not_keep_the_other_waiting(postgres_url: str) -> None:
    ensure_tables(postgres_url)
    sql(postgres_url, f"CREATE TABLE {ARCHIVE} (mine int)")
    steps: list[Step] = []
    with opened(postgres_url) as backend, pytest.raises(BackendRefused, match="not an archive of backendops"):
        steps.extend(backend.maintain_partitions(plan(), TimedPace()))
    assert (
        len(sql(postgres_url, "SELECT 1 FROM pg_inherits WHERE inhparent = 'celery_tasksetmeta_archive'::regclass"))
        == 4
    )
    assert sql(postgres_url, f"SELECT count(*) FROM {ARCHIVE}") == [(0,)]


def test_a_role_that_may_not_is_told_what_to_grant(archived: str) -> None:
    theirs = other_role(
        archived,
        "no_owner",
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO no_owner",
        "GRANT ALL ON SCHEMA public TO no_owner",
    )
    try:
        with pytest.raises(BackendRefused, match="must be owner of") as caught:
            maintain(theirs, plan(keep="5 months"))
        assert "GRANT" in caught.value.hint
    finally:
        sql(archived, "DROP OWNED BY no_owner")


@pytest.mark.parametrize("name", ['we"ird: na%me; -- ünï', "x" * 63])
def test_hostile_names_are_only_names(postgres18_url: str, name: str) -> None:
    celery_results(postgres18_url, 3, database_table_names={"task": name, "group": "groups"})
    fields = {"tables": {"task": name, "group": "groups"}}
    maintain(postgres18_url, plan(NOW - 400 * DAY), **fields)
    steps = maintain(postgres18_url, plan(keep="3 months"), **fields)
    # Of two archives with four partitions each; each newest one stays until there is a newer.
    assert sum("detached" in what for what in whats(steps)) == 6
    steps = maintain(postgres18_url, plan(NOW + 8 * DAY, keep="3 months"), **fields)
    assert sum(what.startswith("dropped") for what in whats(steps)) == 6


def test_retiring_reads_no_row(archived: str) -> None:
    """So that a partition of five million takes as long as one of fifty."""
    scans = (
        f"SELECT seq_scan, seq_tup_read, idx_scan FROM pg_stat_all_tables WHERE relid = '{ARCHIVE}_p2026_05'::regclass"
    )
    before = sql(archived, scans)
    maintain(archived, plan(keep="5 months"))
    assert f"{ARCHIVE}_p2026_05" not in attached(archived)
    assert sql(archived, scans) == before
