"""The CHECK that a killed conversion or partition job leaves behind: every changing job takes it away."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from backendops.backends.postgres import PostgresBackend
from backendops.contracts.capabilities import ArchivePlan
from backendops.contracts.retention import Retention
from backendops.contracts.run import Step, Steps
from backendops.engine.pacing import TimedPace
from backendops.jobs.vacuum import Vacuum
from tests.celery_rows import fill_celery_table
from tests.conformance.postgres_store import in_transaction, opened, other_role, sql
from tests.conformance.test_can_convert import LIVE, convert, plan

NOW = datetime.now(UTC)
DUE = Retention(NOW - timedelta(days=7))
BOUND = "SELECT conrelid::regclass::text FROM pg_constraint WHERE conname = 'backendops_bound'"


def expiry(backend: PostgresBackend) -> Steps:
    return backend.expire(DUE, TimedPace())


def archiving(backend: PostgresBackend) -> Steps:
    return backend.archive(DUE, ArchivePlan(), TimedPace())


def handing_over(backend: PostgresBackend) -> Steps:
    yield Step(findings=backend.find_due(DUE).findings)


def vacuum(backend: PostgresBackend) -> Steps:
    return backend.vacuum(Vacuum().plan(NOW), TimedPace())


def told(steps: Steps) -> dict[str, str]:
    """What is said of it, by code."""
    return {one.code: one.sentence for step in steps for one in step.findings if one.code.startswith("live.bound")}


@pytest.fixture
def filled(postgres18_url: str) -> str:
    """Some results, half of them due."""
    fill_celery_table(postgres18_url, 300)
    return postgres18_url


@pytest.mark.parametrize("job", [expiry, archiving, handing_over, vacuum])
def test_every_changing_job_takes_away_what_a_killed_conversion_left(
    filled: str, job: Callable[[PostgresBackend], Steps]
) -> None:
    sql(filled, f"ALTER TABLE {LIVE} ADD CONSTRAINT backendops_bound CHECK (id < 1000) NOT VALID")
    with opened(filled) as backend:
        said = told(job(backend))
    assert list(said) == ["live.bound-gone"] and LIVE in said["live.bound-gone"]
    assert sql(filled, BOUND) == []


def test_and_what_a_killed_partition_job_left_on_a_leaf(filled: str) -> None:
    convert(filled, plan("id", 1000))
    sql(filled, f"ALTER TABLE {LIVE}_tail ADD CONSTRAINT backendops_bound CHECK (id < 5000000) NOT VALID")
    with opened(filled) as backend:
        assert f"{LIVE}_tail" in told(expiry(backend))["live.bound-gone"]
    assert sql(filled, BOUND) == []


def test_where_it_cannot_be_taken_away_the_job_says_so_and_goes_on(filled: str) -> None:
    sql(filled, f"ALTER TABLE {LIVE} ADD CONSTRAINT backendops_bound CHECK (id < 1000) NOT VALID")
    with in_transaction(filled, f"SELECT 1 FROM {LIVE} LIMIT 1"), opened(filled) as backend:
        assert "a transaction that does not end" in told(expiry(backend))["live.bound-left"]
    assert sql(filled, f"SELECT count(*) FROM {LIVE}") == [(150,)]
    role = other_role(filled, "sweeper", f"GRANT SELECT, UPDATE, DELETE ON {LIVE}, celery_tasksetmeta TO sweeper")
    with opened(role) as backend:
        assert "only its owner" in told(expiry(backend))["live.bound-left"]
    assert sql(filled, BOUND) == [(LIVE,)]
