"""vacuum on PostgreSQL: the tables and partitions that need it, and why it cannot help where it cannot."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import timedelta
from time import monotonic
from typing import Final

from sqlalchemy import Connection

from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.errors import STATEMENT_TIMEOUT, code_of
from backendops.backends.postgres.tables import FoundTables, find_tables, quoted
from backendops.backends.postgres.vacuum_work import (
    Table,
    list_archives,
    list_tables,
    wants_analyze,
    wants_vacuum,
    wasted_bytes,
    worth_rewriting,
)
from backendops.backends.sql_files import fill, load, statements
from backendops.contracts import metrics
from backendops.contracts.capabilities import CanVacuum, VacuumPlan
from backendops.contracts.errors import BackendBusy, BackendRefused
from backendops.contracts.readings import Finding, Reading, Severity
from backendops.contracts.run import Pace, Preview, Step, Steps
from backendops.contracts.units import format_bytes, format_seconds

# The exclusive lock of a rewrite is only ever tried for, never waited for: on a busy table some tries meet a gap
# between two transactions, and two seconds of them are as long as any DDL of ours may be in the way.
FULL_TRIES: Final = 20


class _Ended(Exception):
    """The statement in hand was ended because the run is over: its time is used up, or somebody stopped it."""


class VacuumOnPostgres(PostgresSession, CanVacuum):
    """Can make the space of removed rows reusable."""

    def preview_vacuum(self, plan: VacuumPlan) -> Preview:
        with self.transaction(read_only=True) as connection:
            found, tables = self._tables(connection)
            due = [table for table in tables if wants_vacuum(table, plan)]
            stale = [one for one in tables if one not in due and wants_analyze(one, tables, plan)]
            rewrite = [one for one in tables if plan.full and worth_rewriting(one, wasted_bytes(connection, one))]
            holder = _holder(connection) if due else ""
        said = [
            *(f"vacuum {one.sql_name} ({one.dead:,} dead rows of {one.dead + one.live:,})" for one in due),
            *(f"analyze {one.sql_name}" for one in stale),
            *(f"rewrite {one.sql_name} (VACUUM FULL, {format_bytes(one.bytes)})" for one in rewrite),
        ]
        held = f"; {holder} is the oldest that holds dead rows back" if holder else ""
        return Preview(
            f"would {', '.join(said)}{held}" if said else "no table needs a vacuum, every table's statistics are fresh",
            rows=sum(one.dead for one in due),
            statements=tuple(_shown(due, "vacuum") + _shown(stale, "analyze") + _shown(rewrite, "vacuum_full")),
            readings=tuple(_readings(self.table_names(), found, tables)),
            findings=(*found.missing, *_not_permitted([*due, *stale, *rewrite])),
        )

    def vacuum(self, plan: VacuumPlan, pace: Pace) -> Steps:  # noqa: ARG002 - one VACUUM cannot be split
        deadline = monotonic() + self._limits.budget.total_seconds()
        with self.transaction() as connection:
            found, tables = self._tables(connection)
        due = [table for table in tables if wants_vacuum(table, plan) or wants_analyze(table, tables, plan)]
        findings, idle = list(found.missing), not due
        try:
            for table in due:
                if table.may_vacuum:
                    yield self._clean(table, plan, deadline)
            for step in self._rewrite(deadline) if plan.full else ():
                idle = False
                yield step
        except _Ended as ended:
            yield Step(what=str(ended))
        with self.transaction() as connection:
            found, tables = self._tables(connection)
        refused = [table for table in due if not table.may_vacuum]
        findings += _not_permitted(refused)
        yield Step(
            what="no table needs a vacuum" if idle else "",
            readings=tuple(_readings(self.table_names(), found, tables)),
            findings=tuple(findings),
        )
        if refused:
            raise BackendRefused(findings[-1].sentence, findings[-1].fix)

    def _tables(self, connection: Connection) -> tuple[FoundTables, tuple[Table, ...]]:
        found = find_tables(self, connection)
        return found, list_tables(connection, [*(one.oid for one in found.tables), *list_archives(connection)])

    def _clean(self, table: Table, plan: VacuumPlan, deadline: float) -> Step:
        """Vacuum and analyze one table, or analyze it alone."""
        statement = "vacuum" if wants_vacuum(table, plan) else "analyze"
        before = monotonic()
        self._send(statement, table, deadline)
        took = format_seconds(monotonic() - before)
        with self.transaction() as connection:
            after = next((one for one in list_tables(connection, [table.root]) if one.oid == table.oid), None)
            holder = _holder(connection) if after and wants_vacuum(after, plan) else ""
        if after is None:
            return Step(what=f"{table.sql_name} was dropped meanwhile")
        if (after.vacuumed, after.analyzed) == (table.vacuumed, table.analyzed):
            # SKIP_LOCKED says it in a warning, in the server's language; that nothing changed says it in any.
            return _left(table, after.busy_pid)
        if statement == "analyze":
            return Step(what=f"analyzed {table.sql_name} in {took}")
        return Step(
            rows=max(0, table.dead - after.dead),
            what=f"vacuumed {table.sql_name} in {took}: dead rows {table.dead:,} → {after.dead:,}, "
            f"{format_bytes(table.bytes)} → {format_bytes(after.bytes)}",
            findings=tuple(_held_back(after, holder)) if wants_vacuum(after, plan) else (),
        )

    def _rewrite(self, deadline: float) -> Steps:
        """VACUUM FULL of what is worth it; called inside the policy's window only."""
        with self.transaction() as connection:
            _, tables = self._tables(connection)
            wasted = {table.oid: wasted_bytes(connection, table) for table in tables}
        for table in tables:
            if not (table.may_vacuum and worth_rewriting(table, wasted[table.oid])):
                continue
            for attempt in range(FULL_TRIES):
                if attempt:
                    self.rest(random.uniform(0.05, 0.15))  # noqa: S311 - no secret depends on it
                self._send("vacuum_full", table, deadline)
                with self.transaction() as connection:
                    after = next((one for one in list_tables(connection, [table.root]) if one.oid == table.oid), table)
                if after.file != table.file:
                    yield Step(
                        what=f"rewrote {table.sql_name}: {format_bytes(table.bytes)} → {format_bytes(after.bytes)}"
                    )
                    break
            else:
                yield Step(what=f"did not rewrite {table.sql_name}: no moment without another session on it")

    def _send(self, statement: str, table: Table, deadline: float) -> None:
        """One statement in autocommit, ended when the run's time is over; raises _Ended where it was."""
        left = deadline - monotonic()
        if left <= 0:
            raise _Ended(f"did not begin {statement.replace('_', ' ')} of {table.sql_name}: the time is used up")
        try:
            with self.autocommit(timedelta(seconds=left)) as connection:
                connection.execute(load("postgres", "vacuum", statement, table.slots))
        except BackendBusy as error:
            if self._interrupted.is_set() or monotonic() >= deadline:
                raise _Ended(
                    f"ended the {statement.replace('_', ' ')} of {table.sql_name}: the run's time is over"
                ) from error
            if code_of(error) != STATEMENT_TIMEOUT:
                raise
            raise BackendBusy(
                f"{statement} of {table.sql_name} was cancelled by the server or by somebody",
                "is a statement_timeout set for backendops' role or database? "
                "ALTER ROLE … SET statement_timeout = 0; every statement of backendops has a limit of its own",
            ) from error


def _left(table: Table, pid: int | None) -> Step:
    who = f"pid {pid}, autovacuum or somebody else, works" if pid else "another session works"
    return Step(what=f"left {table.sql_name} alone: {who} on it now")


def _shown(tables: Sequence[Table], statement: str) -> list[str]:
    sql = statements("postgres", "vacuum")[statement].splitlines()[-1]
    return [fill(sql, {"table": table.sql_name}) for table in tables if table.may_vacuum]


def _readings(labels: Sequence[str], found: FoundTables, tables: Sequence[Table]) -> Iterator[Reading]:
    """Bytes and dead rows of each of Celery's tables, its partitions included; 0 where it is not there yet."""
    oids = {table.label: table.oid for table in found.tables}
    for label in labels:
        parts = [one for one in tables if one.root == oids.get(label)]
        yield metrics.TABLE_BYTES.read(sum(one.bytes for one in parts), table=label)
        yield metrics.TABLE_DEAD_ROWS.read(sum(one.dead for one in parts), table=label)


def _not_permitted(tables: Sequence[Table]) -> Iterator[Finding]:
    for table in tables:
        if not table.may_vacuum:
            yield Finding(
                Severity.WARNING,
                "vacuum.not-permitted",
                f"backendops' role may not vacuum {table.sql_name}: it belongs to {table.owner}",
                f"GRANT {quoted(table.owner)} TO backendops' role; "
                f"or, on PostgreSQL 17 and newer, GRANT MAINTAIN ON {table.sql_name} TO it",
            )


def _holder(connection: Connection) -> str:
    """Who holds back the removal of dead rows, in words; empty where nobody is seen to."""
    row = connection.execute(load("postgres", "vacuum", "find_holder")).one_or_none()
    if row is None:
        return ""
    pid = f" (pid {row.pid})" if row.pid else ""
    since = f", since {row.since:%Y-%m-%d %H:%M:%S} UTC" if row.since else ""
    return f"{row.kind} {row.name}{pid}{since}"


def _held_back(table: Table, holder: str) -> Iterator[Finding]:
    yield Finding(
        Severity.WARNING,
        "vacuum.held-back",
        f"{table.dead:,} dead rows of {table.sql_name} could not be removed: "
        f"{holder or 'a transaction that has ended meanwhile'} may still need them",
        "end that transaction, or drop the slot if nothing reads it any more; backendops ends nobody's session",
    )
