"""The archive table: made where it is missing, given the columns that a Celery upgrade added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from backendops.backends.sql_files import load
from backendops.backends.sqlite.tables import Column, LiveTable, columns_of, quoted
from backendops.contracts.capabilities import ArchivePlan
from backendops.contracts.errors import BackendRefused

OWN: Final = ("done_at", "archived_at")


@dataclass(frozen=True, slots=True)
class ArchiveTable:
    """Where the results of one live table go, and what has to be done to it first."""

    name: str
    live: LiveTable
    exists: bool
    missing: tuple[Column, ...]

    @property
    def slots(self) -> dict[str, str]:
        names = [quoted(column.name) for column in self.live.columns]
        return {
            "archive": quoted(self.name),
            "index": quoted(f"ix_{self.name}_{self.live.result_id}"),
            "result_id": quoted(self.live.result_id),
            "definitions": ", ".join(column.definition for column in self.live.columns),
            "columns": ", ".join(names),
            "live_columns": ", ".join(f"live.{name}" for name in names),
            "live": quoted(self.live.name),
        }

    @property
    def fits(self) -> bool:
        """Can rows be copied as it is?"""
        return self.exists and not self.missing

    def prepare(self, connection: Connection) -> str:
        """Make the table fit, inside the caller's transaction; says what was done."""
        if not self.exists:
            for statement in ("create_archive", "create_index"):
                connection.execute(load("sqlite", "archive_table", statement, self.slots))
            return f"made {self.name}"
        for column in self.missing:
            slots = self.slots | {"definition": column.definition}
            connection.execute(load("sqlite", "archive_table", "add_column", slots))
        return f"added {', '.join(column.name for column in self.missing)} to {self.name}"


def archive_name(plan: ArchivePlan, live: str) -> str:
    """The archive's name; raises BackendRefused where the plan cannot be had on SQLite."""
    if plan.schema is not None:
        raise BackendRefused(
            f"SQLite has no schemas, and the archive is to be in {plan.schema!r}",
            "leave `schema` out, or give SQLite an archive job of its own",
        )
    return plan.name.replace("{table}", live)


def archive_table(connection: Connection, live: LiveTable, others: tuple[str, ...], plan: ArchivePlan) -> ArchiveTable:
    """Compare live and archive; raises BackendRefused where rows could not be kept as they are.

    `others` are the names of every live table, none of which may be the archive of this one.
    """
    name = archive_name(plan, live.name)
    taken = {other.lower() for other in others}
    taken |= {archive_name(plan, other).lower() for other in others if other != live.name}
    if name.lower() in taken:
        raise BackendRefused(
            f"{name} would be the archive of {live.name} and is another table already",
            "write a name that holds {table}, such as {table}_archive",
        )
    if clash := [column.name for column in live.columns if column.name.lower() in OWN]:
        raise BackendRefused(
            f"{live.name} has a column {clash[0]}, which the archive needs for itself", "rename that column"
        )
    kind = connection.execute(load("sqlite", "schema", "kind_of"), {"name": name}).scalar()
    if kind == "view":
        raise BackendRefused(f"{name} is a view, not a table", "name another archive table")
    columns = {column.name.lower(): column for column in columns_of(connection, name)}
    if kind:
        _check(name, columns, live)
    missing = tuple(column for column in live.columns if column.name.lower() not in columns) if kind else ()
    return ArchiveTable(name, live, kind is not None, missing)


def _check(name: str, columns: dict[str, Column], live: LiveTable) -> None:
    if absent := [own for own in OWN if own not in columns]:
        raise BackendRefused(
            f"{name} is there, but backendops did not make it: it has no column {absent[0]}",
            "rename it, or name another archive table",
        )
    wanted = {column.name.lower(): column for column in live.columns}
    for column in columns.values():
        of_live = wanted.get(column.name.lower())
        if of_live is None and column.not_null and not column.has_default and column.name not in OWN:
            raise BackendRefused(
                f"{name}.{column.name} must not be empty, and {live.name} has no such column",
                f"drop NOT NULL from {name}.{column.name}, or name another archive table",
            )
        if of_live is not None and of_live.keeps_text and not column.keeps_text:
            raise BackendRefused(
                f"{name}.{column.name} is {column.type}, {live.name}.{column.name} is {of_live.type}: "
                "values would not be kept as they are",
                "name another archive table",
            )
