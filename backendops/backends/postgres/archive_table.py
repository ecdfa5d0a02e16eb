"""The archive of a live table: made when missing, checked before the first row, its partitions made on the way."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final
from zoneinfo import ZoneInfo

from sqlalchemy import Connection

from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.ddl import with_ddl
from backendops.backends.postgres.drift import DONE_AT, NEEDED, columns_to_add, refuse_own_columns
from backendops.backends.postgres.errors import CHECK_VIOLATION, STATEMENT_TIMEOUT, code_of
from backendops.backends.postgres.periods import fit, free_period, partition_name
from backendops.backends.postgres.tables import Column, LiveTable, list_columns, quoted
from backendops.backends.sql_files import literal, load
from backendops.contracts.capabilities import ArchivePlan, Every
from backendops.contracts.errors import BackendBusy, BackendError, BackendRefused

# A period's name can be taken by a partition that was detached, kept and is late for its drop; nine is plenty.
NAME_TRIES: Final = 9

# What makes filters of ids, by their type: Celery's own, and those that people gave them.
_FILTERS: Final = {
    "character varying": "text_bloom_ops",
    "text": "text_bloom_ops",
    "character": "bpchar_bloom_ops",
    "uuid": "uuid_bloom_ops",
}


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition of an archive: it holds `start` <= done_at < `end`."""

    oid: int
    schema: str
    name: str
    start: datetime
    end: datetime
    is_default: bool
    detach_pending: bool

    @property
    def sql_name(self) -> str:
        """Schema and name as SQL."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    @property
    def slot(self) -> str:
        """Schema and name as the text of a slot."""
        return literal(self.sql_name)


@dataclass(frozen=True, slots=True)
class ArchiveTable:
    """An archive that exists and takes the live table's rows."""

    oid: int
    schema: str
    name: str
    columns: tuple[Column, ...]
    partitions: tuple[Partition, ...]
    """By start; the DEFAULT one and those that are being detached are not among them."""
    others: tuple[Partition, ...]
    is_owner: bool
    can_insert: bool
    role: str
    """Who we are, for the GRANT that is missing."""

    @property
    def sql_name(self) -> str:
        """Schema and name as SQL."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    @property
    def slot(self) -> str:
        """Schema and name as the text of a slot."""
        return literal(self.sql_name)

    def require_insert(self) -> None:
        """Raise BackendRefused, naming the GRANT, where this role may not put rows into it."""
        if not self.can_insert:
            raise BackendRefused(
                f"the role {self.role} may not put rows into {self.sql_name}",
                f"GRANT INSERT ON {self.sql_name} TO {quoted(self.role)};",
            )

    def covers(self, first: datetime, last: datetime) -> bool:
        """Is there a partition for every moment from `first` to `last`, both included?"""
        reached = first
        for partition in self.partitions:
            if partition.start <= reached < partition.end:
                reached = partition.end
                if reached > last:
                    return True
        return False


def archive_name(live: LiveTable, plan: ArchivePlan) -> tuple[str, str]:
    """Schema and name of a live table's archive; raises BackendRefused where it would be the live table itself."""
    schema, name = plan.schema or live.schema, fit(plan.name.replace("{table}", live.name))
    if (schema, name) == (live.schema, live.name):
        raise BackendRefused(
            f"the archive of {live.sql_name} would be the live table itself",
            "write `table: '{table}_archive'`, or name another `schema:`",
        )
    if "{table}" not in plan.name and live.holds == "group":
        raise BackendRefused(
            f"`table: {plan.name}` names one archive for the task and the group table",
            "write {table} in it, such as `table: '{table}_archive'`",
        )
    return schema, name


def find_archive(connection: Connection, live: LiveTable, plan: ArchivePlan) -> ArchiveTable | None:
    """The archive as it is, whether or not its columns fit; None where there is none yet.

    Raises BackendRefused where a table of its name is not an archive of ours.
    """
    return find_named(connection, *archive_name(live, plan))


def find_named(connection: Connection, schema: str, name: str) -> ArchiveTable | None:
    """The archive of this name, likewise."""
    row = connection.execute(
        load("postgres", "archive_table", "find_archive"), {"schema": schema, "name": name}
    ).one_or_none()
    if row is None:
        return None
    where = f"{quoted(schema)}.{quoted(name)}"
    columns = list_columns(connection, row.oid)
    way_out = "rename it, or name another archive under `table:` of the job"
    if row.kind != "p" or row.partition_key != f"RANGE ({DONE_AT})":
        raise BackendRefused(f"{where} is not an archive of backendops: it is not partitioned by {DONE_AT}", way_out)
    lacking = NEEDED - {column.name for column in columns}
    if lacking:
        raise BackendRefused(
            f"{where} is not an archive of backendops: it has no {', '.join(sorted(lacking))}", way_out
        )
    if row.unique_index is not None:
        raise BackendRefused(
            f"{row.unique_index} is a unique index of the archive {where}: a task that ran twice could not be moved",
            f"DROP INDEX {row.unique_index}; (of a constraint: ALTER TABLE … DROP CONSTRAINT)",
        )
    partitions, others = list_partitions(connection, row.oid)
    return ArchiveTable(row.oid, schema, name, columns, partitions, others, row.is_owner, row.can_insert, row.role)


def ensure_archive(
    session: PostgresSession, live: LiveTable, plan: ArchivePlan, *, is_read_by_key: bool = False
) -> tuple[ArchiveTable, str]:
    """The archive, made where there is none and given the columns that Celery added; and what was done, if anything.

    Raises BackendRefused, before any row is moved, where a row could not be taken as it is.
    """
    return with_ddl(session, lambda connection: _ensured(connection, live, plan, is_read_by_key))


def _ensured(
    connection: Connection, live: LiveTable, plan: ArchivePlan, is_read_by_key: bool
) -> tuple[ArchiveTable, str]:
    archive, done = find_archive(connection, live, plan), ""
    if archive is None:
        _create(connection, live, plan, is_read_by_key)
        archive, done = find_archive(connection, live, plan), "made the archive"
    elif missing := columns_to_add(live, archive):
        for column in missing:
            connection.execute(
                load(
                    "postgres",
                    "archive_table",
                    "add_column",
                    {"archive": archive.slot, "column": literal(_definition(column))},
                )
            )
        archive, done = find_archive(connection, live, plan), f"added {', '.join(column.name for column in missing)}"
    assert archive is not None  # noqa: S101 - it was made in this transaction
    return archive, f"{done} {archive.sql_name}" if done else ""


def _create(connection: Connection, live: LiveTable, plan: ArchivePlan, is_read_by_key: bool) -> None:
    schema, name = archive_name(live, plan)
    refuse_own_columns(live)
    slots = {
        "archive": literal(f"{quoted(schema)}.{quoted(name)}"),
        "columns": literal(", ".join(_definition(column) for column in live.columns)),
        "key": live.key_column,
    }
    comment = f"Results of {live.sql_name}, moved here by backendops; {DONE_AT} is date_done with its time zone."
    key_type = next(column.type for column in live.columns if column.name == live.key_column).partition("(")[0]
    slots["filter"] = _FILTERS.get(key_type, "")
    by_key = "index_key" if is_read_by_key or not slots["filter"] else "filter_by_key"
    for statement in ("create_archive", by_key, "index_done_at"):
        connection.execute(load("postgres", "archive_table", statement, slots))
    connection.execute(load("postgres", "archive_table", "describe_archive", slots), {"comment": comment})


def _definition(column: Column) -> str:
    collation = f" COLLATE {column.collation}" if column.collation else ""
    return f"{quoted(column.name)} {column.type}{collation}"


def list_partitions(connection: Connection, oid: int) -> tuple[tuple[Partition, ...], tuple[Partition, ...]]:
    """The partitions that take rows, by start; and the others: DEFAULT, or with a detach pending."""
    taking: list[Partition] = []
    others: list[Partition] = []
    for row in connection.execute(load("postgres", "archive_table", "list_partitions"), {"oid": oid}):
        start, end = bounds_of(row.bounds or "")
        partition = Partition(
            row.oid, row.schema, row.name, start, end, row.bounds == "DEFAULT", bool(row.detach_pending)
        )
        (others if partition.is_default or partition.detach_pending else taking).append(partition)
    return tuple(sorted(taking, key=lambda one: one.start)), tuple(sorted(others, key=lambda one: one.name))


def bounds_of(text: str) -> tuple[datetime, datetime]:
    """The bounds of an archive's partition, as the server writes them: it holds the first <= done_at < the second."""
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    match = re.fullmatch(r"FOR VALUES FROM \('?(.+?)'?\) TO \('?(.+?)'?\)", text)
    if match is None:
        return first, last
    ends = []
    for written, otherwise in ((match[1], first), (match[2], last)):
        try:
            ends.append(datetime.fromisoformat(written))
        except ValueError:  # MINVALUE, MAXVALUE, infinity, or a year that Python's calendar does not have
            ends.append(otherwise)
    return ends[0], ends[1]


def ensure_partitions(
    session: PostgresSession, archive: ArchiveTable, moments: Iterable[datetime], every: Every, zone: ZoneInfo
) -> ArchiveTable:
    """Make the partition of every moment that has none; idempotent, also against another process doing the same."""
    for moment in moments:
        if not archive.covers(moment, moment):
            archive = create_partition(session, archive, moment, every, zone)
    return archive


def create_partition(
    session: PostgresSession, archive: ArchiveTable, moment: datetime, every: Every, zone: ZoneInfo
) -> ArchiveTable:
    """Make the partition of `moment`'s period; the archive with what it has then."""

    def make(connection: Connection) -> ArchiveTable:
        connection.execute(load("postgres", "archive_table", "lock_partitions", {"archive": archive.slot}))
        current = refreshed(connection, archive)
        pending = [one for one in current.others if not one.is_default]
        period = free_period(moment, every, zone, (*current.partitions, *pending))
        if period is None:
            return current
        name = free_name(connection, current.schema, partition_name(current.name, period[0], every, zone))
        slots = {"archive": current.slot, "partition": literal(f"{quoted(current.schema)}.{quoted(name)}")}
        connection.execute(load("postgres", "archive_table", "create_partition", slots))
        connection.execute(
            load("postgres", "archive_table", "attach_partition", slots), {"start": period[0], "end": period[1]}
        )
        return refreshed(connection, current)

    try:
        return with_ddl(session, make)
    except BackendError as error:
        default, code = next((one for one in archive.others if one.is_default), None), code_of(error)
        # A DEFAULT partition that somebody made already holds rows of this period: they and ours stay there.
        if default is not None and code == CHECK_VIOLATION:
            return archive
        if default is not None and code == STATEMENT_TIMEOUT and not session.interrupted:
            # Not as the server's error: no smaller batch reads less of it, and each try keeps everybody out of it.
            said = f"a partition of {archive.sql_name} for {moment:%Y-%m-%d} needs longer than statement_timeout"
            raise BackendBusy(said, f"let a `partition` job empty {default.sql_name}, which is read for it") from None
        raise


def refreshed(connection: Connection, archive: ArchiveTable) -> ArchiveTable:
    """The archive with the partitions that it has now."""
    partitions, others = list_partitions(connection, archive.oid)
    return replace(archive, partitions=partitions, others=others)


def free_name(connection: Connection, schema: str, name: str) -> str:
    """`name`, or with a number where it is taken; raises BackendRefused where nine of them are."""
    for number in range(1, NAME_TRIES + 1):
        candidate = name if number == 1 else fit(name, f"_{number}")
        taken = connection.execute(
            load("postgres", "archive_table", "is_taken"), {"schema": schema, "name": candidate}
        ).scalar_one()
        if not taken:
            return candidate
    raise BackendRefused(
        f"every name from {quoted(name)} to {quoted(fit(name, f'_{NAME_TRIES}'))} is taken in schema {quoted(schema)}",
        "drop or rename the detached partitions of that period",
    )
