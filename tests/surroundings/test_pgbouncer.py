"""Every job through Debian's PgBouncer in transaction mode, as packaged: nothing is ignored for our sake."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from backendops.contracts.errors import BackendUnreachable
from backendops.contracts.partitions import ConvertBy
from backendops.contracts.run import Limits, Outcome
from backendops.engine.report import RunReport
from tests.acceptance.installed import Installed
from tests.conformance.postgres_store import PATIENCE, connect, in_transaction, opened, sql
from tests.pgbouncer import PASSWORD, PgBouncer
from tests.servers import Postgres
from tests.surroundings.running import Results, prove_conversion, prove_every_job, run, said

# A changing run's lock, and its statements.
POOL = 2
# All that could be left behind in a session that PgBouncer then gives to a stranger.
LEFT_BEHIND = """
SELECT current_setting('statement_timeout'), current_setting('lock_timeout'),
    current_setting('idle_in_transaction_session_timeout'), current_setting('enable_seqscan'),
    current_setting('work_mem'), current_setting('jit'), current_setting('default_transaction_read_only'),
    current_setting('TimeZone'), current_setting('DateStyle'),
    (SELECT count(*) FROM pg_prepared_statements),
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
    (SELECT count(*) FROM pg_class WHERE relpersistence = 't'),
    (SELECT count(*) FROM pg_listening_channels())
"""


@pytest.fixture
def pooler(postgres18_server: Postgres, tmp_path: Path) -> Iterator[PgBouncer]:
    with PgBouncer(tmp_path, postgres18_server, POOL).start() as running:
        assert "ignore_startup_parameters" not in (tmp_path / "pgbouncer.ini").read_text()
        yield running


@pytest.fixture
def pooled(pooler: PgBouncer, postgres18_url: str) -> str:
    return pooler.url(postgres18_url.rpartition("/")[2])


def sessions(pooled: str) -> list[tuple[Any, ...]]:
    """What is set in each of the sessions that PgBouncer keeps."""
    with ExitStack() as held:
        found = []
        for _ in range(POOL):
            # In a transaction, so that the next one gets another session.
            session = held.enter_context(closing(psycopg2.connect(pooled.removeprefix("db+"))))
            cursor = held.enter_context(session.cursor())
            cursor.execute(LEFT_BEHIND)
            found += cursor.fetchall()
    return found


def test_every_job_by_the_installed_command(
    pooler: PgBouncer, pooled: str, postgres18_url: str, tmp_path: Path
) -> None:
    fresh = sessions(pooled)
    command = Installed.with_policy(
        tmp_path,
        f"""
backends: {{results: {{url: '{pooled}', pgbouncer_url: '{pooler.console()}'}}}}
jobs:
  expire: {{keep: 30d}}
  archive: {{older_than: 7d}}
  partition: {{keep: 3 months, ahead: 1, quarantine: 1d}}
  vacuum: {{dead_rows: 1, dead_ratio: 0}}
  pool-health: {{}}
""",
    )
    reports = {}

    def by_command(kind: str) -> RunReport:
        # In this process for the report, unless the policy and the command are what is to be seen.
        if kind != "partition":
            reports[kind] = run(pooled, kind, {"pgbouncer_url": pooler.console()})
            return reports[kind]
        ended = command.run("run-once", "expire", "archive", "partition", "pool-health")
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
        assert command.run("plan", "--sql").returncode == 0
        return run(pooled, kind)

    prove_every_job(Results(postgres18_url), by_command)
    assert "PgBouncer" not in said(reports["pool-health"])
    assert sessions(pooled) == fresh


@pytest.mark.parametrize("by", ["id", "date_done"])
def test_a_live_table_is_converted_and_undone_through_it(pooled: str, postgres18_url: str, by: ConvertBy) -> None:
    results = Results(postgres18_url)
    results.stored()
    # Built CONCURRENTLY, which is no statement of a transaction.
    sql(postgres18_url, f"DROP INDEX ix_{results.task}_date_done")
    fresh = sessions(pooled)
    prove_conversion(results, pooled, by)
    assert sessions(pooled) == fresh


def test_pressure_is_asked_through_it_too(pooled: str, postgres18_url: str) -> None:
    Results(postgres18_url).stored()
    fresh = sessions(pooled)
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'nothing'"
    with opened(pooled, pause_when=f"{waits} AND '%' <> ':x'") as backend:
        # The first answer is the run's connection's, the others those of a second one.
        assert [backend.pressure().wait for _ in range(3)] == [None] * 3
    report = run(pooled, "expire", {"stop_when": "SELECT true"})
    assert report.outcome is Outcome.STOPPED
    assert sessions(pooled) == fresh


def test_a_lock_that_is_taken_is_seen_through_it(pooled: str, postgres18_url: str) -> None:
    Results(postgres18_url).stored()
    with opened(postgres18_url) as other, other.lock() as lock:
        assert lock is not None
        assert run(pooled, "expire").outcome is Outcome.LOCKED
    assert run(pooled, "expire").rows == 6


def test_a_detach_that_a_reader_holds_up_is_finished_through_it(pooled: str, postgres18_url: str) -> None:
    results = Results(postgres18_url)
    results.stored()
    results.date(timedelta(days=400), "id = 1")
    assert run(pooled, "archive").rows == 7
    with in_transaction(postgres18_url, f"SELECT * FROM {results.archive}"):
        # Cancelled through the pooler, when its time is over.
        report = run(pooled, "partition", statement_timeout="500ms")
        assert (report.outcome, "its detach stays pending" in report.error) == (Outcome.BUSY, True), str(report)
    assert run(pooled, "partition").outcome is Outcome.COMPLETED
    assert results.count(results.archive) == 6


def test_an_option_that_it_does_not_take_is_named(pooled: str) -> None:
    report = run(f"{pooled}?options=-c%20statement_timeout%3D1", "expire")
    assert report.outcome is Outcome.REFUSED
    assert "unsupported startup parameter: options" in report.error
    assert "take the options out of the URL" in report.hint


def test_a_pool_of_one_is_named_soon(postgres18_server: Postgres, postgres18_url: str, tmp_path: Path) -> None:
    Results(postgres18_url).stored()
    with PgBouncer(tmp_path, postgres18_server, 1).start() as small:
        pooled = small.url(postgres18_url.rpartition("/")[2])
        assert run(pooled, "pool-health").outcome is Outcome.COMPLETED
        report = run(pooled, "expire")
        assert (report.outcome, report.rows) == (Outcome.UNREACHABLE, 0)
        assert "once the run's lock had its connection" in report.error
        assert "pool_size" in report.hint
        assert report.seconds < PATIENCE.total_seconds()


def test_what_it_refuses_by_itself_is_told_apart(pooler: PgBouncer, pooled: str) -> None:
    wrong = run(pooled.replace(PASSWORD, "wr0ng-secret"), "expire")
    assert (wrong.outcome, "refused to log in" in wrong.error) == (Outcome.REFUSED, True)
    assert "wr0ng-secret" not in said(wrong)
    absent = run(pooler.url("no_such_database"), "expire")
    assert (absent.outcome, "no_such_database" in absent.error) == (Outcome.REFUSED, True)


def test_a_pooler_whose_server_is_gone_is_unreachable(
    pooler: PgBouncer, pooled: str, postgres18_server: Postgres
) -> None:
    with closing(connect(pooled)) as session, session.cursor() as cursor:
        cursor.execute("SELECT 1")
    postgres18_server.server.stop()
    try:
        with (
            pytest.raises(BackendUnreachable, match="took the connection, then gave no answer") as caught,
            opened(pooled, Limits(connect_timeout=timedelta(seconds=0.3))),
        ):
            pass
        assert "SHOW POOLS" in caught.value.hint
    finally:
        postgres18_server.server.start()
