"""CanPartition among what others do to an archive: odd partitions, comments left behind, times that no calendar has."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from backendops.backends.postgres import partition as partition_module
from backendops.contracts.capabilities import ArchivePlan
from backendops.contracts.errors import BackendError
from backendops.contracts.retention import Retention
from backendops.contracts.run import Step
from backendops.engine.pacing import TimedPace
from tests.celery_rows import fill_celery_table
from tests.conformance.postgres_store import opened, sql
from tests.conformance.test_can_partition import ARCHIVE, DAY, NOW, attached, maintain, plan, spans, whats
from tests.servers import Postgres


@pytest.fixture
def archived(postgres18_server: Postgres) -> Iterator[str]:
    """200 results from May to November 2026, all archived, in monthly partitions and three ahead."""
    if not postgres18_server.execute("SELECT 1 FROM pg_database WHERE datname = 'archived_oddly'"):
        postgres18_server.execute("CREATE DATABASE archived_oddly")
        url = postgres18_server.celery_url("archived_oddly")
        fill_celery_table(url, 200, due=1.0, older_than=DAY, spread=timedelta(days=200), now=NOW)
        with opened(url) as backend:
            list(backend.archive(Retention(NOW), ArchivePlan(), TimedPace()))
        maintain(url, plan())
    postgres18_server.execute("DROP DATABASE IF EXISTS odd WITH (FORCE)")
    postgres18_server.execute("CREATE DATABASE odd TEMPLATE archived_oddly")
    yield postgres18_server.celery_url("odd")
    postgres18_server.drop_database("odd")


def codes(steps: list[Step]) -> list[str]:
    return [one.code for step in steps for one in step.findings]


def rows(url: str, table: str = ARCHIVE) -> int:
    return int(sql(url, f"SELECT count(*) FROM {table}")[0][0])


def test_the_place_of_a_partition_in_quarantine_is_kept_free(archived: str) -> None:
    before = rows(archived)
    steps = maintain(archived, plan(keep="4 months"))
    retired = [what.split('"')[3] for what in whats(steps) if what.startswith("detached")]
    assert len(retired) >= 2
    # The policy keeps longer by now, and the oldest one is back: what lies between is no gap.
    with opened(archived) as backend:
        list(backend.reattach(retired[0]))
    with opened(archived) as backend:
        assert "make" not in backend.preview_partitions(plan()).summary.split(";")[0]
    steps = maintain(archived, plan())
    assert not any("made" in what and f"{ARCHIVE}_p" in what for what in whats(steps))
    for one in retired[1:]:
        with opened(archived) as backend:
            list(backend.reattach(one))
    assert rows(archived) == before
    assert len(spans(archived)) == len(attached(archived))


def test_what_came_into_the_place_of_a_partition_in_quarantine_takes_its_rows(archived: str) -> None:
    before = rows(archived)
    maintain(archived, plan(keep="5 months"))
    with opened(archived) as backend:
        one = min((shown for shown in backend.show_partitions() if shown.state == "quarantined"), key=lambda s: s.name)
    gone = rows(archived, one.name)
    # A late result: the archive job makes it a partition.
    sql(archived, f"CREATE TABLE late PARTITION OF {ARCHIVE} {one.bounds}")
    (told, *_) = [found for step in maintain(archived, plan()) for found in step.findings]
    assert (told.code, f"partitions reattach {one.name}`" in told.fix) == ("partition.kept-again", True)
    with opened(archived) as backend:
        list(backend.reattach(one.name))
    maintain(archived, plan())
    assert (rows(archived, "late"), rows(archived, one.name)) == (gone, 0)
    assert gone > 0
    assert rows(archived) <= before


def test_a_default_partition_that_is_partitioned_itself_is_emptied(archived: str) -> None:
    before = rows(archived)
    sql(
        archived,
        f"CREATE TABLE rest PARTITION OF {ARCHIVE} DEFAULT PARTITION BY RANGE (done_at)",
        "CREATE TABLE rest_old PARTITION OF rest FOR VALUES FROM ('2019-01-01Z') TO ('2020-01-01Z')",
        f"INSERT INTO {ARCHIVE} (id, task_id, done_at) SELECT n, n, '2019-03-01Z'::timestamptz + n * interval '1 day' "
        "FROM generate_series(1, 90) AS n",
    )
    steps = maintain(archived, plan())
    assert "partition.default-emptied" in codes(steps)
    assert (rows(archived), rows(archived, "rest")) == (before + 90, 0)


def test_a_retired_partition_that_is_partitioned_itself_stays_in_sight_and_is_dropped(archived: str) -> None:
    sql(
        archived,
        f"CREATE TABLE split PARTITION OF {ARCHIVE} FOR VALUES FROM ('2019-01-01Z') TO ('2020-01-01Z') "
        "PARTITION BY RANGE (done_at)",
        "CREATE TABLE split_1 PARTITION OF split FOR VALUES FROM ('2019-01-01Z') TO ('2020-01-01Z')",
        f"INSERT INTO {ARCHIVE} (id, task_id, done_at) VALUES (1, 'x', '2019-03-01Z')",
    )
    maintain(archived, plan(keep="24 months"))
    with opened(archived) as backend:
        (shown,) = [one for one in backend.show_partitions() if one.name == "split"]
    assert (shown.state, shown.bytes > 0) == ("quarantined", True)
    maintain(archived, plan(NOW + 8 * DAY, keep="24 months"))
    assert sql(archived, "SELECT to_regclass('split_1')") == [(None,)]


def test_a_foreign_partition_is_left_where_it_is_and_told(archived: str) -> None:
    sql(
        archived,
        "CREATE EXTENSION file_fdw",
        "CREATE SERVER elsewhere FOREIGN DATA WRAPPER file_fdw",
        f"CREATE FOREIGN TABLE far PARTITION OF {ARCHIVE} FOR VALUES FROM ('2019-01-01Z') TO ('2020-01-01Z') "
        "SERVER elsewhere OPTIONS (filename '/dev/null')",
    )
    steps = maintain(archived, plan(keep="5 months"))
    assert codes(steps) == ["partition.foreign"]
    assert "far" in attached(archived)
    assert any(what.startswith("detached") for what in whats(steps))


def test_rows_of_an_impossible_year_are_told_and_the_others_moved(archived: str) -> None:
    before = rows(archived)
    sql(
        archived,
        f"CREATE TABLE rest PARTITION OF {ARCHIVE} DEFAULT",
        f"INSERT INTO {ARCHIVE} (id, task_id, done_at) VALUES (1, 'a', '9999-12-31Z'), (2, 'b', '0044-03-15 BC'), "
        "(3, 'c', '2019-03-01Z'), (4, 'd', '29999-03-01Z'), (5, 'e', '-infinity')",
    )
    for _ in range(2):
        steps = maintain(archived, plan())
        assert "partition.no-time" in codes(steps)
    assert (rows(archived), rows(archived, "rest")) == (before + 1, 4)


def test_a_detach_that_is_pending_over_rows_that_wait_is_finished_first(archived: str) -> None:
    before = rows(archived)
    sql(
        archived,
        f"CREATE TABLE held PARTITION OF {ARCHIVE} FOR VALUES FROM ('2019-01-01Z') TO ('2020-01-01Z')",
        "UPDATE pg_inherits SET inhdetachpending = true WHERE inhrelid = 'held'::regclass",
        f"CREATE TABLE rest (LIKE {ARCHIVE} INCLUDING ALL)",
        "INSERT INTO rest (id, task_id, done_at) VALUES (1, 'a', '2019-03-01Z')",
        f"""COMMENT ON TABLE rest IS '{{"backendops": "former default", "archive": "\\"public\\".\\"{ARCHIVE}\\""}}'""",
    )
    steps = maintain(archived, plan())
    assert "partition.rows-wait" in codes(steps)
    assert any("finished detaching" in what for what in whats(steps))
    maintain(archived, plan())
    assert (rows(archived), rows(archived, "rest")) == (before + 1, 0)


def test_a_comment_of_an_earlier_retirement_is_taken_off_a_partition_that_stays(archived: str) -> None:
    sql(archived, f"CREATE TABLE keeper (LIKE {ARCHIVE})")
    maintain(archived, plan(keep="5 months"))
    with opened(archived) as backend:
        one = min(shown.name for shown in backend.show_partitions() if shown.state == "quarantined")
        bounds = next(shown.bounds for shown in backend.show_partitions() if shown.name == one)
    sql(archived, f"ALTER TABLE {ARCHIVE} ATTACH PARTITION {one} {bounds}")
    maintain(archived, plan())
    assert sql(archived, f"SELECT obj_description('{one}'::regclass)") == [(None,)]
    # Whoever detaches it later has a table of their own.
    sql(archived, f"ALTER TABLE {ARCHIVE} DETACH PARTITION {one}")
    maintain(archived, plan(NOW + 90 * DAY, keep="1 month"))
    assert rows(archived, one) >= 0


def test_one_archive_that_fails_does_not_keep_the_others_waiting(
    archived: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drain = partition_module.drain_default

    def damaged(session: Any, archive: Any, *given: Any) -> Iterator[Step]:
        if archive.name == ARCHIVE:
            raise BackendError("the server reported XX001: invalid page", "restore a backup")
        yield from drain(session, archive, *given)

    sql(archived, "DROP TABLE celery_tasksetmeta_archive")
    monkeypatch.setattr(partition_module, "drain_default", damaged)
    with pytest.raises(BackendError, match="invalid page"):
        maintain(archived, plan())
    assert sql(archived, "SELECT to_regclass('celery_tasksetmeta_archive') IS NOT NULL") == [(True,)]
