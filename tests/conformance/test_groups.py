"""A saved group goes only when its members are finished or gone: on backends with tables, rows by real Celery."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context
from celery.result import AsyncResult, GroupResult

from backendops.backends.postgres import groups as postgres_groups
from backendops.backends.sqlite import groups as sqlite_groups
from backendops.contracts.capabilities import ArchivePlan, CanArchive
from backendops.contracts.retention import Retention
from tests.celery_rows import _close, _Member, celery_app, ensure_tables
from tests.conformance.stores import GROUP_ARCHIVE, GROUPS, LIVE, FixedPace, TableStore, drive

CAPABILITY = CanArchive
DAY = timedelta(days=1)
PLAN = ArchivePlan()


class Application:
    """A Celery application that stores what a test says."""

    def __init__(self, url: str, **conf: object) -> None:
        self.app: Celery = celery_app(url, **conf)

    def task(self, state: str) -> AsyncResult:
        """A task's result in this state; `gone` has none."""
        result = _Member(str(uuid.uuid4()), app=self.app)
        if state != "gone":
            stored = ValueError(1) if state in ("FAILURE", "RETRY") else 1
            self.app.backend.store_result(result.id, stored, state, request=Context(id=result.id))
        return result

    def group(self, *members: Any) -> str:
        """A saved group of these; its id."""
        group = GroupResult(str(uuid.uuid4()), list(members), app=self.app)
        group.save(backend=self.app.backend)
        return group.id


@pytest.fixture
def application(tables: TableStore) -> Iterator[Application]:
    made = Application(tables.url)
    yield made
    _close(made.app)


def age(tables: TableStore, days: int) -> None:
    """Let every group have been saved so long ago."""
    done = (datetime.now(UTC) - days * DAY).replace(tzinfo=None)
    tables.execute(
        f"UPDATE {GROUPS} SET date_done = :done",
        done=done if tables.is_postgres else done.isoformat(" ", "microseconds"),
    )


def groups(tables: TableStore, table: str = GROUPS) -> set[str]:
    return {row[0] for row in tables.execute(f"SELECT taskset_id FROM {table}")}


def keep(days: float, **more: Any) -> Retention:
    return Retention(datetime.now(UTC) - days * DAY, **more)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_group_waits_for_its_members_and_goes_after_them(
    tables: TableStore, application: Application, indexed: bool
) -> None:
    task = application.task
    finished = {
        application.group(task("SUCCESS"), task("FAILURE")),
        application.group(task("REVOKED"), task("gone")),
        application.group(),
    }
    after = task("SUCCESS")
    after.parent = task("STARTED")
    inner = GroupResult(str(uuid.uuid4()), [task("gone"), task("STARTED")], app=application.app)
    unfinished = {
        application.group(task("SUCCESS"), task("STARTED")),
        application.group(task("PROGRESS")),
        application.group(task("RETRY")),
        application.group(after),
        application.group(task("SUCCESS"), inner),
    }
    age(tables, 30)
    if not indexed:
        tables.execute("DROP INDEX ix_celery_tasksetmeta_date_done")
    with tables.previewing() as backend:
        assert backend.preview_expire(keep(7)).rows == len(finished)
    with tables.opened() as backend:
        drive(backend.expire(keep(7), FixedPace(2)))
    assert groups(tables) == unfinished
    # Members that finish, or go, let the group go: at the next run, whatever the date.
    tables.execute(f"DELETE FROM {LIVE} WHERE status <> 'STARTED'")
    date = "now() at time zone 'UTC'" if tables.is_postgres else "strftime('%Y-%m-%d %H:%M:%f', 'now')"
    tables.execute(f"UPDATE {LIVE} SET status = 'SUCCESS', date_done = {date}")
    with tables.opened() as backend:
        assert sum(step.rows for step in drive(backend.expire(keep(7), FixedPace(2)))) == len(unfinished)
    assert groups(tables) == set()


def test_an_archive_takes_a_group_only_then(tables: TableStore, application: Application) -> None:
    finished = application.group(application.task("SUCCESS"))
    unfinished = application.group(application.task("STARTED"))
    age(tables, 30)
    with tables.opened() as backend:
        drive(backend.archive(keep(7), PLAN, FixedPace(10)))
    assert groups(tables) == {unfinished}
    assert groups(tables, GROUP_ARCHIVE) == {finished}


def test_a_group_on_its_way_to_another_archive_waits_too(postgres: TableStore) -> None:
    made = Application(postgres.url)
    finished, unfinished = made.group(made.task("SUCCESS")), made.group(made.task("STARTED"))
    age(postgres, 30)
    with postgres.opened() as backend:
        found = backend.find_due(keep(7))
        read = [row for batch in backend.read_due(keep(7), FixedPace(1)) for row in batch.rows]
    assert (found.rows, len(read)) == (1, 1)
    assert finished in read[0].values
    assert unfinished not in read[0].values
    _close(made.app)


@pytest.mark.parametrize("serializer", ["pickle", "yaml"])
def test_what_is_not_json_is_never_read_and_waits_for_a_margin(tables: TableStore, serializer: str) -> None:
    made = Application(tables.url, result_serializer=serializer, result_accept_content=[serializer])
    group = made.group(made.task("SUCCESS"))
    _close(made.app)
    for days, rows in ((9, 0), (13, 0), (15, 1)):
        age(tables, days)
        with tables.previewing() as backend:
            assert backend.preview_expire(keep(7)).rows == rows
            assert backend.preview_expire(keep(7, group_margin=DAY)).rows == 1
    age(tables, 13)
    with tables.opened() as backend:
        drive(backend.expire(keep(7), FixedPace(10)))
    assert groups(tables) == {group}
    age(tables, 15)
    with tables.opened() as backend:
        drive(backend.expire(keep(7), FixedPace(10)))
    assert groups(tables) == set()


BROKEN = [b"[[", b"[]", b"[" * 100_000, b"[[5, null], []]", b"[1, 2]", b"", b'[["\xff", null], []]']


def test_no_payload_ends_a_run(tables: TableStore) -> None:
    ensure_tables(tables.url)
    for number, payload in enumerate([*BROKEN, None]):
        tables.execute(
            f"INSERT INTO {GROUPS} (id, taskset_id, result, date_done) VALUES (:id, :name, :payload, '2026-01-01')",
            id=number, name=f"broken-{number}", payload=payload,
        )  # fmt: skip
    for days, left in ((10, len(BROKEN) + 1), (15, 0)):
        age(tables, days)
        with tables.opened() as backend:
            drive(backend.expire(keep(7), FixedPace(3)))
        assert len(groups(tables)) == left


def test_a_table_of_tasks_of_another_name_says_nothing_of_members(tables: TableStore) -> None:
    """Else every member would count as gone."""
    made = Application(tables.url)
    group = made.group(made.task("STARTED"))
    _close(made.app)
    age(tables, 10)
    with tables.opened(tables={"task": "typo"}) as backend:
        drive(backend.expire(keep(7), FixedPace(3)))
    assert groups(tables) == {group}


def test_large_groups_are_read_few_at_once_and_their_members_asked_for_in_parts(
    tables: TableStore, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (postgres_groups, sqlite_groups):
        monkeypatch.setattr(module, "READ_BYTES", 10_000)
    monkeypatch.setattr(postgres_groups, "PAGE", 3)
    monkeypatch.setattr(postgres_groups, "ASKED", 70)
    monkeypatch.setattr(sqlite_groups, "ASKED", 3)
    monkeypatch.setattr(sqlite_groups, "MEMBERS", 70)
    started = application.task("STARTED").id
    for number in range(10):
        members = [[[str(uuid.uuid4()), None], None] for _ in range(100)]
        if number in (2, 7):
            members[-1][0][0] = started  # type: ignore[index]
        tables.execute(
            f"INSERT INTO {GROUPS} (id, taskset_id, result, date_done) VALUES (:id, :name, :payload, '2026-01-01')",
            id=number, name=str(number), payload=json.dumps([[str(number), None], members]).encode(),
        )  # fmt: skip
    age(tables, 30)
    with tables.previewing() as backend:
        assert backend.preview_expire(keep(7)).rows == 8
    with tables.opened() as backend:
        drive(backend.expire(keep(7), FixedPace(4)))
    assert groups(tables) == {"2", "7"}


def test_as_many_groups_of_one_moment_as_no_batch_takes(postgres: TableStore) -> None:
    """Celery 5.4 to 5.6.2 dates every group at the start of its worker."""
    made = Application(postgres.url)
    unfinished = [made.group(made.task("STARTED")) for _ in range(6)]
    finished = [made.group(made.task("gone")) for _ in range(20)]
    postgres.execute(
        f"INSERT INTO {GROUPS} SELECT 1000 + n, 'pickled ' || n, decode('8004', 'hex'), now() FROM "
        "generate_series(1, 9) AS n"
    )
    age(postgres, 30)
    with postgres.opened() as backend:
        assert sum(step.rows for step in drive(backend.expire(keep(7), FixedPace(4)))) == len(finished) + 9
    assert groups(postgres) == set(unfinished)
    _close(made.app)
