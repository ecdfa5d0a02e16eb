"""Indexes in the vacuum job: made, dropped and rebuilt online; what is only reported names the statement."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import pytest

from backendops.backends.postgres import bloat, index_work
from backendops.backends.postgres.quarantine import Retirement
from backendops.backends.postgres.vacuum_survey import Memory
from backendops.contracts.capabilities import IndexPlan
from backendops.contracts.errors import BackendBusy, BackendRefused
from backendops.contracts.readings import Finding
from backendops.contracts.retention import Retention
from backendops.contracts.run import Limits, Step
from backendops.engine.pacing import TimedPace
from backendops.jobs.archive import Archive
from tests.celery_rows import celery_results, ensure_tables, fill_celery_table
from tests.conformance.postgres_store import connect, in_transaction, opened, other_role, sql, until
from tests.conformance.test_can_vacuum import LIVE, plan, whats
from tests.pgbouncer import PgBouncer
from tests.servers import Postgres

INDEX = f"ix_{LIVE}_date_done"
CREATE = IndexPlan(create_missing=True)
# The first version with a privilege for it.
MAINTAIN = 17
# What keeps a build waiting, and nothing else: a snapshot older than the build, on another table.
OLD_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM celery_tasksetmeta LIMIT 1"


def run(url: str, indexes: IndexPlan, budget: timedelta = timedelta(minutes=1), **fields: Any) -> list[Step]:
    """One run of the vacuum job that has nothing else to do."""
    wanted = replace(plan(dead_rows=10**9), indexes=indexes)
    while True:
        with opened(url, Limits(budget=budget), **fields) as backend:
            steps = list(backend.vacuum(wanted, TimedPace()))
        if not any(what.startswith("did not begin") for what in whats(steps)) or budget > timedelta(seconds=10):
            return steps
        # On a busy machine, looking at everything first took it all.
        budget *= 3


def findings(steps: list[Step]) -> dict[str, Finding]:
    return {one.code: one for step in steps for one in step.findings}


def indexes_of(url: str, table: str = LIVE) -> dict[str, bool]:
    """Each index and whether it is valid."""
    rows = sql(
        url,
        "SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        f"WHERE i.indrelid = '{table}'::regclass",
    )
    return {str(name): bool(valid) for name, valid in rows}


@pytest.fixture
def upgraded(postgres_url: str) -> str:
    """Tables as Celery before 5.6.3 made them: without an index on date_done."""
    fill_celery_table(postgres_url, 1000)
    sql(postgres_url, f"DROP INDEX {INDEX}", f"ANALYZE {LIVE}")
    return postgres_url


def test_a_missing_index_is_reported_with_its_statement(upgraded: str) -> None:
    finding = findings(run(upgraded, IndexPlan()))["indexes.missing"]
    assert INDEX not in indexes_of(upgraded)
    statement = finding.fix.partition(";")[0]
    assert statement == f'CREATE INDEX CONCURRENTLY "{INDEX}" ON "public"."{LIVE}" (date_done)'
    sql(upgraded, statement)
    assert findings(run(upgraded, IndexPlan())) == {}


def test_a_missing_index_is_created_while_celery_writes(upgraded: str) -> None:
    with opened(upgraded) as backend:
        preview = backend.preview_vacuum(replace(plan(), indexes=CREATE))
    assert f'create the missing index on date_done of "public"."{LIVE}" (about ' in preview.summary
    assert f'CREATE INDEX CONCURRENTLY "{INDEX}" ON "public"."{LIVE}" (date_done)' in preview.statements
    assert INDEX not in indexes_of(upgraded)
    with in_transaction(upgraded, f"INSERT INTO {LIVE} (id, task_id) VALUES (-1, 'in a transaction')") as writer:
        built: list[Step] = []
        thread = threading.Thread(target=lambda: built.extend(run(upgraded, CREATE)), daemon=True)
        thread.start()
        # It waits for the writer; nobody waits for it.
        until(lambda: INDEX in indexes_of(upgraded), "the build has begun")
        assert len(celery_results(upgraded, 3)) == 3
        writer.commit()
        thread.join(timeout=20)
    assert whats(built)[0].startswith(f'created "public"."{INDEX}" on "public"."{LIVE}" (date_done) in ')
    assert indexes_of(upgraded)[INDEX]
    assert whats(run(upgraded, CREATE)) == ["no table needs a vacuum"]


def test_a_name_that_is_taken_is_left_to_its_owner(upgraded: str) -> None:
    sql(upgraded, f'CREATE TABLE "{INDEX}" (x int)')
    assert f'created "public"."{INDEX}_2"' in whats(run(upgraded, CREATE))[0]
    assert indexes_of(upgraded)[f"{INDEX}_2"]


def test_a_build_that_the_budget_ends_leaves_nothing(upgraded: str) -> None:
    with in_transaction(upgraded, OLD_SNAPSHOT, application_name="report") as holder:
        done = whats(run(upgraded, CREATE, timedelta(seconds=1)))
        assert done == [
            f'ended the build of "public"."{INDEX}": the run\'s time is over; what it left is dropped; '
            + done[0].partition("is dropped; ")[2]
        ]
        assert f"session report (pid {holder.info.backend_pid})" in done[0]
        assert done[0].endswith("may be what it waited for")
    assert all(indexes_of(upgraded).values())
    assert len(indexes_of(upgraded)) == 2


def test_a_build_that_is_interrupted_leaves_nothing(upgraded: str) -> None:
    done: list[Step] = []

    def build() -> None:
        wanted = replace(plan(dead_rows=10**9), indexes=CREATE)
        with opened(upgraded) as backend:
            interrupts.append(backend.interrupt)
            steps = backend.vacuum(wanted, TimedPace())
            done.append(next(steps))
            steps.close()

    interrupts: list[Any] = []
    with in_transaction(upgraded, OLD_SNAPSHOT):
        thread = threading.Thread(target=build, daemon=True)
        thread.start()
        until(lambda: INDEX in indexes_of(upgraded), "the build has begun")
        interrupts[0]()
        thread.join(timeout=10)
    assert "what it left is dropped" in done[0].what
    assert len(indexes_of(upgraded)) == 2


def test_what_cannot_be_dropped_at_once_the_next_run_drops(upgraded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backendops.backends.postgres.indexes.CLEAN_UP_SECONDS", 0.3)
    with in_transaction(upgraded, OLD_SNAPSHOT.replace("celery_tasksetmeta", LIVE)):
        (said, *_) = whats(run(upgraded, CREATE, timedelta(seconds=1)))
        assert said.endswith("what it left could not be dropped now, the next run does")
    assert [valid for valid in indexes_of(upgraded).values() if not valid] == [False]
    (dropped, created, *_) = whats(run(upgraded, CREATE))
    assert dropped.startswith('dropped the invalid index "public"."backendops_drop_')
    assert created.startswith(f'created "public"."{INDEX}"')
    assert sorted(indexes_of(upgraded).values()) == [True, True, True]


def test_what_another_session_works_on_is_said_to_stay(upgraded: str) -> None:
    queued = connect(upgraded)

    def lock() -> None:
        with queued.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute(f"LOCK TABLE {LIVE} IN SHARE UPDATE EXCLUSIVE MODE")

    with in_transaction(upgraded, OLD_SNAPSHOT), closing(queued):
        done: list[Step] = []
        building = threading.Thread(
            target=lambda: done.extend(run(upgraded, CREATE, timedelta(seconds=2))), daemon=True
        )
        building.start()
        until(lambda: INDEX in indexes_of(upgraded), "the build has begun")
        thread = threading.Thread(target=lock, daemon=True)
        thread.start()
        building.join(timeout=10)
        thread.join(timeout=10)
    assert whats(done)[0].endswith("what it left stays until the next run: another session works on the table now")
    assert indexes_of(upgraded)[INDEX] is False
    assert whats(run(upgraded, CREATE))[0].startswith(f'dropped the invalid index "public"."{INDEX}"')


def test_a_drop_that_waits_leaves_time_for_the_rest(upgraded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backendops.backends.postgres.indexes.DROP_PATIENCE", timedelta(seconds=0.5))
    wanted = IndexPlan(create_missing=True, drop_invalid=True)
    with invalid_index(upgraded) as name:
        sql(upgraded, f"CREATE INDEX {INDEX} ON {LIVE} (date_done)", f"UPDATE {LIVE} SET queue = 'again'")
        with in_transaction(upgraded, f"SELECT 1 FROM {LIVE} LIMIT 1"), opened(upgraded) as backend:
            done = whats(list(backend.vacuum(replace(plan(), indexes=wanted), TimedPace())))
        assert done[0].startswith(f'did not drop "public"."{name}" in ')
        assert done[1].startswith(f'vacuumed "public"."{LIVE}"')
        assert whats(run(upgraded, wanted))[0].startswith('dropped the invalid index "public"."backendops_drop_')


@contextmanager
def invalid_index(url: str) -> Iterator[str]:
    """An index that somebody's build left."""
    with suppress(psycopg2.errors.UniqueViolation):
        sql(url, f"CREATE UNIQUE INDEX CONCURRENTLY theirs ON {LIVE} (status)")
    assert indexes_of(url)["theirs"] is False
    yield "theirs"


def test_what_somebodys_build_left_is_reported_and_dropped_when_asked(upgraded: str) -> None:
    sql(upgraded, f"CREATE INDEX {INDEX} ON {LIVE} (date_done)")
    with invalid_index(upgraded) as name:
        steps = run(upgraded, IndexPlan())
        assert f'DROP INDEX CONCURRENTLY "public"."{name}";' in findings(steps)["indexes.invalid"].fix
        counted = {dict(r.labels)["table"]: r.value for r in steps[-1].readings if "invalid" in r.metric.name}
        assert counted == {LIVE: 1, "celery_tasksetmeta": 0}
        assert name in indexes_of(upgraded)
        with opened(upgraded) as backend:
            preview = backend.preview_vacuum(replace(plan(), indexes=IndexPlan(drop_invalid=True)))
        assert f'DROP INDEX CONCURRENTLY "public"."{name}"' in preview.statements
        steps = run(upgraded, IndexPlan(drop_invalid=True))
        assert whats(steps)[0].startswith(f'dropped the invalid index "public"."{name}"')
        assert findings(steps) == {}
        assert all(indexes_of(upgraded).values())


def test_an_index_that_is_being_built_now_is_left_alone(upgraded: str) -> None:
    def build() -> None:
        sql(upgraded, f"CREATE INDEX CONCURRENTLY theirs ON {LIVE} (worker)")

    with in_transaction(upgraded, OLD_SNAPSHOT):
        thread = threading.Thread(target=build, daemon=True)
        thread.start()
        until(lambda: "theirs" in indexes_of(upgraded), "it is being built")
        steps = run(upgraded, IndexPlan(create_missing=True, drop_invalid=True))
        assert "indexes.invalid" not in findings(steps)
        (said, *_) = whats(steps)
        assert said.startswith(f'did not index "public"."{LIVE}": pid ')
    thread.join(timeout=20)
    assert indexes_of(upgraded)["theirs"] is True


def test_an_index_that_became_valid_meanwhile_is_not_dropped(upgraded: str) -> None:
    with invalid_index(upgraded), opened(upgraded) as backend:
        wanted = IndexPlan(drop_invalid=True)
        survey = backend._survey_tables(plan(), Memory(backend.watermarks))
        state = backend.index_state(survey.found.tables, survey.tables, wanted)
        sql(upgraded, f"UPDATE {LIVE} SET status = id::text", "REINDEX INDEX CONCURRENTLY theirs")
        (step,) = backend.drop_leftovers(state, float("inf"))
        assert step.what == 'left "public"."theirs": it is not invalid any more'
    assert indexes_of(upgraded)["theirs"] is True


def test_duplicate_and_unused_indexes_are_reported_never_dropped(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_work, "UNUSED_AFTER", 20)
    fill_celery_table(postgres_url, 500)
    sql(
        postgres_url,
        f'CREATE INDEX "my own" ON {LIVE} (task_id)',
        f"CREATE INDEX by_worker ON {LIVE} (worker)",
        f"CREATE INDEX partial ON {LIVE} (task_id) WHERE status = 'FAILURE'",
        f"ANALYZE {LIVE}",
    )
    with closing(connect(postgres_url)) as session, session.cursor() as cursor:
        cursor.execute("SET enable_seqscan = off")
        for number in range(30):
            cursor.execute(f"SELECT status FROM {LIVE} WHERE id = %s", (number,))
    # The session tells of them when it ends, which is after its client has gone.
    used = f"SELECT idx_scan FROM pg_stat_all_indexes WHERE indexrelname = '{LIVE}_pkey'"
    until(lambda: sql(postgres_url, used)[0][0] >= 30, "it is known what was used")
    all_of_them = IndexPlan(create_missing=True, drop_invalid=True)
    steps = run(postgres_url, all_of_them)
    found = [(one.code, one.fix.partition(";")[0]) for step in steps for one in step.findings]
    assert ("indexes.duplicate", 'DROP INDEX CONCURRENTLY "public"."my own"') in found
    assert ("indexes.unused", 'DROP INDEX CONCURRENTLY "public"."by_worker"') in found
    assert len(found) == 3  # the partial one is unused, too
    assert whats(steps) == ["no table needs a vacuum"]
    assert len(indexes_of(postgres_url)) == 6


def test_a_role_that_does_not_own_the_table_is_told_so(upgraded: str) -> None:
    theirs = other_role(upgraded, "no_owner", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO no_owner")
    try:
        with pytest.raises(BackendRefused, match="may not create the missing index") as caught:
            run(theirs, CREATE)
        assert caught.value.hint.startswith("CREATE INDEX CONCURRENTLY")
    finally:
        sql(upgraded, "DROP OWNED BY no_owner")


def test_a_partitioned_live_table_gets_its_index_leaf_by_leaf(postgres_url: str) -> None:
    ensure_tables(postgres_url)
    sql(
        postgres_url,
        f"DROP TABLE {LIVE}",
        f"CREATE TABLE {LIVE} (id int, task_id text, status text, date_done timestamp) PARTITION BY RANGE (id)",
        *(
            f"CREATE TABLE {LIVE}_{n} PARTITION OF {LIVE} FOR VALUES FROM ({n * 1000}) TO ({n * 1000 + 1000})"
            for n in range(3)
        ),
        f"INSERT INTO {LIVE} SELECT n, n, 'SUCCESS', now() FROM generate_series(0, 2999) AS n",
        # Somebody has begun already.
        f"CREATE INDEX begun ON {LIVE}_1 (date_done)",
        # And these are no parts of the parent's.
        f"CREATE INDEX backwards ON {LIVE}_2 (date_done DESC)",
        f"CREATE INDEX coarse ON {LIVE}_2 USING brin (date_done)",
    )
    assert "indexes.missing" in findings(run(postgres_url, IndexPlan()))
    with in_transaction(postgres_url, OLD_SNAPSHOT):
        run(postgres_url, CREATE, timedelta(seconds=1))
    assert all(indexes_of(postgres_url, f"{LIVE}_0").values())
    # The frame is there and waits; it is no leftover.
    assert indexes_of(postgres_url) == {INDEX: False}
    assert "indexes.invalid" not in findings(run(postgres_url, IndexPlan(drop_invalid=True)))
    done = whats(run(postgres_url, CREATE))
    assert [what.partition(" on ")[0] for what in done] == [
        f'created "public"."ix_{LIVE}_0_date_done"',
        f'created "public"."ix_{LIVE}_2_date_done"',
        f'"public"."{INDEX}" is whole: every partition of "public"."{LIVE}" has its index',
    ]
    assert indexes_of(postgres_url) == {INDEX: True}
    assert indexes_of(postgres_url, f"{LIVE}_1") == {"begun": True}
    assert findings(run(postgres_url, IndexPlan())) == {}


def rebuilding(until_: timedelta | None) -> IndexPlan:
    return IndexPlan(reindex_bloated=0.3, rebuild_until=None if until_ is None else datetime.now(UTC) + until_)


@pytest.fixture
def bloated(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Three quarters of the indexes are empty."""
    monkeypatch.setattr(bloat, "WORTH_BYTES", 64 * 1024)
    fill_celery_table(postgres_url, 10_000)
    sql(postgres_url, f"DELETE FROM {LIVE} WHERE id % 4 > 0")
    sql(postgres_url, f"VACUUM (ANALYZE) {LIVE}")
    return postgres_url


@pytest.mark.parametrize("how", ["estimated", "measured by pgstattuple"])
def test_bloated_indexes_are_rebuilt_inside_the_window_only(bloated: str, how: str) -> None:
    if how != "estimated":
        sql(bloated, "CREATE EXTENSION pgstattuple")
    size = f"SELECT sum(pg_relation_size(indexrelid))::bigint FROM pg_index WHERE indrelid = '{LIVE}'::regclass"
    before = sql(bloated, size)[0][0]
    steps = run(bloated, rebuilding(None))
    assert "REINDEX INDEX CONCURRENTLY" in findings(steps)["indexes.bloated"].fix
    assert sql(bloated, size)[0][0] == before
    with opened(bloated) as backend:
        preview = backend.preview_vacuum(replace(plan(), indexes=rebuilding(timedelta(minutes=5))))
    assert "more on the server's disk while it runs)" in preview.summary
    assert f'REINDEX INDEX CONCURRENTLY "public"."{INDEX}"' in preview.statements
    done = whats(run(bloated, rebuilding(timedelta(minutes=5))))
    assert len([what for what in done if what.startswith("rebuilt ") and what.endswith(f"empty, {how})")]) == 3
    assert sql(bloated, size)[0][0] < 0.5 * before
    assert "indexes.bloated" not in findings(run(bloated, rebuilding(None)))


def test_a_rebuild_ends_with_the_window_and_leaves_nothing(bloated: str) -> None:
    with in_transaction(bloated, OLD_SNAPSHOT):
        for seconds in (1, 3, 9):
            (said, *_) = whats(run(bloated, rebuilding(timedelta(seconds=seconds))))
            if not said.startswith("did not begin"):
                break
        assert said.startswith("ended the rebuild of ")
        assert "; what it left is dropped; " in said
    assert sorted(indexes_of(bloated)) == sorted([INDEX, f"{LIVE}_pkey", f"{LIVE}_task_id_key"])
    assert all(indexes_of(bloated).values())


def test_a_rebuild_does_not_begin_when_its_window_has_closed(bloated: str) -> None:
    files = f"SELECT array_agg(pg_relation_filenode(indexrelid)) FROM pg_index WHERE indrelid = '{LIVE}'::regclass"
    before = sql(bloated, files)
    late = replace(plan(dead_rows=10**9), now=datetime.now(UTC) - timedelta(hours=1))
    late = replace(late, indexes=rebuilding(timedelta(minutes=-30)))
    with opened(bloated) as backend:
        (said, *_) = whats(list(backend.vacuum(late, TimedPace())))
    assert said.startswith("did not begin the rebuild of ")
    assert "its window is over" in said
    assert sql(bloated, files) == before


def test_what_somebody_did_meanwhile_is_looked_at_again(bloated: str) -> None:
    wanted = replace(plan(dead_rows=10**9), indexes=rebuilding(timedelta(minutes=5)))
    with opened(bloated) as backend:
        survey = backend._survey_tables(wanted, Memory(backend.watermarks))
        state = backend.index_state(survey.found.tables, survey.tables, wanted.indexes)
        sql(bloated, f"DROP INDEX {INDEX}")
        with in_transaction(bloated, f"LOCK TABLE {LIVE} IN SHARE UPDATE EXCLUSIVE MODE"):
            steps = list(backend.mend_indexes(state, wanted.indexes, float("inf")))
    assert f'did not rebuild "public"."{INDEX}": it was dropped meanwhile' in whats(steps)
    busy = [what for what in whats(steps) if f'another session works on "public"."{LIVE}" now' in what]
    assert len(busy) == len(whats(steps)) - 1


def test_a_lock_timeout_of_the_roles_is_named(upgraded: str) -> None:
    database = sql(upgraded, "SELECT current_database()")[0][0]
    sql(upgraded, f"ALTER DATABASE {database} SET lock_timeout = 300")
    with in_transaction(upgraded, OLD_SNAPSHOT), pytest.raises(BackendBusy) as caught:
        run(upgraded, CREATE)
    assert "SET lock_timeout = 0" in caught.value.hint
    assert all(indexes_of(upgraded).values())


def test_a_role_that_may_not_rebuild_or_drop_is_told_so(bloated: str, postgres_server: Postgres) -> None:
    theirs = other_role(bloated, "no_owner", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO no_owner")
    sql(bloated, f"CREATE INDEX half_built ON {LIVE} (status)",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'half_built'::regclass")  # fmt: skip
    try:
        for indexes, said in ((IndexPlan(drop_invalid=True), "may not drop"),
                              (rebuilding(timedelta(minutes=5)), "may not clean up after a rebuild")):  # fmt: skip
            with pytest.raises(BackendRefused, match=said) as caught:
                run(theirs, indexes)
            assert "is a superuser, which" in caught.value.hint
            assert 'GRANT "postgres"' not in caught.value.hint
        # Outside the window nothing is asked for that it may not do.
        run(theirs, rebuilding(None))
        if postgres_server.version >= MAINTAIN:
            sql(bloated, f"GRANT MAINTAIN ON {LIVE} TO no_owner")
            # It may rebuild, but not drop what a rebuild that is cut short leaves.
            with pytest.raises(BackendRefused, match="may not clean up after a rebuild"):
                run(theirs, rebuilding(timedelta(minutes=5)))
            assert sorted(indexes_of(bloated)) == sorted([INDEX, "half_built", f"{LIVE}_pkey", f"{LIVE}_task_id_key"])
    finally:
        sql(bloated, "DROP OWNED BY no_owner")


@pytest.mark.parametrize("how", ["rebuilding", "dropping"])
def test_what_an_earlier_rebuild_left_is_dropped(bloated: str, how: str) -> None:
    with in_transaction(bloated, OLD_SNAPSHOT), closing(connect(bloated)) as session:

        def rebuild() -> None:
            with suppress(psycopg2.errors.QueryCanceled), session.cursor() as cursor:
                cursor.execute(f"REINDEX INDEX CONCURRENTLY {INDEX}")

        thread = threading.Thread(target=rebuild, daemon=True)
        thread.start()
        until(lambda: f"{INDEX}_ccnew" in indexes_of(bloated), "it has begun")
        session.cancel()
        thread.join(timeout=10)
    assert f"{INDEX}_ccnew" in indexes_of(bloated)
    oid = sql(bloated, f"SELECT '{INDEX}_ccnew'::regclass::oid")[0][0]
    left = f"{INDEX}_ccnew"
    if how == "dropping":
        # As a drop that was cut short leaves it.
        left = f"backendops_drop_{oid}"
        sql(bloated, f"ALTER INDEX {INDEX}_ccnew RENAME TO {left}")
    done = whats(run(bloated, rebuilding(timedelta(minutes=5))))
    assert done[0].startswith(f'dropped the invalid index "public"."{left}"')
    assert all(indexes_of(bloated).values())


def test_hostile_names(postgres_url: str) -> None:
    name = 'odd "name" ' + "é" * 26
    sql(postgres_url, 'CREATE SCHEMA "a:b %s"')
    keys: dict[str, Any] = {"tables": {"task": name, "group": "g"}, "schemas": {"task": "a:b %s", "group": "a:b %s"}}
    quoted = name.replace('"', '""')
    columns = "id int, task_id text, status text, date_done timestamp"
    sql(postgres_url, f'CREATE TABLE "a:b %s"."{quoted}" ({columns})')
    assert whats(run(postgres_url, CREATE, **keys))[0].startswith('created "a:b %s"."ix_odd ""name""')
    assert "indexes.missing" not in findings(run(postgres_url, IndexPlan(), **keys))


def test_through_a_pooler_in_transaction_mode(
    upgraded: str, postgres_server: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with PgBouncer(tmp_path_factory.mktemp("pgbouncer"), postgres_server).start() as pooler:
        through = pooler.url(upgraded.rpartition("/")[2])
        assert whats(run(through, CREATE))[0].startswith(f'created "public"."{INDEX}"')
    assert indexes_of(upgraded)[INDEX]


def test_the_filters_of_an_archive_are_left_as_they_are(bloated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_work, "UNUSED_AFTER", 0)
    monkeypatch.setattr(bloat, "WORTH_BYTES", 1)
    archived = Archive(older_than="7d")
    with opened(bloated) as backend:
        list(backend.archive(Retention(datetime.now(UTC) - timedelta(days=7)), archived.plan, TimedPace()))
    filters = (
        "SELECT i.indrelid::regclass::text, c.relname, pg_relation_filenode(c.oid) FROM pg_index i "
        "JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam WHERE m.amname = 'brin' ORDER BY 1, 2"
    )
    # One is in quarantine, where nothing is attached any more.
    parts = sql(
        bloated, f"SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = '{LIVE}_archive'::regclass"
    )
    now = datetime.now(UTC)
    said = Retirement("quarantined", f'"public"."{LIVE}_archive"', now, now, now, now + timedelta(days=7))
    sql(bloated, f"ALTER TABLE {LIVE}_archive DETACH PARTITION {parts[0][0]}",
        f"COMMENT ON TABLE {parts[0][0]} IS $${said}$$")  # fmt: skip
    before = sql(bloated, filters)
    assert len(before) > len(parts)
    everything = IndexPlan(True, True, 0.01, datetime.now(UTC) + timedelta(minutes=5))
    steps = run(bloated, everything)
    names = {name for _, name, _ in before}
    told = [*whats(steps), *(one.sentence for step in steps for one in step.findings)]
    assert not [each for each in told if any(f'"{name}"' in each for name in names)]
    assert sql(bloated, filters) == before
