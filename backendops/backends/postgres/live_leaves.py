"""The partitions of a converted live table: the next ones made before they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Final

from sqlalchemy import Connection

from backendops.backends.postgres.archive_table import free_name
from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.convert_checks import LARGEST
from backendops.backends.postgres.live_lock import held, still_bound, unbind, with_moment
from backendops.backends.postgres.live_table import (
    Leaf,
    LiveState,
    ids_per_week,
    naive_in,
    newest_id,
    oldest_result,
    read_live,
)
from backendops.backends.postgres.periods import fit, next_period, partition_name, period_start
from backendops.backends.postgres.sent import Sent, leaf
from backendops.backends.postgres.tables import LiveTable, quoted
from backendops.backends.sql_files import literal, load
from backendops.contracts.capabilities import Every
from backendops.contracts.errors import BackendError
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.run import Step, Steps

# Every lookup by task id goes through every partition: fewer and larger ones are better, and so few rows need none.
FEWEST_IDS: Final = 10_000
# A partition of a time that has begun could not be made without moving rows that Celery is writing.
EARLIEST: Final = timedelta(hours=1)
# While a CHECK bounds what Celery stores, that must not come near: a week of ids by the rate of the results. Where none
# is older than a day there is no rate yet to rely on: ten results a second for a day.
RATE_KNOWN: Final = timedelta(days=1)
FUSE_IDS: Final = 1_000_000
# What has rows is read while it is bounded, which may take minutes, and a burst after a quiet month is in no rate.
BURST_RATE: Final = 400
# Four minutes of it.
BURST_IDS: Final = 100_000


@dataclass(frozen=True, slots=True)
class Ahead:
    """Where a live table stands: the id or the naive moment of now, and what lies wholly beyond it."""

    position: int | datetime
    leaves: tuple[Leaf, ...]


def leaf_rows(
    session: PostgresSession, connection: Connection, live: LiveTable, fixed: int | None, now: datetime
) -> int:
    """How many ids the next partition takes: as many as were asked for, or about a week's."""
    if fixed is not None:
        return fixed
    week: float = ids_per_week(session, connection, live, newest_id(connection, live), now)
    # Rounded up to two digits: a name with 1300000 in it is easier on the eye.
    digits = int(10 ** max(0, len(str(ceil(week))) - 2))
    return max(FEWEST_IDS, ceil(week / digits) * digits)


def fuse_ids(session: PostgresSession, connection: Connection, live: LiveTable, newest: int, now: datetime) -> int:
    """How many ids a CHECK must leave free in front of the newest."""
    oldest = oldest_result(session, connection, live)
    is_young = oldest is None or oldest.done > now - RATE_KNOWN
    return max(ceil(ids_per_week(session, connection, live, newest, now)), FUSE_IDS if is_young else 0)


def look_ahead(
    session: PostgresSession, connection: Connection, live: LiveTable, state: LiveState, now: datetime
) -> Ahead:
    """What is there for the time to come."""
    by_id = state.marker is not None and state.marker.by == "id"
    position: int | datetime = newest_id(connection, live) if by_id else naive_in(now, session.zone)
    return Ahead(position, tuple(one for one in state.leaves if one.is_after(position)))


def make_ahead(session: PostgresSession, live: LiveTable, ahead: int, now: datetime) -> Steps:
    """Make partitions until `ahead` of them lie wholly in the future; takes away what a killed process left behind."""
    with session.transaction() as connection:
        state = read_live(connection, live)
    for one in state.leaves:
        if one.has_bound:
            with_moment(session, one.slot, [one.slot], [leaf("drop_bound", {"leaf": one.slot})])
            yield Step(what=f"took away the CHECK that a killed run had left on {one.sql_name}")
    while True:
        with session.transaction() as connection:
            state = read_live(connection, live)
            there = look_ahead(session, connection, live, state, now)
            rows = leaf_rows(session, connection, live, state.marker.rows if state.marker else None, now)
        if state.marker is None or len(there.leaves) >= ahead:
            return
        if state.marker.by == "id":
            step = _close_tail(session, live, state, there, rows, now)
        else:
            assert state.marker.every is not None  # noqa: S101 - by date
            step = _make_period(session, live, state, state.marker.every, now)
        yield step
        if step.findings:
            return


def _close_tail(  # noqa: PLR0913, PLR0917 - where the table stands, and how large the next partition is to be
    session: PostgresSession, live: LiveTable, state: LiveState, there: Ahead, rows: int, now: datetime
) -> Step:
    """The tail becomes an ordinary partition and a new, empty one takes its place."""
    tail = state.newest
    if tail.kind != "tail":
        return _make_tail(session, live, state)
    assert isinstance(there.position, int) and isinstance(tail.lower, int)  # noqa: S101 - by id
    with session.transaction() as connection:
        untouched = there.position < tail.lower and _is_untouched(connection, tail)
        fuse = max(rows, BURST_IDS, fuse_ids(session, connection, live, there.position, now))
        name = free_name(connection, live.schema, fit(live.name, f"_i{tail.lower}"))
        between = free_name(connection, live.schema, fit(live.name, f"_t{tail.lower}"))
    upper = tail.lower + rows if untouched else max(tail.lower + rows, there.position + fuse)
    largest = LARGEST.get(next(column.type for column in live.columns if column.name == "id"), LARGEST["integer"])
    if upper >= largest:
        return Step(findings=(_no_ids_left(live, largest),))
    closed, fresh = {"live": live.slot, "leaf": _slot(live, name)}, {"live": live.slot, "leaf": tail.slot}
    # Made under the name that the old tail is to have, as its own is still taken; then they change names.
    before = list(_made(live, state, closed["leaf"], tail.slot))
    close = [
        leaf("detach", fresh),
        leaf("attach_ids", fresh, lower=tail.lower, upper=upper),
        leaf("attach_tail", closed, lower=upper),
        leaf("drop_bound", {"leaf": tail.slot}),
        leaf("rename_leaf", {"leaf": closed["leaf"], "name": literal(quoted(between))}),
        leaf("rename_leaf", {"leaf": tail.slot, "name": literal(quoted(name))}),
        leaf("rename_leaf", {"leaf": _slot(live, between), "name": literal(quoted(tail.name))}),
    ]
    if untouched:
        # There is nothing to read, and so nothing to be spared it by a CHECK that bounds what is stored meanwhile.
        seconds = with_moment(session, live.slot, [tail.slot], close, lambda c: _is_untouched(c, tail), before)
        if seconds is None:
            return Step(what=f"left {tail.sql_name}: the first results came to it this very moment")
    else:
        bind = leaf("bound_ids_between", {"leaf": tail.slot}, lower=tail.lower, bound=upper)
        seconds = _without_reading(session, live, tail, bind, close, before)
    return Step(what=f"made {name} of {live.sql_name}, for ids from {tail.lower:,} to {upper:,}{held(seconds)}")


def _is_untouched(connection: Connection, tail: Leaf) -> bool:
    untouched: bool = connection.execute(
        load("postgres", "live_partition", "is_untouched"), {"oid": tail.oid}
    ).scalar_one()
    return untouched


def _make_tail(session: PostgresSession, live: LiveTable, state: LiveState) -> Step:
    """Somebody took the tail away: without it, storing a result fails at the end of the last partition."""
    with session.transaction() as connection:
        name = _slot(live, free_name(connection, live.schema, fit(live.name, "_tail")))
    attach = leaf("attach_tail", {"live": live.slot, "leaf": name}, lower=state.newest.upper)
    seconds = with_moment(session, live.slot, [], [attach], before=_made(live, state, name, state.newest.slot))
    return Step(what=f"made the last partition of {live.sql_name}, which has no end{held(seconds)}")


def _make_period(session: PostgresSession, live: LiveTable, state: LiveState, every: Every, now: datetime) -> Step:
    zone = session.zone
    start = next_period(period_start(now + EARLIEST, every, zone), every, zone)
    # Where the job did not run for long, the time in between stays in the default partition: nothing is lost by it.
    last = state.newest.upper
    if isinstance(last, datetime) and (after := last.replace(tzinfo=zone).astimezone(UTC)) > now + EARLIEST:
        start = after
    end = next_period(start, every, zone)
    with session.transaction() as connection:
        name = free_name(connection, live.schema, partition_name(live.name, start, every, zone))
    slots = {"live": live.slot, "leaf": _slot(live, name)}
    bounds = {"lower": naive_in(start, zone), "upper": naive_in(end, zone)}
    before = _made(live, state, slots["leaf"], state.newest.slot)
    seconds = beside_default(session, live, state, bounds, [leaf("attach_dates", slots, **bounds)], before)
    return Step(what=f"made {name} of {live.sql_name}{held(seconds)}")


def beside_default(  # noqa: PLR0913, PLR0917 - what is made, where, and what is sent before and under the lock
    session: PostgresSession,
    live: LiveTable,
    state: LiveState,
    bounds: Mapping[str, datetime],
    attach: Iterable[Sent],
    before: Iterable[Sent] = (),
) -> float | None:
    """Attach a partition of that time without the default partition being read under the exclusive lock."""
    default = state.default
    if default is None:
        return with_moment(session, live.slot, [], attach, before=before)
    bind = leaf("bound_dates_around", {"leaf": default.slot}, **bounds)
    wanted = [*attach, leaf("drop_bound", {"leaf": default.slot})]
    return _without_reading(session, live, default, bind, wanted, before)


def _without_reading(  # noqa: PLR0913, PLR0917 - as above
    session: PostgresSession, live: LiveTable, bound: Leaf, bind: Sent, wanted: Iterable[Sent], before: Iterable[Sent]
) -> float | None:
    """Have a CHECK say what the server would read the leaf `bound` for; `wanted` takes it away at its end."""
    try:
        with_moment(session, bound.slot, [bound.slot], [bind])
        with session.transaction(statement_timeout=session.limits.budget) as connection:
            leaf("validate_bound", {"leaf": bound.slot}).send(connection)
        return with_moment(session, live.slot, [bound.slot], wanted, before=before)
    except BaseException as error:
        if not unbind(session, bound.oid, bound.slot) and isinstance(error, BackendError):
            raise still_bound(bound.sql_name, ", ".join(map(str, bind.values.values())), error) from error
        raise


def _made(live: LiveTable, state: LiveState, name: str, model: str) -> Iterator[Sent]:
    yield leaf("make_leaf", {"leaf": name, "model": model})
    # The model may have it at this moment.
    yield leaf("drop_bound", {"leaf": name})
    if state.storage:
        yield leaf("set_storage", {"leaf": name, "storage": literal(f"({state.storage})")})
    if state.owner != live.role:
        yield leaf("own_leaf", {"leaf": name, "owner": literal(quoted(state.owner))})


def _slot(live: LiveTable, name: str) -> str:
    return literal(f"{quoted(live.schema)}.{quoted(name)}")


def _no_ids_left(live: LiveTable, largest: int) -> Finding:
    return Finding(
        Severity.CRITICAL,
        "partition.no-ids-left",
        f"the id column of {live.sql_name} ends at {largest:,}: no further partition fits before it",
        f"ALTER TABLE {live.sql_name} ALTER COLUMN id TYPE bigint; in a quiet hour, as it rewrites every partition",
    )
