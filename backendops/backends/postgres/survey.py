"""What is due before anything is touched: the tables, their rows, the oldest, counted within a small budget."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.due import Due, due_in
from backendops.backends.postgres.groups import Members
from backendops.backends.postgres.tables import LiveTable, find_tables
from backendops.backends.sql import SAMPLE, nothing_named
from backendops.backends.sql_files import load
from backendops.contracts import metrics
from backendops.contracts.errors import BackendBusy
from backendops.contracts.readings import Finding, Reading, Severity
from backendops.contracts.retention import Retention

# A run wants a figure for its progress, not the truth: a second counts some million rows of an index.
RUN_BUDGET: Final = timedelta(seconds=1)
# Whoever asks for a plan waits a little longer for an exact one.
PREVIEW_BUDGET: Final = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Target:
    """A live table and what is due in it."""

    live: LiveTable
    due: Due
    members: Members | None = None
    """Of a table of groups: what says which of the due ones may go."""


@dataclass(frozen=True, slots=True)
class Counted:
    """How many rows are due and since when; an estimate knows no oldest."""

    rows: int
    oldest: datetime | None
    exact: bool
    findings: tuple[Finding, ...] = ()


def survey(session: PostgresSession, retention: Retention) -> tuple[tuple[Target, ...], tuple[Finding, ...]]:
    """The tables in which something can be due; and findings about names that lead nowhere."""
    with session.transaction(read_only=True) as connection:
        found = find_tables(session, connection)
    tasks = next((live for live in found.tables if live.holds == "task"), None)
    targets = (_target(session, live, tasks, retention) for live in found.tables)
    nameless = _nameless(session, tasks, retention) if tasks is not None else ()
    return tuple(target for target in targets if target is not None), found.missing + nameless


def _target(session: PostgresSession, live: LiveTable, tasks: LiveTable | None, retention: Retention) -> Target | None:
    newest = None
    if retention.keep_newest:
        newest = _newest_kept(session, live, retention.keep_newest)
        if newest is None:
            return None
    due = due_in(live, retention, session.zone, newest)
    if due is None:
        return None
    return Target(live, due, Members(session, live, tasks, due) if live.holds == "group" else None)


def _newest_kept(session: PostgresSession, live: LiveTable, keep: int) -> datetime | None:
    """The date of the last one that is kept for being among the newest; None where there are no more than those."""
    statement = "find_newest_by_date" if live.date_indexed else "find_newest_by_id"
    # A task under way can have a date by an accident of Celery's; groups have no state.
    finished = "(status IN ('SUCCESS', 'FAILURE', 'REVOKED'))" if live.holds == "task" else "(true)"
    slots = {"live": live.slot, "finished": finished}
    with session.transaction(read_only=True, prefer_indexes=True) as connection:
        found = connection.execute(load("postgres", "walk", statement, slots), {"keep": keep}).scalar_one_or_none()
    assert found is None or isinstance(found, datetime)  # noqa: S101 - the column's type
    return found


def _nameless(session: PostgresSession, tasks: LiveTable, retention: Retention) -> tuple[Finding, ...]:
    """A finding where rules ask for what Celery does not store."""
    asked = [
        (word, column)
        for word, column, does in (("task", "name", retention.by_task), ("queue", "queue", retention.by_queue))
        if does
    ]
    if not asked:
        return ()
    columns = {column: column if tasks.has_column(column) else "(NULL)" for column in ("name", "queue")}
    slots = {"live": tasks.slot, **columns}
    with session.transaction(read_only=True, prefer_indexes=True) as connection:
        row = connection.execute(load("postgres", "walk", "sample_names", slots), {"rows": SAMPLE}).one()
    return tuple(
        nothing_named(tasks.sql_name, word, row.rows)
        for word, column in asked
        if row.rows and not getattr(row, f"{column}s")
    )


def count_due(session: PostgresSession, target: Target, budget: timedelta) -> Counted:
    """Count what is due within `budget`; the planner's estimate where that is not enough."""
    dated = _count_dated(session, target, budget)
    if target.members is None or not dated.rows:
        return dated
    held, is_all = target.members.held(budget)
    return replace(dated, rows=max(dated.rows - held, 0), exact=dated.exact and is_all)


def _count_dated(session: PostgresSession, target: Target, budget: timedelta) -> Counted:
    slots = {"live": target.live.slot, "due": target.due.dated}
    values = {**target.due.values, "latest": target.due.latest, "zone": session.date_done_timezone}
    try:
        with session.transaction(read_only=True, statement_timeout=budget) as connection:
            row = connection.execute(load("postgres", "walk", "count_due", slots), values).one()
            findings = (_ageless(target.live, row.endless),) if row.endless else ()
            return Counted(row[0], row.oldest, exact=True, findings=findings)
    except BackendBusy:
        with session.transaction(read_only=True) as connection:
            plan = connection.execute(load("postgres", "walk", "estimate_due", slots), values).scalar_one()
            plan = json.loads(plan) if isinstance(plan, str) else plan
            return Counted(int(plan[0]["Plan"]["Plan Rows"]), None, exact=False)


def _ageless(live: LiveTable, rows: int) -> Finding:
    return Finding(
        Severity.WARNING,
        "retention.no-age",
        f"{rows:,} results of {live.sql_name} have the date -infinity, which is no age: they stay",
        "set date_done of those rows to when they finished, or to now: then they go in their time",
    )


def oldest_ages(session: PostgresSession, tables: Mapping[LiveTable, datetime | None]) -> tuple[Reading, ...]:
    """The age of each table's oldest finished result; a table where that takes too long is left out.

    With each table goes the naive moment before which it is known to be empty, where it is.
    """
    readings = []
    for live, since in tables.items():
        try:
            with session.transaction(read_only=True, statement_timeout=RUN_BUDGET) as connection:
                age = connection.execute(
                    load("postgres", "walk", "find_oldest", {"live": live.slot}),
                    {"zone": session.date_done_timezone, "since": since or datetime.min},  # noqa: DTZ901 - naive as date_done
                ).scalar_one()
        except BackendBusy:
            continue
        readings.append(metrics.RESULTS_OLDEST_AGE.read(max(age or 0.0, 0.0), table=live.label))
    return tuple(readings)
