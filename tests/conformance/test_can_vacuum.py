"""CanVacuum: space made reusable where it is worth it, in nobody's way."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from backendops.backends.postgres import PostgresBackend, bloat
from backendops.backends.postgres import vacuum as vacuum_module
from backendops.contracts.capabilities import CanVacuum, IndexPlan, VacuumPlan
from backendops.contracts.errors import BackendBusy, BackendError, BackendRefused, BackendUnreachable
from backendops.contracts.retention import Retention
from backendops.contracts.run import Limits, NoWatermarks, Step
from backendops.engine.pacing import TimedPace
from backendops.jobs.archive import Archive
from backendops.jobs.vacuum import Vacuum
from tests.celery_rows import ensure_tables, fill_celery_table
from tests.conformance.postgres_store import in_transaction, opened, other_role, sql, until
from tests.conformance.stores import Store

CAPABILITY = CanVacuum
LIVE = "celery_taskmeta"
DAY = timedelta(days=1)


def plan(
    *, later: timedelta = timedelta(), dead_rows: int = 100, dead_ratio: float = 0.1, full: bool = False
) -> VacuumPlan:
    return VacuumPlan(datetime.now(UTC) + later, dead_rows, dead_ratio, 7 * DAY, full, freeze_past=False)


def vacuum(url: str, wanted: VacuumPlan, limits: Limits | None = None, **fields: Any) -> list[Step]:
    with opened(url, limits, **fields) as backend:
        return list(backend.vacuum(wanted, TimedPace()))


def whats(steps: list[Step]) -> list[str]:
    return [step.what for step in steps if step.what]


def codes(steps: list[Step]) -> list[str]:
    return [one.code for step in steps for one in step.findings]


def dead_rows(url: str, table: str = LIVE) -> int:
    return int(sql(url, f"SELECT n_dead_tup FROM pg_stat_all_tables WHERE relid = '{table}'::regclass")[0][0])


@pytest.fixture
def emptied(postgres_url: str) -> str:
    """1,000 results, half of which have just been removed."""
    fill_celery_table(postgres_url, 1000)
    sql(postgres_url, f"DELETE FROM {LIVE} WHERE id % 2 = 0")
    # A session tells the statistics what it did when it ends, which is after its client has gone.
    until(lambda: dead_rows(postgres_url) == 500, "500 dead rows")
    return postgres_url


def test_every_run_reads_the_size_of_every_table(store: Store) -> None:
    fill_celery_table(store.url, 200)
    job = Vacuum()
    with store.opened() as backend:
        steps = list(job.run(backend, datetime.now(UTC), TimedPace()))
        labels = set(backend.table_names())
    read = {(one.metric.name, *(value for _, value in one.labels)): one.value for s in steps for one in s.readings}
    assert {key[1] for key in read if key[0] == "backendops_table_bytes"} == labels
    assert read["backendops_table_bytes", LIVE] > 0
    # SQLite has no dead rows to speak of.
    assert read.get(("backendops_table_dead_rows", LIVE), 0) >= 0
    assert read["backendops_findings", "warning"] == 0


def test_a_preview_changes_nothing(store: Store) -> None:
    fill_celery_table(store.url, 200)
    with store.previewing() as backend:
        preview = Vacuum().preview(backend, datetime.now(UTC))
    assert preview.summary
    assert {one.metric.name for one in preview.readings} >= {"backendops_table_bytes"}


def test_dead_rows_are_removed_and_counted(emptied: str) -> None:
    (clean, last) = vacuum(emptied, plan())
    assert clean.rows == 500
    assert clean.what.startswith(f'vacuumed "public"."{LIVE}" in ')
    assert "dead rows 500 → 0" in clean.what
    assert {(one.metric.name, dict(one.labels)["table"]): one.value for one in last.readings}[
        "backendops_table_dead_rows", LIVE
    ] == 0
    assert dead_rows(emptied) == 0
    assert whats(vacuum(emptied, plan())) == ["no table needs a vacuum"]


@pytest.mark.parametrize("thresholds", [{"dead_rows": 501}, {"dead_ratio": 0.51}])
def test_below_either_threshold_a_table_is_left_alone(emptied: str, thresholds: dict[str, Any]) -> None:
    assert whats(vacuum(emptied, plan(**thresholds))) == ["no table needs a vacuum"]
    assert dead_rows(emptied) == 500


def test_old_statistics_are_renewed_where_rows_have_changed(emptied: str) -> None:
    vacuum(emptied, plan())
    assert whats(vacuum(emptied, plan(later=8 * DAY))) == ["no table needs a vacuum"]
    sql(emptied, f"UPDATE {LIVE} SET queue = 'other' WHERE id < 20")
    assert whats(vacuum(emptied, plan(later=6 * DAY))) == ["no table needs a vacuum"]
    assert [what.partition(" in ")[0] for what in whats(vacuum(emptied, plan(later=8 * DAY)))] == [
        f'analyzed "public"."{LIVE}"'
    ]


def told_of(url: str, count: str) -> int:
    """What the statistics of the archive's partitions tell of that. PostgreSQL 14 is half a second late."""
    rows = sql(url, f"SELECT sum({count}) FROM pg_stat_all_tables WHERE relname LIKE 'kept {LIVE}\\_p%'")
    return int(rows[0][0] or 0)


def deleted(url: str, which: str) -> int:
    """Delete these of the archive; how many there were."""
    return int(
        sql(url, f'WITH d AS (DELETE FROM "kept {LIVE}" WHERE {which} RETURNING 1) SELECT count(*) FROM d')[0][0]
    )


def test_the_archives_partitions_and_statistics_are_kept_too(emptied: str) -> None:
    with opened(emptied) as backend:
        job = Archive(older_than="7d", table="kept {table}")
        list(backend.archive(Retention(datetime.now(UTC) - 7 * DAY), job.plan, TimedPace()))
    archived = int(sql(emptied, f'SELECT count(*) FROM "kept {LIVE}"')[0][0])
    until(lambda: told_of(emptied, "n_mod_since_analyze") == archived, "what was archived is known")
    vacuum(emptied, plan(later=8 * DAY))
    gone = deleted(emptied, "id % 4 <> 1")
    until(lambda: told_of(emptied, "n_dead_tup") == gone, "what was deleted is known")
    done = whats(vacuum(emptied, plan(dead_rows=1)))
    assert done
    assert all(what.startswith(f'vacuumed "public"."kept {LIVE}_p') for what in done)
    gone = deleted(emptied, "id % 8 <> 1")
    until(lambda: told_of(emptied, "n_dead_tup") == gone, "what was deleted is known")
    # Autovacuum never looks at a partitioned parent, whose statistics plan every query of the archive.
    assert any(
        what.startswith(f'analyzed "public"."kept {LIVE}"') for what in whats(vacuum(emptied, plan(later=8 * DAY)))
    )


def test_who_holds_dead_rows_back_is_named_and_left_in_peace(emptied: str) -> None:
    with in_transaction(
        emptied, f"BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM {LIVE} LIMIT 1", application_name="long report"
    ) as holder:
        sql(emptied, f"DELETE FROM {LIVE}")
        steps = vacuum(emptied, plan())
        assert codes(steps) == ["vacuum.held-back"]
        (finding,) = [one for step in steps for one in step.findings]
        assert f"session long report (pid {holder.info.backend_pid})" in finding.sentence
        assert "could not be removed" in finding.sentence
        with opened(emptied) as backend:
            assert "long report" in backend.preview_vacuum(plan()).summary
        with holder.cursor() as cursor:
            cursor.execute("SELECT 1")
    assert codes(vacuum(emptied, plan())) == []
    assert dead_rows(emptied) == 0


def test_a_table_that_somebody_works_on_is_left_without_waiting(emptied: str) -> None:
    with in_transaction(emptied, f"LOCK TABLE {LIVE} IN SHARE UPDATE EXCLUSIVE MODE") as other:
        took: list[float] = []
        # The quickest of three: what else the machine does is not the vacuum's fault.
        for _ in range(3):
            began = time.monotonic()
            done = whats(vacuum(emptied, plan()))
            took.append(time.monotonic() - began)
        assert min(took) < 1.5
        assert done == [
            f'left "public"."{LIVE}" alone: pid {other.info.backend_pid}, autovacuum or somebody else, works on it now'
        ]
    assert dead_rows(emptied) == 500


def test_a_role_that_may_not_vacuum_is_told_before_it_tries(emptied: str) -> None:
    theirs = other_role(emptied, "no_vacuum", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO no_vacuum")
    try:
        with opened(theirs) as backend:
            assert [one.code for one in backend.preview_vacuum(plan()).findings] == ["vacuum.not-permitted"]
        with pytest.raises(BackendRefused, match="may not vacuum") as caught:
            vacuum(theirs, plan())
        assert f'GRANT MAINTAIN ON "public"."{LIVE}" TO "no_vacuum"' in caught.value.hint
        # Nobody is to be made a superuser for a vacuum.
        assert 'GRANT "postgres"' not in caught.value.hint
        assert dead_rows(emptied) == 500
        if int(sql(emptied, "SHOW server_version_num")[0][0]) >= 170000:
            sql(emptied, f"GRANT MAINTAIN ON {LIVE} TO no_vacuum")
            vacuum(theirs, plan())
            assert dead_rows(emptied) == 0
    finally:
        sql(emptied, "DROP OWNED BY no_vacuum")


@pytest.fixture
def slow(postgres_url: str) -> str:
    """A table whose vacuum takes minutes, as one of many gigabytes does."""
    fill_celery_table(postgres_url, 3000, payload=500)
    database = sql(postgres_url, "SELECT current_database()")[0][0]
    sql(
        postgres_url,
        f"DELETE FROM {LIVE} WHERE id % 2 = 0",
        f"ALTER DATABASE {database} SET vacuum_cost_delay = 100",
        f"ALTER DATABASE {database} SET vacuum_cost_limit = 1",
    )
    until(lambda: dead_rows(postgres_url) == 1500, "1,500 dead rows")
    return postgres_url


def test_a_vacuum_ends_with_the_runs_time(slow: str) -> None:
    # Time enough to look at everything first, which a busy machine needs more of.
    for budget in (0.4, 2, 10):
        began = time.monotonic()
        done = whats(vacuum(slow, plan(), Limits(budget=timedelta(seconds=budget))))
        assert time.monotonic() - began < budget + 5
        if not done[0].startswith("did not begin"):
            break
    assert done == [f"""ended the vacuum of "public"."{LIVE}": the run's time is over"""]
    assert dead_rows(slow) == 1500


def test_a_vacuum_is_ended_by_an_interrupt(slow: str) -> None:
    steps: list[Step] = []
    failed: list[BackendBusy] = []

    def run(backend: PostgresBackend) -> None:
        try:
            steps.extend(backend.vacuum(plan(), TimedPace()))
        except BackendBusy as error:
            failed.append(error)

    with opened(slow) as backend:
        thread = threading.Thread(target=run, args=(backend,), daemon=True)
        thread.start()
        until(lambda: bool(sql(slow, "SELECT 1 FROM pg_stat_progress_vacuum")), "it vacuums")
        began = time.monotonic()
        backend.interrupt()
        thread.join(timeout=10)
        assert time.monotonic() - began < 5
    # The engine asks for a stop after the step; whoever goes on regardless is told so.
    assert whats(steps) == [f"""ended the vacuum of "public"."{LIVE}": the run's time is over"""]
    assert "asked to end" in str(failed[0])


def test_a_table_is_rewritten_only_in_the_window_and_where_it_is_worth_it(
    emptied: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = f"SELECT pg_relation_filenode('{LIVE}')"
    before = sql(emptied, file)
    vacuum(emptied, plan(full=True))
    assert sql(emptied, file) == before
    # Sixteen megabytes, for a table of a third of one.
    monkeypatch.setattr(bloat, "WORTH_BYTES", 64 * 1024)
    vacuum(emptied, plan())
    assert sql(emptied, file) == before
    with opened(emptied) as backend:
        assert f'rewrite "public"."{LIVE}" (VACUUM FULL' in backend.preview_vacuum(plan(full=True)).summary
    assert [what.partition(":")[0] for what in whats(vacuum(emptied, plan(full=True)))] == [
        f'rewrote "public"."{LIVE}"'
    ]
    assert sql(emptied, file) != before
    assert sql(emptied, f"SELECT count(*) FROM {LIVE}") == [(500,)]
    assert whats(vacuum(emptied, plan(full=True))) == ["no table needs a vacuum"]


def test_a_plan_says_that_a_rewrite_depends_on_the_vacuum_before_it(
    emptied: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bloat, "WORTH_BYTES", 64 * 1024)
    with opened(emptied) as backend:
        said = backend.preview_vacuum(plan(full=True)).summary
    assert f'rewrite "public"."{LIVE}" (VACUUM FULL, if it is still worth it after its vacuum: ' in said


def test_a_rewrite_never_queues_for_its_lock(emptied: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bloat, "WORTH_BYTES", 64 * 1024)
    monkeypatch.setattr(vacuum_module, "FULL_TRIES", 5)
    vacuum(emptied, plan())
    waited: list[float] = []
    done: list[Step] = []
    with in_transaction(emptied, f"SELECT 1 FROM {LIVE} LIMIT 1"):
        thread = threading.Thread(target=lambda: done.extend(vacuum(emptied, plan(full=True))), daemon=True)
        thread.start()
        while thread.is_alive():
            began = time.monotonic()
            sql(emptied, f"UPDATE {LIVE} SET queue = queue WHERE id = 1")
            waited.append(time.monotonic() - began)
        thread.join()
    assert whats(done) == [f'did not rewrite "public"."{LIVE}": no moment without another session on it']
    # Not as long as a lock that is queued for may be waited for.
    assert max(waited) < 1.9


def test_without_tables_there_is_nothing_to_vacuum(postgres_url: str) -> None:
    (step,) = vacuum(postgres_url, plan())
    assert step.what == "no table needs a vacuum"
    assert {one.value for one in step.readings} == {0}
    assert codes([step]) == ["postgres.no-table"]


def test_partitions_of_a_live_table_count_as_one(postgres18_url: str) -> None:
    ensure_tables(postgres18_url)
    sql(
        postgres18_url,
        f"DROP TABLE {LIVE}",
        f"CREATE TABLE {LIVE} (id int, task_id text, status text, date_done timestamp) PARTITION BY RANGE (id)",
        f"CREATE TABLE {LIVE}_1 PARTITION OF {LIVE} FOR VALUES FROM (0) TO (1000)",
        f"CREATE TABLE {LIVE}_2 PARTITION OF {LIVE} FOR VALUES FROM (1000) TO (2000)",
        f"INSERT INTO {LIVE} SELECT n FROM generate_series(0, 1999) AS n",
        f"DELETE FROM {LIVE} WHERE id % 2 = 0",
    )
    with opened(postgres18_url) as backend:
        values = {
            dict(one.labels)["table"]: one.value
            for one in backend.preview_vacuum(plan()).readings
            if "dead" in one.metric.name
        }
    assert values == {LIVE: 1000, "celery_tasksetmeta": 0}
    done = whats(vacuum(postgres18_url, plan()))
    assert {what.partition(" in ")[0] for what in done} >= {f'vacuumed "public"."{LIVE}_{n}"' for n in (1, 2)}


def test_a_rewrite_does_not_begin_when_its_window_has_closed(emptied: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bloat, "WORTH_BYTES", 64 * 1024)
    vacuum(emptied, plan())
    file = f"SELECT pg_relation_filenode('{LIVE}')"
    before, now = sql(emptied, file), datetime.now(UTC)
    # The run began inside its window, and vacuumed until after its end.
    late = replace(plan(full=True), now=now - timedelta(hours=1), full_until=now - timedelta(minutes=30))
    assert whats(vacuum(emptied, late)) == [
        f"""did not begin the vacuum full of "public"."{LIVE}": its window is over"""
    ]
    assert sql(emptied, file) == before
    in_time = replace(late, full_until=now + timedelta(minutes=30))
    assert [what.partition(":")[0] for what in whats(vacuum(emptied, in_time))] == [f'rewrote "public"."{LIVE}"']


@pytest.mark.parametrize(
    ("setting", "needed"), [("statement_timeout", 14), ("transaction_timeout", 17)], ids=["statement", "transaction"]
)
def test_a_limit_of_the_roles_is_named(slow: str, setting: str, needed: int) -> None:
    if int(sql(slow, "SHOW server_version_num")[0][0]) < needed * 10_000:
        pytest.skip(f"PostgreSQL has {setting} since {needed}")
    database = sql(slow, "SELECT current_database()")[0][0]
    sql(slow, f"ALTER DATABASE {database} SET {setting} = 300")
    with pytest.raises(BackendError) as caught:
        vacuum(slow, plan())
    assert not isinstance(caught.value, BackendUnreachable)
    assert f"SET {setting} = 0" in caught.value.hint


def test_another_roles_archive_in_the_same_database_is_left_to_it(emptied: str) -> None:
    ours = other_role(emptied, "tenant_a", "GRANT tenant_a TO CURRENT_USER")
    theirs = other_role(emptied, "tenant_b", "CREATE SCHEMA tenant_b AUTHORIZATION tenant_b")
    try:
        sql(emptied, *(f"ALTER TABLE {table} OWNER TO tenant_a" for table in (LIVE, "celery_tasksetmeta")))
        sql(
            theirs,
            "CREATE TABLE tenant_b.kept (id int, done_at timestamptz NOT NULL, archived_at timestamptz) "
            "PARTITION BY RANGE (done_at)",
            "CREATE TABLE tenant_b.kept_1 PARTITION OF tenant_b.kept FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')",
            "INSERT INTO tenant_b.kept SELECT n, '2026-02-02' FROM generate_series(1, 5000) AS n",
            "DELETE FROM tenant_b.kept",
        )
        until(lambda: dead_rows(emptied, "tenant_b.kept_1") == 5000, "5,000 dead rows")
        steps = vacuum(ours, plan())
        assert [what.partition(" in ")[0] for what in whats(steps)] == [f'vacuumed "public"."{LIVE}"']
        assert codes(steps) == ["vacuum.others"]
        assert dead_rows(emptied, "tenant_b.kept_1") == 5000
        with opened(ours) as backend:
            assert "kept" not in backend.preview_vacuum(plan()).summary
    finally:
        sql(emptied, "REASSIGN OWNED BY tenant_a TO CURRENT_USER", "DROP OWNED BY tenant_a, tenant_b")


def test_what_needs_longer_than_a_run_keeps_nobody_waiting_for_ever(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine, looking at everything first may take as long as the vacuum is given.
    monkeypatch.setattr(vacuum_module, "MOST_OF_IT", 0.1)
    fill_celery_table(postgres_url, 3000, payload=500)
    sql(
        postgres_url,
        f"DELETE FROM {LIVE} WHERE id % 2 = 0",
        "INSERT INTO celery_tasksetmeta (id, taskset_id) SELECT n, n FROM generate_series(1, 200) AS n",
        "DELETE FROM celery_tasksetmeta",
    )
    until(lambda: dead_rows(postgres_url) == 1500, "1,500 dead rows")
    until(lambda: dead_rows(postgres_url, "celery_tasksetmeta") == 200, "200 dead rows")
    database = sql(postgres_url, "SELECT current_database()")[0][0]
    sql(
        postgres_url,
        f"ALTER DATABASE {database} SET vacuum_cost_delay = 10",
        f"ALTER DATABASE {database} SET vacuum_cost_limit = 1",
    )
    remembered = NoWatermarks()

    def once() -> list[Step]:
        with PostgresBackend(url=postgres_url).open(Limits(budget=timedelta(seconds=2)), remembered) as backend:
            return list(backend.vacuum(plan(), TimedPace()))

    first = once()
    assert whats(first) == [f"""ended the vacuum of "public"."{LIVE}": the run's time is over"""]
    (finding,) = [one for step in first for one in step.findings]
    assert finding.code == "vacuum.ended"
    assert "raise time_budget" in finding.fix
    assert dead_rows(postgres_url, "celery_tasksetmeta") == 200
    second = once()
    assert whats(second)[0].startswith('vacuumed "public"."celery_tasksetmeta"')
    assert dead_rows(postgres_url, "celery_tasksetmeta") == 0
    # It had what was left, and comes last again.
    assert whats(second)[1] == whats(first)[0]
    assert codes(second) == ["vacuum.ended"]
    sql(postgres_url, f"ALTER DATABASE {database} RESET vacuum_cost_delay")
    assert [what.partition(" in ")[0] for what in whats(once())] == [f'vacuumed "public"."{LIVE}"']
    assert remembered.recall("vacuum.ended") == "{}"


def test_an_empty_end_is_not_cut_off(emptied: str) -> None:
    size = f"SELECT pg_relation_size('{LIVE}')"
    before = sql(emptied, size)
    sql(emptied, f"DELETE FROM {LIVE}")
    assert "TRUNCATE FALSE" in " ".join(opened_preview(emptied))
    vacuum(emptied, plan())
    # It takes an exclusive lock, for which a replica ends its readers.
    assert (dead_rows(emptied), sql(emptied, size)) == (0, before)
    sql(emptied, f"VACUUM (TRUNCATE) {LIVE}")
    assert sql(emptied, size) == [(0,)]


def opened_preview(url: str) -> tuple[str, ...]:
    with opened(url) as backend:
        return backend.preview_vacuum(plan()).statements


def test_a_partitioned_table_is_analyzed_without_its_partitions(postgres18_url: str) -> None:
    ensure_tables(postgres18_url)
    sql(
        postgres18_url,
        f"DROP TABLE {LIVE}",
        f"CREATE TABLE {LIVE} (id int, task_id text, status text, date_done timestamp) PARTITION BY RANGE (id)",
        f"CREATE TABLE {LIVE}_1 PARTITION OF {LIVE} FOR VALUES FROM (0) TO (1000)",
        f"INSERT INTO {LIVE} SELECT n FROM generate_series(0, 999) AS n",
        f"ANALYZE {LIVE}_1",
    )
    analyzed = f"SELECT last_analyze FROM pg_stat_all_tables WHERE relname = '{LIVE}_1'"
    before = sql(postgres18_url, analyzed)
    done = whats(vacuum(postgres18_url, plan()))
    assert [what.partition(" in ")[0] for what in done] == [f'analyzed "public"."{LIVE}"']
    assert sql(postgres18_url, analyzed) == before


def test_a_rewrite_that_gave_nothing_back_is_not_repeated(emptied: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bloat, "WORTH_BYTES", 64 * 1024)
    # An estimate that is wrong: the table always seems to be half empty.
    monkeypatch.setattr(bloat.Meter, "table", lambda _, table: bloat.Bloat(table.size // 2, table.size, "estimate"))
    remembered = NoWatermarks()

    def once() -> list[str]:
        with PostgresBackend(url=emptied).open(Limits(), remembered) as backend:
            return whats(list(backend.vacuum(plan(dead_rows=10**9, full=True), TimedPace())))

    assert once()[-1].startswith(f'rewrote "public"."{LIVE}"')
    file = sql(emptied, f"SELECT pg_relation_filenode('{LIVE}')")
    assert once() == ["no table needs a vacuum"]
    assert sql(emptied, f"SELECT pg_relation_filenode('{LIVE}')") == file
    # Four times as large: three quarters of what seems empty is more than what the rewrite left.
    fill_celery_table(emptied, 3000)
    assert once()[-1].startswith(f'rewrote "public"."{LIVE}"')


@pytest.mark.parametrize("how", ["held", "wanted"])
def test_a_partition_that_somebody_has_alone_stops_nothing_else(emptied: str, how: str) -> None:
    with opened(emptied) as backend:
        list(backend.archive(Retention(datetime.now(UTC) - 7 * DAY), Archive(older_than="7d").plan, TimedPace()))
    parts = f"SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = '{LIVE}_archive'::regclass"
    locked = sql(emptied, parts)[0][0]
    sql(emptied, f"DELETE FROM {LIVE}")
    until(lambda: dead_rows(emptied) >= 500, "dead rows")
    wanted = replace(plan(later=8 * DAY), indexes=IndexPlan(True, True, 0.3, datetime.now(UTC) + DAY))
    exclusive = f"LOCK TABLE {locked} IN ACCESS EXCLUSIVE MODE"
    with in_transaction(emptied, exclusive if how == "held" else f"SELECT 1 FROM {locked} LIMIT 1") as other:
        waiting = threading.Thread(target=lambda: sql(emptied, f"BEGIN; {exclusive}"), daemon=True)
        if how == "wanted":
            waiting.start()
            until(lambda: bool(sql(emptied, "SELECT 1 FROM pg_locks WHERE NOT granted")), "it waits")
        began = time.monotonic()
        with opened(emptied) as backend:
            backend.preview_vacuum(wanted)
        done = whats(vacuum(emptied, wanted))
        assert time.monotonic() - began < 5
        other.rollback()
    if how == "wanted":
        waiting.join(timeout=10)
    assert any(what.startswith(f'vacuumed "public"."{LIVE}"') for what in done)
    assert not any(f'analyzed "public"."{LIVE}_archive" ' in what for what in done)
