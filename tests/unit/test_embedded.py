"""The private servers start, come back after a crash, keep their secrets, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import psycopg2
import redis


def _count(url: str) -> list[tuple[object, ...]]:
    with closing(psycopg2.connect(url.removeprefix("db+"))) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*), count(*) FILTER (WHERE date_done < now() AT TIME ZONE 'UTC' - interval '7 days'),"
            " count(*) FILTER (WHERE date_done IS NULL) FROM celery_taskmeta"
        )
        return cursor.fetchall()


def test_rows_by_celery_and_by_sql_share_tables(
    postgres_url: str, celery_results: Callable[..., list[str]], fill_celery_table: Callable[..., None]
) -> None:
    ids = celery_results(postgres_url, count=10, started=2, groups=1)
    assert len(set(ids)) == 15
    fill_celery_table(postgres_url, 100, due=0.4, started=3, groups=5)
    # Five were started, and a retry has no date_done either.
    assert _count(postgres_url) == [(118, 40, 6)]


def test_keys_by_celery(
    redis_url: str, celery_results: Callable[..., list[str]], fill_celery_keys: Callable[..., None]
) -> None:
    ids = celery_results(redis_url, count=10, groups=1, result_expires=None)
    client = redis.Redis.from_url(redis_url)
    assert client.ttl(f"celery-task-meta-{ids[0]}") == -1
    fill_celery_keys(redis_url, 20, without_ttl=0.5)
    assert client.dbsize() == 34
    client.close()


def test_sqlite(
    sqlite_url: str, celery_results: Callable[..., list[str]], fill_celery_table: Callable[..., None]
) -> None:
    celery_results(sqlite_url, count=10)
    fill_celery_table(sqlite_url, 100, due=0.5)
