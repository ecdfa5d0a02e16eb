"""CanConvert among what others do meanwhile: grants, views, leftovers, a CHECK left behind, leaves that filled up."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from backendops.backends.postgres import PostgresBackend, live_leaves, live_lock, undo, undo_rows
from backendops.backends.postgres import convert as convert_module
from backendops.backends.postgres.sent import Sent
from backendops.contracts.capabilities import ArchivePlan, PartitionPlan
from backendops.contracts.errors import BackendBusy, BackendError, BackendRefused
from backendops.contracts.units import Duration
from backendops.engine.pacing import TimedPace
from tests.celery_rows import celery_results, ensure_tables, fill_celery_table
from tests.conformance.postgres_store import in_transaction, opened, other_role, sql, until
from tests.conformance.test_can_convert import (
    DAY,
    LIVE,
    catalog,
    convert,
    everything,
    kind,
    leaves,
    maintained,
    plan,
    undone,
)

PLAN = PartitionPlan(datetime.now(UTC), ArchivePlan(), 1, None, Duration.parse("7d"))


@pytest.fixture
def filled(postgres18_url: str) -> str:
    """Three hundred results of a quiet time."""
    fill_celery_table(postgres18_url, 300, older_than=40 * DAY)
    return postgres18_url


def by_id(url: str) -> None:
    """Converted by id, with results beyond the first leaf."""
    convert(url, plan("id", 1000))
    first = int(str(leaves(url)[f"{LIVE}_first"]).rsplit("(", 1)[1].strip("')"))
    sql(url, f"SELECT setval('task_id_sequence', {first + 10})")
    celery_results(url, 3)


def grants(url: str, table: str = LIVE) -> set[tuple[str, str]]:
    """Who may do what, by role."""
    return set(
        sql(
            url,
            "SELECT a.grantee::regrole::text, a.privilege_type FROM pg_class, aclexplode(relacl) AS a "
            f"WHERE oid = '{table}'::regclass AND a.grantee <> relowner",
        )
    )


def told_by_the_server(url: str, work: Callable[[PostgresBackend], object], caplog: pytest.LogCaptureFixture) -> str:
    """What the server says of its own doing meanwhile, such as whether it has to read a table that is attached."""
    sql(url, f"ALTER DATABASE {url.rpartition('/')[2]} SET client_min_messages = debug1")
    with opened(url) as backend, caplog.at_level("INFO", "sqlalchemy.dialects.postgresql"):
        work(backend)
        # With the next statement SQLAlchemy logs what the last one brought.
        with backend.transaction():
            pass
    return caplog.text


def watch(monkeypatch: pytest.MonkeyPatch, module: Any, look: Callable[[], int]) -> list[tuple[int, int]]:
    """What is seen before and after each moment under the exclusive lock that this module asks for."""
    seen: list[tuple[int, int]] = []
    moment = live_lock.with_moment

    def watched(*given: Any, **named: Any) -> Any:
        before = look()
        held = moment(*given, **named)
        seen.append((before, look()))
        return held

    monkeypatch.setattr(module, "with_moment", watched)
    return seen


@pytest.mark.parametrize("first_is_gone", [False, True])
def test_undone_it_has_the_grants_and_the_owner_that_it_had_last(filled: str, first_is_gone: bool) -> None:
    for role in ("worker", "auditor", "reporter", "keeper"):
        other_role(filled, role)
    sql(filled, f"GRANT SELECT, INSERT, UPDATE ON {LIVE} TO worker", f"GRANT SELECT ON {LIVE} TO auditor")
    by_id(filled)
    sql(filled, f"REVOKE SELECT ON {LIVE} FROM auditor", f"GRANT SELECT ON {LIVE} TO reporter WITH GRANT OPTION",
        f"ALTER TABLE {LIVE} OWNER TO keeper")  # fmt: skip
    if first_is_gone:
        sql(filled, f"DROP TABLE {LIVE}_first")
    before = grants(filled)
    undone(filled)
    assert grants(filled) == before == {
        ("worker", "SELECT"), ("worker", "INSERT"), ("worker", "UPDATE"), ("reporter", "SELECT"),
    }  # fmt: skip
    assert sql(filled, f"SELECT relowner::regrole::text FROM pg_class WHERE oid = '{LIVE}'::regclass") == [("keeper",)]
    with pytest.raises(Exception, match="permission denied"):
        sql(other_role(filled, "auditor"), f"SELECT count(*) FROM {LIVE}")
    assert sql(other_role(filled, "worker"), f"SELECT count(*) FROM {LIVE}")[0][0] >= 3


def test_a_tail_that_filled_up_is_closed_without_being_read_under_the_lock(
    filled: str, caplog: pytest.LogCaptureFixture
) -> None:
    convert(filled, plan("id", 1000))
    tail = int(str(leaves(filled)[f"{LIVE}_tail"]).split("(")[1].split(")")[0].strip("'"))
    sql(filled, f"SELECT setval('task_id_sequence', {tail + 10})")
    celery_results(filled, 5)
    told = told_by_the_server(filled, lambda backend: list(backend.maintain_partitions(PLAN, TimedPace())), caplog)
    assert f"{LIVE}_i{tail}" in leaves(filled)
    assert f'partition constraint for table "{LIVE}_tail" is implied by existing constraints' in told


def test_results_that_come_while_a_filled_tail_is_closed_are_stored(
    filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(filled, plan("id", 1000))
    tail = int(str(leaves(filled)[f"{LIVE}_tail"]).split("(")[1].split(")")[0].strip("'"))
    sql(filled, f"SELECT setval('task_id_sequence', {tail + 10})")
    celery_results(filled, 5)
    rows, moment, came = everything(filled)[0], live_leaves.with_moment, []

    def then_busy(*given: Any, **named: Any) -> Any:
        seconds = moment(*given, **named)
        if not came:
            came.append(1500)
            sql(filled, f"INSERT INTO {LIVE} (id, task_id, date_done) SELECT nextval('task_id_sequence'), n, now() "
                "FROM generate_series(1, 1500) AS n")  # fmt: skip
        return seconds

    monkeypatch.setattr(live_leaves, "with_moment", then_busy)
    with opened(filled) as backend:
        list(backend.maintain_partitions(PLAN, TimedPace()))
    assert everything(filled)[0] == rows + 1500
    assert f"{LIVE}_i{tail}" in leaves(filled)


def test_a_tail_that_nothing_came_to_is_closed_without_a_check(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(filled, plan("id", 1000, ahead=1))
    bound = "SELECT count(*) FROM pg_constraint WHERE conname = 'backendops_bound'"
    seen = watch(monkeypatch, live_leaves, lambda: int(sql(filled, bound)[0][0]))
    tail = str(leaves(filled)[f"{LIVE}_tail"])
    with opened(filled) as backend:
        list(backend.maintain_partitions(replace(PLAN, ahead=3), TimedPace()))
    assert seen == [(0, 0), (0, 0)]
    assert len(leaves(filled)) == 5
    assert str(leaves(filled)[f"{LIVE}_tail"]) > tail


@pytest.mark.parametrize("by", ["id", "date_done"])
def test_with_many_partitions_ahead_nothing_is_read_under_the_lock(
    filled: str, caplog: pytest.LogCaptureFixture, by: Any
) -> None:
    told = told_by_the_server(filled, lambda backend: list(backend.convert(plan(by, ahead=12), TimedPace())), caplog)
    first = "first" if by == "id" else "default"
    assert f'partition constraint for table "{LIVE}_{first}" is implied by existing constraints' in told
    assert len(leaves(filled)) == (14 if by == "id" else 13)


def test_a_partition_of_a_time_is_taken_back_without_being_read_under_the_lock(
    filled: str, caplog: pytest.LogCaptureFixture
) -> None:
    convert(filled, plan("date_done"))
    sql(filled, f"CREATE TABLE old PARTITION OF {LIVE} FOR VALUES FROM ('2020-01-01') TO ('2021-01-01')",
        f"INSERT INTO {LIVE} (id, task_id, date_done) "
        "SELECT n, 'old' || n, '2020-02-01' FROM generate_series(9000, 9100) n")  # fmt: skip
    maintained(filled, "30d")
    assert "old" not in leaves(filled)
    told = told_by_the_server(filled, lambda backend: list(backend.reattach("old")), caplog)
    assert "old" in leaves(filled)
    assert 'partition constraint for table "old" is implied by existing constraints' in told
    assert f'default partition "{LIVE}_default" is implied by existing constraints' in told
    assert sql(filled, "SELECT count(*) FROM pg_constraint WHERE conname = 'backendops_bound'") == [(0,)]


def test_an_emptied_leaf_is_not_read_under_the_lock_before_it_is_dropped(
    filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_id(filled)
    known = "SELECT count(*) FROM pg_constraint WHERE convalidated AND pg_get_constraintdef(oid) = 'CHECK (false)'"
    looked = watch(monkeypatch, undo, lambda: int(sql(filled, known)[0][0]))
    undone(filled)
    # The swap; then of each of three leaves the CHECK, and the drop of what the server knows to be empty.
    assert looked == [(0, 0), *[(0, 0), (1, 0)] * 3]


def test_a_row_that_somebody_puts_into_a_leaf_itself_is_not_dropped_with_it(
    filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_id(filled)
    moment, leaf = undo.with_moment, f"{LIVE}_tail"

    def meanwhile(session: Any, live: str, quiet: Any, statements: Any) -> Any:
        wanted = list(statements)
        if wanted[-1].name == "close_leaf" and leaf in wanted[-1].slots["leaf"]:
            sql(filled, f"INSERT INTO {leaf} (id, task_id) VALUES (99999, 'by hand')")
        return moment(session, live, quiet, wanted)

    with monkeypatch.context() as patch:
        patch.setattr(undo, "with_moment", meanwhile)
        with pytest.raises(BackendBusy, match="rows are left"):
            undone(filled)
    sql(filled, f"UPDATE {LIVE} SET status = 'SUCCESS' WHERE task_id = 'by hand'")
    undone(filled)
    assert sql(filled, f"SELECT id FROM {LIVE} WHERE task_id = 'by hand'") == [(99999,)]


@pytest.mark.parametrize("by", ["id", "date_done"])
def test_undo_takes_away_what_a_killed_job_left_on_a_leaf(filled: str, by: Any) -> None:
    convert(filled, plan(by))
    rows = everything(filled)
    leaf = f"{LIVE}_default" if by == "date_done" else f"{LIVE}_first"
    where = "date_done IS NULL OR date_done < '2100-01-01'" if by == "date_done" else "id < 999999"
    sql(filled, f"ALTER TABLE {leaf} ADD CONSTRAINT backendops_bound CHECK ({where}) NOT VALID")
    undone(filled)
    assert (kind(filled), everything(filled)) == ("r", rows)
    assert sql(filled, "SELECT count(*) FROM pg_constraint WHERE conname = 'backendops_bound'") == [(0,)]


def test_a_sequence_that_would_go_with_the_first_leaf_is_refused(filled: str) -> None:
    sql(filled, f"ALTER SEQUENCE task_id_sequence OWNED BY {LIVE}.id")
    with pytest.raises(BackendRefused, match="task_id_sequence") as caught:
        convert(filled)
    assert "OWNED BY NONE" in caught.value.hint
    sql(filled, caught.value.hint)
    convert(filled)
    undone(filled)


def leftover_names(url: str) -> None:
    """What is left where somebody moved an older table of Celery's out of the way: it keeps Celery's names."""
    sql(url, f"ALTER TABLE {LIVE} RENAME TO {LIVE}_old", f"ALTER INDEX ix_{LIVE}_date_done RENAME TO moved_away")
    ensure_tables(url)
    sql(url, f"INSERT INTO {LIVE} SELECT * FROM {LIVE}_old", f"ALTER INDEX ix_{LIVE}_date_done RENAME TO by_date",
        f"ALTER INDEX moved_away RENAME TO ix_{LIVE}_date_done")  # fmt: skip


@pytest.mark.parametrize(("by", "indexed"), [("id", False), ("date_done", True)])
def test_names_that_an_older_table_kept_are_left_to_it(filled: str, by: Any, indexed: bool) -> None:
    leftover_names(filled)
    sql(filled, "CREATE TABLE taken (x int)", f"ALTER TABLE taken ADD CONSTRAINT {LIVE}_first_pkey1 PRIMARY KEY (x)")
    if not indexed:
        sql(filled, "DROP INDEX by_date")
    rows, old = everything(filled), everything(filled, f"{LIVE}_old")
    convert(filled, plan(by))
    assert (kind(filled), everything(filled)) == ("p", rows)
    undone(filled)
    assert (kind(filled), everything(filled)) == ("r", rows)
    convert(filled, plan(by))
    if by == "id":
        by_first = f"{LIVE}_first"
        celery_results(filled, 1)
        sql(filled, f"DROP TABLE {by_first}")
    undone(filled)
    assert kind(filled) == "r"
    assert everything(filled, f"{LIVE}_old") == old


UNDO_REFUSED = {
    "view": f"CREATE VIEW failures AS SELECT task_id FROM {LIVE}",
    "trigger": f"CREATE TRIGGER t BEFORE UPDATE ON {LIVE} FOR EACH ROW "
    "EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "row level security": f"ALTER TABLE {LIVE} ENABLE ROW LEVEL SECURITY",
    "publication": f"CREATE PUBLICATION out FOR TABLE {LIVE} WITH (publish_via_partition_root)",
}


def test_what_undoing_would_lose_is_refused_before_anything_is_changed(filled: str) -> None:
    convert(filled)
    sql(filled, *UNDO_REFUSED.values())
    with opened(filled) as backend:
        refused = str(backend.plan_undo("task").refusals)
    with pytest.raises(BackendRefused) as caught:
        undone(filled)
    for what in UNDO_REFUSED:
        assert what in refused
        assert what in str(caught.value)
    assert caught.value.hint.count("make them again") == 2
    assert kind(filled) == "p"


def test_a_column_that_celery_adds_while_it_is_undone_is_moved_too(
    filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql(filled, f"ALTER TABLE {LIVE} DROP COLUMN stamps")
    by_id(filled)
    # Celery has just added it again.
    sql(filled, f"ALTER TABLE {LIVE} DROP COLUMN stamps")
    rows = everything(filled)[0]
    following, added = undo_rows.Mover._next_id, []

    def upgraded(mover: Any, low: int) -> Any:
        number = following(mover, low)
        if number is not None and not added:
            added.append(number)
            sql(filled, f"ALTER TABLE {LIVE} ADD COLUMN stamps bytea",
                f"UPDATE {LIVE} SET stamps = 's' WHERE id = {number}")  # fmt: skip
        return number

    monkeypatch.setattr(undo_rows.Mover, "_next_id", upgraded)
    undone(filled)
    assert added
    assert sql(filled, f"SELECT id FROM {LIVE} WHERE stamps = 's'") == [(number,) for number in added]
    assert (kind(filled), everything(filled)[0]) == ("r", rows)


def test_a_conversion_holds_no_transaction_while_it_is_told_of(filled: str) -> None:
    with opened(filled) as backend:
        for _ in backend.convert(plan(), TimedPace()):
            assert sql(filled, "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' "
                       "AND application_name = 'backendops' AND datname = current_database()") == [(0,)]  # fmt: skip


def test_a_check_that_cannot_be_taken_away_is_told(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_lock, "PATIENCE", live_lock.PATIENCE[:1])
    monkeypatch.setattr(live_lock, "UNBIND_PATIENCE", live_lock.PATIENCE[:1])
    moment, held = convert_module.with_moment, []

    def then_held(*given: Any, **named: Any) -> Any:
        seconds = moment(*given, **named)
        if not held:
            reader = in_transaction(filled, f"SELECT 1 FROM {LIVE} LIMIT 1")
            reader.__enter__()
            held.append(reader)
        return seconds

    monkeypatch.setattr(convert_module, "with_moment", then_held)
    with pytest.raises(BackendBusy) as caught:
        convert(filled)
    held[0].__exit__(None, None, None)
    assert sql(filled, "SELECT count(*) FROM pg_constraint WHERE conname = 'backendops_bound'") == [(1,)]
    assert "backendops_bound" in str(caught.value)
    assert "partition undo" in caught.value.hint


def test_ids_whose_rate_nobody_knows_are_far_from_the_bound(postgres18_url: str) -> None:
    ensure_tables(postgres18_url)
    convert(postgres18_url, plan("id", 1000))
    assert leaves(postgres18_url)[f"{LIVE}_first"] >= "FOR VALUES FROM (MINVALUE) TO (1000000)"
    undone(postgres18_url)
    # Millions have come and gone, and what is there is of the last minutes.
    sql(postgres18_url, f"INSERT INTO {LIVE} (id, task_id, date_done) SELECT n, n, now() AT TIME ZONE 'UTC' "
        "FROM generate_series(9000000, 9001000) n", "SELECT setval('task_id_sequence', 9001000)")  # fmt: skip
    convert(postgres18_url, plan("id", 1000))
    bound = int(str(leaves(postgres18_url)[f"{LIVE}_first"]).rsplit("(", 1)[1].strip("')"))
    assert bound >= 10_000_000


def test_no_standby_is_waited_for_under_the_lock(filled: str) -> None:
    comment = Sent("convert", "describe", {"live": LIVE}, {"comment": "ours"})
    done: list[float | None] = []

    def hold() -> None:
        with opened(filled) as backend:
            done.append(live_lock.with_moment(backend, LIVE, [LIVE], [comment]))

    reload = "SELECT pg_reload_conf()"
    sql(filled, "ALTER SYSTEM SET synchronous_standby_names = 'away'", reload)
    try:
        until(lambda: sql(filled, "SHOW synchronous_standby_names") == [("away",)], "commits wait for a standby")
        thread = threading.Thread(target=hold, daemon=True)
        thread.start()
        until(lambda: bool(done), "this one does not")
    finally:
        sql(filled, "ALTER SYSTEM RESET synchronous_standby_names", reload)
        thread.join()
    assert sql(filled, f"SELECT obj_description('{LIVE}'::regclass)") == [("ours",)]


@pytest.mark.parametrize("by", ["id", "date_done"])
def test_a_table_whose_comment_was_replaced_is_told_and_found_again(filled: str, by: Any) -> None:
    convert(filled, plan(by, every="week") if by == "date_done" else plan(by))
    rows = everything(filled)
    sql(filled, f"COMMENT ON TABLE {LIVE} IS 'results of the shop''s tasks'")
    (told,) = [one for step in maintained(filled, "1d") for one in step.findings if one.code == "partition.not-marked"]
    with opened(filled) as backend:
        assert [one.code for one in backend.plan_undo("task").refusals] == ["partition.not-marked"]
        assert [one.code for one in backend.plan_conversion(plan(by)).refusals][:1] == ["partition.not-marked"]
    with pytest.raises(BackendRefused, match="COMMENT does not say so any more"):
        undone(filled)
    sql(filled, told.fix.split("made them: ")[1])
    assert "partition.not-marked" not in [one.code for step in maintained(filled) for one in step.findings]
    comment = json.loads(sql(filled, f"SELECT obj_description('{LIVE}'::regclass)")[0][0])
    assert (comment["by"], comment.get("every")) == (by, "week" if by == "date_done" else None)
    undone(filled)
    assert (kind(filled), everything(filled)) == ("r", rows)


def test_a_leaf_whose_detach_somebody_left_pending_is_left_out_and_told(filled: str) -> None:
    by_id(filled)
    sql(filled, f"UPDATE pg_inherits SET inhdetachpending = true WHERE inhrelid = '{LIVE}_first'::regclass")
    rows = everything(filled)
    (told,) = [one for step in maintained(filled, "1d", ahead=4) for one in step.findings
               if one.code == "partition.detach-pending"]  # fmt: skip
    assert everything(filled) == rows
    assert f"{LIVE}_first" in leaves(filled)
    with pytest.raises(BackendRefused, match="is being detached") as caught:
        undone(filled)
    assert caught.value.hint == told.fix
    sql(filled, told.fix)
    undone(filled)
    assert everything(filled) == rows
    assert sql(filled, f"SELECT count(*) FROM {LIVE}_first") == [(300,)]


def test_whatever_ends_a_conversion_a_check_that_stays_is_told(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moment, calls = convert_module.with_moment, []

    def then_full(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise BackendError("the server reported 53100: no space left", "make room")
        return moment(*given, **named)

    monkeypatch.setattr(convert_module, "with_moment", then_full)
    monkeypatch.setattr(convert_module.ConversionOnPostgres, "_unbind", lambda *_: False)
    with pytest.raises(BackendError, match="backendops_bound is still on") as caught:
        convert(filled)
    assert "make room" in caught.value.hint


def test_an_index_that_somebody_is_building_is_not_dropped(filled: str) -> None:
    sql(filled, f"DROP INDEX ix_{LIVE}_date_done")
    build = threading.Thread(target=sql, args=(filled, f"CREATE INDEX CONCURRENTLY theirs ON {LIVE} (date_done)"))
    with in_transaction(filled, f"INSERT INTO {LIVE} (id, task_id) VALUES (9999, 'open')"):
        build.start()
        until(lambda: sql(filled, "SELECT to_regclass('theirs') IS NOT NULL") == [(True,)], "the build begins")
        with pytest.raises(BackendRefused, match="theirs may be their build"):
            convert(filled)
    build.join()
    assert sql(filled, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'theirs'::regclass") == [(True,)]
    convert(filled)
    assert kind(filled) == "p"


@pytest.mark.parametrize("by", ["id", "date_done"])
def test_long_names_of_many_bytes_are_given_back(filled: str, by: Any) -> None:
    sql(filled, f"ALTER INDEX ix_{LIVE}_date_done RENAME TO \"{'й' * 31}\"",
        f"ALTER TABLE {LIVE} RENAME CONSTRAINT {LIVE}_pkey TO \"{'ключ' * 7}\"",
        f"ALTER TABLE {LIVE} RENAME CONSTRAINT {LIVE}_task_id_key TO \"{'ключ' * 7}2\"")  # fmt: skip
    tables = catalog(filled)
    convert(filled, plan(by))
    undone(filled)
    assert catalog(filled) == tables


def test_a_leaf_that_was_attached_again_by_hand_says_no_more_that_it_goes(filled: str) -> None:
    convert(filled, plan("id", 1000))
    comment = '{"backendops": "partition", "state": "retiring", "archive": "x", ' \
              '"lower": "2026-01-01T00:00:00+00:00", "upper": "2026-01-01T00:00:00+00:00"}'  # fmt: skip
    sql(filled, f"COMMENT ON TABLE {LIVE}_first IS '{comment}'")
    maintained(filled)
    assert sql(filled, f"SELECT obj_description('{LIVE}_first'::regclass)") == [(None,)]


@pytest.mark.parametrize("by", ["id", "date_done"])
def test_new_partitions_have_the_storage_parameters_of_the_table(filled: str, by: Any) -> None:
    sql(filled, f"ALTER TABLE {LIVE} SET (autovacuum_vacuum_scale_factor = 0.01, toast.autovacuum_enabled = false)")
    before = sql(filled, f"SELECT reloptions FROM pg_class WHERE oid = '{LIVE}'::regclass")[0][0]
    convert(filled, plan(by))
    maintained(filled, ahead=4)
    options = (
        "SELECT DISTINCT c.reloptions, t.reloptions FROM pg_class AS c JOIN pg_class AS t ON t.oid = c.reltoastrelid"
    )
    found = sql(
        filled, f"{options} WHERE c.oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = '{LIVE}'::regclass)"
    )
    assert found == [(before, ["autovacuum_enabled=false"])]
    undone(filled)


def test_a_table_too_large_to_look_for_twins_is_undone_all_the_same(
    filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_id(filled)
    first = int(str(leaves(filled)[f"{LIVE}_first"]).rsplit("(", 1)[1].strip("')"))
    sql(filled, f"INSERT INTO {LIVE} (id, task_id) VALUES (999, 'twin'), ({first + 50}, 'twin')")
    monkeypatch.setattr(undo, "TWINS_BUDGET", timedelta(milliseconds=1))
    sql(filled, f"INSERT INTO {LIVE} (id, task_id) SELECT {first + 100} + n, n FROM generate_series(1, 20000) AS n")
    told: list[str] = []
    with opened(filled) as backend, pytest.raises(BackendBusy, match="rows are left"):
        told.extend(one.code for step in backend.undo("task", TimedPace()) for one in step.findings)
    assert told == ["undo.twins-unseen", "undo.twins"]
    assert sql(filled, f"SELECT count(*) FROM {LIVE} WHERE task_id = 'twin'") == [(2,)]
    sql(filled, f"DELETE FROM ONLY {LIVE} WHERE task_id = 'twin'")
    undone(filled)
    assert (kind(filled), leaves(filled)) == ("r", {})


def test_a_sequence_elsewhere_on_the_search_path_is_celerys_too(filled: str) -> None:
    sql(
        filled,
        "CREATE SCHEMA apart",
        f"ALTER TABLE {LIVE} SET SCHEMA apart",
        "SELECT setval('task_id_sequence', 500000)",
    )
    convert(filled, plan("id", 1000), schemas={"task": "apart"})
    bound = sql(filled, f"SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = '{LIVE}_first'")[0][0]
    assert int(bound.rsplit("(", 1)[1].strip("')")) > 500_000


def test_the_longer_a_table_is_read_the_farther_is_the_bound(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(filled) as backend:
        near = backend.plan_conversion(plan("id", 1000))
        # As if it took a hundred seconds.
        monkeypatch.setattr(convert_module, "READ_BYTES", sql(filled, f"SELECT pg_relation_size('{LIVE}')")[0][0] / 100)
        far = backend.plan_conversion(plan("id", 1000))
    bounded = [next(one.sql for one in found.statements if "id < " in one.sql) for found in (near, far)]
    bounds = [int(text.split("id < ")[1].split(")")[0]) for text in bounded]
    assert bounds[0] < bounds[1] == 300 + 100 * 400
