"""CanConvert: a live table partitioned and made plain again under Celery's hands, no result lost and none twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from backendops.backends.postgres import convert as convert_module
from backendops.backends.postgres import live_leaves, live_lock, undo, undo_rows
from backendops.backends.postgres.live_table import Marker, parse_bounds
from backendops.contracts.capabilities import ArchivePlan, Every, PartitionPlan
from backendops.contracts.errors import BackendBusy, BackendRefused
from backendops.contracts.partitions import Conversion, ConversionPlan, ConvertBy, Converted
from backendops.contracts.retention import Retention
from backendops.contracts.run import Limits, Step
from backendops.contracts.units import Duration
from backendops.engine.pacing import TimedPace
from tests.celery_rows import celery_app, celery_results, ensure_tables, fill_celery_table
from tests.celery_writers import writers
from tests.conformance.postgres_store import in_transaction, opened, other_role, sql, until
from tests.servers import Postgres

LIVE = "celery_taskmeta"
DAY = timedelta(days=1)


def plan(
    by: ConvertBy = "id", rows: int | None = 1000, *, every: Every = "month", ahead: int = 2, table: Converted = "task"
) -> ConversionPlan:
    return ConversionPlan(datetime.now(UTC), table, by, every, rows if by == "id" else None, ahead)


def convert(url: str, wanted: ConversionPlan | None = None, **fields: Any) -> list[Step]:
    with opened(url, **fields) as backend:
        return list(backend.convert(wanted or plan(), TimedPace()))


def undone(url: str, limits: Limits | None = None, table: Converted = "task", **fields: Any) -> list[Step]:
    with opened(url, limits, **fields) as backend:
        return list(backend.undo(table, TimedPace()))


def maintained(url: str, keep_live: str | None = None, now: datetime | None = None, ahead: int = 2) -> list[Step]:
    moment = now or datetime.now(UTC)
    cutoff = moment - Duration.parse(keep_live) if keep_live else None
    wanted = PartitionPlan(moment, ArchivePlan(), 1, None, Duration.parse("7d"), live_cutoff=cutoff)
    with opened(url) as backend:
        return list(backend.maintain_partitions(wanted, TimedPace()))


def codes(steps: list[Step]) -> list[str]:
    return [one.code for step in steps for one in step.findings if one.code != "postgres.no-table"]


def everything(url: str, table: str = LIVE) -> tuple[int, str]:
    """How many results there are, and a checksum of every byte of them."""
    rows = sql(url, f"SELECT count(*), md5(string_agg(t::text, '|' ORDER BY id)) FROM {table} AS t")
    return rows[0][0], rows[0][1]


def leaves(url: str, table: str = LIVE) -> dict[str, str | None]:
    return dict(
        sql(
            url,
            "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits JOIN pg_class AS c "
            f"ON c.oid = inhrelid WHERE inhparent = '{table}'::regclass ORDER BY 1",
        )
    )


def kind(url: str, table: str = LIVE) -> str:
    return str(sql(url, f"SELECT relkind FROM pg_class WHERE oid = '{table}'::regclass")[0][0])


def catalog(url: str) -> list[tuple[Any, ...]]:
    """Every relation, constraint, index, grant and comment there is."""
    return sql(
        url,
        """
        SELECT c.relname::text, c.relkind::text, c.relacl::text, obj_description(c.oid, 'pg_class'),
               (SELECT string_agg(con.conname || pg_get_constraintdef(con.oid), ',' ORDER BY con.conname)
                FROM pg_constraint AS con WHERE con.conrelid = c.oid),
               CASE WHEN c.relkind IN ('i', 'I') THEN pg_get_indexdef(c.oid) END
        FROM pg_class AS c WHERE c.relnamespace = 'public'::regnamespace ORDER BY 1
        """,
    )


def uniqueness(url: str, table: str = LIVE) -> set[bool]:
    """Of each leaf: does a valid index make the task id unique?"""
    rows = sql(
        url,
        "SELECT EXISTS (SELECT FROM pg_index AS x WHERE x.indrelid = inhrelid AND x.indisunique AND x.indisvalid AND "
        "pg_get_indexdef(x.indexrelid) LIKE '%(task_id)') FROM pg_inherits "
        f"WHERE inhparent = '{table}'::regclass",
    )
    return {row[0] for row in rows}


def celery_reads(url: str, ids: list[str]) -> list[str]:
    """The states that Celery itself gives for these tasks."""
    app = celery_app(url)
    try:
        backend: Any = app.backend
        return [backend.get_task_meta(task_id)["status"] for task_id in ids]
    finally:
        app.close()


@pytest.fixture
def filled(postgres_server: Postgres) -> Iterator[str]:
    """3,000 results of the weeks before the last three, 20 unfinished tasks; made once for each server and copied."""
    yield from _copy(postgres_server)


@pytest.fixture
def filled18(postgres18_server: Postgres) -> Iterator[str]:
    """The same on the newest server alone."""
    yield from _copy(postgres18_server)


def _copy(server: Postgres) -> Iterator[str]:
    if not server.execute("SELECT 1 FROM pg_database WHERE datname = 'to_convert'"):
        server.execute("CREATE DATABASE to_convert")
        url = server.celery_url("to_convert")
        fill_celery_table(url, 3000, due=0.67, older_than=10 * DAY, started=20, groups=30)
        # Of a quiet time, so that a week's results fit into the smallest partition.
        sql(url, f"UPDATE {LIVE} SET date_done = date_done - interval '20 days'", f"VACUUM FULL ANALYZE {LIVE}")
    server.execute("DROP DATABASE IF EXISTS converted WITH (FORCE)")
    server.execute("CREATE DATABASE converted TEMPLATE to_convert")
    yield server.celery_url("converted")
    server.drop_database("converted")


def test_a_plan_names_every_statement_with_its_lock_and_changes_nothing(filled18: str) -> None:
    for by in ("id", "date_done"):
        before = catalog(filled18)
        with opened(filled18, Limits(read_only=True)) as backend:
            found = backend.plan_conversion(plan(by))  # type: ignore[arg-type]
        assert catalog(filled18) == before
        assert found.refusals == ()
        said = [one.sql for one in found.statements]
        locks = [one.lock for one in found.statements]
        assert said[0].endswith("IN SHARE UPDATE EXCLUSIVE MODE") and said[1].endswith("IN ACCESS EXCLUSIVE MODE")
        assert "NOT VALID" in said[2]
        assert "VALIDATE CONSTRAINT" in said[3]
        assert locks[:4] == ["SHARE UPDATE EXCLUSIVE", "ACCESS EXCLUSIVE", "ACCESS EXCLUSIVE", "SHARE UPDATE EXCLUSIVE"]
        assert said[4] == said[0] and locks[4] == "SHARE UPDATE EXCLUSIVE"
        locked = said.index(said[1], 2)
        assert set(locks[5:locked]) == {"no lock on the table"}
        assert set(locks[locked:]) == {"ACCESS EXCLUSIVE"}
        assert not any("CREATE" in one for one in said[locked:]), "made before the lock"
        assert all(one.hold for one in found.statements if not one.together)
        assert any("ATTACH PARTITION" in one for one in said)
        # What was said is what is done.
        with opened(filled18) as backend:
            list(backend.convert(plan(by), TimedPace()))  # type: ignore[arg-type]
        assert kind(filled18) == "p"
        undone(filled18)


def ddl_of(url: str, work: Callable[[], object]) -> Counter[str]:
    """How many commands of each kind the server was given meanwhile, and carried out."""
    sql(
        url,
        "CREATE SCHEMA watched CREATE TABLE ddl (tag text)",
        "CREATE FUNCTION watched.note() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS "
        "'BEGIN INSERT INTO watched.ddl VALUES (tg_tag); END'",
        "CREATE EVENT TRIGGER watching ON ddl_command_end EXECUTE FUNCTION watched.note()",
    )
    work()
    sql(url, "DROP EVENT TRIGGER watching")
    found = Counter(tag for (tag,) in sql(url, "SELECT tag FROM watched.ddl"))
    sql(url, "DROP SCHEMA watched CASCADE")
    return found


@pytest.mark.parametrize("by", ["id", "date_done"])
def test_a_plan_has_every_statement_that_is_then_sent(filled18: str, by: ConvertBy) -> None:
    other_role(filled18, "reader")
    sql(filled18, f"GRANT SELECT ON {LIVE} TO reader", f"COMMENT ON TABLE {LIVE} IS 'ours'")
    wanted = plan(by, ahead=5)

    def planned(conversion: Conversion) -> Counter[str]:
        words = [one.sql.replace("COMMENT ON", "COMMENT").split() for one in conversion.statements]
        tags = (" ".join(each[: 1 if each[0] in {"COMMENT", "GRANT"} else 2]) for each in words)
        return Counter(tag for tag in tags if tag.split()[0] not in {"LOCK", "WITH"})

    with opened(filled18) as backend:
        there = planned(backend.plan_conversion(wanted))
    assert ddl_of(filled18, lambda: convert(filled18, wanted)) == there
    with opened(filled18) as backend:
        back = backend.plan_undo("task")
    assert ddl_of(filled18, lambda: undone(filled18)) == planned(back)
    assert all(one.hold for one in back.statements if not one.together)
    assert sum("DELETE FROM" in one.sql for one in back.statements) == len(leaves(filled18)) + 5 + (by == "id")


@pytest.mark.parametrize("by", ["id", "date_done"])
def test_converted_and_undone_it_is_what_it_was(filled: str, by: ConvertBy) -> None:
    sql(filled, f"COMMENT ON TABLE {LIVE} IS 'ours'")
    rows, tables = everything(filled), catalog(filled)
    convert(filled, plan(by))
    assert (kind(filled), everything(filled)) == ("p", rows)
    assert uniqueness(filled) == {True}
    # Celery in a new process finds its table, stores, reads, forgets.
    ids = celery_results(filled, 10, started=2, groups=1)
    assert celery_reads(filled, ids[:10]).count("SUCCESS") == 7
    sql(
        filled, f"DELETE FROM {LIVE} WHERE task_id = ANY (ARRAY{ids!r})", "DELETE FROM celery_tasksetmeta WHERE id > 30"
    )
    undone(filled)
    assert (kind(filled), everything(filled)) == ("r", rows)
    assert catalog(filled) == tables


@pytest.mark.parametrize("by", ["id", "date_done"])
def test_four_celery_writers_lose_nothing_while_it_is_converted_and_undone(
    postgres18_url: str, tmp_path: Path, by: ConvertBy
) -> None:
    postgres_url = postgres18_url
    fill_celery_table(postgres_url, 50_000, older_than=DAY)
    before = sql(postgres_url, f"SELECT md5(string_agg(t::text, '|' ORDER BY id)), max(id) FROM {LIVE} AS t")[0]
    with writers(postgres_url, tmp_path) as running:
        steps = convert(postgres_url, plan(by, 200))
        if by == "id":
            bound = max(int(str(found).rsplit("(", 1)[1].strip("')")) for found in leaves(postgres_url).values()
                        if "MAXVALUE" not in str(found))  # fmt: skip
            sql(postgres_url, f"SELECT setval('task_id_sequence', {bound - 30})")
        maintained(postgres_url)
        middle = sql(postgres_url, f"SELECT count(*) FROM {LIVE}")[0][0]
        until(lambda: sql(postgres_url, f"SELECT count(*) > {middle + 60} FROM {LIVE}")[0][0], "writers go on")
        crossed = sql(postgres_url, f"SELECT count(DISTINCT tableoid) FROM {LIVE} WHERE id > {before[1]}")[0][0]
        undone(postgres_url)
    told = running.told()
    assert any("is partitioned by" in step.what for step in steps)
    assert told["errors"] == []
    stored = dict(sql(postgres_url, f"SELECT task_id, status FROM {LIVE} WHERE id > {before[1]}"))
    assert stored == told["stored"], "lost or changed"
    assert sql(postgres_url, f"SELECT count(*) - count(DISTINCT task_id) FROM {LIVE}") == [(0,)]
    rows = sql(
        postgres_url, f"SELECT md5(string_agg(t::text, '|' ORDER BY id)) FROM {LIVE} AS t WHERE id <= {before[1]}"
    )
    assert rows[0][0] == before[0]
    assert middle > 50_000
    assert crossed == (3 if by == "id" else 1)
    assert kind(postgres_url) == "r"
    # Every lock was waited for by writers at the worst for the 2 s of a DDL, and retried; most for milliseconds.
    assert told["longest"] < 5


def test_writers_whose_results_move_between_partitions_lose_nothing(filled18: str, tmp_path: Path) -> None:
    convert(filled18, plan("date_done", every="day"))
    # By date nothing would come to a partition for days: one for today, as there will be by then.
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    leaf = max(leaves(filled18))
    sql(
        filled18,
        f"CREATE TABLE today (LIKE {leaf} INCLUDING ALL)",
        f"ALTER TABLE {LIVE} ATTACH PARTITION today FOR VALUES FROM ('{today}') TO ('{today + 2 * DAY}')",
    )
    rows = everything(filled18)[0]
    with writers(filled18, tmp_path) as running:
        until(lambda: everything(filled18)[0] > rows + 60, "writers go on")
        assert sql(filled18, "SELECT count(*) > 30 FROM today") == [(True,)]
        undone(filled18)
    told = running.told()
    assert told["errors"] == []
    assert dict(sql(filled18, f"SELECT task_id, status FROM ONLY {LIVE} WHERE id > 3020")) == told["stored"]
    assert sql(filled18, f"SELECT count(*) - count(DISTINCT task_id) FROM {LIVE}") == [(0,)]


class Killed(BaseException):
    """The process is gone: nothing of ours runs any more."""


@contextmanager
def killed_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Let the process die before its `number`th transaction that changes something, and clean nothing up."""
    calls = [0]
    moment, following = live_lock.with_moment, undo_rows.Mover._next_id

    def dying(session: Any, live: str, *arguments: Any, **named: Any) -> Any:
        if calls[0] >= number:
            raise Killed
        calls[0] += 1
        return moment(session, live, *arguments, **named)

    def gone(*_: Any) -> None:
        if calls[0] >= number:
            raise Killed

    with monkeypatch.context() as patch:
        for module in (convert_module, live_leaves, undo):
            patch.setattr(module, "with_moment", dying)
        patch.setattr(live_leaves, "unbind", gone)
        patch.setattr(convert_module.ConversionOnPostgres, "_unbind", gone)
        patch.setattr(undo_rows.Mover, "_next_id", lambda *given: (gone(), following(*given))[1])
        yield calls


@pytest.mark.parametrize("by", ["id", "date_done"])
def test_killed_at_any_moment_the_table_works_and_the_next_command_goes_on(
    filled18: str, by: ConvertBy, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, tables = everything(filled18), catalog(filled18)
    number, ended = 0, False
    while not ended:
        with killed_at(number, monkeypatch):
            try:
                convert(filled18, plan(by))
                ended = True
            except Killed:
                pass
        assert everything(filled18) == rows
        sql(filled18, f"INSERT INTO {LIVE} (id, task_id, date_done) VALUES (3900, 'later', now() + interval '3 days')",
            f"DELETE FROM {LIVE} WHERE task_id = 'later'")  # fmt: skip
        if number % 2:
            undone(filled18)
            assert catalog(filled18) == tables
        number += 1
    assert number >= 2
    convert(filled18, plan(by))
    assert (kind(filled18), everything(filled18)) == ("p", rows)
    assert all("backendops_bound" not in str(row) for row in catalog(filled18))

    sql(filled18, "SELECT setval('task_id_sequence', 5000)")
    ids = celery_results(filled18, 20)
    rows = everything(filled18)
    for number in range(40):
        with killed_at(number, monkeypatch):
            try:
                undone(filled18)
                break
            except Killed:
                pass
        assert everything(filled18) == rows
        assert set(celery_reads(filled18, ids)) == {"SUCCESS", "FAILURE", "RETRY"}
    assert number >= 2
    assert (kind(filled18), everything(filled18)) == ("r", rows)
    sql(filled18, f"DELETE FROM {LIVE} WHERE task_id = ANY (ARRAY{ids!r})")
    assert catalog(filled18) == tables


def test_a_check_that_a_killed_process_left_is_taken_away_by_the_job(
    filled18: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_at(1, monkeypatch), pytest.raises(Killed):
        convert(filled18)
    assert "backendops_bound" in str(catalog(filled18))
    steps = maintained(filled18)
    assert any("killed conversion" in step.what for step in steps)
    assert "backendops_bound" not in str(catalog(filled18))
    # The same on a leaf of a converted table.
    convert(filled18)
    sql(filled18, f"ALTER TABLE {LIVE}_tail ADD CONSTRAINT backendops_bound CHECK (id < 9999999) NOT VALID")
    assert any("killed run" in step.what for step in maintained(filled18))
    assert "backendops_bound" not in str(catalog(filled18))


def test_the_job_makes_and_retires_partitions_by_id(filled18: str) -> None:
    convert(filled18, plan("id", 1000))
    first = leaves(filled18)
    assert first == {
        f"{LIVE}_first": "FOR VALUES FROM (MINVALUE) TO (4020)",
        f"{LIVE}_i4020": "FOR VALUES FROM (4020) TO (5020)",
        f"{LIVE}_i5020": "FOR VALUES FROM (5020) TO (6020)",
        f"{LIVE}_tail": "FOR VALUES FROM (6020) TO (MAXVALUE)",
    }
    # Nobody ran backendops for long: results go on into the tail, and nothing fails.
    sql(filled18, "SELECT setval('task_id_sequence', 7000)")
    ids = celery_results(filled18, 10)
    rows = everything(filled18)
    steps = maintained(filled18)
    # The tail has rows: its end is far from what is stored while it is looked for.
    assert leaves(filled18)[f"{LIVE}_i6020"] == "FOR VALUES FROM (6020) TO (107010)"
    assert leaves(filled18)[f"{LIVE}_tail"] == "FOR VALUES FROM (108010) TO (MAXVALUE)"
    ahead = [one.value for step in steps for one in step.readings if one.metric.name == "backendops_partitions_ahead"]
    assert ahead[-1] == 1
    assert everything(filled18) == rows
    assert uniqueness(filled18) == {True}

    # Two partitions are past keeping: one is empty, the other has tasks that have not finished.
    steps = maintained(filled18, "1d", datetime.now(UTC) + 3 * DAY)
    assert leaves(filled18).keys() & {f"{LIVE}_first", f"{LIVE}_i4020"} == {f"{LIVE}_first"}
    assert "partition.unfinished" in codes(steps)
    sql(filled18, f"DELETE FROM {LIVE} WHERE date_done IS NULL")
    steps = maintained(filled18, "1d", datetime.now(UTC) + 3 * DAY)
    assert f"{LIVE}_first" not in leaves(filled18)
    # Of Celery's ten, one is a retry, which has not finished.
    assert everything(filled18)[0] == 9
    comment = json.loads(sql(filled18, f"SELECT obj_description('{LIVE}_first'::regclass)")[0][0])
    assert (comment["state"], comment["bounds"]) == ("quarantined", "FOR VALUES FROM (MINVALUE) TO (4020)")
    # Eight days later its quarantine is over; the leaf that still takes results stays, whatever is in it.
    steps = maintained(filled18, "1d", datetime.now(UTC) + 11 * DAY)
    assert sql(filled18, f"SELECT to_regclass('{LIVE}_first')") == [(None,)]
    assert set(celery_reads(filled18, ids)) == {"SUCCESS", "FAILURE", "PENDING"}
    # Without its first leaf it can be undone all the same.
    rows = everything(filled18)
    undone(filled18)
    assert (kind(filled18), everything(filled18)) == ("r", rows)
    assert {row[0] for row in catalog(filled18)} >= {f"{LIVE}_pkey", f"{LIVE}_task_id_key", f"ix_{LIVE}_date_done"}


def test_the_job_makes_and_retires_partitions_by_date(filled18: str) -> None:
    convert(filled18, plan("date_done", every="day"))
    names = sorted(leaves(filled18))
    assert names[0] == f"{LIVE}_default"
    rows = everything(filled18)
    # At noon: in the hour before midnight the day that is about to begin is left to the default partition.
    later = datetime.now(UTC).replace(hour=12) + 60 * DAY
    # The job did not run for two months: what finished meanwhile is in the default partition, and new ones lie ahead.
    maintained(filled18, now=later)
    made = [name for name in leaves(filled18) if name not in names]
    assert made == [f"{LIVE}_p{later + ahead * DAY:%Y_%m_%d}" for ahead in (1,)]
    assert everything(filled18) == rows
    sql(
        filled18,
        f"INSERT INTO {LIVE} (id, task_id, status, date_done) VALUES (90001, 'x', 'SUCCESS', '{later + DAY:%F %T}')",
    )
    assert sql(filled18, f"SELECT tableoid::regclass::text FROM {LIVE} WHERE id = 90001") == [(made[0],)]
    steps = maintained(filled18, "5d", later + 2 * DAY)
    assert names[1:] == sorted(
        step.what.split('."')[1].split('"')[0] for step in steps if step.what.startswith("detached")
    )
    assert f"{LIVE}_default" in leaves(filled18)
    assert everything(filled18)[0] == rows[0] + 1


@pytest.mark.parametrize("by", ["id", "date_done"])
def test_expire_and_archive_go_on_over_partitions(filled18: str, by: ConvertBy) -> None:
    convert(filled18, plan(by))
    # Of one month in a partition of its own, of the months before in the table that was.
    sql(filled18, "SELECT setval('task_id_sequence', 4100)")
    ids = celery_results(filled18, 10)
    sql(filled18, f"UPDATE {LIVE} SET date_done = '{datetime.now(UTC) - 45 * DAY}' WHERE task_id = '{ids[0]}'")
    now = datetime.now(UTC)
    with opened(filled18) as backend:
        moved = sum(step.rows for step in backend.archive(Retention(now - 40 * DAY), ArchivePlan(), TimedPace()))
        gone = sum(step.rows for step in backend.expire(Retention(now - 35 * DAY), TimedPace()))
    assert (moved > 500, gone > 300) == (True, True)
    assert sql(filled18, f"SELECT count(*) FROM {LIVE} WHERE date_done < now() - interval '35 days'") == [(0,)]
    assert sql(filled18, f"SELECT count(*) FROM {LIVE}_archive") == [(moved,)]
    assert everything(filled18)[0] == 3020 + 10 - moved - gone


def test_a_column_that_celery_adds_reaches_every_partition(postgres18_url: str) -> None:
    ensure_tables(postgres18_url)
    sql(postgres18_url, f"ALTER TABLE {LIVE} DROP COLUMN stamps, DROP COLUMN children")
    convert(postgres18_url)
    ids = celery_results(postgres18_url, 3)
    assert celery_reads(postgres18_url, ids) == ["SUCCESS"] * 3
    tables = [LIVE, *leaves(postgres18_url)]
    for table in tables:
        assert sql(postgres18_url, f"SELECT count(stamps) + count(children) >= 0 FROM {table}") == [(True,)]
    undone(postgres18_url)
    assert celery_reads(postgres18_url, ids) == ["SUCCESS"] * 3


def test_the_group_table_too(filled18: str) -> None:
    rows = everything(filled18, "celery_tasksetmeta")
    convert(filled18, plan("id", 1000, table="group"))
    assert kind(filled18, "celery_tasksetmeta") == "p"
    celery_results(filled18, 0, groups=1)
    undone(filled18, table="group")
    assert everything(filled18, "celery_tasksetmeta")[0] == rows[0] + 1


def test_a_missing_index_is_built_and_an_invalid_one_replaced(filled18: str) -> None:
    sql(filled18, f"DROP INDEX ix_{LIVE}_date_done", f"CREATE INDEX half_built ON {LIVE} (date_done)")
    sql(filled18, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'half_built'::regclass")
    with opened(filled18) as backend:
        found = backend.plan_conversion(plan())
    assert found.statements[0].sql == 'DROP INDEX CONCURRENTLY IF EXISTS "public"."half_built"'
    assert found.statements[1].sql.startswith("CREATE INDEX CONCURRENTLY")
    assert [one.code for one in found.findings] == ["convert.builds-index"]
    convert(filled18)
    assert sql(filled18, "SELECT to_regclass('half_built')") == [(None,)]
    assert sql(filled18, f"SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_{LIVE}_date_done'::regclass") == [
        (True,)
    ]


REFUSED = {
    "trigger": f"CREATE TRIGGER t BEFORE UPDATE ON {LIVE} FOR EACH ROW "
    "EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "foreign key": f"CREATE TABLE child (task_id varchar(155) REFERENCES {LIVE} (task_id))",
    "view": f"CREATE VIEW failures AS SELECT task_id FROM {LIVE}",
    "row level security": f"ALTER TABLE {LIVE} ENABLE ROW LEVEL SECURITY",
    "publication": f"CREATE PUBLICATION out FOR TABLE {LIVE}",
    "unique": f"ALTER TABLE {LIVE} DROP CONSTRAINT {LIVE}_task_id_key",
    "primary key": f"ALTER TABLE {LIVE} DROP CONSTRAINT {LIVE}_pkey",
    "logged": f"ALTER TABLE {LIVE} SET UNLOGGED",
    "parents": f"CREATE TABLE older (LIKE {LIVE}); ALTER TABLE {LIVE} INHERIT older",
    "id column ends": "SELECT setval('task_id_sequence', 2147483000)",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_it_would_break_is_refused_before_anything_is_changed(filled18: str, what: str) -> None:
    sql(filled18, *REFUSED[what].split("; "))
    before = catalog(filled18)
    with opened(filled18) as backend:
        refused = backend.plan_conversion(plan()).refusals
    assert what in str(refused)
    with pytest.raises(BackendRefused, match=what):
        convert(filled18)
    assert catalog(filled18) == before


def test_only_the_owner_can(filled18: str) -> None:
    role = other_role(filled18, "guest", f"GRANT SELECT, INSERT, UPDATE, DELETE ON {LIVE} TO guest")
    with pytest.raises(BackendRefused, match="does not own") as caught:
        convert(role)
    assert "GRANT" in caught.value.hint


def test_a_table_stays_its_owners_and_grants_are_kept(filled18: str) -> None:
    # Not named `celery`: roles are the whole server's, and another test makes one of that name.
    owner = other_role(filled18, "owner", "GRANT ALL ON SCHEMA public TO owner")
    other_role(filled18, "reader")
    keeper = other_role(filled18, "keeper", "GRANT CREATE ON SCHEMA public TO keeper", "GRANT owner TO keeper")
    for table in (LIVE, "celery_tasksetmeta"):
        sql(filled18, f"ALTER TABLE {table} OWNER TO owner")
    sql(
        filled18,
        "GRANT ALL ON SEQUENCE task_id_sequence, taskset_id_sequence TO owner, keeper",
        f"GRANT SELECT (task_id, status) ON {LIVE} TO reader",
        f"GRANT DELETE ON {LIVE} TO reader WITH GRANT OPTION",
    )
    reader = filled18.replace(filled18.split("://")[1].split("@", 1)[0], "reader:x")
    for steps in range(2):
        if steps == 0:
            convert(keeper)
            owners = sql(
                filled18, f"SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relname LIKE '{LIVE}%'"
            )
            assert owners == [("owner",)]
        else:
            undone(keeper)
        assert sql(reader, f"SELECT count(task_id) FROM {LIVE}")[0][0] >= 3020
        with pytest.raises(Exception, match="permission denied"):
            sql(reader, f"SELECT result FROM {LIVE}")
        assert celery_results(owner, 1)


def test_somebodys_own_partitions_are_left_alone(postgres18_url: str) -> None:
    ensure_tables(postgres18_url)
    sql(postgres18_url, f"ALTER TABLE {LIVE} RENAME TO old",
        f"CREATE TABLE {LIVE} (LIKE old) PARTITION BY RANGE (id)",
        f"CREATE TABLE mine PARTITION OF {LIVE} FOR VALUES FROM (1) TO (1000)")  # fmt: skip
    with pytest.raises(BackendRefused, match="not by backendops"):
        convert(postgres18_url)
    maintained(postgres18_url, "1d")
    assert "nothing to undo" in undone(postgres18_url)[0].what
    assert leaves(postgres18_url) == {"mine": "FOR VALUES FROM (1) TO (1000)"}
    # By date, under names that ours could have.
    bounds = "FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')"
    sql(postgres18_url, f"DROP TABLE {LIVE}", f"CREATE TABLE {LIVE} (LIKE old) PARTITION BY RANGE (date_done)",
        f"CREATE TABLE {LIVE}_default PARTITION OF {LIVE} DEFAULT",
        f"CREATE TABLE {LIVE}_p2026_01 PARTITION OF {LIVE} {bounds}")  # fmt: skip
    assert "partition.not-marked" not in codes(maintained(postgres18_url, "1d"))
    assert "nothing to undo" in undone(postgres18_url)[0].what


HOSTILE = 'My "Results": 100% of ☃ % (x)s :now'


@pytest.mark.parametrize("by", ["id", "date_done"])
def test_whatever_it_is_called(postgres18_url: str, by: ConvertBy) -> None:
    fields = {"tables": {"task": HOSTILE}, "schemas": {"task": "Cele:ry"}}
    quoted = '"Cele:ry"."' + HOSTILE.replace('"', '""') + '"'
    ensure_tables(postgres18_url)
    sql(postgres18_url, 'CREATE SCHEMA "Cele:ry"', f"ALTER TABLE {LIVE} SET SCHEMA \"Cele:ry\"",
        f"ALTER TABLE \"Cele:ry\".{LIVE} RENAME TO " + quoted.split(".")[1],
        f"INSERT INTO {quoted} (id, task_id, date_done) VALUES (1, 'a', now())")  # fmt: skip
    rows = everything(postgres18_url, quoted)
    convert(postgres18_url, plan(by), **fields)
    assert kind(postgres18_url, quoted) == "p"
    assert everything(postgres18_url, quoted) == rows
    undone(postgres18_url, **fields)
    assert (kind(postgres18_url, quoted), everything(postgres18_url, quoted)) == ("r", rows)


def test_a_task_in_two_partitions_is_found_and_never_lost(filled18: str) -> None:
    convert(filled18, plan("id", 1000))
    sql(filled18, "SELECT setval('task_id_sequence', 4018)",
        *(f"INSERT INTO {LIVE} (id, task_id, status, date_done) VALUES ({number}, 'twin', 'SUCCESS', now())"
          for number in (4019, 4021)), "SELECT setval('task_id_sequence', 4022)")  # fmt: skip
    steps = maintained(filled18)
    assert "partition.twins" in codes(steps)
    with pytest.raises(BackendRefused, match="twin"):
        undone(filled18)
    assert kind(filled18) == "p"
    sql(filled18, f"DELETE FROM {LIVE}_first WHERE task_id = 'twin'")
    undone(filled18)
    assert sql(filled18, f"SELECT id FROM {LIVE} WHERE task_id = 'twin'") == [(4021,)]

    convert(filled18, plan("date_done", every="day"))
    leaf = min(name for name in leaves(filled18) if name != f"{LIVE}_default")
    bound = str(leaves(filled18)[leaf]).split("'")[1]
    sql(
        filled18,
        f"INSERT INTO {LIVE} (id, task_id, status, date_done) VALUES (8001, 'boundary', 'SUCCESS', '{bound}')",
        f"INSERT INTO {LIVE} (id, task_id, status) VALUES (8002, 'boundary', 'STARTED')",
    )
    assert "partition.twins" in codes(maintained(filled18))


def test_undoing_meets_twins_that_came_after_the_look(filled18: str) -> None:
    convert(filled18, plan("id", 1000))
    sql(filled18, f"INSERT INTO {LIVE} (id, task_id) VALUES (4500, 'twin'), (4501, 'other'), (5500, 'third')")
    with opened(filled18) as backend:
        steps = backend.undo("task", TimedPace())
        next(steps)
        # A writer that found no row of its task an instant ago.
        sql(filled18, f"INSERT INTO {LIVE} (id, task_id) VALUES (4499, 'twin')")
        rest = []
        with pytest.raises(BackendBusy, match="rows are left"):
            rest.extend(list(steps))
    assert sql(filled18, f"SELECT count(*) FROM {LIVE} WHERE task_id = 'twin'") == [(2,)]
    assert sql(filled18, f"SELECT count(*) FROM ONLY {LIVE} WHERE task_id IN ('other', 'third')") == [(2,)]
    assert "partition.undoing" in codes(maintained(filled18))
    with pytest.raises(BackendRefused, match="on its way back"):
        convert(filled18)
    sql(filled18, f"DELETE FROM ONLY {LIVE}_i4020")
    undone(filled18)
    assert leaves(filled18) == {}
    assert kind(filled18) == "r"


def test_rows_that_others_hold_are_moved_by_the_next_undo(filled18: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_lock, "PATIENCE", live_lock.PATIENCE[:2])
    convert(filled18, plan("id", 1000))
    sql(filled18, f"INSERT INTO {LIVE} (id, task_id) VALUES (4500, 'held'), (4501, 'free')")
    with opened(filled18, Limits(lock_timeout=timedelta(milliseconds=100))) as backend:
        steps = backend.undo("task", TimedPace())
        next(steps)
        with in_transaction(filled18, f"SELECT FROM {LIVE} WHERE task_id = 'held' FOR UPDATE"):
            with pytest.raises(BackendBusy):
                list(steps)
            assert sql(filled18, f"SELECT count(*) FROM ONLY {LIVE} WHERE task_id = 'free'") == [(1,)]
            assert sql(filled18, f"SELECT count(*) FROM {LIVE} WHERE task_id = 'held'") == [(1,)]
    undone(filled18)
    assert leaves(filled18) == {}


def test_a_marker_is_trusted_only_whole() -> None:
    marker = Marker("date_done", "first", every="week", renamed={"new": "old"}, comment="x")
    assert Marker.parse(str(marker)) == marker
    for text in (None, "", "[]", "{}", '{"backendops": "partition"}', str(marker).replace("week", "year"),
                 str(marker).replace("date_done", "status"), str(marker)[:-1]):  # fmt: skip
        assert Marker.parse(text) is None


def test_bounds_are_read_as_the_server_writes_them() -> None:
    assert parse_bounds("DEFAULT") == ("default", None, None)
    assert parse_bounds("FOR VALUES FROM (MINVALUE) TO ('4020')") == ("first", None, 4020)
    assert parse_bounds("FOR VALUES FROM ('4020') TO (MAXVALUE)") == ("tail", 4020, None)
    march = datetime(2026, 3, 1)  # noqa: DTZ001 - as date_done
    assert parse_bounds("FOR VALUES FROM ('2026-03-01 00:00:00') TO ('2026-03-02 00:00:00')") == (
        "leaf", march, march + DAY,
    )  # fmt: skip
