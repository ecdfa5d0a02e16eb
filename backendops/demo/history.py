"""Time passes quickly in the demo: a result of a few seconds ago becomes one of last week, last month or last year."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg2
import redis

# A chord reads its members' results until its body runs, about two seconds after the last of them.
SETTLED: Final = timedelta(seconds=6)

# Most are due for the archive, some of those for partitions that are retired, and every seventh for removal; failures,
# which stay out of the archive, are due for removal after 90 days.
# LOCALTIMESTAMP is UTC here, as Celery's date_done is: it is the server's time zone.
_AGE: Final = """CASE WHEN mod(id, 7) = 0 THEN interval '15 months'
                      ELSE interval '8 days' + mod(id * 37, 200) * interval '1 day' END"""
_AGE_ROWS: Final = f"""
UPDATE celery_taskmeta SET date_done = date_done - {_AGE}
WHERE date_done BETWEEN LOCALTIMESTAMP - interval '1 hour' AND LOCALTIMESTAMP - %(settled)s AND mod(id, 4) > 0
"""  # noqa: S608 - made of the constant above
_AGE_GROUPS: Final = """
UPDATE celery_tasksetmeta SET date_done = date_done - interval '20 days'
WHERE date_done BETWEEN LOCALTIMESTAMP - interval '1 hour' AND LOCALTIMESTAMP - %(settled)s
"""

# Copies of what Celery stored, under ids of their own: a year's worth would take a worker too long.
_COPY_ROWS: Final = f"""
WITH copied AS (
    SELECT nextval('task_id_sequence')::integer AS id, status, result, date_done, traceback, children,
           name, args, kwargs, worker, retries, queue, stamps
    FROM celery_taskmeta CROSS JOIN generate_series(1, %(copies)s)
    WHERE date_done IS NOT NULL
)
INSERT INTO celery_taskmeta (id, task_id, status, result, date_done, traceback, children,
                             name, args, kwargs, worker, retries, queue, stamps)
SELECT id, gen_random_uuid()::text, status, result, date_done - {_AGE}, traceback, children,
       name, args, kwargs, worker, retries, queue, stamps
FROM copied
"""  # noqa: S608 - made of the constant above


def copy_rows(url: str, copies: int) -> int:
    """Copy each result in PostgreSQL so often, as if it had finished long ago; the rows added."""
    return _execute(url, (_COPY_ROWS, {"copies": copies}))


def age_rows(url: str, settled: timedelta = SETTLED) -> int:
    """Move the finish times of results in PostgreSQL into the past; the rows aged."""
    values = {"settled": settled}
    return _execute(url, (_AGE_GROUPS, values), (_AGE_ROWS, values))


def _execute(url: str, *statements: tuple[str, Mapping[str, object]]) -> int:
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        for statement, values in statements:
            cursor.execute(statement, values)
        return cursor.rowcount


def age_keys(url: str, settled: timedelta = SETTLED) -> int:
    """Move the finish times inside the keys of Valkey into the past; the keys aged."""
    now, aged = datetime.now(UTC), 0
    with closing(redis.Redis.from_url(url)) as client:
        for key, payload in _result_keys(client):
            meta = json.loads(payload)
            done = datetime.fromisoformat(meta["date_done"]) if meta.get("date_done") else now
            if not now - timedelta(hours=1) < done < now - settled:
                continue
            meta["date_done"] = (done - timedelta(days=random.randint(1, 60))).isoformat()  # noqa: S311 - a dice
            client.set(key, json.dumps(meta), keepttl=True)
            aged += 1
    return aged


def _result_keys(client: redis.Redis) -> Iterable[tuple[bytes, bytes]]:
    keys: Iterable[Any] = client.scan_iter(match="celery-task-meta-*", count=1000)
    for key in keys:
        payload: Any = client.get(key)
        if payload is not None:
            yield key, payload
