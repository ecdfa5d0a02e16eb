"""What a vacuum run sees before it does anything: the tables, how bloated each is, what it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from backendops.backends.postgres.bloat import UNKNOWN, Bloat
from backendops.backends.postgres.freeze import Frozen
from backendops.backends.postgres.holdback import not_permitted
from backendops.backends.postgres.table_memory import TableMemory
from backendops.backends.postgres.tables import FoundTables, quoted
from backendops.backends.postgres.vacuum_due import Due
from backendops.backends.postgres.vacuum_work import Table, as_owner
from backendops.contracts import metrics
from backendops.contracts.capabilities import VacuumPlan
from backendops.contracts.readings import Finding, Reading, Severity
from backendops.contracts.run import Watermarks


class Memory:
    """What the runs before have found out."""

    def __init__(self, watermarks: Watermarks) -> None:
        self.frozen = Frozen(watermarks)
        self.ended = TableMemory(watermarks, "vacuum.ended")
        """Those whose vacuum the time did not suffice for: whether they come first next time, or last."""
        self.solid = TableMemory(watermarks, "vacuum.solid")
        """The bytes that seemed empty right after a rewrite, and so are not: a rewrite would give none of them back."""
        self.rewritten: set[int] = set()
        """By this run."""

    def keep(self, tables: Sequence[Table]) -> None:
        """Remember for the next run what still exists."""
        for one in (self.frozen, self.ended, self.solid):
            one.keep(tables)

    def corrected(self, table: Table, bloat: Bloat) -> Bloat:
        """What an estimate is off by, a rewrite has shown."""
        return bloat.less(int(self.solid.of(table) or 0))


@dataclass(frozen=True, slots=True)
class Survey:
    """Celery's tables, their archives and what is in quarantine, with what each needs now."""

    found: FoundTables
    tables: tuple[Table, ...]
    bloat: Mapping[int, Bloat]
    due: tuple[Due, ...]
    findings: tuple[Finding, ...]

    def rewrite(self, plan: VacuumPlan) -> Iterator[Table]:
        """Those that are worth the exclusive lock of a rewrite."""
        return (one for one in self.tables if self.bloat.get(one.oid, UNKNOWN).reaches(plan.bloat_ratio))


def readings(labels: Sequence[str], survey: Survey) -> Iterator[Reading]:
    """Of each of Celery's tables, its partitions included; 0 where it is not there yet."""
    oids = {table.label: table.oid for table in survey.found.tables}
    for label in labels:
        parts = [one for one in survey.tables if one.root == oids.get(label)]
        wasted = sum(survey.bloat.get(one.oid, UNKNOWN).wasted for one in parts)
        yield metrics.TABLE_BYTES.read(sum(one.bytes for one in parts), table=label)
        yield metrics.TABLE_DEAD_ROWS.read(sum(one.dead for one in parts), table=label)
        yield metrics.TABLE_BLOAT_BYTES.read(wasted, table=label)
        yield metrics.TABLE_FREEZE_AGE.read(max((one.oldest for one in parts), default=0), table=label)


def refusals(tables: Sequence[Table]) -> Iterator[Finding]:
    """Tables that are due, and that this role may not vacuum."""
    return not_permitted([one for one in tables if not one.may_vacuum])


def left_to_others(tables: Sequence[Table]) -> Iterator[Finding]:
    """Archives in the same database that this role may not vacuum: most likely those of another backendops."""
    if tables:
        owners = sorted({one.owner for one in tables})
        granted = {
            as_owner(one.sql_name, one.owner, one.owner_is_super, quoted(one.role))
            for one in tables
            if one.oid == one.root
        }
        yield Finding(
            Severity.INFO,
            "vacuum.others",
            f"{len(tables)} tables of archives that belong to {', '.join(owners)} are left to their owners",
            "nothing, where a backendops of their own looks after them; else " + " ".join(sorted(granted)),
        )


def bloated(survey: Survey, plan: VacuumPlan) -> Iterator[Finding]:
    """What no vacuum mends: room that only new rows use, unless the table is rewritten."""
    vacuumed_first = {one.table.oid for one in survey.due}
    for table in survey.rewrite(plan):
        if table.oid not in vacuumed_first and not plan.full:
            yield Finding(
                Severity.INFO,
                "vacuum.bloated",
                f"{survey.bloat[table.oid]} in {table.sql_name}: new rows use it again, a vacuum gives none of it back",
                "a window for VACUUM FULL (`full:` of the vacuum job), which locks everybody out while it runs, "
                "or pg_repack",
            )


def needs_longer(due: Due, had: str) -> Finding:
    """It begins anew with every run and never ends."""
    return Finding(
        Severity.WARNING,
        "vacuum.ended",
        f"the {due.statement} of {due.table.sql_name} needed more than the {had} that this run had for it; the next "
        "run begins it anew, after everything else",
        "raise time_budget of the vacuum job, lower vacuum_cost_delay of backendops' role, or leave this table to "
        "autovacuum",
    )
