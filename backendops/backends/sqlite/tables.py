"""Celery's tables in the file, as they are: which columns, and whether date_done has an index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from backendops.backends.sql_files import literal, load
from backendops.contracts.errors import BackendRefused

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


def live_table(connection: Connection, name: str) -> LiveTable:
    """One of Celery's tables; raises BackendRefused where it is absent or not Celery's."""
    kind = connection.execute(load("sqlite", "schema", "kind_of"), {"name": name}).scalar()
    if kind != "table":
        raise BackendRefused(
            f"{name} is a view, not a table" if kind else f"there is no table {name}",
            "check the backend's `tables:`; Celery makes them when its first worker starts",
        )
    columns = columns_of(connection, name)
    if missing := {"id", "date_done"} - {column.name for column in columns}:
        raise BackendRefused(
            f"the table {name} has no column {' and no column '.join(sorted(missing))}",
            "is it Celery's? Check the backend's `tables:`",
        )
    leading = connection.execute(load("sqlite", "schema", "leading_columns"), {"table": name})
    return LiveTable(name, columns, any(row.column_name == "date_done" for row in leading))
