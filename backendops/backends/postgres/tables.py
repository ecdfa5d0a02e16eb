"""Celery's tables as they are on the server: found by the policy's names, never assumed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import Connection

from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.sql_files import literal, load
from backendops.contracts.errors import BackendRefused
from backendops.contracts.readings import Finding, Severity

Holds = Literal["task", "group"]
# Celery's own column of the id that results are asked for by (celery/backends/database/models.py).
KEY_COLUMN: Final[dict[Holds, str]] = {"task": "task_id", "group": "taskset_id"}
# What every version of Celery since 4.0 has; without one of these it is not Celery's table.
NEEDED: Final[dict[Holds, frozenset[str]]] = {
    "task": frozenset({"id", "task_id", "status", "date_done"}),
    "group": frozenset({"id", "taskset_id", "date_done"}),
}


def quoted(name: str) -> str:
    """A name as SQL, quoted whatever it is."""
    return '"' + name.replace('"', '""') + '"'


def schema_of_new(connection: Connection) -> str:
    """Where a table without a schema in its name would be made; raises BackendRefused where that is nowhere."""
    schema = connection.execute(load("postgres", "session", "current_schema")).scalar_one()
    if schema is None:
        raise BackendRefused(
            "this role has no schema to make the archive in: search_path names none that it may use",
            "name one under `schema:` of the job, or GRANT USAGE, CREATE ON SCHEMA public TO this role",
        )
    return str(schema)


@dataclass(frozen=True, slots=True)
class Column:
    """A column as the server describes it."""

    name: str
    type: str
    not_null: bool
    has_default: bool
    collation: str | None


@dataclass(frozen=True, slots=True)
class LiveTable:
    """One of the tables that Celery writes to."""

    holds: Holds
    label: str
    """Its name in the policy, which is its label in metrics."""
    oid: int
    schema: str
    name: str
    columns: tuple[Column, ...]
    date_indexed: bool
    """Does a whole, valid btree lead on date_done?"""
    partitioned: bool
    estimated_rows: int
    can_read: bool
    can_lock: bool
    can_delete: bool
    can_insert: bool
    is_owner: bool
    role: str
    """Who we are, for the GRANT that is missing."""

    @property
    def sql_name(self) -> str:
        """Schema and name as SQL."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    @property
    def slot(self) -> str:
        """Schema and name as the text of a slot."""
        return literal(self.sql_name)

    @property
    def key_column(self) -> str:
        """The column that results are asked for by."""
        return KEY_COLUMN[self.holds]

    def has_column(self, name: str) -> bool:
        """Is there a column of this name?"""
        return any(column.name == name for column in self.columns)

    def require_insert(self) -> None:
        """Raise BackendRefused, naming the GRANT, where this role may not put rows into it."""
        if not (self.can_read and self.can_insert):
            raise BackendRefused(
                f"the role {self.role} may not put rows into {self.sql_name}",
                f"GRANT USAGE ON SCHEMA {quoted(self.schema)} TO {quoted(self.role)}; "
                f"GRANT SELECT, INSERT ON {self.sql_name} TO {quoted(self.role)};",
            )

    def require_delete(self) -> None:
        """Raise BackendRefused, naming the GRANT, where this role may not remove rows from it."""
        if not (self.can_read and self.can_lock and self.can_delete):
            raise BackendRefused(
                f"the role {self.role} may not remove rows from {self.sql_name}",
                f"GRANT USAGE ON SCHEMA {quoted(self.schema)} TO {quoted(self.role)}; "
                f"GRANT SELECT, UPDATE, DELETE ON {self.sql_name} TO {quoted(self.role)};",
            )


@dataclass(frozen=True, slots=True)
class FoundTables:
    """Celery's tables that exist, and what to say of a missing one."""

    tables: tuple[LiveTable, ...]
    missing: tuple[Finding, ...]


def find_tables(session: PostgresSession, connection: Connection) -> FoundTables:
    """The live tables by the policy's names; raises BackendRefused where a name is not a table of Celery's.

    A missing table is no error: Celery makes its tables with the first result. It is a finding, for a typo to be seen.
    """
    names: tuple[tuple[Holds, str, str | None], ...] = (
        ("task", session.tables.task, session.schemas.task),
        ("group", session.tables.group, session.schemas.group),
    )
    found, missing = [], []
    for holds, name, schema in names:
        table = find_table(connection, holds, name, schema)
        if table is not None:
            found.append(table)
        elif holds == "task":
            missing.append(_missing(connection, holds, name, schema))
    return FoundTables(tuple(found), tuple(missing))


def find_table(connection: Connection, holds: Holds, name: str, schema: str | None) -> LiveTable | None:
    """One live table; None where there is none of that name."""
    row = connection.execute(load("postgres", "tables", "find_table"), {"name": name, "schema": schema}).one_or_none()
    if row is None:
        _require_usage(connection, holds, name, schema)
        return None
    where = f"{quoted(row.schema)}.{quoted(row.name)}"
    if row.kind not in ("r", "p"):
        kind = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}[row.kind]
        raise BackendRefused(
            f"{where} is {kind}, not Celery's table", f"name Celery's table under `tables: {{{holds}}}`"
        )
    columns = list_columns(connection, row.oid)
    lacking = NEEDED[holds] - {column.name for column in columns}
    if lacking:
        raise BackendRefused(
            f"{where} has no column {', '.join(sorted(lacking))}: it is not Celery's {holds} table",
            f"name Celery's table under `tables: {{{holds}}}` of the backend",
        )
    kept = next(column.type for column in columns if column.name == "date_done")
    if kept != "timestamp without time zone":
        raise BackendRefused(
            f"date_done of {where} is {kept}, but Celery's is a timestamp without time zone",
            "name Celery's own table, or change the column back",
        )
    indexed = connection.execute(
        load("postgres", "tables", "leads_an_index"), {"oid": row.oid, "column": "date_done"}
    ).scalar_one()
    return LiveTable(
        holds=holds,
        label=name,
        oid=row.oid,
        schema=row.schema,
        name=row.name,
        columns=columns,
        date_indexed=indexed,
        partitioned=row.kind == "p",
        estimated_rows=row.estimated_rows,
        can_read=row.can_read,
        can_lock=row.can_lock,
        can_delete=row.can_delete,
        can_insert=row.can_insert,
        is_owner=row.is_owner,
        role=row.role,
    )


def _require_usage(connection: Connection, holds: Holds, name: str, schema: str | None) -> None:
    """Raise BackendRefused where the table only seems not to be there, in a schema that is closed to us."""
    if schema is not None:
        return
    closed = connection.execute(
        load("postgres", "tables", "find_closed"), {"name": name, "key": KEY_COLUMN[holds]}
    ).one_or_none()
    if closed is not None:
        raise BackendRefused(
            f"the role {closed.role} may not look into schema {closed.schema}, where {quoted(name)} is",
            f"GRANT USAGE ON SCHEMA {closed.schema} TO {quoted(closed.role)};",
        )


def list_columns(connection: Connection, oid: int) -> tuple[Column, ...]:
    """Every column of a table, in its order."""
    rows = connection.execute(load("postgres", "tables", "list_columns"), {"oid": oid})
    return tuple(Column(row.name, row.type, row.not_null, row.has_default, row.collation) for row in rows)


def _missing(connection: Connection, holds: Holds, name: str, schema: str | None) -> Finding:
    similar = connection.execute(load("postgres", "tables", "find_similar"), {"key": KEY_COLUMN[holds]}).scalars().all()
    where = f"{quoted(schema)}.{quoted(name)}" if schema else quoted(name)
    instead = f"; Celery's columns are in {', '.join(similar)}" if similar else ""
    return Finding(
        Severity.INFO if not similar else Severity.WARNING,
        "postgres.no-table",
        f"there is no table {where}{instead}",
        f"name it under `tables: {{{holds}}}` and `schemas:` of the backend"
        if similar
        else "Celery makes it with the first result it stores; nothing to do until then",
    )
