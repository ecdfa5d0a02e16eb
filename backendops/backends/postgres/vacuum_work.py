"""The tables that a vacuum is decided for, as the server's statistics and catalog see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from backendops.backends.postgres.tables import quoted
from backendops.backends.sql_files import literal, load


@dataclass(frozen=True, slots=True)
class Table:
    """One table as the server's statistics see it; a partitioned parent has no rows of its own."""

    root: int
    oid: int
    schema: str
    name: str
    is_parent: bool
    analyzed_alone: bool
    """Without its partitions, which it has none of, or which PostgreSQL 18 can leave out."""
    dead: int
    live: int
    changed: int
    """Rows since the last analyze."""
    changes: int
    """Rows since the statistics began."""
    analyzed: datetime | None
    vacuumed: datetime | None
    bytes: int
    heap_bytes: int
    toast: int
    """Its TOAST table, by oid; 0 where it has none."""
    toast_bytes: int
    file: int | None
    """The number of the file on disk: another one after a rewrite."""
    planned_rows: float
    age: int
    """Transactions since its oldest row that is not frozen, TOAST included."""
    multixact_age: int
    all_visible: bool
    all_frozen: bool | None
    """None where the server cannot say: before PostgreSQL 18."""
    bounds: str | None
    owner: str
    owner_is_super: bool
    role: str
    """Who we are, for the GRANT that is missing."""
    may_vacuum: bool
    busy_pid: int | None
    is_locked: bool
    """Somebody has it, or waits for it, alone: its sizes are as old as the last vacuum, and to ask more is to wait."""

    @property
    def sql_name(self) -> str:
        """Schema and name as SQL."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    @property
    def size(self) -> int:
        """Heap and TOAST in bytes, without the indexes."""
        return self.heap_bytes + self.toast_bytes

    @property
    def oldest(self) -> int:
        """In transactions or multixacts, whichever are more."""
        return max(self.age, self.multixact_age)

    @property
    def slots(self) -> dict[str, str]:
        """The table as a statement's slot."""
        return {"table": literal(self.sql_name)}


def as_owner(table: str, owner: str, is_super: bool, role: str) -> str:
    """How a role may do what only the owner of a table may; nobody is to be made a superuser for it."""
    if is_super:
        return (
            f"{quoted(owner)} is a superuser, which {role} must not become: ALTER TABLE {table} OWNER TO the role of "
            f"the application, and GRANT that one TO {role}"
        )
    return f"GRANT {quoted(owner)} TO {role};"


def list_tables(connection: Connection, roots: Sequence[int]) -> tuple[Table, ...]:
    """The given tables with every partition below them; most dead rows first."""
    rows = connection.execute(load("postgres", "vacuum", "list_tables"), {"roots": list(roots)})
    return tuple(Table(**row) for row in rows.mappings())


def list_archives(connection: Connection) -> tuple[int, ...]:
    """Every archive of ours in this database, whichever policy named it."""
    return tuple(connection.execute(load("postgres", "vacuum", "list_archives")).scalars())
