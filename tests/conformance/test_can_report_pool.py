"""CanReportPool: how a backend's connections stand, and that a dead one is answered soon."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from backendops.backends.postgres import PostgresBackend
from backendops.backends.postgres import pool as pool_module
from backendops.contracts.capabilities import CanReportPool, PoolReport
from backendops.contracts.errors import BackendUnreachable
from backendops.engine.pacing import TimedPace
from backendops.jobs.pool_health import PoolHealth
from tests.celery_rows import celery_results, ensure_tables, fill_celery_table
from tests.conformance.postgres_store import alone, connect, in_transaction, opened, other_role, sql, until
from tests.conformance.stores import Store
from tests.pgbouncer import PASSWORD, PgBouncer
from tests.servers import Postgres

CAPABILITY = CanReportPool
NOW = datetime(2026, 11, 20, tzinfo=UTC)


def report_of(url: str, **fields: Any) -> PoolReport:
    with opened(url, **fields) as backend:
        return backend.report_pool()


def test_a_living_backend_says_how_quick_it_is_and_what_it_is_used_by(store: Store) -> None:
    with store.opened() as backend:
        report = backend.report_pool()
        steps = list(PoolHealth().run(backend, NOW, TimedPace()))
    assert 0 < report.roundtrip_seconds < 5
    assert 0 <= report.connect_seconds < 5
    values = {one.metric.name: one.value for step in steps for one in step.readings if not one.labels}
    assert values["backendops_backend_up"] == 1
    assert values["backendops_backend_roundtrip_seconds"] > 0


def test_a_preview_measures_the_same(store: Store) -> None:
    with store.previewing() as backend:
        preview = PoolHealth().preview(backend, NOW)
    assert preview.summary.startswith("up now: ")
    assert any(one.metric.name == "backendops_backend_up" for one in preview.readings)


@contextmanager
def working(url: str, statement: str) -> Iterator[None]:
    """A session that is in the middle of a statement."""
    with closing(connect(url)) as session:

        def run() -> None:
            with session.cursor() as cursor:
                try:
                    cursor.execute(statement)
                except Exception as error:  # noqa: BLE001 - it is cancelled at the end, whatever it waits for
                    ended.append(error)

        ended: list[Exception] = []
        state = f"SELECT state FROM pg_stat_activity WHERE pid = {session.info.backend_pid}"
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            until(lambda: sql(url, state) == [("active",)], "it is working")
            yield
        finally:
            session.cancel()
            thread.join(timeout=10)


def test_sessions_are_counted_by_what_they_do(postgres_url: str) -> None:
    sql(postgres_url, "CREATE TABLE theirs ()")
    with alone(postgres_url):
        before = report_of(postgres_url)
    with (
        alone(postgres_url) as wait_for,
        in_transaction(postgres_url, "LOCK TABLE theirs", application_name="careless"),
        working(postgres_url, "SELECT pg_sleep(60)"),
        working(postgres_url, "SELECT count(*) FROM theirs"),
        closing(connect(postgres_url, application_name="idler")),
    ):
        until(lambda: sql(postgres_url, "SELECT count(*) FROM pg_locks WHERE NOT granted") == [(1,)], "somebody waits")
        wait_for(4)
        report = report_of(postgres_url)
    grown = {state: count - before.connections.get(state, 0) for state, count in report.connections.items()}
    assert grown == {"active": 1, "idle": 1, "idle_in_transaction": 1, "blocked": 1}
    assert report.by_application["careless"] == report.by_application["idler"] == 1
    assert report.waiting_for_locks == 1
    assert before.waiting_for_locks == 0
    # The server's default of 100, less the 3 that are kept for superusers.
    assert report.connections_limit == 97
    assert report.replication_lag_seconds is None
    assert report.notes == ()


def test_the_oldest_transaction_is_somebody_elses(postgres_url: str) -> None:
    with opened(postgres_url) as changing, changing.lock() as held:
        # The lock of a run of ours is a long transaction too, and holds nothing back.
        assert held is not None
        assert changing.report_pool().oldest_transaction_seconds == 0
        with in_transaction(postgres_url, "SELECT 1"):
            assert (changing.report_pool().oldest_transaction_seconds or 0) > 0


def test_a_role_that_sees_little_says_so_and_counts_right(postgres_url: str) -> None:
    ensure_tables(postgres_url)
    theirs = other_role(postgres_url, "sees_little")
    with alone(postgres_url) as wait_for, in_transaction(postgres_url, "SELECT 1"):
        wait_for(1)
        seen = 2
        report = report_of(theirs)
    # Its own two connections more: the run's and the probe's.
    assert sum(report.connections.values()) == seen + 2
    assert report.connections["other"] == seen
    assert any("GRANT pg_read_all_stats" in note for note in report.notes)
    assert any("GRANT SELECT ON" in note for note in report.notes)
    assert report.id_headroom is None


def test_without_tables_there_are_no_ids_to_run_out_of(postgres_url: str) -> None:
    assert report_of(postgres_url).id_headroom is None


def test_the_ids_left_are_those_of_the_tightest_table(postgres_url: str) -> None:
    celery_results(postgres_url, 3, groups=1)
    assert (report_of(postgres_url).id_headroom or 0) > 0.999
    # A quarter of int4 is left for groups by the sequence, half for tasks by an id that was copied in.
    sql(
        postgres_url,
        f"SELECT setval('taskset_id_sequence', {3 * 2**29})",
        f"INSERT INTO celery_taskmeta (id, task_id) VALUES ({2**30}, 'copied')",
    )
    assert report_of(postgres_url).id_headroom == pytest.approx(0.25, abs=1e-6)
    sql(postgres_url, "ALTER TABLE celery_tasksetmeta ALTER COLUMN id TYPE bigint")
    assert report_of(postgres_url).id_headroom == pytest.approx(0.5, abs=1e-6)
    sql(postgres_url, f"SELECT setval('task_id_sequence', {2**31 + 5})")
    assert report_of(postgres_url).id_headroom == 0


def test_ids_are_found_where_celery_was_told_to_put_them(postgres18_url: str) -> None:
    sql(postgres18_url, 'CREATE SCHEMA "Ce l"')
    celery_results(
        postgres18_url,
        3,
        database_table_schemas={"task": "Ce l", "group": "Ce l"},
        database_table_names={"task": 'my "tasks"', "group": "my_groups"},
    )
    sql(postgres18_url, f"""SELECT setval('"Ce l".task_id_sequence', {2**30})""")
    fields = {"tables": {"task": 'my "tasks"', "group": "my_groups"}, "schemas": {"task": "Ce l", "group": "Ce l"}}
    assert report_of(postgres18_url, **fields).id_headroom == pytest.approx(0.5, abs=1e-6)


def test_findings_follow_the_thresholds(postgres18_url: str) -> None:
    celery_results(postgres18_url, 1)
    sql(postgres18_url, f"SELECT setval('task_id_sequence', {round(2**31 * 0.9)})")
    health = PoolHealth(
        connections_warning=0.01,
        connections_critical=0.01,
        roundtrip_warning=timedelta(microseconds=1),
        transaction_warning=timedelta(microseconds=1),
        locks_warning=1,
    )
    with in_transaction(postgres18_url, "SELECT 1"), opened(postgres18_url) as backend:
        (step,) = health.run(backend, NOW, TimedPace())
    assert {(one.code, one.severity.value) for one in step.findings} == {
        ("pool.connections-near-limit", "critical"),
        ("pool.slow-roundtrip", "warning"),
        ("pool.old-transaction", "warning"),
        ("pool.ids-run-out", "warning"),
    }
    with opened(postgres18_url) as backend:
        (calm,) = PoolHealth().run(backend, NOW, TimedPace())
    assert [one.code for one in calm.findings] == ["pool.ids-run-out"]


def test_a_locked_table_costs_only_its_own_figure(postgres_url: str) -> None:
    ensure_tables(postgres_url)
    with in_transaction(postgres_url, "LOCK TABLE celery_taskmeta"):
        report = report_of(postgres_url)
    assert (report.id_headroom or 0) > 0.99
    assert any("ids left in celery_taskmeta: another session holds a lock" in note for note in report.notes)


def test_a_port_where_nobody_listens_is_answered_at_once(postgres18_url: str) -> None:
    with closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))
        began = time.monotonic()
        with pytest.raises(BackendUnreachable, match="does not answer"):
            report_of(f"db+postgresql://postgres@127.0.0.1:{bound.getsockname()[1]}/results")
    # Sooner than one that does not answer at all is given up.
    assert time.monotonic() - began < 2


def test_a_host_that_accepts_and_never_answers_is_given_up_within_five_seconds() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        url = f"db+postgresql://postgres:s3cret@127.0.0.1:{silent.getsockname()[1]}/results"
        began = time.monotonic()
        with pytest.raises(BackendUnreachable, match="does not answer") as caught:
            report_of(url)
    assert 1 < time.monotonic() - began < 5
    assert "s3cret" not in f"{caught.value}{caught.value.hint}"
    step = PoolHealth().when_unreachable(caught.value)
    assert (step.readings[0].metric.name, step.readings[0].value) == ("backendops_backend_up", 0)
    assert [(one.severity.value, one.code) for one in step.findings] == [("critical", "pool.unreachable")]


class StallingLine:
    """A line to a real server that passes everything on, until it carries a given word: then nothing, for ever."""

    def __init__(self, host: str, port: int, word: bytes) -> None:
        self._server, self._word, self._open = (host, port), word, [socket.create_server(("127.0.0.1", 0))]
        self.port = self._open[0].getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._open[0].accept()
                far = socket.create_connection(self._server)
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while (said := source.recv(65536)) and self._word not in said:
                sink.sendall(said)

    def close(self) -> None:
        for end in self._open:
            end.close()


def test_a_server_that_falls_silent_after_the_login_is_given_up_too(
    postgres18_server: Postgres, postgres18_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "ANSWER_SECONDS", 0.3)
    with closing(StallingLine(postgres18_server.host, postgres18_server.port, b"pg_stat_activity")) as line:
        began = time.monotonic()
        with pytest.raises(BackendUnreachable, match="gave no answer"):
            report_of(postgres18_url.replace(f":{postgres18_server.port}/", f":{line.port}/"))
        assert time.monotonic() - began < 3


@pytest.fixture
def pgbouncer(postgres18_server: Postgres, tmp_path: Path) -> Iterator[PgBouncer]:
    with PgBouncer(tmp_path, postgres18_server).start() as running:
        yield running


def test_pgbouncers_queue_is_read_from_its_console(postgres18_url: str, pgbouncer: PgBouncer) -> None:
    database = str(make_url(postgres18_url).database)
    pooled = pgbouncer.url(database)
    fields = {"pgbouncer_url": pgbouncer.console()}
    calm = report_of(postgres18_url, **fields)
    assert (calm.pooler_waiting_clients, calm.pooler_longest_wait_seconds, calm.pooler_error) == (0, 0, "")
    with closing(connect(pooled)) as second, in_transaction(pooled, "SELECT 1"):
        # The only server connection is taken: the second client's statement waits in the pooler.
        waiting = threading.Thread(target=lambda: second.cursor().execute("SELECT 1"), daemon=True)
        waiting.start()
        until(lambda: report_of(postgres18_url, **fields).pooler_waiting_clients == 1, "a client waits")
        assert (report_of(postgres18_url, **fields).pooler_longest_wait_seconds or 0) > 0
    waiting.join(timeout=10)


def test_the_server_is_probed_through_pgbouncer_too(postgres18_url: str, pgbouncer: PgBouncer) -> None:
    fill_celery_table(postgres18_url, 10)
    pooled = pgbouncer.url(str(make_url(postgres18_url).database))
    # One server connection: the run's own must be free between its transactions.
    report = report_of(pooled, pgbouncer_url=pgbouncer.console())
    assert report.connections["active"] == 1
    assert (report.id_headroom or 0) > 0.99


def test_a_pooler_that_cannot_be_asked_is_a_finding_and_keeps_its_password(
    postgres18_url: str, pgbouncer: PgBouncer
) -> None:
    for console in (
        pgbouncer.console().replace(PASSWORD, "wr0ng"),
        pgbouncer.console(user="app").replace(str(pgbouncer.port), "1"),
        # Not in stats_users: PgBouncer takes the login and refuses the question.
        pgbouncer.console(user="app"),
    ):
        with opened(postgres18_url, pgbouncer_url=console) as backend:
            (step,) = PoolHealth().run(backend, NOW, TimedPace())
        assert [one.code for one in step.findings] == ["pool.pooler-unreachable"]
        assert "wr0ng" not in str(step)
        assert PASSWORD not in str(step)


@pytest.mark.parametrize("url", ["not a url", "redis://localhost", "postgresql://u@h:port/pgbouncer"])
def test_what_is_no_console_is_refused_with_an_example(postgres18_url: str, url: str) -> None:
    with pytest.raises(ValueError, match="pgbouncer_url must read like postgresql://"):
        PostgresBackend(url=postgres18_url, pgbouncer_url=url)


def test_a_report_is_repeatable_on_one_open_backend(postgres18_url: str) -> None:
    with alone(postgres18_url) as wait_for, opened(postgres18_url) as backend:
        first = backend.report_pool()
        wait_for(1)
        second = backend.report_pool()
    assert first.connections == second.connections
