"""What a run remembers of a table, so that the next one neither reads everything again nor misses a row."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, text

from backendops.backends.postgres import passes
from backendops.contracts.capabilities import ArchivePlan, CanExpire
from backendops.contracts.errors import BackendBusy, BackendUnreachable
from backendops.contracts.retention import Retention, Rule
from backendops.contracts.run import Limits, NoWatermarks
from tests.celery_rows import fill_celery_table
from tests.conformance.stores import ARCHIVE, LIVE, FixedPace, TableStore, drive

CAPABILITY = CanExpire
DAY = timedelta(days=1)
NO_INDEX = "DROP INDEX ix_celery_taskmeta_date_done"


def retention(failures: float | None = None) -> Retention:
    """Seven days; failures for so many, or for ever."""
    now = datetime.now(UTC)
    return Retention(now - 7 * DAY, (Rule(None if failures is None else now - failures * DAY, state="FAILURE"),))


def run(store: TableStore, remembered: NoWatermarks, due: Retention, stop_after: int | None = None) -> list[Any]:
    with store.opened(watermarks=remembered) as backend:
        return drive(backend.expire(due, FixedPace(10)), stop_after)


def kept_before_due(store: TableStore, *, indexed: bool) -> list[int]:
    """Five hundred rows that a rule keeps, some of them without a date, then a hundred that are due; the kept ids."""
    fill_celery_table(store.url, 500, due=1, older_than=40 * DAY, failures=1, started=30)
    kept = store.ids()
    fill_celery_table(store.url, 100, due=1, failures=0)
    if not indexed:
        store.execute(NO_INDEX)
    return kept


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("remembers", [True, False])
def test_what_is_due_behind_more_kept_rows_than_a_run_can_read_is_reached(
    postgres: TableStore, indexed: bool, remembers: bool
) -> None:
    kept = kept_before_due(postgres, indexed=indexed)
    remembered = NoWatermarks()
    for _ in range(12):
        # A step that says what is due, then seventy rows.
        run(postgres, remembered if remembers else NoWatermarks(), retention(), stop_after=8)
    assert (postgres.ids() == kept) == remembers, "what is not remembered costs reading, never a row"


@pytest.mark.parametrize("indexed", [True, False])
def test_what_becomes_due_before_the_place_is_taken_by_the_next_pass(postgres: TableStore, indexed: bool) -> None:
    kept = kept_before_due(postgres, indexed=indexed)
    remembered = NoWatermarks()
    run(postgres, remembered, retention(), stop_after=20)
    postgres.execute(f"UPDATE {LIVE} SET status = 'SUCCESS' WHERE id = 7")
    run(postgres, remembered, retention())
    # By date it is past it. Without the index the ids that follow are looked through once more: they are few.
    assert postgres.ids() == (kept if indexed else [id_ for id_ in kept if id_ != 7])
    run(postgres, remembered, retention())
    assert postgres.ids() == [id_ for id_ in kept if id_ != 7]


@pytest.mark.parametrize("indexed", [True, False])
def test_a_run_that_completes_a_pass_has_taken_all_that_was_due_at_its_beginning(
    postgres: TableStore, indexed: bool
) -> None:
    """Of what is kept longer some comes of age behind the place while a pass takes several runs."""
    fill_celery_table(postgres.url, 600, due=1, older_than=5 * DAY, spread=60 * DAY, failures=0.5)
    if not indexed:
        postgres.execute(NO_INDEX)
    now, remembered = datetime.now(UTC), NoWatermarks()

    def at(moment: datetime) -> Retention:
        return Retention(moment - 7 * DAY, (Rule(moment - 40 * DAY, state="FAILURE"),))

    run(postgres, remembered, at(now), stop_after=50)
    run(postgres, remembered, at(now + DAY))
    due = "CASE status WHEN 'FAILURE' THEN interval '39 days' ELSE interval '6 days' END"
    assert postgres.execute(
        f"SELECT count(*) FROM {LIVE} WHERE date_done < now() AT TIME ZONE 'UTC' - {due} - interval '1 minute'"
    ) == [(0,)]
    assert postgres.ids()


@pytest.mark.parametrize("indexed", [True, False])
def test_an_archive_goes_on_where_the_last_run_ended(postgres: TableStore, indexed: bool) -> None:
    kept = kept_before_due(postgres, indexed=indexed)
    every, remembered = postgres.ids(), NoWatermarks()
    for _ in range(14):
        with postgres.opened(watermarks=remembered) as backend:
            drive(backend.archive(retention(), ArchivePlan(), FixedPace(10)), 8)
        assert sorted(postgres.ids() + postgres.ids(ARCHIVE)) == every
    assert postgres.ids() == kept


def test_a_pass_of_several_runs_is_a_full_one_from_its_beginning_on(
    postgres: TableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each cutoff moved over since its first run is what the next one looks at."""
    monkeypatch.setattr(passes, "WORTH_SKIPPING", 100)
    fill_celery_table(postgres.url, 400, due=1, older_than=5 * DAY, spread=30 * DAY, failures=0.5)
    remembered = NoWatermarks()
    run(postgres, remembered, retention(60), stop_after=8)
    while run(postgres, remembered, retention(60), stop_after=8)[-1].what != "nothing that is due is left":
        pass
    steps = run(postgres, remembered, retention(60))
    assert len(steps) <= 4, "a short pass"
    assert postgres.execute(
        f"SELECT count(*) FROM {LIVE} WHERE status = 'SUCCESS' AND date_done < now() - '7d'::interval"
    ) == [(0,)]


def test_without_an_index_a_short_pass_begins_before_the_last_due_rows(
    postgres: TableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "WORTH_SKIPPING", 100)
    monkeypatch.setattr(passes, "QUIET_ROWS", 40)
    kept = kept_before_due(postgres, indexed=False)
    fill_celery_table(postgres.url, 200, due=0)
    remembered = NoWatermarks()
    assert len(run(postgres, remembered, retention())) > 60
    assert len(run(postgres, remembered, retention())) < 20
    assert set(kept) < set(postgres.ids())


def test_a_place_where_nothing_succeeds_is_given_up(postgres: TableStore) -> None:
    """Or nothing before it would be looked at until somebody mends it."""
    kept_before_due(postgres, indexed=True)
    remembered = NoWatermarks()
    run(postgres, remembered, retention(), stop_after=20)
    (held,) = postgres.execute(f"SELECT date_done FROM {LIVE} ORDER BY date_done OFFSET 195 LIMIT 1")
    postgres.execute(
        f"CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF OLD.date_done >= ''{held.date_done}'' "
        "THEN PERFORM pg_sleep(9); END IF; RETURN OLD; END';"
        f"CREATE TRIGGER fail BEFORE DELETE ON {LIVE} FOR EACH ROW EXECUTE FUNCTION fail()"
    )
    postgres.execute(f"UPDATE {LIVE} SET status = 'SUCCESS' WHERE id = 7 OR date_done >= '{held.date_done}'")

    class Small(FixedPace):
        def timed_out(self) -> None:
            pass

    for _ in range(2):
        with (
            postgres.opened(Limits(statement_timeout=timedelta(milliseconds=300)), remembered) as backend,
            pytest.raises(BackendBusy),
        ):
            drive(backend.expire(retention(), Small(10)))
    assert 7 not in postgres.ids()


def test_no_place_is_remembered_that_a_crash_of_the_server_could_take_back(postgres: TableStore) -> None:
    """An expiry does not wait for the disk: what it removed last comes back when the server dies."""
    kept = kept_before_due(postgres, indexed=True)
    remembered = NoWatermarks()
    with postgres.opened(watermarks=remembered) as backend, pytest.raises(BackendUnreachable):
        steps = backend.expire(retention(), FixedPace(10))
        for _ in range(56):
            next(steps)
        assert len(postgres.ids()) < len(kept) + 100
        postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'backendops'")
        drive(steps)
    assert not any(json.loads(told).get("place") for told in remembered._values.values())
    run(postgres, remembered, retention())
    assert postgres.ids() == kept


def looks(monkeypatch: pytest.MonkeyPatch, first_takes: float = 0) -> list[str]:
    """The looks for the first row; each takes so many seconds, as if it had to step over very many removed ones."""
    said: list[str] = []

    def execute(self: Connection, statement: Any, *values: Any, **options: Any) -> Any:
        if f'min(date_done) FROM "public"."{LIVE}" WHERE date_done < :end' in str(statement):
            said.append(str(statement))
            original(self, text(f"SELECT pg_sleep({first_takes})"))
        return original(self, statement, *values, **options)

    original = Connection.execute
    monkeypatch.setattr(Connection, "execute", execute)
    return said


def test_a_beginning_that_is_slow_to_find_is_looked_for_once_a_day(
    postgres: TableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_celery_table(postgres.url, 100)
    remembered = NoWatermarks()
    said = looks(monkeypatch)
    run(postgres, remembered, retention(7))
    assert len(postgres.ids()) == 50
    assert len(said) == 1
    # Now so much is removed, and may not be cleared away, that it takes longer than a statement may.
    said = looks(monkeypatch, first_takes=2)
    limits = Limits(statement_timeout=timedelta(milliseconds=400))
    for due in (10, 20):
        fill_celery_table(postgres.url, due, due=1, spread=timedelta(seconds=30), failures=0)
        with postgres.opened(limits, remembered) as backend:
            drive(backend.expire(retention(7), FixedPace(10)))
        assert len(postgres.ids()) == 50
        assert len(said) == 1, "the second of them begins where the first one did"
    with postgres.opened(limits) as backend, pytest.raises(BackendBusy):
        drive(backend.expire(retention(7), FixedPace(10)))
