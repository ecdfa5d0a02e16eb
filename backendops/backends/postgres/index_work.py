"""The indexes of Celery's tables and their archives: what each needs, and what there is to say about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from backendops.backends.postgres import bloat
from backendops.backends.postgres.bloat import Bloat
from backendops.backends.postgres.periods import fit
from backendops.backends.postgres.tables import LiveTable, quoted
from backendops.backends.postgres.vacuum_work import Table, as_owner
from backendops.backends.sql_files import literal, load
from backendops.contracts.capabilities import IndexPlan
from backendops.contracts.errors import BackendRefused
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.units import format_bytes

COLUMN: Final = "date_done"
# An index that none of so many scans of its table used is not what the application reads by.
UNUSED_AFTER: Final = 10_000
# Half empty by an estimate is worth a word where nobody has said what is too much.
BLOATED: Final = 0.5
# An entry of date_done: 8 bytes of header, 8 of key, 4 of pointer.
ENTRY_BYTES: Final = 20
# What REINDEX CONCURRENTLY names the new index until it is whole, and the old one until it is dropped.
_REBUILT: Final = ("_ccnew", "_ccold")
_NAME_TRIES: Final = 9


@dataclass(frozen=True, slots=True)
class Index:
    """One index as the catalog has it."""

    oid: int
    table_oid: int
    schema: str
    name: str
    table_name: str
    is_parent: bool
    """The frame of a partitioned table's index, without entries of its own."""
    is_attached: bool
    is_valid: bool
    is_unique: bool
    is_constraint: bool
    method: str
    only_column: str | None
    is_plain: bool
    """On date_done alone, as Celery makes it: the kind that can become a part of a partitioned table's."""
    same: str
    bytes: int
    scans: int
    table_scans: int
    rows: float
    key_bytes: float | None
    is_owner: bool
    owner: str
    owner_is_super: bool
    is_busy: bool
    """Somebody builds, rebuilds or vacuums on the table now."""

    @property
    def sql_name(self) -> str:
        """Schema and name as SQL."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    @property
    def on_table(self) -> str:
        """Its table as SQL: an index is always in its table's schema."""
        return f"{quoted(self.schema)}.{quoted(self.table_name)}"

    @property
    def slot(self) -> str:
        """Schema and name as the text of a slot."""
        return literal(self.sql_name)

    @property
    def is_left_over(self) -> bool:
        """Did a build end before it was whole? A frame waits for its partitions, which is another thing."""
        return not (self.is_valid or self.is_parent or self.is_attached or self.is_constraint or self.is_busy)

    @property
    def drop(self) -> str:
        """The statement that takes it away."""
        return f"DROP INDEX {'' if self.is_parent else 'CONCURRENTLY '}{self.sql_name};"


@dataclass(frozen=True, slots=True)
class IndexWork:
    """What is to be done, and what is only to be said."""

    drop: tuple[Index, ...] = ()
    create: tuple[LiveTable, ...] = ()
    rebuild: tuple[tuple[Index, Bloat], ...] = ()
    findings: tuple[Finding, ...] = ()
    refused: tuple[Finding, ...] = ()
    """What the policy asks for and this role may not do."""


def list_indexes(connection: Connection, tables: Sequence[int]) -> tuple[Index, ...]:
    """Every index of these tables."""
    rows = connection.execute(load("postgres", "indexes", "list_indexes"), {"tables": list(tables)})
    return tuple(Index(**row) for row in rows.mappings())


def decide_indexes(
    indexes: Sequence[Index],
    live: Sequence[LiveTable],
    tables: Sequence[Table],
    plan: IndexPlan,
    measure: Callable[[Index, bool], Bloat],
) -> IndexWork:
    """`measure` is asked about the large ones only; its second argument says whether reading it all is worth it."""
    of_live = {one.oid for one in tables if one.root in {table.oid for table in live}}
    left = [one for one in indexes if one.is_left_over]
    drop = [one for one in left if one.is_owner and _may_drop(one, plan, of_live)]
    missing = [table for table in live if not table.date_indexed]
    nested = {one.root for one in tables if one.is_parent and one.oid != one.root}
    create = [one for one in missing if plan.create_missing and one.is_owner and one.oid not in nested]
    seen = {one.oid: one for one in tables}
    refused = [_not_ours(one, seen[one.oid]) for one in missing if plan.create_missing and not one.is_owner]
    kept = [one for one in left if not one.is_owner and _may_drop(one, plan, of_live)]
    refused += [_not_permitted("may not drop", one, one.drop, _role(live)) for one in kept]
    rebuild, bloated = [], []
    for one in indexes:
        if one.method != "btree" or not one.is_valid or one.bytes < bloat.WORTH_BYTES:
            continue
        wanted = plan.reindex_bloated is not None and plan.rebuild_until is not None
        # MAINTAIN would do for the rebuild, but not for dropping what one that is cut short leaves, night after night.
        now = wanted and one.is_owner
        found = measure(one, now and not one.is_busy)
        if now and plan.reindex_bloated is not None and found.reaches(plan.reindex_bloated):
            rebuild.append((one, found))
        elif wanted and not now and plan.reindex_bloated is not None and found.reaches(plan.reindex_bloated):
            statement = f"REINDEX INDEX CONCURRENTLY {one.sql_name};"
            refused.append(_not_permitted("may not clean up after a rebuild of", one, statement, _role(live)))
        elif not now and found.reaches(plan.reindex_bloated or BLOATED):
            bloated.append(_bloated(one, found))
    return IndexWork(
        tuple(drop),
        tuple(create),
        tuple(rebuild),
        findings=(
            *(_left(one) for one in left if one not in drop and one not in kept),
            *(_missing(one) for one in missing if one not in create and not (plan.create_missing and not one.is_owner)),
            *_doubled(indexes),
            *_unused(indexes, of_live),
            *bloated,
        ),
        refused=tuple(refused),
    )


def _may_drop(index: Index, plan: IndexPlan, of_live: set[int]) -> bool:
    """What the policy lets us make, it lets us take away where it did not become whole."""
    made = plan.create_missing and index.only_column == COLUMN and index.table_oid in of_live
    rebuilt = plan.reindex_bloated is not None and any(mark in index.name for mark in _REBUILT)
    # Its drop has been decided on, and was cut short.
    begun = (plan.create_missing or plan.reindex_bloated is not None) and index.name == doomed_name(index.oid)
    return plan.drop_invalid or made or rebuilt or begun


def doomed_name(oid: int) -> str:
    """What an index is called from the moment that its drop is decided on."""
    return f"backendops_drop_{oid}"


def free_index_name(connection: Connection, schema: str, table: str) -> str:
    """Celery's own name for it, `ix_<table>_date_done`, or the next that is free."""
    for number in range(1, _NAME_TRIES + 1):
        name = fit(f"ix_{table}", f"_{COLUMN}" + (f"_{number}" if number > 1 else ""))
        taken = connection.execute(
            load("postgres", "archive_table", "is_taken"), {"schema": schema, "name": name}
        ).scalar_one()
        if not taken:
            return name
    raise BackendRefused(
        f"every name from {quoted(f'ix_{table}_{COLUMN}')} to …_{_NAME_TRIES} is taken in schema {quoted(schema)}",
        f"CREATE INDEX CONCURRENTLY ON {quoted(schema)}.{quoted(table)} ({COLUMN}); under a name of your own",
    )


def create_text(table: LiveTable) -> str:
    """The statement that makes the missing index, for people."""
    if table.partitioned:
        return f"CREATE INDEX ON ONLY {table.sql_name} ({COLUMN}); and CONCURRENTLY on each partition, then ATTACH"
    name = quoted(fit(f"ix_{table.name}", f"_{COLUMN}"))
    return f"CREATE INDEX CONCURRENTLY {name} ON {table.sql_name} ({COLUMN});"


def size_of_new(rows: float) -> str:
    """About what an index on date_done takes."""
    return format_bytes(rows * ENTRY_BYTES / bloat.LEAF_FILL)


def _missing(table: LiveTable) -> Finding:
    return Finding(
        Severity.WARNING,
        "indexes.missing",
        f"{table.sql_name} has no index on {COLUMN}: expire, archive and Celery's own cleanup read all of it "
        "(Celery makes the index with new tables since 5.6.3, and adds none to an old one)",
        f"{create_text(table)} or `indexes: {{create_missing: true}}` of the vacuum job; about "
        f"{size_of_new(table.estimated_rows)} on the server's disk",
    )


def _role(live: Sequence[LiveTable]) -> str:
    """Who we are, as SQL; there are no indexes where there is no table."""
    return quoted(live[0].role) if live else "backendops' role"


def _not_ours(table: LiveTable, seen: Table) -> Finding:
    role = quoted(table.role)
    return Finding(
        Severity.WARNING,
        "indexes.not-permitted",
        f"the role {table.role} may not create the missing index on {COLUMN} of {table.sql_name}: only its owner may",
        f"{create_text(table)} as {quoted(seen.owner)}, or "
        + as_owner(table.sql_name, seen.owner, seen.owner_is_super, role),
    )


def _not_permitted(what: str, index: Index, statement: str, role: str) -> Finding:
    return Finding(
        Severity.WARNING,
        "indexes.not-permitted",
        f"the role {role} {what} {index.sql_name} on {index.on_table}: only its owner may",
        f"{statement} as {quoted(index.owner)}, or "
        + as_owner(index.on_table, index.owner, index.owner_is_super, role),
    )


def _left(index: Index) -> Finding:
    return Finding(
        Severity.WARNING,
        "indexes.invalid",
        f"{index.sql_name} on {index.on_table} is invalid: a cancelled build left it; every write still pays for it "
        "and no query uses it",
        f"{index.drop} or `indexes: {{drop_invalid: true}}` of the vacuum job",
    )


def _bloated(index: Index, found: Bloat) -> Finding:
    return Finding(
        Severity.INFO,
        "indexes.bloated",
        f"{index.sql_name} on {index.on_table}: {found}",
        f"REINDEX INDEX CONCURRENTLY {index.sql_name}; (needs up to {format_bytes(index.bytes)} more on the server's "
        "disk while it runs) or `indexes: {reindex_bloated: 30%, window: …}` of the vacuum job",
    )


def _doubled(indexes: Sequence[Index]) -> Iterator[Finding]:
    groups: dict[tuple[int, str], list[Index]] = {}
    for one in indexes:
        if one.is_valid and not one.is_attached:
            groups.setdefault((one.table_oid, one.same), []).append(one)
    for group in groups.values():
        kept, *others = sorted(group, key=lambda one: (not one.is_constraint, not one.is_unique, one.oid))
        for one in others:
            if not one.is_constraint:
                yield Finding(
                    Severity.INFO,
                    "indexes.duplicate",
                    f"{one.sql_name} on {one.on_table} ({format_bytes(one.bytes)}) has the same columns as "
                    f"{kept.sql_name}: every write pays for both",
                    f"{one.drop} where nobody asks for it by name; backendops never drops an index that works",
                )


def _unused(indexes: Sequence[Index], of_live: set[int]) -> Iterator[Finding]:
    doubled: Mapping[tuple[int, str], int] = _counts(indexes)
    for one in indexes:
        ours = one.is_unique or one.is_constraint or one.only_column in (COLUMN, "id")
        if one.table_oid not in of_live or ours or not one.is_valid or one.is_parent or one.is_attached:
            continue
        if one.scans == 0 and one.table_scans >= UNUSED_AFTER and doubled[one.table_oid, one.same] == 1:
            yield Finding(
                Severity.INFO,
                "indexes.unused",
                f"{one.sql_name} on {one.on_table} ({format_bytes(one.bytes)}): none of {one.table_scans:,} scans of "
                "the table's indexes used it, since this server's statistics began",
                f"{one.drop} where no replica and no monthly report needs it; backendops never drops an index that "
                "works",
            )


def _counts(indexes: Sequence[Index]) -> Mapping[tuple[int, str], int]:
    counts: dict[tuple[int, str], int] = {}
    for one in indexes:
        if one.is_valid:
            counts[one.table_oid, one.same] = counts.get((one.table_oid, one.same), 0) + 1
    return counts
