"""CanExpire on backends with tables: what is past keeping is removed, and nothing else ever is."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import psycopg2
import pytest

from backendops.backends.postgres import passes
from backendops.contracts.capabilities import CanExpire
from backendops.contracts.errors import BackendError
from backendops.contracts.retention import Retention, Rule
from backendops.contracts.run import Limits, NoWatermarks
from tests.celery_rows import celery_results, fill_celery_table
from tests.conformance.stores import GROUPS, LIVE, FixedPace, TableStore, drive

CAPABILITY = CanExpire

DAY = timedelta(days=1)


def keep(days: float, *rules: Rule) -> Retention:
    return Retention(datetime.now(UTC) - days * DAY, rules)


def ago(days: float) -> datetime:
    return datetime.now(UTC) - days * DAY


def test_only_what_is_due_is_removed_wherever_a_run_stops(tables: TableStore) -> None:
    fill_celery_table(tables.url, 200, started=5, groups=20)
    celery_results(tables.url, 10, started=2)
    young, removed, stop_after = tables.young(), 0, 1
    every = len(tables.ids()) + len(tables.ids(GROUPS))
    while tables.ids() != young or len(tables.ids(GROUPS)) > 10:
        with tables.opened() as backend:
            removed += sum(step.rows for step in drive(backend.expire(keep(7), FixedPace(20)), stop_after))
        assert set(young) <= set(tables.ids())
        assert removed == every - len(tables.ids()) - len(tables.ids(GROUPS))
        stop_after += 1
        assert stop_after < 50, "the runs make no progress"


@pytest.mark.parametrize("indexed", [True, False])
def test_states_are_kept_for_their_own_time(tables: TableStore, indexed: bool) -> None:
    fill_celery_table(tables.url, 400, failures=0.5, due=1, older_than=timedelta(0), spread=timedelta(days=40))
    if not indexed:
        tables.execute("DROP INDEX ix_celery_taskmeta_date_done")
    with tables.opened() as backend:
        drive(backend.expire(keep(10, Rule(ago(20), state="FAILURE")), FixedPace(30)))
    # Ten rows a day over the forty days up to a minute ago, oldest first; the first half of each hundred are failures.
    left = dict(tables.execute(f"SELECT status, count(*) FROM {LIVE} GROUP BY status"))
    oldest = tables.execute(f"SELECT status, min(id) FROM {LIVE} GROUP BY status ORDER BY status")
    assert left == {"FAILURE": 99, "SUCCESS": 50}
    assert oldest == [("FAILURE", 202), ("SUCCESS", 351)]


def test_what_is_kept_for_ever_stays(tables: TableStore) -> None:
    fill_celery_table(tables.url, 100, failures=0.5)
    with tables.opened() as backend:
        drive(backend.expire(Retention(None, (Rule(ago(7), state="FAILURE"),)), FixedPace(30)))
    assert tables.execute(f"SELECT count(*) FROM {LIVE}") == [(50,)]
    with tables.opened() as backend:
        assert sum(step.rows for step in drive(backend.expire(Retention(None), FixedPace(30)))) == 0


MAIL_STAYS = (
    Rule(None, task="mail.*"),
    Rule(None, task="?ail.send"),
    Rule(None, task="[l-n]ail.s*d"),
    Rule(None, task="[!a-l]ail.send"),
    Rule(None, task="mail.send", queue="cel*", state="SUCCESS"),
)
NOTHING_STAYS = (
    Rule(None, task="MAIL.*"),
    Rule(None, task="mail"),
    Rule(None, task="mail*[!d]"),
    Rule(None, task="mail.send\n"),
    Rule(None, task="mail%send"),
    Rule(None, task="mail_send"),
    Rule(None, task="(mail|reports).*"),
    Rule(None, task="mail.send", queue="other"),
    Rule(None, queue="%"),
    Rule(None, state="success"),
)


def test_rules_by_task_and_queue(tables: TableStore) -> None:
    fill_celery_table(tables.url, 40, due=1, failures=0)
    with tables.previewing() as backend:
        counted = {rule: backend.preview_expire(keep(7, rule)).rows for rule in (*MAIL_STAYS, *NOTHING_STAYS)}
    assert counted == {rule: 20 if rule in MAIL_STAYS else 40 for rule in counted}
    with tables.opened() as backend:
        drive(backend.expire(keep(7, MAIL_STAYS[0]), FixedPace(30)))
    assert tables.execute(f"SELECT name, count(*) FROM {LIVE} GROUP BY name") == [("mail.send", 20)]


def test_the_first_rule_that_matches_decides(tables: TableStore) -> None:
    fill_celery_table(tables.url, 40, due=1, failures=0.5)
    rules = (Rule(ago(7), state="FAILURE", task="mail.*"), Rule(None, task="mail.*"))
    with tables.opened() as backend:
        drive(backend.expire(Retention(None, rules), FixedPace(30)))
    left = tables.execute(f"SELECT name, status, count(*) FROM {LIVE} GROUP BY name, status ORDER BY name, status")
    # Forty rows are failures all of them; every second one is a mail.
    assert left == [("reports.build", "FAILURE", 20)]


def test_a_preview_counts_and_changes_nothing(tables: TableStore) -> None:
    fill_celery_table(tables.url, 100, failures=0.5, started=4, groups=10)
    before = tables.checksum(LIVE)
    with tables.previewing() as backend:
        preview = backend.preview_expire(keep(7, Rule(None, state="FAILURE")))
    # The first fifty are due and are failures, all of them; groups have no state.
    assert preview.rows == 5
    assert preview.statements
    assert tables.checksum(LIVE) == before


def test_a_read_only_connection_cannot_remove(tables: TableStore) -> None:
    fill_celery_table(tables.url, 20)
    with tables.previewing() as backend, pytest.raises(BackendError):
        drive(backend.expire(keep(7), FixedPace(30)))
    assert len(tables.ids()) == 20


# What only PostgreSQL has.


def test_due_and_oldest_are_read_before_and_after(postgres: TableStore) -> None:
    fill_celery_table(postgres.url, 100)
    with postgres.opened() as backend:
        steps = drive(backend.expire(keep(7), FixedPace(30)))
    due = [r.value for step in steps for r in step.readings if r.metric.name == "backendops_results_due"]
    assert due[0] == 50
    assert due[-1] == 0
    ages = {r.labels: r.value for r in steps[-1].readings if r.metric.name == "backendops_results_oldest_age_seconds"}
    assert 3500 < ages[(("table", LIVE),)] < 3900


def test_a_batch_waits_for_no_lock(postgres: TableStore) -> None:
    fill_celery_table(postgres.url, 100)
    holder = psycopg2.connect(postgres.url.removeprefix("db+"))
    try:
        with holder.cursor() as cursor:
            cursor.execute(f"UPDATE {LIVE} SET worker = 'busy' WHERE id = 10")
        began = datetime.now(UTC)
        with postgres.opened() as backend:
            assert sum(step.rows for step in drive(backend.expire(keep(7), FixedPace(10)))) == 49
        assert datetime.now(UTC) - began < timedelta(seconds=3)
    finally:
        holder.close()
    assert 10 in postgres.ids()


def test_the_hour_that_clocks_repeat_is_waited_for(postgres: TableStore) -> None:
    """01:30 in New York came twice on 2 November 2025: what may be of the second pass is not due in the first."""
    fill_celery_table(postgres.url, 2, due=1)
    postgres.execute(f"UPDATE {LIVE} SET date_done = '2025-11-02 01:15' WHERE id = 1")
    postgres.execute(f"UPDATE {LIVE} SET date_done = '2025-11-02 00:15' WHERE id = 2")
    first_pass = datetime(2025, 11, 2, 5, 30, tzinfo=UTC)
    with postgres.opened(date_done_timezone="America/New_York") as backend:
        drive(backend.expire(Retention(first_pass), FixedPace(10)))
    assert postgres.ids() == [1]
    with postgres.opened(date_done_timezone="America/New_York") as backend:
        drive(backend.expire(Retention(first_pass + timedelta(hours=1)), FixedPace(10)))
    assert postgres.ids() == []


def test_a_result_of_the_hour_that_clocks_repeat_is_not_of_the_future(tables: TableStore) -> None:
    """At 01:30 of the first pass nobody can tell that this is not of the second, an hour later."""
    fill_celery_table(tables.url, 1, due=1, failures=0)
    tables.execute(f"UPDATE {LIVE} SET date_done = :moment", moment="2025-11-02 01:30:00.000000")
    with tables.opened(date_done_timezone="America/New_York") as backend:
        assert backend.standing().newest_done == datetime(2025, 11, 2, 5, 30, tzinfo=UTC)
    if tables.is_postgres:
        # No moment in UTC that Python has, and no fault of backendops.
        tables.execute(f"UPDATE {LIVE} SET date_done = :moment", moment="9999-12-31 23:00:00")
        with tables.opened(date_done_timezone="America/New_York") as backend:
            assert backend.standing().newest_done.year == 9999


def test_settings_of_a_run_do_not_outlive_its_transactions(postgres: TableStore) -> None:
    """What PgBouncer in transaction mode would hand to a stranger."""
    fill_celery_table(postgres.url, 20)
    with postgres.opened(Limits(statement_timeout=timedelta(seconds=7))) as backend:
        drive(backend.expire(keep(7), FixedPace(10)))
        raw = backend._connection.connection.dbapi_connection
        with raw.cursor() as cursor:
            cursor.execute(
                "SELECT name FROM pg_settings WHERE source = 'session' AND name <> 'client_encoding' "
                "AND name NOT IN ('application_name', 'transaction_read_only', 'transaction_isolation')"
            )
            assert cursor.fetchall() == []
        raw.rollback()


class OneDayLater(NoWatermarks):
    """What was remembered a day ago."""

    def recall(self, key: str) -> str | None:
        told = super().recall(key)
        if told is not None:
            last = json.loads(told)
            last["full"] = (datetime.fromisoformat(last["full"]) - DAY).isoformat()
            told = json.dumps(last)
        return told


def test_without_an_index_a_second_run_does_not_read_the_young_rows_again(
    postgres: TableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "WORTH_SKIPPING", 100)
    monkeypatch.setattr(passes, "QUIET_ROWS", 40)
    fill_celery_table(postgres.url, 400)
    postgres.execute("DROP INDEX ix_celery_taskmeta_date_done")
    remembered = NoWatermarks()
    for batches in (22, 4):
        with postgres.opened(watermarks=remembered) as backend:
            # Twenty ranges of twenty rows and the steps before and after; then two ranges say that the rest is young.
            assert len(drive(backend.expire(keep(7), FixedPace(20)))) == batches
    postgres.execute(f"UPDATE {LIVE} SET date_done = '2025-01-01' WHERE id IN (201, 390)")
    for left in ([390], [390]):
        with postgres.opened(watermarks=remembered) as backend:
            drive(backend.expire(keep(7), FixedPace(20)))
        assert [row for row in postgres.ids() if row in (201, 390)] == left
    later = OneDayLater()
    later._values = remembered._values
    with postgres.opened(watermarks=later) as backend:
        drive(backend.expire(keep(7), FixedPace(20)))
    assert 390 not in postgres.ids()


def test_in_a_table_of_ordinary_size_every_run_looks_at_every_row(postgres: TableStore) -> None:
    fill_celery_table(postgres.url, 40, failures=0.5)
    remembered = NoWatermarks()
    for _ in range(3):
        postgres.execute(f"UPDATE {LIVE} SET date_done = '2025-01-01' WHERE id = (SELECT max(id) FROM {LIVE})")
        last = postgres.ids()[-1]
        with postgres.opened(watermarks=remembered) as backend:
            drive(backend.expire(keep(7, Rule(None, state="SUCCESS", task="no")), FixedPace(5)))
        assert last not in postgres.ids()


def test_rows_that_are_kept_longer_are_not_read_again_by_every_run(
    postgres: TableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "WORTH_SKIPPING", 40)
    fill_celery_table(postgres.url, 400, due=1, older_than=timedelta(0), spread=timedelta(days=40), failures=0.5)
    remembered = NoWatermarks()
    rules = ("FAILURE", 20)

    def run(at: datetime, watermarks: NoWatermarks) -> tuple[int, int]:
        with postgres.opened(watermarks=watermarks) as backend:
            retention = Retention(at - 10 * DAY, (Rule(at - rules[1] * DAY, state=rules[0]),))
            steps = drive(backend.expire(retention, FixedPace(10)))
            return len(steps), sum(step.rows for step in steps)

    now = datetime.now(UTC)
    first, removed = run(now, remembered)
    assert removed == 251
    # Ten rows a day: an hour later nothing is due, and two ranges are looked at instead of a hundred kept rows.
    assert run(now + timedelta(hours=1), remembered)[0] == 4
    assert first > 30
    # A day later ten rows of each cutoff's day are due, as far as they are of the state that it is for.
    left = postgres.execute(f"SELECT count(*) FROM {LIVE}")[0][0]
    _, removed = run(now + DAY, remembered)
    _, by_full_pass = run(now + DAY, NoWatermarks())
    assert by_full_pass == 0
    assert postgres.execute(f"SELECT count(*) FROM {LIVE}")[0][0] == left - removed < left
