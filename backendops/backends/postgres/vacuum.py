"""vacuum on PostgreSQL: the tables, partitions and indexes that need it, and why it cannot help where it cannot."""

from __future__ import annotations

import random
from time import monotonic
from typing import Final

from sqlalchemy import Connection

from backendops.backends.postgres import bloat as bloating
from backendops.backends.postgres.bloat import UNKNOWN, Meter
from backendops.backends.postgres.freeze import is_past, list_retired
from backendops.backends.postgres.holdback import held_back, list_holders, next_transaction, not_frozen
from backendops.backends.postgres.indexes import IndexesOnPostgres
from backendops.backends.postgres.live_bounds import take_bounds_away
from backendops.backends.postgres.tables import find_tables
from backendops.backends.postgres.vacuum_due import FIRST, LAST, Due, decide, wants_vacuum
from backendops.backends.postgres.vacuum_session import Ended, WindowClosed
from backendops.backends.postgres.vacuum_survey import (
    Memory,
    Survey,
    bloated,
    left_to_others,
    needs_longer,
    readings,
    refusals,
)
from backendops.backends.postgres.vacuum_work import Table, list_archives, list_tables
from backendops.backends.sql_files import fill, load, statements
from backendops.contracts.capabilities import CanVacuum, VacuumPlan
from backendops.contracts.errors import BackendRefused
from backendops.contracts.run import Pace, Preview, Step, Steps
from backendops.contracts.units import format_bytes, format_seconds

# The exclusive lock of a rewrite is only ever tried for, never waited for: on a busy table some tries meet a gap
# between two transactions, and two seconds of them are as long as any DDL of ours may be in the way.
FULL_TRIES: Final = 20
# PostgreSQL 14 writes its statistics into a file, twice a second at most; 15 and newer share them at once.
SHARED_STATISTICS: Final = (15,)
STATISTICS_LATE: Final = 1.0
# A vacuum that had this part of the run's time, and was ended with it, will not fit into the next run either.
MOST_OF_IT: Final = 0.9


class VacuumOnPostgres(IndexesOnPostgres, CanVacuum):
    """Can make the space of removed rows reusable."""

    def preview_vacuum(self, plan: VacuumPlan) -> Preview:
        survey = self._survey_tables(plan, Memory(self.watermarks))
        indexes = self.index_state(survey.found.tables, survey.tables, plan.indexes)
        rewrite = list(survey.rewrite(plan)) if plan.full else []
        vacuumed = {one.table.oid for one in survey.due if one.statement != "analyze"}
        said = [f"{one.statement} {one.table.sql_name} ({one.why})" for one in survey.due]
        said += [
            f"rewrite {one.sql_name} (VACUUM FULL{still}: {survey.bloat[one.oid]}; "
            f"needs up to {format_bytes(one.bytes)} more on the server's disk while it runs)"
            for one in rewrite
            for still in (", if it is still worth it after its vacuum" if one.oid in vacuumed else "",)
        ]
        said += indexes.said
        with self.transaction(read_only=True) as connection:
            holder = str(list_holders(connection)) if any(one.statement != "analyze" for one in survey.due) else ""
        held = f"; {holder} may hold dead rows back" if holder else ""
        return Preview(
            f"would {', '.join(said)}{held}" if said else "no table needs a vacuum, every table's statistics are fresh",
            rows=sum(one.table.dead for one in survey.due if one.statement != "analyze"),
            statements=(
                *(_shown(one.table, one.text) for one in survey.due if one.table.may_vacuum),
                *(_shown(one, "vacuum_full") for one in rewrite if one.may_vacuum),
                *indexes.statements,
            ),
            readings=(*readings(self.table_names(), survey), *indexes.readings),
            findings=(
                *survey.findings,
                *bloated(survey, plan),
                *refusals([*(one.table for one in survey.due), *rewrite]),
                *indexes.work.findings,
                *indexes.work.refused,
            ),
        )

    def vacuum(self, plan: VacuumPlan, pace: Pace) -> Steps:  # noqa: ARG002 - one VACUUM cannot be split
        deadline = monotonic() + self._limits.budget.total_seconds()
        memory = Memory(self.watermarks)
        bounds = take_bounds_away(self)
        survey = self._survey_tables(plan, memory)
        idle, refused = True, [one.table for one in survey.due if not one.table.may_vacuum]
        try:
            for step in self._vacuum_steps(survey, plan, memory, deadline):
                idle = False
                yield step
        except Ended as ended:
            idle = False
            # The engine may ask for nothing more.
            memory.keep(survey.tables)
            yield Step(what=str(ended), findings=ended.findings)
        survey = self._survey_tables(plan, memory, known=survey)
        for table in survey.tables:
            if table.oid in memory.rewritten:
                memory.solid.note(table, str(survey.bloat.get(table.oid, UNKNOWN).wasted))
        indexes = self.index_state(survey.found.tables, survey.tables, plan.indexes)
        memory.keep(survey.tables)
        denied = [*refusals(refused), *indexes.work.refused]
        yield Step(
            what="no table needs a vacuum" if idle and not denied else "",
            readings=(*readings(self.table_names(), survey), *indexes.readings),
            findings=(*bounds, *survey.findings, *bloated(survey, plan), *indexes.work.findings, *denied),
        )
        if denied:
            raise BackendRefused(denied[-1].sentence, denied[-1].fix)

    def _survey_tables(self, plan: VacuumPlan, memory: Memory, known: Survey | None = None) -> Survey:
        """Look at everything; what `known` measured and nobody has touched since is not measured again."""
        with self.transaction(read_only=True) as connection:
            found = find_tables(self, connection)
            archives, retired = list_archives(connection), list_retired(connection)
            there = list_tables(connection, [*(one.oid for one in found.tables), *archives, *retired])
            meter = Meter.of(self, connection)
        live = {one.oid for one in found.tables}
        # Another role's archive in the same database is that role's to look after.
        tables = tuple(one for one in there if one.may_vacuum or one.root in live)
        others = [one for one in there if not one.may_vacuum and one.root not in live]
        before = {table: known.bloat.get(table.oid) for table in known.tables} if known else {}
        # Of an archive's partition it matters only where it is large; of a live table it is a metric.
        measured = [one for one in tables if one.root in live or one.size >= bloating.WORTH_BYTES]
        measured = [one for one in measured if not one.is_locked]
        bloat = {one.oid: before.get(one) or memory.corrected(one, meter.table(one)) for one in measured}

        def is_over(table: Table) -> bool:
            over = table.oid in retired or is_past(table, archives, plan.now)
            return plan.freeze_past and over and table.may_vacuum and not memory.frozen.has(table)

        due = decide(tables, plan, bloat, is_over, memory.ended.of)
        return Survey(found, tables, bloat, due, (*found.missing, *meter.findings, *left_to_others(others)))

    def _vacuum_steps(self, survey: Survey, plan: VacuumPlan, memory: Memory, deadline: float) -> Steps:
        indexes = self.index_state(survey.found.tables, survey.tables, plan.indexes)
        yield from self.drop_leftovers(indexes, deadline)
        due = [one for one in survey.due if one.table.may_vacuum]
        for one in due:
            if one.turn != LAST:
                yield self._vacuum_one(one, plan, memory, deadline)
        if plan.full:
            try:
                now = self._survey_tables(plan, memory, known=survey)
                yield from self._rewrite_tables(now, plan, memory, deadline)
            except WindowClosed as closed:
                yield Step(what=str(closed))
            # A rewrite has made every index of its table anew.
            indexes = self.index_state(survey.found.tables, survey.tables, plan.indexes)
        yield from self.mend_indexes(indexes, plan.indexes, deadline)
        for one in due:
            if one.turn == LAST:
                yield self._vacuum_one(one, plan, memory, deadline)

    def _vacuum_one(self, due: Due, plan: VacuumPlan, memory: Memory, deadline: float) -> Step:
        """Vacuum, freeze or analyze one table."""
        table, before = due.table, monotonic()
        with self.transaction() as connection:
            removed_before = next_transaction(connection)
        try:
            self.send(load("postgres", "vacuum", due.text, table.slots), _named(due.statement, table), deadline)
        except Ended as ended:
            had, budget = monotonic() - before, self._limits.budget.total_seconds()
            if self.interrupted:
                raise
            fits = had < MOST_OF_IT * budget and due.turn != LAST
            memory.ended.note(table, FIRST if fits else LAST)
            raise Ended(str(ended), *(() if fits else (needs_longer(due, format_seconds(had)),))) from ended
        memory.ended.forget(table)
        took = format_seconds(monotonic() - before)
        after = self._after(table)
        with self.transaction() as connection:
            holders = list_holders(connection, removed_before)
        if after is None:
            return Step(what=f"{table.sql_name} was dropped meanwhile")
        if _untouched(table, after):
            # SKIP_LOCKED says it in a warning, in the server's language; that nothing changed says it in any.
            return _left(table, after.busy_pid)
        if due.statement == "analyze":
            return Step(what=f"analyzed {table.sql_name} in {took}")
        findings = [held_back(after.sql_name, after.dead, holders)] if wants_vacuum(after, plan) else []
        said = f"vacuumed {table.sql_name} in {took}: dead rows {table.dead:,} → {after.dead:,}"
        if due.statement == "freeze":
            memory.frozen.note(after)
            said = f"froze {table.sql_name} in {took}: {table.oldest:,} → {after.oldest:,} transactions old"
            said += f", dead rows {table.dead:,} → {after.dead:,}" if table.dead else ""
            if after.oldest >= plan.freeze_age:
                findings.append(not_frozen(after.sql_name, after.oldest, plan.freeze_age, holders))
        return Step(
            rows=max(0, table.dead - after.dead),
            what=f"{said}, {format_bytes(table.bytes)} → {format_bytes(after.bytes)} ({due.why})",
            findings=tuple(findings),
        )

    def _after(self, table: Table) -> Table | None:
        """The table as it is now; None where it is gone."""
        patience = monotonic() + STATISTICS_LATE
        while True:
            with self.transaction() as connection:
                after, version = _again(connection, table), connection.dialect.server_version_info or ()
            if after is None or not _untouched(table, after) or version >= SHARED_STATISTICS or monotonic() > patience:
                return after
            self.rest(0.1)

    def _rewrite_tables(self, survey: Survey, plan: VacuumPlan, memory: Memory, deadline: float) -> Steps:
        """VACUUM FULL of what is worth it; called inside the policy's window only."""
        for table in survey.rewrite(plan):
            if not table.may_vacuum:
                continue
            for attempt in range(FULL_TRIES):
                if attempt:
                    self.rest(random.uniform(0.05, 0.15))  # noqa: S311 - no secret depends on it
                statement, what = load("postgres", "vacuum", "vacuum_full", table.slots), _named("vacuum_full", table)
                self.send(statement, what, deadline, plan.full_until)
                with self.transaction() as connection:
                    after = _again(connection, table) or table
                if after.file != table.file:
                    memory.solid.forget(table)
                    memory.rewritten.add(table.oid)
                    sizes = f"{format_bytes(table.bytes)} → {format_bytes(after.bytes)}"
                    yield Step(what=f"rewrote {table.sql_name}: {sizes} ({survey.bloat[table.oid]})")
                    break
            else:
                yield Step(what=f"did not rewrite {table.sql_name}: no moment without another session on it")


def _again(connection: Connection, table: Table) -> Table | None:
    return next((one for one in list_tables(connection, [table.oid]) if one.oid == table.oid), None)


def _untouched(before: Table, after: Table) -> bool:
    return (after.vacuumed, after.analyzed) == (before.vacuumed, before.analyzed)


def _named(statement: str, table: Table) -> str:
    return f"{statement.replace('_', ' ')} of {table.sql_name}"


def _left(table: Table, pid: int | None) -> Step:
    who = f"pid {pid}, autovacuum or somebody else, works" if pid else "another session works"
    return Step(what=f"left {table.sql_name} alone: {who} on it now")


def _shown(table: Table, statement: str) -> str:
    return fill(statements("postgres", "vacuum")[statement].splitlines()[-1], {"table": table.sql_name})
