"""Settings that an operator may have given to backendops' role or database: none of them changes what a job does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest

from backendops.contracts.errors import BackendError
from backendops.contracts.run import Outcome
from tests.conformance.postgres_store import opened, sql
from tests.servers import Postgres
from tests.surroundings.running import Results, archive_far, prove_conversion, prove_every_job, restore, run

SETTINGS = {
    "limits": {
        "statement_timeout": "50ms",
        "lock_timeout": "5ms",
        "idle_in_transaction_session_timeout": "250ms",
        "transaction_timeout": "250ms",
    },
    "transactions": {
        "default_transaction_isolation": "serializable",
        "default_transaction_deferrable": "on",
        "synchronous_commit": "off",
        "row_security": "off",
    },
    "texts": {
        "TimeZone": "Asia/Kathmandu",
        "DateStyle": "German",
        "IntervalStyle": "iso_8601",
        "bytea_output": "escape",
        "client_encoding": "LATIN1",
        "standard_conforming_strings": "off",
        "quote_all_identifiers": "on",
        "array_nulls": "off",
    },
}


def give(url: str, settings: dict[str, str]) -> None:
    """To everybody in this database."""
    (database,) = sql(url, "SELECT current_database()")[0]
    sql(url, *(f"ALTER DATABASE {database} SET {name} = '{value}'" for name, value in settings.items()))


@contextmanager
def role_with(url: str, far: str, settings: dict[str, str]) -> Iterator[str]:
    """A superuser with these settings, which are not Celery's, in two databases; its URL."""
    sql(url, "CREATE ROLE peculiar SUPERUSER LOGIN PASSWORD 'x'")
    try:
        sql(url, *(f"ALTER ROLE peculiar SET {name} = '{value}'" for name, value in settings.items()))
        yield f"db+postgresql://peculiar:x@{url.rpartition('@')[2]}"
    finally:
        for database in (url, far):
            sql(database, "REASSIGN OWNED BY peculiar TO CURRENT_USER")
        sql(url, "DROP ROLE peculiar")


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=list(SETTINGS))
def test_every_job_is_as_without(postgres18_url: str, far: str, settings: dict[str, str]) -> None:
    results = Results(postgres18_url)
    with role_with(postgres18_url, far, settings) as url:
        prove_every_job(results, lambda kind: run(url, kind))
        back = restore(url)
        assert (back.outcome, back.rows) == (Outcome.COMPLETED, 5), str(back)
        prove_conversion(results, url, "id")
        results.date(timedelta(days=10), "true")
        moved = archive_far(url, url.replace(postgres18_url.rpartition("/")[2], far.rpartition("/")[2]))
        assert (moved.outcome, moved.rows > 0) == (Outcome.COMPLETED, True), str(moved)


def test_a_transaction_is_not_ended_by_a_limit_of_the_role(postgres18_url: str) -> None:
    give(postgres18_url, {"transaction_timeout": "200ms", "idle_in_transaction_session_timeout": "200ms"})
    with opened(postgres18_url) as backend, backend.lock() as lock:
        assert lock is not None
        with backend.transaction() as connection:
            time.sleep(0.4)
            assert connection.exec_driver_sql("SELECT 1").scalar_one() == 1
        assert lock.still_held()


@pytest.fixture
def far(postgres18_server: Postgres) -> Iterator[str]:
    name = postgres18_server.create_database()
    yield postgres18_server.celery_url(name)
    postgres18_server.drop_database(name)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_text_of_any_language_reaches_an_archive_elsewhere(postgres18_url: str, far: str, encoding: str) -> None:
    results = Results(postgres18_url)
    results.stored()
    sql(postgres18_url, f"UPDATE {results.live} SET traceback = '☃ é', date_done = date_done - interval '8 days'")
    for url in (postgres18_url, far):
        give(url, {"client_encoding": encoding})
    report = archive_far(postgres18_url, far)
    assert report.outcome is Outcome.COMPLETED, str(report)
    assert sql(far, "SELECT DISTINCT convert_to(traceback, 'UTF8') = convert_to(U&'\\2603 \\00e9', 'UTF8') "
                    "FROM celery_taskmeta_archive") == [(True,)]  # fmt: skip


def test_a_role_without_a_schema_for_the_archive_is_told(postgres18_url: str, far: str) -> None:
    Results(postgres18_url).stored()
    give(far, {"search_path": "nowhere"})
    report = archive_far(postgres18_url, far)
    assert report.outcome is Outcome.REFUSED, str(report)
    assert "no schema to make the archive in" in report.error
    assert "`schema:`" in report.hint
    assert archive_far(postgres18_url, far, schema="public").outcome is Outcome.COMPLETED


def test_a_session_that_the_server_ended_is_told_where_to_look(postgres18_url: str) -> None:
    give(postgres18_url, {"idle_session_timeout": "100ms"})
    with pytest.raises(BackendError) as caught, opened(postgres18_url) as backend:
        time.sleep(0.4)
        with backend.transaction():
            pass
    assert "idle_session_timeout" in caught.value.hint
