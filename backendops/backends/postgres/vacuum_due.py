"""Which tables are worth a vacuum, a freeze or an analyze, why, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from backendops.backends.postgres.bloat import UNKNOWN, Bloat
from backendops.backends.postgres.vacuum_work import Table
from backendops.contracts.capabilities import VacuumPlan

Statement = Literal["vacuum", "freeze", "analyze"]
# A table that had only the rest of a run's time comes first in the next one. One that had nearly all of it comes last,
# or what comes after it would never come.
FIRST, LAST = "first", "last"


@dataclass(frozen=True, slots=True)
class Due:
    """A table, what it needs, and why."""

    table: Table
    statement: Statement
    why: str
    turn: str | None = None
    """FIRST or LAST, by how the last vacuum of it ended."""

    @property
    def text(self) -> str:
        """The name of the statement's text."""
        return "analyze_alone" if self.table.is_parent and self.table.analyzed_alone else self.statement


def decide(
    tables: Sequence[Table],
    plan: VacuumPlan,
    bloat: Mapping[int, Bloat],
    is_over: Callable[[Table], bool],
    turn: Callable[[Table], str | None],
) -> tuple[Due, ...]:
    """What is due: first what is too old by far, then by dead rows, most first; analyzing comes last.

    Dead rows are counted since the last vacuum, so what an expiry has just emptied comes first. `is_over` says whether
    a table gets no more rows and has something left to freeze, `turn` how its last vacuum ended.
    """
    due = [
        replace(found, turn=turn(table))
        for table in tables
        if (found := _due(table, tables, plan, bloat.get(table.oid, UNKNOWN), is_over(table))) is not None
    ]
    return tuple(sorted(due, key=lambda one: _order(one, plan)))


def _order(due: Due, plan: VacuumPlan) -> tuple[bool | int, ...]:
    table = due.table
    return (
        due.turn == LAST,
        # Twice the age is where autovacuum, whatever its settings are, has not managed: nothing is more urgent.
        table.oldest < 2 * plan.freeze_age,
        due.turn != FIRST,
        ("vacuum", "freeze", "analyze").index(due.statement),
        -table.dead,
        # A parent before PostgreSQL 18 takes every partition along.
        not table.analyzed_alone,
    )


def _due(table: Table, tables: Sequence[Table], plan: VacuumPlan, bloat: Bloat, over: bool) -> Due | None:
    if table.is_parent:
        return Due(table, "analyze", "its statistics are old") if wants_analyze(table, tables, plan) else None
    reasons = []
    if dead := wants_vacuum(table, plan):
        reasons.append(f"{table.dead:,} dead rows of {table.dead + table.live:,}")
    elif helps(table, plan, bloat):
        reasons.append(str(bloat))
    if old := table.oldest >= plan.freeze_age:
        reasons.append(f"{table.oldest:,} transactions old")
    if over:
        reasons.append("no more rows come to it")
    if old or over:
        return Due(table, "freeze", ", ".join(reasons))
    if dead or reasons:
        return Due(table, "vacuum", ", ".join(reasons))
    return Due(table, "analyze", "its statistics are old") if wants_analyze(table, tables, plan) else None


def wants_vacuum(table: Table, plan: VacuumPlan) -> bool:
    """Are there enough dead rows, in number and in proportion?"""
    if table.is_parent or table.dead < plan.dead_rows:
        return False
    return table.dead >= plan.dead_ratio * (table.dead + table.live)


def helps(table: Table, plan: VacuumPlan, bloat: Bloat) -> bool:
    """Is it bloated, and by what a vacuum can remove, whatever the counters say? A crash sets those back to nothing."""
    if not bloat.reaches(plan.bloat_ratio):
        return False
    if bloat.how == "pgstattuple":
        return bloat.dead >= plan.dead_ratio * bloat.size
    return table.vacuumed is None


def wants_analyze(table: Table, tables: Sequence[Table], plan: VacuumPlan) -> bool:
    """Are its statistics old, and have rows changed since?"""
    if table.analyzed is not None and table.analyzed > plan.now - plan.analyze_after:
        return False
    if not table.is_parent:
        return table.changed > 0
    # A parent's own counters never move: it is as changed as the partitions below it.
    below = [one for one in tables if one.root == table.root and not one.is_parent]
    # SKIP_LOCKED is of no help: for a sample of its rows it waits for each of them.
    return not any(one.is_locked for one in below) and any(
        one.changed > 0 or (one.analyzed is not None and (table.analyzed is None or one.analyzed > table.analyzed))
        for one in below
    )
