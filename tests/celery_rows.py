"""Results as Celery writes them: a few through Celery's own backends, or very many shaped like them."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, cast

import redis
from celery import Celery, states
from celery.app.task import Context
from celery.backends.database.session import ResultModelBase
from celery.result import AsyncResult, GroupResult
from sqlalchemy import Connection, create_mock_engine, inspect, text

from tests.engines import engine_of

# A session tells the statistics what it did when its process ends, which is after its client has gone: a vacuum that
# comes in between would not know of it, or hear of it afterwards. Asked like this, it has told when its client goes on.
TELL = "SELECT pg_catalog.pg_stat_force_next_flush()"
# PostgreSQL 15; the collector of 14 is another process, half a second late whatever is asked.
FIRST_TO_TELL = 150000


class Failure(Exception):
    """What a failing task of the tests raises."""


class _Member(AsyncResult):
    """A group's member that does not connect to Redis to unsubscribe when it is collected, maybe after its server."""

    def __del__(self) -> None:
        pass


def celery_app(url: str, **conf: object) -> Celery:
    """A Celery application whose results go to `url`, not registered as anyone's current application."""
    app = Celery("tests", set_as_current=False)
    app.conf.update(
        # SQLAlchemy 2.1 would look for psycopg 3.
        result_backend=url.replace("db+postgresql://", "db+postgresql+psycopg2://"),
        broker_url="memory://",
        result_extended=True,
        # A test waits for no reconnection: Celery's own default is to try three times with a growing pause.
        result_backend_always_retry=False,
    )
    app.conf.update(**conf)
    return app


def celery_results(url: str, count: int = 10, *, started: int = 0, groups: int = 0, **conf: object) -> list[str]:
    """Store `count` finished results (and `started` unfinished ones, and `groups` of three) through Celery's backend.

    Of ten, seven are successes, two failures and one a retry. The task ids, in the order of storing; those of
    groups' members and then of the unfinished follow. `conf` is the application's, such as result_expires=None.
    """
    app = celery_app(url, **conf)
    if manager := getattr(app.backend, "session_manager", None):
        # As in a worker's processes, which keep their connection.
        manager.forked = True
    try:
        ids = [_store(app, number) for number in range(count)]
        for _ in range(groups):
            members = [_store(app, 0) for _ in range(3)]
            group = GroupResult(str(uuid.uuid4()), [_Member(member, app=app) for member in members], app=app)
            group.save(backend=app.backend)
            ids += members
        for _ in range(started):
            task_id = str(uuid.uuid4())
            app.backend.store_result(
                task_id, {"pid": 1, "hostname": "worker@tests"}, states.STARTED, request=_request(task_id, 0)
            )
            ids.append(task_id)
        return ids
    finally:
        _close(app)


def _store(app: Celery, number: int) -> str:
    task_id = str(uuid.uuid4())
    backend: Any = app.backend
    request = _request(task_id, number)
    kind = number % 10
    if kind in (3, 7):
        backend.store_result(
            task_id, Failure(f"task {number}"), states.FAILURE, traceback="Traceback: ...", request=request
        )
    elif kind == 9:
        backend.store_result(task_id, Failure("again"), states.RETRY, traceback="Traceback: ...", request=request)
    else:
        backend.store_result(task_id, {"number": number, "text": "naïve ☃"}, states.SUCCESS, request=request)
    return task_id


def _request(task_id: str, number: int) -> Context:
    return Context(
        id=task_id,
        task="reports.build" if number % 2 else "mail.send",
        args=[number],
        kwargs={"user": number},
        hostname="worker@tests",
        retries=number % 3,
        delivery_info={"routing_key": "celery"},
        children=[],
    )


def back_date(url: str, task_ids: list[str], age: timedelta) -> None:
    """Let these results have finished `age` ago: in the SQL column, or inside the JSON of their keys (TTL kept)."""
    done = datetime.now(UTC) - age
    if url.startswith("db+"):
        with engine_of(url).begin() as connection:
            connection.execute(
                text("UPDATE celery_taskmeta SET date_done = :done WHERE task_id = :task_id"),
                [{"done": _naive(connection, done), "task_id": task_id} for task_id in task_ids],
            )
        return
    client = redis.Redis.from_url(url)
    try:
        for task_id in task_ids:
            key = f"celery-task-meta-{task_id}"
            meta = json.loads(cast(bytes, client.get(key)))
            meta["date_done"] = done.isoformat()
            client.set(key, json.dumps(meta), keepttl=True)
    finally:
        client.close()


def fill_celery_table(
    url: str,
    rows: int,
    due: float = 0.5,
    *,
    older_than: timedelta = timedelta(days=7),
    spread: timedelta = timedelta(days=20),
    failures: float = 0.1,
    started: int = 0,
    groups: int = 0,
    payload: int = 100,
    now: datetime | None = None,
) -> None:
    """Add `rows` results in one statement to the tables Celery made, a part `due` of them finished before `older_than`.

    Due ones finished evenly over the `spread` before that, the others over the last hour; every tenth or so is a
    failure. `started` more have no date_done; `groups` group rows are dated like the results. `payload` is the
    size of a result in bytes.
    """
    ensure_tables(url)
    with engine_of(url).begin() as connection:
        moment = now or datetime.now(UTC)
        newest_due = moment - older_than - timedelta(minutes=1)
        values = {
            "rows": rows,
            "due": round(rows * due),
            "failures": round(100 * failures),
            "payload": payload,
            "started": started,
            "groups": groups,
            "due_groups": round(groups * due),
            # What one row is later than the one before it, in seconds.
            "due_step": spread.total_seconds() / max(1, round(rows * due)),
            "young_step": 3600 / max(1, rows - round(rows * due)),
            "due_from": _naive(connection, newest_due - spread),
            "young_from": _naive(connection, moment - timedelta(hours=1)),
        }
        for statement in _FILL[connection.dialect.name]:
            connection.execute(text(statement), values)
        if connection.dialect.name == "postgresql" and _version_of(connection) >= FIRST_TO_TELL:
            connection.exec_driver_sql(TELL)


def fill_celery_keys(
    url: str,
    count: int,
    without_ttl: float = 0.5,
    *,
    age: timedelta = timedelta(days=10),
    failures: float = 0.1,
    payload: int = 100,
) -> None:
    """Set `count` keys as Celery's redis backend does, all finished `age` ago, a part of them without a TTL."""
    done = (datetime.now(UTC) - age).isoformat()
    client = redis.Redis.from_url(url)
    try:
        for start in range(0, count, 5000):
            with client.pipeline(transaction=False) as pipe:
                for number in range(start, min(start + 5000, count)):
                    task_id = str(uuid.uuid4())
                    meta = {
                        "status": "FAILURE" if number % 100 < 100 * failures else "SUCCESS",
                        "result": "x" * payload,
                        "traceback": None,
                        "children": [],
                        "date_done": done,
                        "task_id": task_id,
                    }
                    ttl = None if number < count * without_ttl else 86400
                    pipe.set(f"celery-task-meta-{task_id}", json.dumps(meta), ex=ttl)
                pipe.execute()
    finally:
        client.close()


def ensure_tables(url: str) -> None:
    """Let Celery make its tables, as its first use of the backend does.

    Looking for tables, columns and sequences is most of what it does. Where nothing is, its statements alone follow.
    """
    engine = engine_of(url)
    with engine.begin() as connection:
        there = inspect(connection)
        if not (there.has_table("celery_taskmeta") or there.has_table("celery_tasksetmeta")):
            for statement in _celery_ddl(engine.dialect.name):
                connection.exec_driver_sql(statement)
            return
    app = celery_app(url)
    try:
        session = cast(Any, app.backend).ResultSession()
        session.close()
    finally:
        _close(app)


@cache
def _celery_ddl(dialect: str) -> tuple[str, ...]:
    """The statements that make Celery's tables, from Celery itself."""
    statements: list[str] = []

    def made(statement: Any, *_: object, **__: object) -> None:
        statements.append(str(statement.compile(dialect=engine.dialect)))

    engine = create_mock_engine("postgresql+psycopg2://" if dialect == "postgresql" else f"{dialect}://", made)
    # A backend with tables of other names has renamed them for its whole process: this one names them as usual.
    app = celery_app("db+sqlite://", database_create_tables_at_setup=False)
    try:
        assert app.backend is not None
        ResultModelBase.metadata.create_all(cast(Any, engine), checkfirst=False)
    finally:
        _close(app)
    return tuple(statements)


def _close(app: Celery) -> None:
    """Close what Celery leaves to the end of its process: a test with an open socket fails."""
    if manager := getattr(app.backend, "session_manager", None):
        for engine in manager._engines.values():
            engine.dispose()
    if client := getattr(app.backend, "client", None):
        client.close()
        client.connection_pool.disconnect()
    app.close()


def _version_of(connection: Connection) -> int:
    return int(cast(Any, connection.connection.driver_connection).server_version)


def _naive(connection: Connection, moment: datetime) -> datetime | str:
    """As Celery's date_done is stored: PostgreSQL's session time, which is UTC in the tests; text in SQLite."""
    naive = moment.astimezone(UTC).replace(tzinfo=None)
    return naive.isoformat(" ", "microseconds") if connection.dialect.name == "sqlite" else naive


_FILL = {
    "postgresql": (
        """
        INSERT INTO celery_taskmeta (id, task_id, status, result, date_done, traceback, children,
                                     name, args, kwargs, worker, retries, queue)
        SELECT nextval('task_id_sequence'), gen_random_uuid()::text,
               CASE WHEN n % 100 < :failures THEN 'FAILURE' ELSE 'SUCCESS' END,
               convert_to('"' || repeat('x', :payload) || '"', 'UTF8'),
               CASE WHEN n < :due
                    THEN CAST(:due_from AS timestamp) + n * :due_step * interval '1 second'
                    ELSE CAST(:young_from AS timestamp) + (n - :due) * :young_step * interval '1 second' END,
               CASE WHEN n % 100 < :failures THEN 'Traceback: ...' END,
               convert_to('[]', 'UTF8'), CASE WHEN n % 2 = 0 THEN 'mail.send' ELSE 'reports.build' END,
               convert_to('[' || n || ']', 'UTF8'), convert_to('{}', 'UTF8'), 'worker@tests', 0, 'celery'
        FROM generate_series(0, :rows - 1) AS n
        """,
        """
        INSERT INTO celery_taskmeta (id, task_id, status, result, date_done, name, worker, retries, queue)
        SELECT nextval('task_id_sequence'), gen_random_uuid()::text, 'STARTED',
               convert_to('{"pid": 1}', 'UTF8'), NULL, 'mail.send', 'worker@tests', 0, 'celery'
        FROM generate_series(1, :started)
        """,
        """
        INSERT INTO celery_tasksetmeta (id, taskset_id, result, date_done)
        SELECT nextval('taskset_id_sequence'), gen_random_uuid()::text, convert_to('[["empty", null], []]', 'UTF8'),
               CASE WHEN n < :due_groups
                    THEN CAST(:due_from AS timestamp) + n * :due_step * interval '1 second'
                    ELSE CAST(:young_from AS timestamp) END
        FROM generate_series(0, :groups - 1) AS n
        """,
        "ANALYZE celery_taskmeta, celery_tasksetmeta",
    ),
    "sqlite": (
        """
        WITH RECURSIVE series (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM series WHERE n + 1 < :rows)
        INSERT INTO celery_taskmeta (task_id, status, result, date_done, traceback, children,
                                     name, args, kwargs, worker, retries, queue)
        SELECT lower(hex(randomblob(16))), CASE WHEN n % 100 < :failures THEN 'FAILURE' ELSE 'SUCCESS' END,
               CAST('"' || replace(hex(zeroblob(:payload)), '00', 'x') || '"' AS BLOB),
               strftime('%Y-%m-%d %H:%M:%f', CASE WHEN n < :due THEN :due_from ELSE :young_from END,
                        (CASE WHEN n < :due THEN n * :due_step ELSE (n - :due) * :young_step END) || ' seconds')
                   || '000',
               CASE WHEN n % 100 < :failures THEN 'Traceback: ...' END,
               CAST('[]' AS BLOB), CASE WHEN n % 2 = 0 THEN 'mail.send' ELSE 'reports.build' END,
               CAST('[' || n || ']' AS BLOB), CAST('{}' AS BLOB), 'worker@tests', 0, 'celery'
        FROM series WHERE n < :rows
        """,
        """
        WITH RECURSIVE series (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM series WHERE n < :started)
        INSERT INTO celery_taskmeta (task_id, status, result, date_done, name, worker, retries, queue)
        SELECT lower(hex(randomblob(16))), 'STARTED', CAST('{"pid": 1}' AS BLOB), NULL, 'mail.send',
               'worker@tests', 0, 'celery'
        FROM series WHERE n <= :started
        """,
        """
        WITH RECURSIVE series (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM series WHERE n + 1 < :groups)
        INSERT INTO celery_tasksetmeta (taskset_id, result, date_done)
        SELECT lower(hex(randomblob(16))), CAST('[["empty", null], []]' AS BLOB),
               CASE WHEN n < :due_groups
                    THEN strftime('%Y-%m-%d %H:%M:%f', :due_from, (n * :due_step) || ' seconds') || '000'
                    ELSE :young_from END
        FROM series WHERE n < :groups
        """,
    ),
}
