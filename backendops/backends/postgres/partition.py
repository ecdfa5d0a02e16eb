"""partition on PostgreSQL: partitions made ahead of time, and old ones retired through quarantine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from sqlalchemy import Connection

from backendops.backends.postgres.archive_table import (
    ArchiveTable,
    Partition,
    archive_name,
    create_partition,
    ensure_archive,
    find_archive,
    with_ddl,
)
from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.errors import STATEMENT_TIMEOUT, code_of
from backendops.backends.postgres.live_partition import LiveWork, ahead_of, look_at_live, maintain_live
from backendops.backends.postgres.partition_drain import drain_default
from backendops.backends.postgres.partition_work import NewPartition, Work, count_ahead, decide
from backendops.backends.postgres.quarantine import Detached, Retirement, list_detached, retiring_partitions
from backendops.backends.postgres.tables import LiveTable, find_tables, quoted
from backendops.backends.sql_files import fill, load, statements
from backendops.contracts import metrics
from backendops.contracts.capabilities import CanPartition, PartitionPlan
from backendops.contracts.errors import BackendBusy, BackendError, BackendRefused
from backendops.contracts.readings import Finding, Reading, Severity
from backendops.contracts.run import Pace, Preview, Step, Steps
from backendops.contracts.units import format_bytes

DEPENDENT_OBJECTS: Final = "2BP01"


class PartitionsOnPostgres(PostgresSession, CanPartition):
    """Can keep the partitions of its archives."""

    def preview_partitions(self, plan: PartitionPlan) -> Preview:
        said: list[str] = []
        sql: list[str] = []
        findings: list[Finding] = []
        states: list[tuple[ArchiveTable | None, tuple[Detached, ...]]] = []
        lives: list[LiveWork] = []
        with self.transaction(read_only=True) as connection:
            found = find_tables(self, connection)
            findings += found.missing
            for live in found.tables:
                archive, detached, work = self._look(connection, live, plan)
                schema, name = archive_name(live, plan.archive)
                where = f"{quoted(schema)}.{quoted(name)}"
                states.append((archive, detached))
                said.append(f"{where}: {_in_words(work, made=archive is not None)}")
                sql += _statements(where, schema, work, bool(archive and _default_of(archive)))
                findings += _kept_again(work)
                lives.append(look_at_live(self, connection, live, plan))
            said += [words for one in lives if (words := one.in_words(plan))]
            sql += [statement for one in lives for statement in one.statements()]
            findings += [finding for one in lives for finding in one.findings]
        return Preview(
            "; ".join(said) or "Celery has made no tables yet: nothing to partition",
            statements=tuple(sql),
            readings=_readings(states, lives, plan),
            findings=tuple(findings),
        )

    def maintain_partitions(self, plan: PartitionPlan, pace: Pace) -> Steps:
        with self.transaction() as connection:
            found = find_tables(self, connection)
        failures: list[BackendError] = []
        for live in found.tables:
            # One archive that is busy or not ours must not keep the other waiting; it is reported all the same.
            for maintain in (self._maintain, self._maintain_live):
                try:
                    yield from maintain(live, plan, pace)
                except (BackendBusy, BackendRefused) as failure:
                    failures.append(failure)
        with self.transaction() as connection:
            looked = [self._look(connection, live, plan) for live in found.tables]
            lives = [look_at_live(self, connection, live, plan) for live in found.tables]
        findings = [*found.missing, *(finding for *_, work in looked for finding in _kept_again(work))]
        findings += [finding for one in lives for finding in one.findings]
        findings += [_also_failed(failure) for failure in failures[1:]]
        yield Step(
            what="" if found.tables else "Celery has made no tables yet: nothing to partition",
            readings=_readings([(archive, detached) for archive, detached, _ in looked], lives, plan),
            findings=tuple(findings),
        )
        if failures:
            raise failures[0]

    def _look(
        self, connection: Connection, live: LiveTable, plan: PartitionPlan
    ) -> tuple[ArchiveTable | None, tuple[Detached, ...], Work]:
        archive = find_archive(connection, live, plan.archive)
        _, name = archive_name(live, plan.archive)
        if archive is None:
            return None, (), decide(name, None, (), plan, self.zone)
        detached = list_detached(connection, archive.sql_name)
        return archive, detached, decide(name, archive, detached, plan, self.zone)

    def _maintain(self, live: LiveTable, plan: PartitionPlan, pace: Pace) -> Steps:
        with self.transaction() as connection:
            archive = find_archive(connection, live, plan.archive)
        if archive is None:
            archive, made = ensure_archive(self, live, plan.archive)
            yield Step(what=made)
        yield from drain_default(self, archive, plan.archive.every, pace)
        with self.transaction() as connection:
            _, _, work = self._look(connection, live, plan)
            retiring = retiring_partitions(connection, archive.oid)
        for partition in work.finish:
            yield self._finish(archive, partition, plan, ours=partition.oid in retiring)
        for left in work.note:
            yield self._quarantine(left.sql_name, left.slot, left.retirement, plan)
        for new in work.create:
            yield from self._create(archive, new, plan)
        for partition in work.retire:
            yield self._retire(archive, partition, plan)
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
                    f"move the rows out of {', '.join(one.sql_name for one in _default_of(archive))} and DETACH it: "
                    "an archive of backendops needs no default partition",
                ),
            )
        )

    def _retire(self, archive: ArchiveTable, partition: Partition, plan: PartitionPlan) -> Step:
        retirement = Retirement("retiring", archive.sql_name, partition.start, partition.end)
        slots = {"archive": archive.slot, "partition": partition.slot}
        # Said before it is done: a crash in between leaves a table that the next run knows what to do with.
        with_ddl(self, lambda connection: _note(connection, partition.slot, retirement))
        if _default_of(archive):
            # The server refuses CONCURRENTLY here.
            with_ddl(self, lambda connection: connection.execute(load("postgres", "partition", "detach", slots)))
        else:
            self._detach_concurrently(partition, slots)
        return self._quarantine(partition.sql_name, partition.slot, retirement, plan)

    def _detach_concurrently(self, partition: Partition, slots: dict[str, str]) -> None:
        try:
            with self.autocommit(self._limits.statement_timeout) as connection:
                connection.execute(load("postgres", "partition", "detach_concurrently", slots))
        except BackendBusy as error:
            if code_of(error) != STATEMENT_TIMEOUT:
                raise
            raise BackendBusy(
                f"{partition.sql_name} is used by a transaction that does not end: its detach stays pending",
                "the next run finishes it; until then its rows are out of the archive and safe, and writers go on. "
                "Who: select pid, query from pg_stat_activity where state = 'idle in transaction'",
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


def _default_of(archive: ArchiveTable) -> tuple[Partition, ...]:
    return tuple(one for one in archive.others if one.is_default)


def _in_words(work: Work, *, made: bool) -> str:
    would = [] if made else ["make the archive"]
    for verb, names in (
        ("finish detaching", [one.name for one in work.finish]),
        ("make", [one.name for one in work.create]),
        ("detach", [one.name for one in work.retire]),
        ("drop", [one.name for one in work.drop]),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""  # noqa: PLR2004 - the statements name them all
            would.append(f"{verb} {', '.join(names[:3])}{more}")
    said = f"would {', '.join(would)}" if would else "every partition is there, none is past keeping"
    return f"{said} ({len(work.waiting)} in quarantine)" if work.waiting else said


def _statements(where: str, schema: str, work: Work, has_default: bool) -> Iterator[str]:
    partition_sql, archive_sql = statements("postgres", "partition"), statements("postgres", "archive_table")

    def shown(statement: str, slots: dict[str, str], **values: str) -> str:
        text = fill(statement, slots)
        for name, value in values.items():
            text = text.replace(f":{name}", f"'{value}'")
        return " ".join(line for line in text.splitlines() if not line.startswith("--"))

    for one in work.finish:
        yield shown(partition_sql["finish_detach"], {"archive": where, "partition": one.sql_name})
    for new in work.create:
        slots = {"archive": where, "partition": f"{quoted(schema)}.{quoted(new.name)}"}
        yield shown(archive_sql["create_partition"], slots)
        yield shown(archive_sql["attach_partition"], slots, start=new.start.isoformat(), end=new.end.isoformat())
    for one in work.retire:
        statement = partition_sql["detach" if has_default else "detach_concurrently"]
        yield shown(statement, {"archive": where, "partition": one.sql_name})
    for left in work.drop:
        yield shown(partition_sql["drop"], {"partition": left.sql_name})


def _kept_again(work: Work) -> Iterator[Finding]:
    for left in work.kept_again:
        yield Finding(
            Severity.WARNING,
            "partition.kept-again",
            f"{left.sql_name} is in quarantine, but the policy would keep its rows now: it is not dropped",
            left.way_back,
        )


def _also_failed(failure: BackendError) -> Finding:
    return Finding(Severity.WARNING, "partition.not-done", str(failure), failure.hint)


def _readings(
    states: list[tuple[ArchiveTable | None, tuple[Detached, ...]]], lives: Sequence[LiveWork], plan: PartitionPlan
) -> tuple[Reading, ...]:
    ahead = [count_ahead(archive.partitions, plan.now) if archive else 0 for archive, _ in states]
    quarantined = sum(len(detached) for _, detached in states) + sum(len(one.detached) for one in lives)
    return (
        metrics.PARTITIONS_AHEAD.read(min([*ahead, *ahead_of(lives)], default=0)),
        metrics.PARTITIONS_QUARANTINED.read(quarantined),
    )
