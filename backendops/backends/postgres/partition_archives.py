"""The archives that a partition job looks after: those of the live tables here, and those kept for other backends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection

from backendops.backends.postgres.archive_table import (
    ArchiveTable,
    Partition,
    archive_name,
    find_archive,
    find_named,
)
from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.lock import take_archive_lock
from backendops.backends.postgres.partition_work import Work, decide
from backendops.backends.postgres.quarantine import Detached, foreign_partitions, list_detached
from backendops.backends.postgres.register import Register
from backendops.backends.postgres.tables import LiveTable, quoted, schema_of_new
from backendops.backends.sql_files import fill, statements
from backendops.contracts.capabilities import KeptFor, PartitionPlan
from backendops.contracts.errors import BackendLocked
from backendops.contracts.readings import Finding, Severity


@dataclass(frozen=True, slots=True)
class Looked:
    """One archive, or one that is still to be made, and what it needs."""

    schema: str
    name: str
    archive: ArchiveTable | None
    detached: tuple[Detached, ...]
    work: Work
    delayed: tuple[Partition, ...] = ()
    """Past keeping, but a batch that is not settled is on its way into them or out of them."""
    foreign: tuple[Partition, ...] = ()
    """Past keeping, but another server keeps their rows."""

    @property
    def sql_name(self) -> str:
        """Schema and name as SQL."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    def in_words(self) -> str:
        """What a run would do to it."""
        would = [] if self.archive is not None else ["make the archive"]
        for verb, names in (
            ("finish detaching", [one.name for one in self.work.finish]),
            ("make", [one.name for one in self.work.create]),
            ("detach", [one.name for one in self.work.retire]),
            ("drop", [one.name for one in self.work.drop]),
        ):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""  # noqa: PLR2004 - the statements name them all
                would.append(f"{verb} {', '.join(names[:3])}{more}")
        said = f"would {', '.join(would)}" if would else "every partition is there, none is past keeping"
        waiting = f" ({len(self.work.waiting)} in quarantine)" if self.work.waiting else ""
        return f"{self.sql_name}: {said}{waiting}"

    def statements(self) -> Iterator[str]:
        """What a run would send."""
        partition_sql, archive_sql = statements("postgres", "partition"), statements("postgres", "archive_table")
        archive = {"archive": self.sql_name}
        for one in self.work.finish:
            yield _shown(partition_sql["finish_detach"], {**archive, "partition": one.sql_name})
        for new in self.work.create:
            slots = {**archive, "partition": f"{quoted(self.schema)}.{quoted(new.name)}"}
            yield _shown(archive_sql["create_partition"], slots)
            yield _shown(archive_sql["attach_partition"], slots, start=new.start.isoformat(), end=new.end.isoformat())
        has_default = self.archive is not None and bool(default_of(self.archive))
        for one in self.work.retire:
            statement = partition_sql["detach" if has_default else "detach_concurrently"]
            yield _shown(statement, {**archive, "partition": one.sql_name})
        for left in self.work.drop:
            yield _shown(partition_sql["drop"], {"partition": left.sql_name})

    def findings(self) -> Iterator[Finding]:
        """What an operator should know of it."""
        for left in self.work.kept_again:
            yield Finding(
                Severity.WARNING,
                "partition.kept-again",
                f"{left.sql_name} is in quarantine, but the policy would keep its rows now: it is not dropped",
                f"`backendops partitions reattach {left.name}`: its rows go into what is in its place by now"
                if self._is_taken(left)
                else left.way_back,
            )
        for one in self.foreign:
            yield Finding(
                Severity.WARNING,
                "partition.foreign",
                f"{one.sql_name} is past keeping, but it is a foreign table: backendops does not retire it",
                f"ALTER TABLE {self.sql_name} DETACH PARTITION {one.sql_name}; where it is not wanted any more",
            )
        for one in self.delayed:
            yield Finding(
                Severity.INFO,
                "partition.batch-not-settled",
                f"{one.sql_name} is past keeping, but a run that archives to it, or restores from it, did not end",
                "the next run of that archive job settles it, and the next one of this job retires the partition",
            )

    def _is_taken(self, left: Detached) -> bool:
        there = self.archive.partitions if self.archive else ()
        return any(one.start < left.end and left.start < one.end for one in there)


def default_of(archive: ArchiveTable) -> tuple[Partition, ...]:
    """The partition of an archive that takes what no other does, where somebody gave it one."""
    return tuple(one for one in archive.others if one.is_default)


def _shown(statement: str, slots: dict[str, str], **values: str) -> str:
    text = fill(statement, slots)
    for name, value in values.items():
        text = text.replace(f":{name}", f"'{value}'")
    return " ".join(line for line in text.splitlines() if not line.startswith("--"))


def look(session: PostgresSession, connection: Connection, archive: ArchiveTable, plan: PartitionPlan) -> Looked:
    """The archive as it is, and what it needs."""
    detached = list_detached(connection, archive.sql_name)
    work = decide(archive.name, archive, detached, plan, session.zone)
    elsewhere = foreign_partitions(connection, archive.oid)
    foreign = tuple(one for one in work.retire if one.oid in elsewhere)
    work = replace(work, retire=tuple(one for one in work.retire if one not in foreign))
    return Looked(archive.schema, archive.name, archive, detached, work, foreign=foreign)


def look_at_own(session: PostgresSession, connection: Connection, live: LiveTable, plan: PartitionPlan) -> Looked:
    """The archive of a live table here."""
    schema, name = archive_name(live, plan.archive)
    archive = find_archive(connection, live, plan.archive)
    if archive is None:
        return Looked(schema, name, None, (), decide(name, None, (), plan, session.zone))
    return look(session, connection, archive, plan)


def look_at_kept(session: PostgresSession, connection: Connection, kept: KeptFor, plan: PartitionPlan) -> list[Looked]:
    """The archives of another backend here, as far as that has archived anything yet."""
    register = Register(kept.plan.schema or schema_of_new(connection))
    looked = []
    for entry in register.entries(connection):
        if entry.source != kept.source or not entry.is_named_by(kept.plan):
            continue
        table = find_named(connection, register.schema, entry.archive)
        if table is not None:
            one = look(session, connection, table, plan_for(kept, plan))
            looked.append(_with_patience(one, register.times_on_the_way(connection, table.name)))
    return looked


def plan_for(kept: KeptFor, plan: PartitionPlan) -> PartitionPlan:
    """The plan for the archives of another backend: the length of a partition is that of the job which fills them."""
    return replace(plan, archive=kept.plan)


def with_own_archives(
    session: PostgresSession, connection: Connection, lives: Sequence[LiveTable], plan: PartitionPlan
) -> tuple[LiveTable, ...]:
    """The live tables whose archive is their own, and not by its name that of another backend."""
    taken = {(one.schema, one.name) for kept in plan.kept_for for one in look_at_kept(session, connection, kept, plan)}
    return tuple(live for live in lives if archive_name(live, plan.archive) not in taken)


@contextmanager
def keeping_others_out(session: PostgresSession, kept: KeptFor) -> Iterator[None]:
    """Hold the lock that runs which archive to it, or restore from it, take; raises BackendLocked where one has it."""
    with session.transaction(read_only=True) as connection:
        schema = kept.plan.schema or schema_of_new(connection)
    with take_archive_lock(session, schema, kept.plan.name) as lock:
        if lock is None:
            raise BackendLocked(
                f"a run that archives from {kept.source!r}, or restores to it, is using its archive here",
                "try again when it has ended",
            )
        yield


def _with_patience(looked: Looked, times: Sequence[tuple[datetime, datetime]]) -> Looked:
    """The same, with partitions that a batch touches left where the next run of its job finds them."""

    def is_touched(one: Partition) -> bool:
        return any(first < one.end and last >= one.start for first, last in times)

    delayed = tuple(one for one in looked.work.retire if is_touched(one))
    retire = tuple(one for one in looked.work.retire if one not in delayed)
    return replace(looked, work=replace(looked.work, retire=retire), delayed=delayed)
