"""Celery's tables in the file, as they are: which columns, and whether date_done has an index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from backendops.backends.sql_files import literal, load
from backendops.contracts.errors import BackendRefused
from backendops.contracts.readings import Finding, Severity

NULL: Final = "NULL"


def quoted(name: str) -> str:
    """A name as slot text."""
    return literal('"' + name.replace('"', '""') + '"')


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: str
    not_null: bool
    has_default: bool

    @property
    def definition(self) -> str:
        """For CREATE TABLE and ADD COLUMN: the type as Celery declared it, so that values keep their form."""
        return f"{quoted(self.name)} {literal(self.type)}".strip()

    @property
    def keeps_text(self) -> bool:
        """Does the column keep text as it is? Others make a number of a task_id that looks like one."""
        # The rules of https://sqlite.org/datatype3.html, section 3.1, in their order.
        kind = self.type.upper()
        if "INT" in kind:
            return False
        return not kind or any(part in kind for part in ("CHAR", "CLOB", "TEXT", "BLOB"))


@dataclass(frozen=True, slots=True)
class LiveTable:
    """One of Celery's tables."""

    name: str
    columns: tuple[Column, ...]
    date_done_index: bool

    def slots(self, by_task: bool = False, by_queue: bool = False) -> dict[str, str]:
        """The names a statement needs; a column that the table lacks, or nobody asked for, is NULL."""
        # name and queue stand behind the payload: reading them reads every page of it.
        return {
            "live": quoted(self.name),
            "status": self._or_null("status"),
            "task": self._or_null("name") if by_task else NULL,
            "queue": self._or_null("queue") if by_queue else NULL,
        }

    def _or_null(self, column: str) -> str:
        return quoted(column) if self.has(column) else NULL

    def has(self, column: str) -> bool:
        return any(column == other.name for other in self.columns)

    @property
    def result_id(self) -> str:
        """The column results are looked up by."""
        return "task_id" if self.has("task_id") else "taskset_id"


def columns_of(connection: Connection, table: str) -> tuple[Column, ...]:
    """The columns of a table in their order; none where there is no such table."""
    rows = connection.execute(load("sqlite", "schema", "columns"), {"table": table})
    return tuple(Column(r.name, r.type, bool(r.not_null), r.default_value is not None) for r in rows)


def find_tables(connection: Connection, task: str, group: str) -> tuple[tuple[LiveTable, ...], tuple[Finding, ...]]:
    """The live tables by the policy's names; raises BackendRefused where a name is not a table of Celery's.

    A missing table is no error: Celery makes its tables with the first result. It is a finding, for a typo to be seen.
    """
    found = tuple(table for name in (task, group) if (table := _live_table(connection, name)) is not None)
    # Celery makes both at once: the task table's absence says it all.
    missing = () if any(table.name == task for table in found) else (_missing(connection, task),)
    return found, missing


def _live_table(connection: Connection, name: str) -> LiveTable | None:
    kind = connection.execute(load("sqlite", "schema", "kind_of"), {"name": name}).scalar()
    if kind is None:
        return None
    if kind != "table":
        raise BackendRefused(
            f"{name} is a view, not Celery's table", "name Celery's table under the backend's `tables:`"
        )
    columns = columns_of(connection, name)
    if lacking := {"id", "date_done"} - {column.name for column in columns}:
        raise BackendRefused(
            f"{name} has no column {', '.join(sorted(lacking))}: it is not Celery's table",
            "name Celery's table under the backend's `tables:`",
        )
    leading = connection.execute(load("sqlite", "schema", "leading_columns"), {"table": name})
    return LiveTable(name, columns, any(row.column_name == "date_done" for row in leading))


def _missing(connection: Connection, name: str) -> Finding:
    similar = connection.execute(load("sqlite", "schema", "similar")).scalars().all()
    if not similar:
        fix = "Celery makes it with the first result it stores; nothing to do until then"
        return Finding(Severity.INFO, "sqlite.no-table", f"there is no table {name}", fix)
    return Finding(
        Severity.WARNING,
        "sqlite.no-table",
        f"there is no table {name}; Celery's columns are in {', '.join(similar)}",
        "name it under `tables: {task}` of the backend",
    )
