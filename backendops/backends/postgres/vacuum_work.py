"""Which tables are worth a vacuum or an analyze, and whether one is worth rewriting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection

from backendops.backends.postgres.tables import quoted
from backendops.backends.sql_files import literal, load
from backendops.contracts.capabilities import VacuumPlan

# A rewrite locks everybody out: it must give back a third of the table, and more than the next week fills again.
FULL_RATIO: Final = 0.3
FULL_BYTES: Final = 16 * 1024**2


@dataclass(frozen=True, slots=True)
class Table:
    """One table as the server's statistics see it; a partitioned parent has no rows of its own."""

    root: int
    oid: int
    schema: str
    name: str
    is_parent: bool
    dead: int
    live: int
    changed: int
    analyzed: datetime | None
    vacuumed: datetime | None
    bytes: int
    heap_bytes: int
    file: int | None
    """The number of the file on disk: another one after a rewrite."""
    planned_rows: float
    owner: str
    may_vacuum: bool
    busy_pid: int | None

    @property
    def sql_name(self) -> str:
        """Schema and name as SQL."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    @property
    def slots(self) -> dict[str, str]:
        """The table as a statement's slot."""
        return {"table": literal(self.sql_name)}


def list_tables(connection: Connection, roots: Sequence[int]) -> tuple[Table, ...]:
    """The given tables with every partition below them; most dead rows first."""
    rows = connection.execute(load("postgres", "vacuum", "list_tables"), {"roots": list(roots)})
    return tuple(Table(**row) for row in rows.mappings())


def list_archives(connection: Connection) -> tuple[int, ...]:
    """Every archive of ours in this database, whichever policy named it."""
    return tuple(connection.execute(load("postgres", "vacuum", "list_archives")).scalars())


def wants_vacuum(table: Table, plan: VacuumPlan) -> bool:
    """Are there enough dead rows, in number and in proportion?"""
    if table.is_parent or table.dead < plan.dead_rows:
        return False
    return table.dead >= plan.dead_ratio * (table.dead + table.live)


def wants_analyze(table: Table, tables: Sequence[Table], plan: VacuumPlan) -> bool:
    """Are its statistics old, and have rows changed since?"""
    if table.analyzed is not None and table.analyzed > plan.now - plan.analyze_after:
        return False
    if not table.is_parent:
        return table.changed > 0
    # A parent's own counters never move: it is as changed as the partitions below it.
    below = [one for one in tables if one.root == table.root and not one.is_parent]
    return any(
        one.changed > 0 or (one.analyzed is not None and (table.analyzed is None or one.analyzed > table.analyzed))
        for one in below
    )


def wasted_bytes(connection: Connection, table: Table) -> int:
    """An estimate of what a rewrite would give back of the heap; 0 where there are no statistics to tell."""
    row_bytes: float | None = connection.execute(
        load("postgres", "vacuum", "estimate_row_bytes"), {"schema": table.schema, "name": table.name}
    ).scalar_one()
    if row_bytes is None or table.is_parent:
        return 0
    return max(0, table.heap_bytes - round(table.planned_rows * row_bytes))


def worth_rewriting(table: Table, wasted: int) -> bool:
    """Is the room that a rewrite gives back worth its lock?"""
    return wasted >= FULL_BYTES and wasted >= FULL_RATIO * table.heap_bytes
