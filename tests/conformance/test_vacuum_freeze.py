"""Freezing: what is old, and, once, what no row comes to any more."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from backendops.backends.postgres import PostgresBackend
from backendops.backends.postgres.quarantine import Retirement
from backendops.contracts.capabilities import VacuumPlan
from backendops.contracts.retention import Retention
from backendops.contracts.run import Limits, NoWatermarks, Step
from backendops.engine.pacing import TimedPace
from backendops.jobs.archive import Archive
from tests.celery_rows import ensure_tables, fill_celery_table
from tests.conformance.postgres_store import in_transaction, sql
from tests.conformance.test_can_vacuum import DAY, LIVE, codes, plan, vacuum, whats

ARCHIVE = f"{LIVE}_archive"


def past() -> VacuumPlan:
    """Half a year on: every partition that holds rows is past."""
    return replace(plan(dead_rows=10**9, later=180 * DAY), freeze_past=True, analyze_after=3650 * DAY)


def pages_to_freeze(url: str, table: str) -> int:
    """Pages that a vacuum against wraparound would have to read."""
    sql(url, "CREATE EXTENSION IF NOT EXISTS pg_visibility")
    return int(sql(url, f"SELECT count(*) FROM pg_visibility('{table}') WHERE NOT all_frozen")[0][0])


@pytest.fixture
def archived(postgres_url: str) -> tuple[str, list[str]]:
    """An archive, and its partitions that have rows."""
    fill_celery_table(postgres_url, 600)
    with PostgresBackend(url=postgres_url).open(Limits(), NoWatermarks()) as backend:
        list(backend.archive(Retention(datetime.now(UTC) - 7 * DAY), Archive(older_than="7d").plan, TimedPace()))
    parts = [row[0] for row in sql(postgres_url, f"SELECT DISTINCT tableoid::regclass::text FROM {ARCHIVE}")]
    assert parts
    # Statistics are another reason to come.
    sql(postgres_url, "ANALYZE")
    return postgres_url, parts


def runs(url: str, wanted: VacuumPlan, times: int) -> list[list[Step]]:
    """Runs that remember, one after the other, as those of a daemon do."""
    remembered = NoWatermarks()
    done = []
    for _ in range(times):
        with PostgresBackend(url=url).open(Limits(), remembered) as backend:
            done.append(list(backend.vacuum(wanted, TimedPace())))
    return done


def test_a_past_partition_is_frozen_once(archived: tuple[str, list[str]]) -> None:
    url, parts = archived
    assert all(pages_to_freeze(url, part) for part in parts)
    first, second = runs(url, past(), 2)
    assert {what.partition(" in ")[0] for what in whats(first)} == {f'froze "public"."{part}"' for part in parts}
    assert all("no more rows come to it" in what for what in whats(first))
    assert [pages_to_freeze(url, part) for part in parts] == [0] * len(parts)
    assert whats(second) == ["no table needs a vacuum"]


def test_a_row_that_came_late_is_frozen_too(archived: tuple[str, list[str]]) -> None:
    url, parts = archived
    remembered = NoWatermarks()
    for round_ in range(2):
        with PostgresBackend(url=url).open(Limits(), remembered) as backend:
            steps = list(backend.vacuum(past(), TimedPace()))
        if round_ == 0:
            sql(url, f"UPDATE {parts[0]} SET queue = 'late' WHERE id = (SELECT min(id) FROM {parts[0]})")
            assert pages_to_freeze(url, parts[0])
    assert [what.partition(" in ")[0] for what in whats(steps)] == [f'froze "public"."{parts[0]}"']
    assert pages_to_freeze(url, parts[0]) == 0


def test_a_partition_of_now_is_left_to_autovacuum(archived: tuple[str, list[str]]) -> None:
    url, parts = archived
    long_ago = replace(past(), now=datetime.now(UTC) - 180 * DAY)
    assert whats(runs(url, long_ago, 1)[0]) == ["no table needs a vacuum"]
    assert all(pages_to_freeze(url, part) for part in parts)


def test_a_partition_in_quarantine_is_frozen_once(archived: tuple[str, list[str]]) -> None:
    url, parts = archived
    now = datetime.now(UTC)
    said = Retirement("quarantined", f'"public"."{ARCHIVE}"', now - 60 * DAY, now - 30 * DAY, now, now + 7 * DAY)
    sql(url, f"ALTER TABLE {ARCHIVE} DETACH PARTITION {parts[0]}", f"COMMENT ON TABLE {parts[0]} IS $${said}$$")
    # Nothing attached is past yet.
    wanted = replace(past(), now=now - 180 * DAY)
    first, second = runs(url, wanted, 2)
    assert [what.partition(" in ")[0] for what in whats(first)] == [f'froze "public"."{parts[0]}"']
    assert pages_to_freeze(url, parts[0]) == 0
    assert whats(second) == ["no table needs a vacuum"]


def test_what_could_not_be_frozen_yet_is_tried_again(archived: tuple[str, list[str]]) -> None:
    url, parts = archived
    sql(url, f"UPDATE {parts[0]} SET queue = 'again'")
    remembered = NoWatermarks()
    with in_transaction(url, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class LIMIT 1"):
        sql(url, f"UPDATE {parts[0]} SET queue = 'and again'")
        with PostgresBackend(url=url).open(Limits(), remembered) as backend:
            list(backend.vacuum(past(), TimedPace()))
        assert pages_to_freeze(url, parts[0])
    with PostgresBackend(url=url).open(Limits(), remembered) as backend:
        assert whats(list(backend.vacuum(past(), TimedPace()))) != ["no table needs a vacuum"]
    assert pages_to_freeze(url, parts[0]) == 0


def burn(url: str, count: int) -> None:
    """Use up transaction ids."""
    sql(url, f"DO $$ BEGIN FOR i IN 1..{count} LOOP PERFORM txid_current(); COMMIT; END LOOP; END $$")


def test_an_old_table_is_frozen_by_the_age_of_its_transactions(postgres_url: str) -> None:
    fill_celery_table(postgres_url, 100)
    burn(postgres_url, 500)
    age = f"SELECT age(relfrozenxid) FROM pg_class WHERE relname = '{LIVE}'"
    assert sql(postgres_url, age)[0][0] > 400
    assert whats(vacuum(postgres_url, plan())) == ["no table needs a vacuum"]
    steps = vacuum(postgres_url, replace(plan(), freeze_age=400))
    assert f'froze "public"."{LIVE}"' in {what.partition(" in ")[0] for what in whats(steps)}
    assert sql(postgres_url, age)[0][0] < 100
    ages = {dict(one.labels)["table"]: one.value for one in steps[-1].readings if "freeze_age" in one.metric.name}
    assert 0 < ages[LIVE] < 100


def test_an_old_table_is_frozen_by_the_age_of_its_multixacts(postgres_url: str) -> None:
    ensure_tables(postgres_url)
    fill_celery_table(postgres_url, 1)
    sql(postgres_url, f"VACUUM (FREEZE) {LIVE}", "VACUUM (FREEZE) celery_tasksetmeta")
    for _ in range(30):
        # Two sessions that share a row's lock make one multixact.
        share = f"SELECT 1 FROM {LIVE} FOR SHARE"
        with in_transaction(postgres_url, share), in_transaction(postgres_url, share):
            pass
    age = f"SELECT mxid_age(relminmxid), age(relfrozenxid) FROM pg_class WHERE relname = '{LIVE}'"
    multixacts, transactions = sql(postgres_url, age)[0]
    assert multixacts >= 29
    done = whats(vacuum(postgres_url, replace(plan(), freeze_age=max(29, int(transactions) // 10))))
    assert f'froze "public"."{LIVE}"' in {what.partition(" in ")[0] for what in done}
    assert sql(postgres_url, age)[0][0] < 5


def test_what_keeps_a_table_old_is_named(postgres_url: str) -> None:
    fill_celery_table(postgres_url, 100)
    with in_transaction(
        postgres_url,
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class LIMIT 1",
        application_name="ancient",
    ) as holder:
        burn(postgres_url, 500)
        steps = vacuum(postgres_url, replace(plan(), freeze_age=400))
        assert "vacuum.not-frozen" in codes(steps)
        (finding, *_) = [one for step in steps for one in step.findings if one.code == "vacuum.not-frozen"]
        assert f"session ancient (pid {holder.info.backend_pid})" in finding.sentence


def test_what_is_far_too_old_comes_before_what_has_dead_rows(postgres_url: str) -> None:
    fill_celery_table(postgres_url, 500, groups=1)
    burn(postgres_url, 300)
    sql(postgres_url, f"VACUUM (FREEZE) {LIVE}", f"DELETE FROM {LIVE} WHERE id % 2 = 0")
    done = [what.partition(" in ")[0] for what in whats(vacuum(postgres_url, replace(plan(), freeze_age=120)))]
    assert done == ['froze "public"."celery_tasksetmeta"', f'vacuumed "public"."{LIVE}"']


def test_what_an_expiry_has_emptied_comes_first(postgres_url: str) -> None:
    fill_celery_table(postgres_url, 1000, groups=400)
    sql(postgres_url, "DELETE FROM celery_tasksetmeta WHERE id % 2 = 0", f"DELETE FROM {LIVE} WHERE id % 3 = 0")
    done = [what.partition(" in ")[0] for what in whats(vacuum(postgres_url, plan()))]
    assert done == [f'vacuumed "public"."{LIVE}"', 'vacuumed "public"."celery_tasksetmeta"']
