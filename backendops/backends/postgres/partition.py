"""partition on PostgreSQL: partitions made ahead of time, and old ones retired through quarantine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from sqlalchemy import Connection

from backendops.backends.postgres.archive_table import (
    ArchiveTable,
    Partition,
    create_partition,
    ensure_archive,
    find_archive,
    refreshed,
)
from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.ddl import with_ddl
from backendops.backends.postgres.errors import DEPENDENT_OBJECTS, STATEMENT_TIMEOUT, code_of
from backendops.backends.postgres.live_partition import LiveWork, ahead_of, look_at_live, maintain_live
from backendops.backends.postgres.partition_archives import (
    Looked,
    default_of,
    keeping_others_out,
    look,
    look_at_kept,
    look_at_own,
    plan_for,
    with_own_archives,
)
from backendops.backends.postgres.partition_drain import drain_default
from backendops.backends.postgres.partition_work import NewPartition, Work, count_ahead
from backendops.backends.postgres.quarantine import Detached, Retirement, estimate_rows, retiring_partitions
from backendops.backends.postgres.tables import FoundTables, LiveTable, find_tables
from backendops.backends.sql_files import load
from backendops.contracts import metrics
from backendops.contracts.capabilities import CanPartition, KeptFor, PartitionPlan
from backendops.contracts.errors import (
    BackendBusy,
    BackendError,
    BackendLocked,
    BackendRefused,
    BackendUnreachable,
)
from backendops.contracts.readings import Finding, Reading, Severity
from backendops.contracts.run import Pace, Preview, Step, Steps
from backendops.contracts.units import format_bytes

_WHO: Final = "Who: select pid, query from pg_stat_activity where state = 'idle in transaction'"


class PartitionsOnPostgres(PostgresSession, CanPartition):
    """Can keep the partitions of its archives."""

    def preview_partitions(self, plan: PartitionPlan) -> Preview:
        with self.transaction(read_only=True) as connection:
            found = find_tables(self, connection)
            looked = self._look_at_all(connection, found, plan)
            lives = [look_at_live(self, connection, live, plan) for live in found.tables]
            going = [partition.oid for one in looked for partition in one.work.retire]
            going += [old.leaf.oid for one in lives for old in one.old if old.may_go]
            rows = estimate_rows(connection, going)
        said = [one.in_words() for one in looked]
        said += [words for one in lives if (words := one.in_words(plan))]
        sql = [statement for one in looked for statement in one.statements()]
        sql += [statement for one in lives for statement in one.statements()]
        return Preview(
            "; ".join(said) or _nothing(plan),
            rows=rows,
            statements=tuple(sql),
            readings=_readings(looked, lives, plan),
            findings=tuple(_findings(found, looked, lives, plan)),
        )

    def maintain_partitions(self, plan: PartitionPlan, pace: Pace) -> Steps:
        with self.transaction() as connection:
            found = find_tables(self, connection)
            own = with_own_archives(self, connection, found.tables, plan)
        failures: list[BackendError] = []
        work = [self._maintain(live, plan, pace) for live in own]
        work += [self._maintain_live(live, plan, pace) for live in found.tables]
        work += [self._maintain_kept(kept, plan, pace) for kept in plan.kept_for]
        for steps in work:
            # One archive that is busy or not ours must not keep the others waiting; it is reported all the same.
            try:
                yield from steps
            except BackendUnreachable:
                raise
            except BackendError as failure:
                failures.append(failure)
        with self.transaction() as connection:
            looked = self._look_at_all(connection, found, plan)
            lives = [look_at_live(self, connection, live, plan) for live in found.tables]
        # A lock is only waited for: what a person has to see to comes first.
        failures.sort(key=lambda failure: isinstance(failure, BackendLocked))
        yield Step(
            what="" if looked else _nothing(plan),
            readings=_readings(looked, lives, plan),
            findings=(*_findings(found, looked, lives, plan), *map(_also_failed, failures[1:])),
        )
        if failures:
            raise failures[0]

    def _look_at_all(self, connection: Connection, found: FoundTables, plan: PartitionPlan) -> list[Looked]:
        own = with_own_archives(self, connection, found.tables, plan)
        looked = [look_at_own(self, connection, live, plan) for live in own]
        return looked + [one for kept in plan.kept_for for one in look_at_kept(self, connection, kept, plan)]

    def _maintain(self, live: LiveTable, plan: PartitionPlan, pace: Pace) -> Steps:
        with self.transaction() as connection:
            archive = find_archive(connection, live, plan.archive)
        if archive is None:
            archive, made = ensure_archive(self, live, plan.archive)
            yield Step(what=made)
        yield from drain_default(self, archive, plan.archive.every, pace)
        with self.transaction() as connection:
            archive = refreshed(connection, archive)
            work = look(self, connection, archive, plan).work
        yield from self._do(archive, work, plan)

    def _maintain_kept(self, kept: KeptFor, plan: PartitionPlan, pace: Pace) -> Steps:
        plan = plan_for(kept, plan)
        with self.transaction() as connection:
            names = [one.name for one in look_at_kept(self, connection, kept, plan)]
        if not names:
            return
        with keeping_others_out(self, kept):
            for name in names:
                archive = self._kept_named(name, kept, plan)[0]
                yield from drain_default(self, archive, plan.archive.every, pace)
                yield from self._do(*self._kept_named(name, kept, plan), plan)

    def _kept_named(self, name: str, kept: KeptFor, plan: PartitionPlan) -> tuple[ArchiveTable, Work]:
        with self.transaction() as connection:
            for one in look_at_kept(self, connection, kept, plan):
                if one.name == name and one.archive is not None:
                    return one.archive, one.work
        raise BackendBusy(f"{name} was dropped meanwhile", "the next run looks again")

    def _do(self, archive: ArchiveTable, work: Work, plan: PartitionPlan) -> Steps:
        with self.transaction() as connection:
            retiring = retiring_partitions(connection, archive.oid)
        for partition in work.finish:
            yield self._finish(archive, partition, plan, ours=partition.oid in retiring)
        for left in work.note:
            yield self._quarantine(left.sql_name, left.slot, left.retirement, plan)
        for partition in archive.partitions:
            if partition.oid in retiring and partition not in work.retire:
                with_ddl(self, lambda connection, slot=partition.slot: forget(connection, slot))  # type: ignore[misc] # mypy cannot infer it
                yield Step(what=f"{partition.sql_name} stays: its comment of an earlier retirement is gone")
        for new in work.create:
            yield from self._create(archive, new, plan)
        for partition in work.retire:
            with self.transaction() as connection:
                rows = estimate_rows(connection, [partition.oid])
            yield replace(self._retire(archive, partition, plan), rows=rows)
        for left in work.drop:
            yield drop_detached(self, left)

    def _maintain_live(self, live: LiveTable, plan: PartitionPlan, pace: Pace) -> Steps:  # noqa: ARG002 - short steps
        yield from maintain_live(self, live, plan)
        with self.transaction() as connection:
            over = look_at_live(self, connection, live, plan).drop
        for left in over:
            yield drop_detached(self, left)

    def _create(self, archive: ArchiveTable, new: NewPartition, plan: PartitionPlan) -> Steps:
        after = create_partition(self, archive, new.start, plan.archive.every, self.zone)
        if after.covers(new.start, new.start):
            made = next(one for one in after.partitions if one.start <= new.start < one.end)
            yield Step(what=f"made {made.sql_name}")
            return
        yield Step(
            findings=(
                Finding(
                    Severity.WARNING,
                    "partition.default-has-rows",
                    f"{new.name} cannot be made: the default partition of {archive.sql_name} has rows of its time",
                    f"move the rows out of {', '.join(one.sql_name for one in default_of(archive))} and DETACH it: "
                    "an archive of backendops needs no default partition",
                ),
            )
        )

    def _retire(self, archive: ArchiveTable, partition: Partition, plan: PartitionPlan) -> Step:
        retirement = Retirement("retiring", archive.sql_name, partition.start, partition.end)
        slots = {"archive": archive.slot, "partition": partition.slot}
        # Said before it is done: a crash in between leaves a table that the next run knows what to do with.
        with_ddl(self, lambda connection: _note(connection, partition.slot, retirement))
        if default_of(archive):
            # The server refuses CONCURRENTLY here.
            with_ddl(self, lambda connection: connection.execute(load("postgres", "partition", "detach", slots)))
        else:
            self._detach_concurrently(archive, partition, slots)
        return self._quarantine(partition.sql_name, partition.slot, retirement, plan)

    def _detach_concurrently(self, archive: ArchiveTable, partition: Partition, slots: dict[str, str]) -> None:
        try:
            with self.autocommit(self._limits.statement_timeout) as connection:
                connection.execute(load("postgres", "partition", "detach_concurrently", slots))
        except BackendBusy as error:
            if code_of(error) != STATEMENT_TIMEOUT:
                raise
            with self.transaction() as connection:
                pending = any(one.oid == partition.oid for one in refreshed(connection, archive).others)
            until_then = "until then its rows are out of the archive and safe" if pending else "nothing was changed"
            raise BackendBusy(
                f"{partition.sql_name} is used by a transaction that does not end: its detach "
                f"{'stays pending' if pending else 'could not begin'}",
                f"the next run finishes it; {until_then}, and writers go on. {_WHO}",
            ) from error

    def _finish(self, archive: ArchiveTable, partition: Partition, plan: PartitionPlan, *, ours: bool) -> Step:
        slots = {"archive": archive.slot, "partition": partition.slot}
        with_ddl(self, lambda connection: connection.execute(load("postgres", "partition", "finish_detach", slots)))
        if not ours:
            # Somebody else began it, for reasons of their own: the table is theirs, and is never dropped here.
            return Step(what=f"finished detaching {partition.sql_name}, which somebody else had begun")
        retirement = Retirement("retiring", archive.sql_name, partition.start, partition.end)
        return self._quarantine(partition.sql_name, partition.slot, retirement, plan)

    def _quarantine(self, sql_name: str, slot: str, retirement: Retirement, plan: PartitionPlan) -> Step:
        drop_after = plan.now + plan.quarantine
        quarantined = replace(retirement, state="quarantined", detached_at=plan.now, drop_after=drop_after)
        with_ddl(self, lambda connection: _note(connection, slot, quarantined))
        return Step(what=f"detached {sql_name}; it is kept until {drop_after:%Y-%m-%d %H:%M} UTC, then dropped")


def drop_detached(session: PostgresSession, left: Detached) -> Step:
    """Drop a quarantined table, unless somebody took it out of quarantine this very moment."""

    def drop(connection: Connection) -> bool:
        connection.execute(load("postgres", "partition", "lock", {"partition": left.slot}))
        unchanged: bool = connection.execute(
            load("postgres", "partition", "look_again"),
            {"oid": left.oid, "name": left.sql_name, "comment": left.comment},
        ).scalar_one()
        if unchanged:
            connection.execute(load("postgres", "partition", "drop", {"partition": left.slot}))
        return unchanged

    try:
        dropped = with_ddl(session, drop)
    except BackendError as error:
        if code_of(error) != DEPENDENT_OBJECTS:
            raise
        raise BackendRefused(
            f"{left.sql_name} is past its quarantine, but something depends on it: {error}",
            "drop the view that was made of it, or attach it again: " + left.way_back,
        ) from error
    if not dropped:
        return Step(what=f"left {left.sql_name}: somebody took it out of quarantine")
    return Step(what=f"dropped {left.sql_name} ({format_bytes(left.bytes)})")


def _note(connection: Connection, slot: str, retirement: Retirement) -> None:
    connection.execute(load("postgres", "partition", "note", {"partition": slot}), {"comment": str(retirement)})


def forget(connection: Connection, slot: str) -> None:
    """An attached partition says no more that it is retired."""
    connection.execute(load("postgres", "partition", "forget", {"partition": slot}))


def _nothing(plan: PartitionPlan) -> str:
    if plan.kept_for:
        return "no other backend has archived anything here yet: nothing to partition"
    return "Celery has made no tables yet: nothing to partition"


def _findings(
    found: FoundTables, looked: Sequence[Looked], lives: Sequence[LiveWork], plan: PartitionPlan
) -> Iterator[Finding]:
    # What only keeps the archives of others has no tables of Celery's; a name that is nearly right is told even so.
    yield from (one for one in found.missing if not plan.kept_for or one.severity is not Severity.INFO)
    for one in looked:
        yield from one.findings()
    for live in lives:
        yield from live.findings


def _also_failed(failure: BackendError) -> Finding:
    return Finding(Severity.WARNING, "partition.not-done", str(failure), failure.hint)


def _readings(looked: Sequence[Looked], lives: Sequence[LiveWork], plan: PartitionPlan) -> tuple[Reading, ...]:
    ahead = [count_ahead(one.archive.partitions, plan.now) if one.archive else 0 for one in looked]
    quarantined = sum(len(one.detached) for one in looked) + sum(len(one.detached) for one in lives)
    return (
        metrics.PARTITIONS_AHEAD.read(min([*ahead, *ahead_of(lives)], default=0)),
        metrics.PARTITIONS_QUARANTINED.read(quarantined),
    )
