"""Why a vacuum cannot help: each holder there is, made for real, named with its way out, and left in peace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg2
import pytest

from backendops import embedded
from backendops.contracts.readings import Finding
from tests.celery_rows import fill_celery_table
from tests.conformance.postgres_store import in_transaction, opened, other_role, sql, until
from tests.conformance.test_can_vacuum import LIVE, dead_rows, plan, vacuum
from tests.servers import POSTGRES_SETTINGS, Postgres, Replica, Servers

SETTINGS = {**POSTGRES_SETTINGS, "max_prepared_transactions": "2", "wal_level": "logical", "max_wal_senders": "4"}


@pytest.fixture(scope="module")
def server(servers: Servers) -> Iterator[Postgres]:
    """One that has what can hold a vacuum back."""
    started = embedded.start_postgres(servers.directory / "holding", settings=SETTINGS)
    yield Postgres(started, 18)
    started.stop()


@pytest.fixture
def url(server: Postgres) -> Iterator[str]:
    """1,000 results."""
    name = server.create_database()
    fill_celery_table(server.celery_url(name), 1000)
    sql(server.celery_url(name), f"VACUUM (ANALYZE) {LIVE}")
    yield server.celery_url(name)
    server.drop_database(name)


def finding_of(url: str) -> Finding:
    """Remove half of the results, vacuum, and take the one finding."""
    sql(url, f"DELETE FROM {LIVE} WHERE id % 2 = 0")
    (finding,) = [one for step in vacuum(url, plan()) for one in step.findings]
    assert finding.code == "vacuum.held-back"
    assert finding.sentence.startswith(f'500 dead rows of "public"."{LIVE}" could not be removed: ')
    assert finding.fix.endswith("backendops ends nobody's session")
    assert dead_rows(url) == 500
    return finding


def test_an_idle_transaction(url: str) -> None:
    with in_transaction(
        url, f"BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM {LIVE} LIMIT 1", application_name="forgotten"
    ) as holder:
        finding = finding_of(url)
        pid = holder.info.backend_pid
        assert f"session forgotten (pid {pid}), idle in transaction, since 2" in finding.sentence
        assert f"pg_terminate_backend({pid})" in finding.fix
        # It goes on as if nothing had happened.
        with holder.cursor() as cursor:
            cursor.execute("SELECT 1")


def test_a_prepared_transaction(url: str) -> None:
    with closing(psycopg2.connect(url.removeprefix("db+"))) as session, session.cursor() as cursor:
        cursor.execute("CREATE TABLE other (x int); INSERT INTO other VALUES (1)")
        cursor.execute("PREPARE TRANSACTION 'it''s lost'")
    finding = finding_of(url)
    assert "prepared transaction it's lost, since 2" in finding.sentence
    assert "ROLLBACK PREPARED 'it''s lost';" in finding.fix
    with opened(url) as backend:
        assert "prepared transaction it's lost" in backend.preview_vacuum(plan()).summary
    sql(url, "ROLLBACK PREPARED 'it''s lost'")
    vacuum(url, plan())
    assert dead_rows(url) == 0


@contextmanager
def replica_of(server: Postgres, servers: Servers, name: str, **settings: str) -> Iterator[Replica]:
    replica = Replica(servers.directory / name, server)
    replica.settings = {
        **replica.settings,
        "hot_standby_feedback": "on",
        # A replica that is told to end a query for the primary's sake would end the test's.
        "max_standby_streaming_delay": "-1",
        **settings,
    }
    replica.initialize()
    replica.start()
    try:
        yield replica
    finally:
        replica.stop()


def test_a_replica_and_the_slot_it_leaves(url: str, server: Postgres, servers: Servers) -> None:
    sql(url, "SELECT pg_create_physical_replication_slot('standby', true)")
    on_replica = url.removeprefix("db+").replace(f":{server.port}/", ":{port}/")
    xmin = "SELECT 1 FROM pg_replication_slots WHERE slot_name = 'standby' AND xmin IS NOT NULL"
    try:
        with replica_of(server, servers, "with-slot", primary_slot_name="standby") as replica:
            there = on_replica.format(port=replica.port)
            until(lambda: bool(sql(there, f"SELECT 1 FROM pg_class WHERE relname = '{LIVE}'")), "it has the table")
            with in_transaction(there, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1"):
                until(lambda: bool(sql(url, xmin)), "the replica has said what it needs")
                finding = finding_of(url)
                assert "replication slot standby (pid " in finding.sentence
                assert "), active" in finding.sentence
                assert "a query on that replica" in finding.fix
        # The replica is gone, what it needed stays needed.
        until(lambda: bool(sql(url, "SELECT 1 FROM pg_replication_slots WHERE NOT active")), "it is gone")
        (finding,) = [one for step in vacuum(url, plan()) for one in step.findings]
        assert "replication slot standby, inactive may still need them" in finding.sentence
        assert "SELECT pg_drop_replication_slot('standby');" in finding.fix
    finally:
        sql(url, "SELECT pg_drop_replication_slot('standby')")
    vacuum(url, plan())
    assert dead_rows(url) == 0


def test_a_replica_without_a_slot(url: str, server: Postgres, servers: Servers) -> None:
    on_replica = url.removeprefix("db+").replace(f":{server.port}/", ":{port}/")
    with replica_of(server, servers, "without-slot") as replica:
        there = on_replica.format(port=replica.port)
        until(lambda: bool(sql(there, f"SELECT 1 FROM pg_class WHERE relname = '{LIVE}'")), "it has the table")
        with in_transaction(there, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1"):
            until(
                lambda: bool(sql(url, "SELECT 1 FROM pg_stat_replication WHERE backend_xmin IS NOT NULL")), "feedback"
            )
            finding = finding_of(url)
            assert "replica replica (pid " in finding.sentence
            assert "hot_standby_feedback" in finding.fix


def test_a_logical_slot_holds_back_no_results_and_is_not_blamed(url: str) -> None:
    sql(url, "SELECT pg_create_logical_replication_slot('changes', 'pgoutput')")
    try:
        assert sql(url, "SELECT catalog_xmin IS NOT NULL, xmin FROM pg_replication_slots") == [(True, None)]
        sql(url, f"DELETE FROM {LIVE} WHERE id % 2 = 0")
        assert [one for step in vacuum(url, plan()) for one in step.findings] == []
        assert dead_rows(url) == 0
    finally:
        sql(url, "SELECT pg_drop_replication_slot('changes')")


def test_a_session_that_may_not_be_seen_is_said_to_be_hidden(url: str) -> None:
    theirs = other_role(url, "short_sighted", f"ALTER TABLE {LIVE} OWNER TO short_sighted")
    try:
        with in_transaction(url, f"BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM {LIVE} LIMIT 1"):
            sql(url, f"DELETE FROM {LIVE} WHERE id % 2 = 0")
            sql(url, "GRANT SELECT ON celery_tasksetmeta TO short_sighted")
            findings = {one.code: one for step in vacuum(theirs, plan()) for one in step.findings}
            assert "somebody who is not seen" in findings["vacuum.held-back"].sentence
            assert "GRANT pg_read_all_stats TO backendops' role" in findings["vacuum.held-back"].fix
            sql(url, "GRANT pg_read_all_stats TO short_sighted")
            sql(url, f"UPDATE {LIVE} SET queue = 'x'")
            findings = {one.code: one for step in vacuum(theirs, plan()) for one in step.findings}
            assert "idle in transaction" in findings["vacuum.held-back"].sentence
    finally:
        sql(url, "REASSIGN OWNED BY short_sighted TO postgres", "REVOKE pg_read_all_stats FROM short_sighted")
        sql(url, "DROP OWNED BY short_sighted")


def test_who_began_after_the_rows_had_gone_is_not_blamed(url: str) -> None:
    sql(url, "CREATE TABLE other (x int)")
    with in_transaction(
        url, f"BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM {LIVE} LIMIT 1", application_name="forgotten"
    ):
        sql(url, f"DELETE FROM {LIVE} WHERE id % 2 = 0", "INSERT INTO other VALUES (1)")
        with in_transaction(
            url, f"BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM {LIVE} LIMIT 1", application_name="too late"
        ):
            (finding,) = [one for step in vacuum(url, plan()) for one in step.findings]
            assert "session forgotten" in finding.sentence
            assert "that began later" not in finding.sentence


def test_an_autovacuum_that_analyzes_is_named_too(servers: Servers) -> None:
    settings = {**POSTGRES_SETTINGS, "autovacuum": "on", "autovacuum_naptime": "1s"}
    started = embedded.start_postgres(servers.directory / "autovacuum", settings=settings)
    try:
        server = Postgres(started, 18)
        url = server.celery_url(server.create_database())
        fill_celery_table(url, 1000)
        # A page of the table, and then the longest rest there is.
        slow = "autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1, autovacuum_analyze_threshold = 1"
        sql(
            url,
            f"ALTER TABLE {LIVE} SET (autovacuum_enabled = off)",
            f"CREATE TABLE slow (x text) WITH ({slow}, autovacuum_vacuum_insert_threshold = -1)",
            "INSERT INTO slow SELECT repeat('x', 1000) FROM generate_series(1, 4000)",
        )
        analyzes = (
            "SELECT 1 FROM pg_stat_activity WHERE backend_type = 'autovacuum worker' AND backend_xmin IS NOT NULL "
            "AND pid IN (SELECT pid FROM pg_stat_progress_analyze)"
        )
        until(lambda: bool(sql(url, analyzes)), "autovacuum analyzes")
        finding = finding_of(url)
        assert "autovacuum worker (pid " in finding.sentence
        assert "let it end" in finding.fix
        assert "pg_terminate_backend" not in finding.fix
    finally:
        started.stop()
