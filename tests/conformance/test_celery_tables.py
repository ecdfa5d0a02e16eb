"""The tables that other tests fill are those that Celery makes, whichever way they came about."""

from __future__ import annotations

from pathlib import Path

from tests.celery_rows import celery_results, ensure_tables
from tests.conformance.postgres_store import sql
from tests.engines import engine_of
from tests.servers import Postgres

EVERYTHING = """
SELECT c.relname, c.relkind::text, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
       pg_get_expr(d.adbin, d.adrelid), pg_get_indexdef(c.oid, 0, false)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind <> 'i'
UNION ALL
SELECT conname, contype::text, conrelid::regclass::text, pg_get_constraintdef(oid), false, NULL, NULL
FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL
SELECT indexname, 'i', tablename, indexdef, false, NULL, NULL FROM pg_indexes WHERE schemaname = 'public'
ORDER BY 1, 2, 3
"""


def test_on_postgresql(postgres18_server: Postgres, postgres18_url: str) -> None:
    ensure_tables(postgres18_url)
    by_celery = postgres18_server.celery_url(postgres18_server.create_database())
    celery_results(by_celery, 1)
    assert sql(postgres18_url, EVERYTHING) == sql(by_celery, EVERYTHING) != []
    postgres18_server.drop_database(by_celery.rpartition("/")[2])


def test_on_sqlite(tmp_path: Path) -> None:
    ours, celerys = (f"db+sqlite:///{tmp_path / name}" for name in ("ours.db", "celery.db"))
    ensure_tables(ours)
    celery_results(celerys, 1)
    found = []
    for url in (ours, celerys):
        with engine_of(url).connect() as connection:
            found.append(connection.exec_driver_sql("SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2").all())
    assert found[0] == found[1] != []
