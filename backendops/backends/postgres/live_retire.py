"""Old partitions of a converted live table: known by their newest result, detached for a moment's lock, quarantined."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import Connection

from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.due import naive
from backendops.backends.postgres.live_leaves import look_ahead
from backendops.backends.postgres.live_lock import held, with_moment
from backendops.backends.postgres.live_table import Leaf, LiveState, Marker
from backendops.backends.postgres.quarantine import Retirement, estimate_rows
from backendops.backends.postgres.sent import Sent, leaf
from backendops.backends.postgres.tables import LiveTable
from backendops.backends.sql_files import load
from backendops.contracts.capabilities import PartitionPlan
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.run import Step, Steps

# Two writers of one task are milliseconds apart, by clock and by id; an hour, or so many ids, is generous.
NEAR_TIME: Final = timedelta(hours=1)
NEAR_IDS: Final = 5_000


@dataclass(frozen=True, slots=True)
class Ages:
    """Of what is in a leaf: naive moments, None where nothing has finished."""

    newest: datetime | None
    oldest: datetime | None
    unfinished: bool

    def is_past(self, cutoff: datetime) -> bool:
        """Did every result finish before it?"""
        return not self.unfinished and (self.newest is None or self.newest < cutoff)


@dataclass(frozen=True, slots=True)
class Old:
    """A leaf of the past, and whether it may go."""

    leaf: Leaf
    ages: Ages
    may_go: bool


def old_leaves(
    session: PostgresSession, connection: Connection, live: LiveTable, state: LiveState, plan: PartitionPlan
) -> tuple[Old, ...]:
    """The leaves that nothing new comes to and whose finished results are all past keeping, oldest first."""
    cutoff = plan.live_cutoff
    # Without its index the age of a leaf could only be found by reading it.
    if cutoff is None or not live.date_indexed:
        return ()
    limit = naive(min(cutoff, plan.now), session.zone)
    position = look_ahead(session, connection, live, state, plan.now).position
    found = []
    connection.execute(load("postgres", "session", "prefer_indexes"))
    for one in state.leaves:
        if one.kind not in ("first", "leaf") or one.upper is None or one.upper > position:  # type: ignore[operator] # by one key
            continue
        ages = read_ages(connection, one)
        if ages.newest is None or ages.newest < limit:
            found.append(Old(one, ages, ages.is_past(limit)))
    return tuple(found)


def read_ages(connection: Connection, one: Leaf) -> Ages:
    """From the leaf's index on date_done."""
    row = connection.execute(load("postgres", "live_partition", "read_ages", {"leaf": one.slot})).one()
    return Ages(row.newest, row.oldest, row.unfinished)


def retire(session: PostgresSession, live: LiveTable, old: Old, default: Leaf | None, plan: PartitionPlan) -> Steps:
    """Detach a leaf, and begin its quarantine in the same transaction; looked at again under the lock."""
    one = old.leaf
    limit = naive(min(plan.live_cutoff or plan.now, plan.now), session.zone)
    with session.transaction() as connection:
        rows = estimate_rows(connection, [one.oid])

    def still(connection: Connection) -> bool:
        return read_ages(connection, one).is_past(limit)

    retirement = _retirement(session, live, old, plan)
    statements = [
        leaf("detach", {"live": live.slot, "leaf": one.slot}),
        Sent("partition", "note", {"partition": one.slot}, {"comment": str(retirement)}),
    ]
    # A detach takes the default partition's lock too: autovacuum there is waited for beforehand.
    quiet = [each.slot for each in (one, default) if each is not None]
    before = [Sent("session", "prefer_indexes", {})]
    seconds = with_moment(session, live.slot, quiet, statements, still, before)
    if seconds is None:
        yield Step(what=f"left {one.sql_name}: one of its results was stored again meanwhile")
        return
    yield Step(
        rows=rows,
        what=f"detached {one.sql_name}; it is kept until {retirement.drop_after:%Y-%m-%d %H:%M} UTC, then dropped"
        f"{held(seconds)}",
    )


def _retirement(session: PostgresSession, live: LiveTable, old: Old, plan: PartitionPlan) -> Retirement:
    newest = old.ages.newest or plan.live_cutoff or plan.now
    oldest = old.ages.oldest or newest
    lower, upper = (one.replace(tzinfo=one.tzinfo or session.zone).astimezone(UTC) for one in (oldest, newest))
    return Retirement(
        "quarantined",
        live.sql_name,
        lower,
        upper + timedelta(microseconds=1),
        detached_at=plan.now,
        drop_after=plan.now + plan.quarantine,
        bounds=old.leaf.bounds,
    )


def findings(
    session: PostgresSession, connection: Connection, live: LiveTable, state: LiveState, plan: PartitionPlan
) -> Iterator[Finding]:
    """What is wrong with the partitions of a converted table, or will be."""
    for one in state.leaves:
        if not one.key_is_unique:
            yield Finding(
                Severity.WARNING,
                "partition.key-not-unique",
                f"{one.sql_name} has no unique index on {live.key_column}: a task can be in it twice",
                f"CREATE UNIQUE INDEX CONCURRENTLY ON {one.sql_name} ({live.key_column});",
            )
    if plan.live_cutoff is not None and not live.date_indexed:
        yield Finding(
            Severity.WARNING,
            "partition.no-date-index",
            f"{live.sql_name} has no whole index on date_done: the age of its partitions cannot be told",
            f"CREATE INDEX CONCURRENTLY on date_done of each partition, then CREATE INDEX on that of {live.sql_name}",
        )
    for old in old_leaves(session, connection, live, state, plan):
        if old.ages.unfinished:
            slots = {"leaf": old.leaf.slot}
            count = connection.execute(load("postgres", "live_partition", "count_unfinished", slots)).scalar_one()
            yield Finding(
                Severity.WARNING,
                "partition.unfinished",
                f"{old.leaf.sql_name} is past keeping but stays: {count:,} of its tasks have not finished",
                "see whether they are stuck: SELECT task_id, status FROM it WHERE date_done IS NULL",
            )
    twins = list(_twins(session, connection, live, state, plan))
    if twins:
        yield Finding(
            Severity.WARNING,
            "partition.twins",
            f"tasks of {live.sql_name} are in two partitions: {', '.join(twins[:5])}; Celery reads one of them",
            "look at their rows with tableoid::regclass, and delete the one that is not wanted from its partition",
        )


def pending(live: LiveTable, one: Leaf) -> Finding:
    """Somebody began to detach it, and that did not end."""
    return Finding(
        Severity.WARNING,
        "partition.detach-pending",
        f"{one.sql_name} is being detached from {live.sql_name}, not by backendops, and that did not end: its results "
        "are out of Celery's sight",
        f"ALTER TABLE {live.sql_name} DETACH PARTITION {one.sql_name} FINALIZE;",
    )


def not_marked(live: LiveTable, marker: Marker) -> Finding:
    """It has the shape of a table that was converted, and no comment that says so."""
    describe = Sent("convert", "describe", {"live": live.slot}, {"comment": str(marker)})
    return Finding(
        Severity.CRITICAL,
        "partition.not-marked",
        f"{live.sql_name} has partitions as backendops makes them, but its COMMENT does not say so any more: no new "
        "ones are made, no old ones retired, and it cannot be undone",
        f"if `backendops partition convert` made them: {describe.planned().sql};",
    )


def _twins(
    session: PostgresSession, connection: Connection, live: LiveTable, state: LiveState, plan: PartitionPlan
) -> Iterator[str]:
    """Tasks that are in two partitions, near the boundary that was crossed last."""
    slots = {"live": live.slot, "key": live.key_column}
    position = look_ahead(session, connection, live, state, plan.now).position
    crossed = [one.lower for one in state.leaves if one.lower is not None and one.lower <= position]  # type: ignore[operator] # by one key
    if crossed:
        boundary = crossed[-1]
        name, low, high = "find_twins_by_id", *_around(boundary)
        if isinstance(boundary, datetime):
            name = "find_twins_by_date"
        statement = load("postgres", "live_partition", name, slots)
        yield from connection.execute(statement, {"low": low, "high": high}).scalars()
    if state.default is not None:
        statement = load("postgres", "live_partition", "find_unfinished_twins", {**slots, "leaf": state.default.slot})
        yield from connection.execute(statement, {"oid": state.default.oid}).scalars()


def _around(boundary: int | datetime) -> tuple[int | datetime, int | datetime]:
    if isinstance(boundary, datetime):
        return boundary - NEAR_TIME, boundary + NEAR_TIME
    return boundary - NEAR_IDS, boundary + NEAR_IDS
