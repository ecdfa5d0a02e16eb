"""The lock of a backend's changing jobs: one holder at a time, and a holder that knows when it is none any more."""

from __future__ import annotations

import pytest

from tests.celery_rows import ensure_tables
from tests.conformance.stores import Store, TableStore


def test_two_runs_exclude_each_other(store: Store) -> None:
    if isinstance(store, TableStore):
        ensure_tables(store.url)
    with store.opened() as first, store.opened() as second:
        with first.lock() as held:
            assert held is not None
            assert held.still_held()
            with second.lock() as other:
                assert other is None
            assert held.still_held()
        with second.lock() as other:
            assert other is not None
            assert other.still_held()


def test_a_lock_is_free_after_a_run_that_failed(store: Store) -> None:
    if isinstance(store, TableStore):
        ensure_tables(store.url)
    with pytest.raises(ZeroDivisionError), store.opened() as backend, backend.lock() as held:
        assert held is not None
        _ = 1 / 0
    with store.opened() as backend, backend.lock() as held:
        assert held is not None


# What only PostgreSQL has.


def test_a_policy_that_names_the_schema_meets_one_that_does_not(postgres: TableStore) -> None:
    ensure_tables(postgres.url)
    with postgres.opened() as first, postgres.opened(schemas={"task": "public"}) as second:
        with first.lock() as held, second.lock() as other:
            assert held is not None
            assert other is None
        with postgres.opened(tables={"task": "another"}) as third, first.lock() as held, third.lock() as other:
            assert held is not None
            assert other is not None


def test_a_lost_session_is_a_lost_lock(postgres: TableStore) -> None:
    ensure_tables(postgres.url)
    with postgres.opened() as backend, backend.lock() as held:
        assert held is not None
        postgres.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory' "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        assert not held.still_held()
    with postgres.opened() as backend, backend.lock() as held:
        assert held is not None


def test_a_held_lock_does_not_hold_back_vacuum(postgres: TableStore) -> None:
    ensure_tables(postgres.url)
    with postgres.opened() as backend, backend.lock() as held:
        assert held is not None
        assert held.still_held()
        idle = postgres.execute(
            "SELECT backend_xid, backend_xmin FROM pg_stat_activity WHERE application_name = 'backendops' "
            "AND state = 'idle in transaction' AND datname = current_database()"
        )
        assert idle == [(None, None)]
