"""Bloat, as it is measured and as it is estimated: TOAST included, and never far from pgstattuple's own figure."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from backendops.backends.postgres import bloat
from backendops.backends.postgres.bloat import Bloat, Meter
from backendops.backends.postgres.index_work import list_indexes
from backendops.backends.postgres.vacuum_work import list_tables
from backendops.backends.sql_files import statements
from backendops.contracts.run import Step
from tests.celery_rows import ensure_tables, fill_celery_table
from tests.conformance.postgres_store import opened, other_role, sql, until
from tests.conformance.test_can_vacuum import LIVE, codes, dead_rows, plan, vacuum, whats

# Of the table's size: what docs/vacuum.md promises of the estimate.
ERROR = 0.05


def measured(url: str) -> Bloat:
    with opened(url) as backend, backend.transaction() as connection:
        oid = int(sql(url, f"SELECT '{LIVE}'::regclass::oid")[0][0])
        (table,) = list_tables(connection, [oid])
        meter = Meter.of(backend, connection)
    with opened(url) as backend:
        return Meter(backend, meter.schema).table(table)


def readings(steps: list[Step], name: str) -> float:
    return next(
        one.value for one in steps[-1].readings if one.metric.name == name and dict(one.labels)["table"] == LIVE
    )


def bulky(url: str, rows: int) -> None:
    """Results whose payload PostgreSQL cannot compress, and keeps in TOAST."""
    fill_celery_table(url, rows)
    sql(
        url,
        f"UPDATE {LIVE} SET result = (SELECT string_agg(sha512(convert_to(x || random()::text, 'UTF8')), '') "
        f"FROM generate_series(1, 60) AS x) WHERE id > 0",
        f"VACUUM (FULL, ANALYZE) {LIVE}",
    )


@pytest.mark.parametrize("in_toast", [False, True], ids=["heap", "toast"])
@pytest.mark.parametrize("vacuumed", [False, True], ids=["dead", "free"])
def test_an_estimate_is_near_the_measured_figure(postgres_url: str, in_toast: bool, vacuumed: bool) -> None:
    if in_toast:
        bulky(postgres_url, 1500)
    else:
        fill_celery_table(postgres_url, 5000, payload=300)
    sql(postgres_url, f"ANALYZE {LIVE}", f"DELETE FROM {LIVE} WHERE id % 5 < 2")
    if vacuumed:
        sql(postgres_url, f"VACUUM (ANALYZE) {LIVE}")
    estimate = measured(postgres_url)
    sql(postgres_url, "CREATE EXTENSION pgstattuple")
    figure = measured(postgres_url)
    assert (estimate.how, figure.how) == ("estimate", "pgstattuple")
    assert 0.3 < figure.ratio < 0.5
    assert abs(estimate.ratio - figure.ratio) < ERROR
    if in_toast:
        toast = sql(postgres_url, f"SELECT pg_relation_size(reltoastrelid) FROM pg_class WHERE relname = '{LIVE}'")
        # Most of the room is not in the heap at all.
        assert figure.wasted > 0.3 * toast[0][0] > 0.3 * 0.8 * figure.size


def test_a_table_without_waste_has_none_by_either(postgres_url: str) -> None:
    bulky(postgres_url, 500)
    assert measured(postgres_url).ratio < ERROR
    sql(postgres_url, "CREATE EXTENSION pgstattuple")
    assert measured(postgres_url).ratio < ERROR


def test_an_indexs_estimate_is_near_the_measured_figure(postgres_url: str) -> None:
    fill_celery_table(postgres_url, 20_000)
    sql(postgres_url, f"DELETE FROM {LIVE} WHERE id % 4 > 0")
    sql(postgres_url, f"VACUUM (ANALYZE) {LIVE}")

    def densities() -> dict[str, Bloat]:
        with opened(postgres_url) as backend:
            with backend.transaction() as connection:
                oid = int(sql(postgres_url, f"SELECT '{LIVE}'::regclass::oid")[0][0])
                indexes, meter = list_indexes(connection, [oid]), Meter.of(backend, connection)
            return {one.name: meter.index(one.oid, one.bytes, one.rows, one.key_bytes, measure=True) for one in indexes}

    estimates = densities()
    sql(postgres_url, "CREATE EXTENSION pgstattuple")
    figures = densities()
    assert len(figures) == 3
    assert {one.how for one in figures.values()} == {"pgstattuple"}
    for name, figure in figures.items():
        assert figure.ratio > 0.5
        assert abs(estimates[name].ratio - figure.ratio) < ERROR, name


def test_a_role_that_may_not_measure_is_told_and_estimates(postgres_url: str) -> None:
    fill_celery_table(postgres_url, 300)
    sql(postgres_url, f"ANALYZE {LIVE}", "CREATE EXTENSION pgstattuple")
    theirs = other_role(postgres_url, "no_meter", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO no_meter")
    try:
        assert measured(theirs).how == "estimate"
        with opened(theirs) as backend:
            findings = backend.preview_vacuum(plan()).findings
        assert "GRANT pg_stat_scan_tables" in {one.code: one.fix for one in findings}["bloat.not-permitted"]
        sql(postgres_url, "GRANT pg_stat_scan_tables TO no_meter")
        assert measured(theirs).how == "pgstattuple"
    finally:
        sql(postgres_url, "REVOKE pg_stat_scan_tables FROM no_meter", "DROP OWNED BY no_meter")


def test_dead_rows_are_found_where_the_counters_lost_them(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bloat, "WORTH_BYTES", 64 * 1024)
    fill_celery_table(postgres_url, 2000)
    sql(postgres_url, "CREATE EXTENSION pgstattuple", f"VACUUM (ANALYZE) {LIVE}")
    sql(postgres_url, f"DELETE FROM {LIVE} WHERE id % 2 = 0")
    # As after a crash of the server; a session tells the statistics what it did when it ends, which would come after.
    until(lambda: dead_rows(postgres_url) >= 1000, "the dead rows are known")
    sql(postgres_url, f"SELECT pg_stat_reset_single_table_counters('{LIVE}'::regclass)")
    with opened(postgres_url) as backend:
        assert "measured by pgstattuple" in backend.preview_vacuum(plan()).summary
    steps = vacuum(postgres_url, plan())
    assert whats(steps)[0].endswith("measured by pgstattuple)")
    # What is left is free room: no vacuum gives it back, which is said once it is so.
    assert "vacuum.bloated" in codes(steps)
    assert whats(vacuum(postgres_url, plan())) == ["no table needs a vacuum"]
    assert readings(steps, "backendops_table_bloat_bytes") == pytest.approx(measured(postgres_url).wasted)


def test_a_rewrite_is_worth_it_for_toast_alone(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bloat, "WORTH_BYTES", 1024**2)
    bulky(postgres_url, 1500)
    # The payloads go, the rows stay: their heap is as full as it was.
    sql(postgres_url, f"UPDATE {LIVE} SET result = NULL WHERE id % 2 = 0")
    sql(postgres_url, f"VACUUM (ANALYZE) {LIVE}")
    before: Any = sql(postgres_url, f"SELECT pg_total_relation_size('{LIVE}')")[0][0]
    done = whats(vacuum(postgres_url, plan(full=True)))
    assert done[0].startswith(f'rewrote "public"."{LIVE}": ')
    assert "empty, estimated)" in done[0]
    assert sql(postgres_url, f"SELECT pg_total_relation_size('{LIVE}')")[0][0] < 0.7 * before


def test_every_statement_runs_in_psql_as_it_is(postgres18_url: str) -> None:
    ensure_tables(postgres18_url)
    values = {
        "oid": "1259",
        "percent": "10",
        "roots": "'{1259}'",
        "tables": "'{1259}'",
        "name": "'x'",
        "before": "'900'",
    }
    script = ["\\set ON_ERROR_STOP on", "CREATE EXTENSION pgstattuple;", f"DROP INDEX ix_{LIVE}_date_done;"]
    script += [f"\\set {name} '{value.replace(chr(39), chr(39) * 2)}'" for name, value in values.items()]
    for job in ("vacuum", "holdback", "bloat", "indexes"):
        for name, statement in statements("postgres", job).items():
            if (job, name) == ("bloat", "measure_index"):
                script.append("SELECT 'pg_class_oid_index'::regclass::oid AS oid \\gset")
            if name in ("create_parent", "attach"):
                continue  # of a partitioned table, see test_indexes.py
            if name == "lock_table":
                script.append("BEGIN;")
            script.append(statement + ";")
            if name == "rename":
                script += ["COMMIT;", f"CREATE INDEX ix_{LIVE}_date_done ON {LIVE} (date_done);"]
    done = subprocess.run(
        ["psql", "-X", "-q", "-d", postgres18_url.removeprefix("db+"), "-f", "-"],
        input="\n".join(script),
        text=True,
        capture_output=True,
        check=False,
    )
    assert (done.stderr, done.returncode) == ("", 0)
