"""The SQL files: every statement loads, runs in psql as it is, and takes hostile names."""

from __future__ import annotations

import re
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2

from backendops.backends.sql_files import fill, literal, load, readable, statements

SQL = Path(str(files("backendops.backends"))) / "sql"
FILES = sorted(path.relative_to(SQL) for path in SQL.glob("*/*.sql"))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_statement_says_why(path: Path) -> None:
    found = statements(path.parent.name, path.stem)
    assert found
    heads = re.findall(r"^-- name:.*$", (SQL / path).read_text(), re.MULTILINE)
    assert len(heads) == len(found), "two statements of one name, or a name that is none"
    if path.parent.name == "postgres":
        assert [name for name, statement in found.items() if not statement.startswith("-- ")] == []


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_slot_has_an_example(path: Path) -> None:
    for statement in statements(path.parent.name, path.stem).values():
        slots = {name: f"<{name}>" for name in re.findall(r"/\* (\w+) \*/", statement) if name != "end"}
        filled = fill(statement, slots)
        assert "/*" not in filled
        assert all(text in filled for text in slots.values())


def test_a_slot_of_each_form() -> None:
    statement = "DELETE FROM /* live */ public.x WHERE /* due */ (a < (1)) RETURNING /* columns */ a, b /* end */;"
    filled = fill(statement, {"live": '"x"', "due": "(true)", "columns": "c"})
    assert filled == 'DELETE FROM "x" WHERE (true) RETURNING c;'


def test_a_slot_that_is_not_given_is_an_error() -> None:
    with pytest.raises(KeyError):
        fill("SELECT FROM /* live */ celery_taskmeta", {})


def test_a_list_that_ends_without_a_slot_is_an_error() -> None:
    with pytest.raises(ValueError, match="no slot began"):
        fill("SELECT a /* end */ FROM x", {})


def test_a_parenthesis_that_is_never_closed_is_an_error() -> None:
    with pytest.raises(ValueError, match="never closed"):
        fill("SELECT /* due */ (a", {"due": "x"})


@pytest.mark.parametrize("name", ["a:b", "a::b", ":x", "x:", "back\\:slash", "per%cent", "100%", "%(x)s"])
def test_a_name_is_never_taken_for_a_value(name: str) -> None:
    statement = load("postgres", "walk", "find_last", {"live": literal(f'"{name}"'), "by": "id"})
    assert statement._bindparams == {}
    sent = str(statement.compile(dialect=PGDialect_psycopg2()))  # type: ignore[no-untyped-call]
    assert (
        sent % {} == f'-- Where a walk by id ends: what is stored from now on is not due.\nSELECT max(id) FROM "{name}"'
    )


def test_readable_shows_what_is_known_and_keeps_what_is_not() -> None:
    slots = {"live": literal('"a:b"'), "by": "id", "due": "(date_done < CAST(:cutoff AS timestamp))"}
    shown = readable(load("postgres", "expire", "remove_range", slots), {"cutoff": "o'clock"})
    assert readable(load("postgres", "convert", "describe", slots), {"comment": None}).endswith("IS NULL")
    assert shown.endswith(
        "DELETE FROM \"a:b\"\nWHERE id >= :low AND id < :high AND (date_done < CAST('o''clock' AS timestamp))"
    )


def test_readable_shows_nothing_as_null() -> None:
    shown = readable(load("postgres", "convert", "describe", {"live": "celery_taskmeta"}), {"comment": None})
    assert shown.endswith("COMMENT ON TABLE celery_taskmeta IS NULL")


VALUES = {
    "statement_timeout": "'1s'", "lock_timeout": "'1s'", "idle_timeout": "'1s'", "key": "1", "pid": "1",
    "begun": "'2026-01-01'", "zone": "'UTC'", "end": "'2027-01-01'", "low": "'2026-01-01'", "high": "'2026-01-02'",
    "ranges": "3",
    "size": "10", "latest": "'2026-01-01'", "cutoff": "'2026-01-01'", "since": "'2026-01-01'", "every": "'month'",
    "name": "'celery_taskmeta'", "schema": "'public'", "oid": "1", "column": "'date_done'", "comment": "'text'",
    "start": "'2026-11-01'", "task": "'celery_taskmeta'", "task_schema": "'public'", "group": "'celery_tasksetmeta'",
    "group_schema": "NULL", "keep": "10", "rows": "10", "page": "10", "ids": "'{1}'", "margin": "'2026-01-01'",
    "last_id": "0", "oldest": "700", "next": "800", "ignored": "'{}'",
}  # fmt: skip


def test_expire_archive_and_walk_run_in_psql_as_they_are(postgres18_url: str, celery_results: object) -> None:
    """In one transaction, with values as an operator would give them; ids where a walk by id is meant."""
    celery_results(postgres18_url, 1)  # type: ignore[operator]
    script = ["\\set ON_ERROR_STOP on", *(f"\\set {name} {_psql(value)}" for name, value in VALUES.items()), "BEGIN;"]
    script.append("SET LOCAL client_min_messages = warning;")
    for job in ("session", "lock", "standing", "tables", "archive_table", "expire", "archive", "groups", "stuck"):
        for name, statement in statements("postgres", job).items():
            if name in ("see_one_state", "make_read_only"):
                continue
            script.append(statement + ";")
    for name, statement in statements("postgres", "walk").items():
        if name != "find_last":
            script.append(statement + ";")
    script.append("ROLLBACK;")
    # After the others: they are not to be read-only.
    script += [f"{statement};" for statement in statements("postgres", "pressure").values()]
    done = subprocess.run(
        ["psql", "-X", "-q", "-d", postgres18_url.removeprefix("db+"), "-f", "-"],
        input="\n".join(script),
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0


def _psql(value: str) -> str:
    return "'" + value.replace("'", "\\'") + "'"
