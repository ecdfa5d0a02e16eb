"""docs/privileges.md holds: each job runs with exactly its statements, and without any one of them names the GRANT."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import make_url

from backendops.contracts.job import Job
from backendops.contracts.run import Outcome
from backendops.engine.report import RunReport
from backendops.jobs.partitions_by_hand import Convert, Undo
from tests.conformance.postgres_store import sql
from tests.servers import ROOT, Postgres, Servers
from tests.surroundings.running import Results, archive_far, by_hand, restore, run, said

PAGE = (ROOT / "docs" / "privileges.md").read_text(encoding="utf-8")
PASSWORD = "of-celery"  # noqa: S105 - of a server that lives as long as the tests
OWN_SCHEMA = {"schema": "results_archive"}
BY_HAND: dict[str, Job] = {"convert": Convert(), "undo": Undo()}
LIVE_TOO = {**OWN_SCHEMA, "keep_live": "30d"}
INDEXES = {"indexes": {"create_missing": True, "drop_invalid": True}}


def statements(section: str, number: int = 0) -> list[str]:
    """The statements of one block of a section of the page."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    block = re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[number]
    return [line.rstrip(";") for line in block.splitlines()]


@dataclass(frozen=True)
class Privilege:
    """One privilege on one thing, to be taken away again."""

    take: str
    give: str
    named: str
    """A pattern of what an operator must be told without it."""


def privileges(statement: str) -> Iterator[Privilege]:
    """Each privilege that a statement gives, one by one."""
    if made := re.fullmatch(r"CREATE SCHEMA (\w+) AUTHORIZATION (\w+)", statement):
        yield Privilege(
            f"DROP SCHEMA {made[1]} CASCADE", statement, f'CREATE SCHEMA "?{made[1]}"? AUTHORIZATION "{made[2]}"'
        )
    elif role := re.fullmatch(r"GRANT (\w+) TO (\w+)", statement):
        yield Privilege(f"REVOKE {role[1]} FROM {role[2]}", statement, f'GRANT "?{role[1]}"? ')
    elif grant := re.fullmatch(r"GRANT ([A-Z, ]+) ON (TABLE|SCHEMA|DATABASE|SEQUENCE) ([\w., ]+) TO (\w+)", statement):
        for privilege in grant[1].split(", "):
            for name in grant[3].split(", "):
                what = f"{privilege} ON {grant[2]} {name}"
                # Schema and name are quoted one by one where both are told.
                quoted = r"\.".join(f'"?{part}"?' for part in name.split("."))
                if grant[2] == "SEQUENCE":
                    # Told as the server does: without the schema, where search_path finds it.
                    quoted = quoted.replace(r'"?public"?\.', r'("?public"?\.)?')
                yield Privilege(
                    f"REVOKE {what} FROM {grant[4]}",
                    f"GRANT {what} TO {grant[4]}",
                    rf"GRANT [^;]*\b{privilege}\b[^;]* {quoted} ",
                )
    else:
        raise AssertionError(f"what is this? {statement}")


@contextmanager
def celery_database(server: Postgres) -> Iterator[Results]:
    """The page's database: Celery's role owns it, and nobody else may do anything."""
    server.execute(f"CREATE ROLE celery LOGIN PASSWORD '{PASSWORD}'")
    server.execute("CREATE DATABASE celery OWNER celery")
    url = server.celery_url("celery")
    try:
        sql(url, "REVOKE ALL ON DATABASE celery FROM PUBLIC", "REVOKE ALL ON SCHEMA public FROM PUBLIC")
        sql(url, "GRANT ALL ON SCHEMA public TO celery")
        as_celery = make_url(url).set(username="celery", password=PASSWORD).render_as_string(hide_password=False)
        Results(as_celery).stored()
        yield Results(url)
    finally:
        server.drop_database("celery")
        server.execute("DROP ROLE IF EXISTS backendops")
        server.execute("DROP ROLE celery")


def stored(results: Results) -> list[tuple[object, ...]]:
    """Every result and group that is live."""
    everything = [sql(results.url, f"SELECT * FROM {table} ORDER BY id") for table in (results.live, results.groups)]
    return [row for rows in everything for row in rows]


def once(url: str, kind: str, keys: dict[str, Any]) -> RunReport:
    """One run, also of what is no job of a policy."""
    if kind in BY_HAND:
        return by_hand(url, BY_HAND[kind])
    return restore(url, **keys) if kind == "restore" else run(url, kind, **keys)


def archived_again(results: Results) -> None:
    """By the superuser: all results, and in a second run their group."""
    for _ in range(2):
        run(results.url, "archive", **OWN_SCHEMA)
    assert (results.count(results.live), results.count(results.groups)) == (1, 0)


CASES = [
    ("18", "expire", 0, "expire", {}),
    ("18", "archive", 0, "archive", OWN_SCHEMA),
    ("18", "archive", 1, "archive", {}),
    ("18", "partition", 0, "partition", OWN_SCHEMA),
    ("18", "vacuum", 0, "vacuum", {}),
    ("15", "vacuum", 1, "vacuum", {}),
    ("18", "pool-health", 0, "pool-health", {}),
    ("18", "restore", 0, "restore", OWN_SCHEMA),
    ("18", "partition", 1, "partition", LIVE_TOO),
    ("18", "partition convert and undo", 0, "convert", {}),
    ("15", "partition convert and undo", 0, "undo", {}),
    ("18", "vacuum", 2, "vacuum", INDEXES),
]


def indexes_to_mend(url: str) -> None:
    """One is missing, and a build that was cut short has left one."""
    sql(
        url,
        "DROP INDEX IF EXISTS ix_celery_taskmeta_date_done, half_built",
        "CREATE INDEX half_built ON celery_taskmeta (status)",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'half_built'::regclass",
    )


@pytest.mark.parametrize(("version", "section", "block", "kind", "keys"), CASES)
def test_exactly_these_statements(
    servers: Servers, version: str, section: str, block: int, kind: str, keys: dict[str, Any]
) -> None:
    server = servers.postgres(version)
    ours = f"db+postgresql://backendops:change%20me@{server.host}:{server.port}/celery"
    made, *common = statements("Every job")
    own = statements(section, block)
    # Another role's session, for who may see what it does.
    with celery_database(server) as results, closing(psycopg2.connect(server.superuser_url("celery"))):
        sql(results.url, made, *common, *own)
        if kind == "restore":
            sql(results.url, *(each for each in statements("archive") if "SCHEMA" in each))
            age = "SET date_done = date_done - interval '40 days'"
            sql(results.url, f"UPDATE {results.live} {age}", f"UPDATE {results.groups} {age}")
            # Makes the archive, which is its own from then on.
            assert run(ours, "partition", **OWN_SCHEMA).outcome is Outcome.COMPLETED
        if kind == "undo" or keys == LIVE_TOO:
            assert by_hand(results.url, Convert()).outcome is Outcome.COMPLETED
        # Who is a member of Celery's role has what every job needs by that.
        needed = own if "GRANT celery TO backendops" in own else [*common, *own]
        for privilege in (each for statement in needed for each in privileges(statement)):
            if kind == "vacuum":
                dying = [f"UPDATE {table} SET id = id" for table in (results.live, results.groups)]
                # Statistics are told at once, rather than a moment later.
                sql(results.url, *dying, "SELECT pg_stat_force_next_flush()")
            if keys == INDEXES:
                indexes_to_mend(results.url)
            if kind == "restore":
                archived_again(results)
            sql(results.url, privilege.take)
            before = stored(results)
            report = once(ours, kind, keys)
            assert stored(results) == before, f"changed something without {privilege.give}"
            if kind != "pool-health" or "CONNECT" in privilege.take:
                assert report.outcome is Outcome.REFUSED, f"without {privilege.give}: {report}"
            assert re.search(privilege.named, said(report) + " "), f"without {privilege.give}: {said(report)}"
            sql(results.url, privilege.give)
        if kind == "restore":
            archived_again(results)
        report = once(ours, kind, keys)
        assert (report.outcome, report.error) == (Outcome.COMPLETED, "")
        # A transaction of another role's that holds dead rows back is hidden, which only a vacuum of so few rows meets.
        assert "GRANT" not in said(report).replace("GRANT pg_read_all_stats", "")
        if kind in ("expire", "archive"):
            assert report.rows == 6
        elif kind == "restore":
            assert report.rows == 13


def test_exactly_these_in_each_of_two_databases(servers: Servers) -> None:
    server = servers.postgres("18")
    here = f"db+postgresql://backendops:change%20me@{server.host}:{server.port}/celery"
    there = f"db+postgresql://archivist:change%20me%20too@{server.host}:{server.port}/warehouse"
    made, *common = statements("Every job")
    section = "archive to another database"
    own, (keeper, *kept) = statements(section, 0), statements(section, 1)
    with celery_database(server) as results:
        server.execute("CREATE DATABASE warehouse")
        far = server.celery_url("warehouse")
        try:
            sql(results.url, made, *common, *own)
            sql(far, "REVOKE ALL ON DATABASE warehouse FROM PUBLIC", "REVOKE ALL ON SCHEMA public FROM PUBLIC")
            sql(far, keeper, *kept)
            wanted = [(results.url, each) for each in (*common, *own)] + [(far, each) for each in kept]
            for url, statement in wanted:
                for privilege in privileges(statement):
                    sql(url, privilege.take)
                    report = archive_far(here, there, **OWN_SCHEMA)
                    assert report.outcome is Outcome.REFUSED, f"without {privilege.give}: {report}"
                    told = said(report) + " "
                    assert re.search(privilege.named, told), f"without {privilege.give}: {told}"
                    sql(url, privilege.give)
            report = archive_far(here, there, **OWN_SCHEMA)
            assert (report.outcome, report.error, report.rows) == (Outcome.COMPLETED, "", 6)
            assert "GRANT" not in said(report)
        finally:
            server.drop_database("warehouse")
            server.execute("DROP ROLE IF EXISTS archivist")


def test_exactly_these_to_archive_to_files(servers: Servers, tmp_path: Path) -> None:
    server = servers.postgres("18")
    ours = f"db+postgresql://backendops:change%20me@{server.host}:{server.port}/celery"
    made, *common = statements("Every job")
    own = statements("archive to files")
    with celery_database(server) as results:
        sql(results.url, made, *common, *own)
        for privilege in (each for statement in (*common, *own) for each in privileges(statement)):
            sql(results.url, privilege.take)
            report = archive_far(ours, tmp_path)
            assert report.outcome is Outcome.REFUSED, f"without {privilege.give}: {report}"
            assert re.search(privilege.named, said(report) + " "), f"without {privilege.give}: {said(report)}"
            sql(results.url, privilege.give)
        report = archive_far(ours, tmp_path)
        assert (report.outcome, report.error, report.rows) == (Outcome.COMPLETED, "", 6)
        assert "GRANT" not in said(report)
