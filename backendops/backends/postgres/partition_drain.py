"""A default partition that somebody gave an archive: its rows go to partitions of their own time, in batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Final

from sqlalchemy import Connection

from backendops.backends.postgres.archive_table import ArchiveTable, Partition, ensure_partitions
from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.ddl import with_ddl
from backendops.backends.postgres.quarantine import foreign_partitions
from backendops.backends.postgres.tables import list_columns, quoted
from backendops.backends.sql_files import literal, load
from backendops.contracts.capabilities import Every
from backendops.contracts.errors import BackendRefused
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.run import Pace, Step, Steps

_MARK: Final = "former default"


@dataclass(frozen=True, slots=True)
class Former:
    """A table that was a partition of an archive, its default one mostly, whose rows are still to go back into it."""

    oid: int
    schema: str
    name: str
    archive: str
    """The archive it was part of, quoted and with its schema."""
    rows: int
    bytes: int

    @property
    def sql_name(self) -> str:
        """Schema and name as SQL."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    @property
    def slot(self) -> str:
        """Schema and name as the text of a slot."""
        return literal(self.sql_name)


def filled_default(connection: Connection, archive: ArchiveTable) -> Partition | None:
    """The archive's default partition, where rows are in it: they stand in the way of partitions of their time."""
    elsewhere = foreign_partitions(connection, archive.oid)
    for one in archive.others:
        if not one.is_default or one.oid in elsewhere:
            continue
        slots = {"partition": one.slot}
        if connection.execute(load("postgres", "partition", "sample_default", slots)).scalar_one():
            return one
    return None


def former_defaults(connection: Connection, archive: str) -> tuple[Former, ...]:
    """Those that were taken out of the archive and are not emptied yet."""
    return tuple(one for one in all_formers(connection) if one.archive == archive)


def all_formers(connection: Connection) -> Iterator[Former]:
    """The same of every archive."""
    for row in connection.execute(load("postgres", "partition", "list_detached")):
        try:
            fields = json.loads(row.comment)
        except ValueError:
            continue
        if isinstance(fields, dict) and fields.get("backendops") == _MARK and isinstance(fields.get("archive"), str):
            yield Former(row.oid, row.schema, row.name, fields["archive"], row.rows, row.bytes)


def drain_default(session: PostgresSession, archive: ArchiveTable, every: Every, pace: Pace) -> Steps:
    """Take a filled default partition out of the archive and move its rows into partitions made for them.

    A row is out of the archive from the detach until its batch; it is in the one table or in the other at any moment,
    and a run that ends in between is gone on with by the next.
    """
    with session.transaction() as connection:
        default = filled_default(connection, archive)
    if default is not None:
        slots = {"archive": archive.slot, "partition": default.slot}

        comment = former_comment(archive.sql_name)

        def detach(connection: Connection) -> None:
            connection.execute(load("postgres", "partition", "detach", slots))
            connection.execute(load("postgres", "partition", "note", slots), {"comment": comment})

        with_ddl(session, detach)
        yield Step(what=f"took the default partition {default.sql_name} out of {archive.sql_name}, to move its rows")
    with session.transaction() as connection:
        formers = former_defaults(connection, archive.sql_name)
    for former in formers:
        yield from _empty(session, archive, former, every, pace)


def _empty(session: PostgresSession, archive: ArchiveTable, former: Former, every: Every, pace: Pace) -> Steps:
    with session.transaction() as connection:
        own = [column.name for column in list_columns(connection, former.oid)]
    # The archive may have got columns since it was taken out; what it has not got must not be lost.
    if unknown := set(own) - {column.name for column in archive.columns}:
        raise BackendRefused(
            f"{former.sql_name}, which was a partition of {archive.sql_name}, has columns of its own: "
            f"{', '.join(sorted(unknown))}",
            f"ALTER TABLE {archive.sql_name} ADD COLUMN …; of the same type, and run the job again",
        )
    columns = literal(", ".join(map(quoted, own)))
    slots = {"former": former.slot, "archive": archive.slot, "columns": columns}
    # From here on: what is removed stays in the index until a vacuum, and would be walked over again each time.
    since = "-infinity"
    while True:
        with session.transaction() as connection:
            statement = load("postgres", "partition", "find_first", slots)
            first: datetime | None = connection.execute(statement, {"since": since}).scalar_one()
        if first is None:
            break
        archive = ensure_partitions(session, archive, [first], every, session.zone)
        end = next((one.end for one in archive.partitions if one.start <= first < one.end), None)
        if end is None:
            # Another default partition that has come, or one whose detach is to be finished: this very run sees to it,
            # or the next one.
            yield Step(findings=(_in_the_way(former, first),))
            return
        began, size = monotonic(), pace.size
        with session.transaction() as connection:
            statement = load("postgres", "partition", "find_bound", slots)
            values = {"low": first, "end": end, "size": size}
            bound = connection.execute(statement, values).scalar_one_or_none() or end
            # Where more rows than a batch share a moment, they go together.
            name = "move_moment" if bound == first else "move_former"
            statement = load("postgres", "partition", name, slots)
            rows = connection.execute(statement, {"low": first, **({} if bound == first else {"high": bound})}).rowcount
        since = first.isoformat()
        pace.measured(rows, monotonic() - began)
        yield Step(rows=rows, what=f"moved out of {former.sql_name} into partitions of {archive.sql_name}")
    yield Step(findings=tuple(_emptied(session, former)))


def _emptied(session: PostgresSession, former: Former) -> Iterator[Finding]:
    with session.transaction() as connection:
        left = connection.execute(
            load("postgres", "partition", "sample_default", {"partition": former.slot})
        ).scalar_one()
        if not left:
            connection.execute(load("postgres", "partition", "forget", {"partition": former.slot}))
    if left:
        yield Finding(
            Severity.WARNING,
            "partition.no-time",
            f"{former.sql_name} has rows whose done_at is infinite, or of an impossible year: no partition takes them",
            "give them a time, and run the job again",
        )
    else:
        yield Finding(
            Severity.INFO,
            "partition.default-emptied",
            f"{former.sql_name}, which was a partition of {former.archive}, is empty",
            f"DROP TABLE {former.sql_name}; an archive of backendops needs no default partition",
        )


def _in_the_way(former: Former, first: datetime) -> Finding:
    return Finding(
        Severity.WARNING,
        "partition.rows-wait",
        f"rows of {former.sql_name} wait outside of {former.archive}: no partition can be made for {first:%Y-%m-%d}",
        "the next run goes on, when the default partition or the one that is being detached there is out of the way",
    )


def former_comment(archive: str) -> str:
    """What a table says of itself whose rows are to be moved into the archive of this name."""
    return json.dumps({"backendops": _MARK, "archive": archive}, ensure_ascii=False)
