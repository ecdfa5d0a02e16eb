"""What a conversion to partitions would break, or could not end for: looked for before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection

from backendops.backends.postgres import index_work
from backendops.backends.postgres.live_table import read_storage
from backendops.backends.postgres.periods import fit
from backendops.backends.postgres.tables import LiveTable, quoted
from backendops.backends.sql_files import literal, load
from backendops.contracts.errors import BackendRefused
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.units import format_bytes

# The largest numbers of the types that Celery's id is made with.
LARGEST: Final = {"smallint": 2**15 - 1, "integer": 2**31 - 1, "bigint": 2**63 - 1}
# An index on date_done takes some 32 bytes for each row (8 of value, the rest of overhead and free space).
INDEX_BYTES_PER_ROW: Final = 32


@dataclass(frozen=True, slots=True)
class Index:
    """An index of a live table."""

    oid: int
    name: str
    valid: bool
    is_unique: bool
    is_primary: bool
    is_plain: bool
    """A whole btree: neither partial nor of another method."""
    bytes: int
    constraint: str | None
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Inspected:
    """A live table as a conversion meets it."""

    row: Any
    indexes: tuple[Index, ...]
    waiting_for: tuple[str, ...]
    """Sessions whose open transactions would hold it up, in words."""
    storage: str | None
    """Its storage parameters as SQL, where it has any."""
    busy_indexes: frozenset[int] = frozenset()
    """Those on which, or on whose table, somebody works now: an INVALID one may be a build that is under way."""

    @property
    def owner(self) -> str:
        """Who owns the table."""
        return str(self.row.owner)

    @property
    def largest_id(self) -> int:
        """The largest number its id column can hold."""
        return LARGEST.get(str(self.row.id_type), LARGEST["integer"])

    @property
    def date_index(self) -> Index | None:
        """The valid index on date_done alone."""
        return next((one for one in self.indexes if one.valid and _is_date_index(one)), None)

    @property
    def invalid(self) -> tuple[Index, ...]:
        """What CREATE INDEX CONCURRENTLY left behind on date_done when it was cut short."""
        return tuple(one for one in self.indexes if not one.valid and _is_date_index(one))

    def key_index(self, key: str) -> Index | None:
        """The valid index that makes the task id unique."""
        fitting = (one for one in self.indexes if one.valid and one.is_unique and one.is_plain)
        return next((one for one in fitting if one.columns == (key,)), None)

    @property
    def primary(self) -> Index | None:
        """The primary key, where it is the id alone."""
        return next((one for one in self.indexes if one.is_primary and one.columns == ("id",)), None)


def inspect(connection: Connection, live: LiveTable) -> Inspected:
    """Read everything that the checks below ask about."""
    row = connection.execute(load("postgres", "convert", "inspect"), {"oid": live.oid}).one()
    waiting = connection.execute(load("postgres", "convert", "list_waiting_for"), {"oid": live.oid})
    return Inspected(
        row,
        list_indexes(connection, live.oid),
        tuple(f"{one.name} (pid {one.pid}, since {one.since:%Y-%m-%d %H:%M:%S} UTC)" for one in waiting),
        read_storage(connection, live.oid),
        frozenset(one.oid for one in index_work.list_indexes(connection, [live.oid]) if one.is_busy),
    )


def list_indexes(connection: Connection, oid: int) -> tuple[Index, ...]:
    """Every index of a table."""
    return tuple(
        Index(
            row.oid, row.name, row.valid, row.is_unique, row.is_primary,
            not row.is_partial and row.method == "btree", row.bytes, row.constraint, tuple(row.columns),
        )
        for row in connection.execute(load("postgres", "convert", "list_indexes"), {"oid": oid})
    )  # fmt: skip


def list_grants(
    connection: Connection, oid: int, owned_as: int | None = None
) -> tuple[tuple[str, dict[str, str]], ...]:
    """The statements that give a new table the grants of this one: names of convert.sql, and their slots.

    Without those to the owner of the table `owned_as`, who needs none; left out: to its own.
    """
    rows = connection.execute(load("postgres", "convert", "list_grants"), {"oid": oid, "owned_as": owned_as or oid})
    return tuple(
        (
            "grant_on" if row.is_grantable else "grant",
            {"privilege": literal(row.privilege), "grantee": literal(row.grantee)},
        )
        for row in rows
    )


def ownership(live: LiveTable, found: Inspected) -> Iterator[Finding]:
    """Is it another role's?"""
    row = found.row
    if not row.is_owner:
        yield _no(
            "not-owner",
            f"the role {row.role} does not own {live.sql_name}: only its owner can partition it",
            f"GRANT {quoted(row.owner)} TO {quoted(row.role)};",
        )


def refusals(live: LiveTable, found: Inspected) -> Iterator[Finding]:
    """Every other reason not to begin, each with the way on."""
    row, name = found.row, live.sql_name
    if not row.may_create:
        yield _no(
            "no-create",
            f"the role {row.role} may not make tables in schema {quoted(live.schema)}",
            f"GRANT CREATE ON SCHEMA {quoted(live.schema)} TO {quoted(row.role)};",
        )
    if row.is_owner and row.owner != row.role and not row.owner_may_create:
        yield _no(
            "owner-no-create",
            f"{name} belongs to {row.owner}, who may not own new tables in schema {quoted(live.schema)}",
            f"GRANT CREATE ON SCHEMA {quoted(live.schema)} TO {quoted(row.owner)};",
        )
    yield from _dependents(
        live,
        (row.foreign_keys, "foreign keys", "drop them: a partitioned table cannot be referred to by task id"),
        (row.exclusions, "exclusion constraints", "drop them: they cannot hold over partitions"),
        (row.publications, "publications", "take it out of them: subscribers have no such partitions"),
        (row.parents, "parents that it inherits from", "ALTER TABLE … NO INHERIT"),
        *_tied(row),
    )
    if found.date_index is None and (busy := [one for one in found.invalid if one.oid in found.busy_indexes]):
        yield _no(
            "index-busy",
            f"an index on date_done is not whole, and somebody works on {name} now: {busy[0].name} may be their build",
            "wait for its end: SELECT pid, phase FROM pg_stat_progress_create_index",
        )
    if row.persistence != "p":
        yield _no("unlogged", f"{name} is not an ordinary, logged table", f"ALTER TABLE {name} SET LOGGED;")
    if row.is_typed or row.has_identity:
        yield _no("identity", f"{name} has identity or generated columns, or a type of its own: Celery's has not", "")
    if row.replica_identity != "d":
        yield _no(
            "replica-identity",
            f"{name} has a replica identity of its own",
            f"ALTER TABLE {name} REPLICA IDENTITY DEFAULT;",
        )
    if found.key_index(live.key_column) is None:
        yield _no(
            "not-unique",
            f"{name} has no unique index on {live.key_column}, as Celery's table has",
            f"CREATE UNIQUE INDEX CONCURRENTLY ON {name} ({live.key_column});",
        )
    if found.primary is None:
        yield _no(
            "no-primary-key", f"{name} has no primary key on id, as Celery's table has", "is it Celery's own table?"
        )


def undo_refusals(live: LiveTable, row: Any) -> Iterator[Finding]:
    """What would go with the partitioned table, or keep it from going."""
    yield from _dependents(
        live,
        (row.foreign_keys, "foreign keys", "drop them, and make them again afterwards"),
        (row.published, "publications of its own", "take it out of them, and put it in again afterwards"),
        *_tied(row),
    )


def refuse(reasons: Iterable[Finding]) -> None:
    """Raise BackendRefused with all of them, where there are any."""
    found = tuple(reasons)
    if found:
        raise BackendRefused(
            "; ".join(one.sentence for one in found), "; ".join(dict.fromkeys(one.fix for one in found if one.fix))
        )


def _tied(row: Any) -> Iterator[tuple[list[str], str, str]]:
    """What belongs to the very table that stands under the name, and to no other that gets it."""
    again = "drop them, and make them again afterwards"
    yield row.triggers, "triggers", f"{again}: they would stay with the old table alone"
    yield row.views, "views or rules that read it", f"{again}: they know the old table"
    yield row.functions, "functions that depend on it", again
    security = ["row level security"] if row.row_security else []
    yield security, "policies", "row level security is not carried over: drop it, and make it again afterwards"
    # Celery asks it for numbers by name; it would go when the partition that it belongs to is dropped.
    loose = " ".join(f"ALTER SEQUENCE {one} OWNED BY NONE;" for one in row.owned_sequences)
    yield row.owned_sequences, "sequences that would be dropped with it", loose


def _dependents(live: LiveTable, *found: tuple[list[str], str, str]) -> Iterator[Finding]:
    for there, what, fix in found:
        if there:
            yield _no("depends", f"{live.sql_name} has {what}: {', '.join(there[:5])}", fix)


def remarks(live: LiveTable, found: Inspected) -> Iterator[Finding]:
    """What does not stand in the way, but should be known."""
    if found.waiting_for:
        yield Finding(
            Severity.WARNING,
            "convert.transaction-open",
            f"transactions that use {live.sql_name} have been open for a while: {', '.join(found.waiting_for)}",
            "the exclusive lock cannot be had before they end; it is tried for ten times and never waited for over 2 s",
        )
    if found.row.prepared:
        yield Finding(
            Severity.WARNING,
            "convert.prepared-transaction",
            f"there are prepared transactions: {', '.join(found.row.prepared[:5])}",
            "COMMIT PREPARED or ROLLBACK PREPARED those that use the table",
        )
    if found.row.tablespace:
        yield Finding(
            Severity.INFO,
            "convert.tablespace",
            f"{live.sql_name} is in the tablespace {found.row.tablespace}, and new partitions will not be",
            f"ALTER TABLE … SET TABLESPACE {quoted(found.row.tablespace)} of each, while it is empty, or set "
            "default_tablespace of backendops' role",
        )
    if found.date_index is None:
        yield Finding(
            Severity.INFO,
            "convert.builds-index",
            f"an index on date_done will be built: about {format_bytes(found.row.rows * INDEX_BYTES_PER_ROW)} of disk",
            "see that there is room: the server does not tell how much is free",
        )


def index_name(live: LiveTable) -> str:
    """The name that Celery gives its index on date_done."""
    return fit(f"ix_{live.name}", "_date_done")


def _is_date_index(index: Index) -> bool:
    return index.columns == ("date_done",) and index.is_plain and not index.is_unique


def _no(code: str, sentence: str, fix: str) -> Finding:
    return Finding(Severity.CRITICAL, f"convert.{code}", sentence, fix)
