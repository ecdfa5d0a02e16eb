"""What is due before anything is touched: the tables, their rows, the oldest, counted within a small budget."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.due import Due, due_in
from backendops.backends.postgres.tables import LiveTable, find_tables
from backendops.backends.sql_files import load
from backendops.contracts import metrics
from backendops.contracts.errors import BackendBusy
from backendops.contracts.readings import Finding, Reading
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


@dataclass(frozen=True, slots=True)
class Counted:
    """How many rows are due and since when; an estimate knows no oldest."""

    rows: int
    oldest: datetime | None
    exact: bool


def survey(session: PostgresSession, retention: Retention) -> tuple[tuple[Target, ...], tuple[Finding, ...]]:
    """The tables in which something can be due; and findings about names that lead nowhere."""
    with session.transaction(read_only=True) as connection:
        found = find_tables(session, connection)
    dues = ((live, due_in(live, retention, session.zone)) for live in found.tables)
    return tuple(Target(live, due) for live, due in dues if due is not None), found.missing


def count_due(session: PostgresSession, target: Target, budget: timedelta) -> Counted:
    """Count what is due within `budget`; the planner's estimate where that is not enough."""
    slots = {"live": target.live.slot, "due": target.due.sql}
    values = {**target.due.values, "latest": target.due.latest, "zone": session.date_done_timezone}
    try:
        with session.transaction(read_only=True, statement_timeout=budget) as connection:
            row = connection.execute(load("postgres", "walk", "count_due", slots), values).one()
            return Counted(row[0], row.oldest, exact=True)
    except BackendBusy:
        with session.transaction(read_only=True) as connection:
            plan = connection.execute(load("postgres", "walk", "estimate_due", slots), values).scalar_one()
            plan = json.loads(plan) if isinstance(plan, str) else plan
            return Counted(int(plan[0]["Plan"]["Plan Rows"]), None, exact=False)


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
