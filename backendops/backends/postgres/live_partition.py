"""The partition job on live tables that were converted: the next partitions, the old ones, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.ddl import with_ddl
from backendops.backends.postgres.live_leaves import look_ahead, make_ahead
from backendops.backends.postgres.live_lock import with_moment
from backendops.backends.postgres.live_retire import Old, findings, not_marked, old_leaves, pending, retire
from backendops.backends.postgres.live_table import LiveState, read_live
from backendops.backends.postgres.partition_work import quarantine_over
from backendops.backends.postgres.quarantine import Detached, Retirement, list_detached
from backendops.backends.postgres.sent import Sent, leaf
from backendops.backends.postgres.tables import LiveTable, quoted
from backendops.contracts.capabilities import PartitionPlan
from backendops.contracts.errors import BackendRefused
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.run import Step, Steps


@dataclass(frozen=True, slots=True)
class LiveWork:
    """What one live table needs, decided from the catalog and a few index entries."""

    live: LiveTable
    state: LiveState
    ahead: int
    """Partitions that lie wholly in the future."""
    old: tuple[Old, ...]
    detached: tuple[Detached, ...]
    drop: tuple[Detached, ...]
    findings: tuple[Finding, ...]

    @property
    def is_ours(self) -> bool:
        """Was it converted, so that its partitions are ours to keep?"""
        return self.state.state == "partitioned" and self.live.is_owner

    def in_words(self, plan: PartitionPlan) -> str:
        """What would be done; empty where nothing."""
        if self.state.state == "bounded":
            return f"{self.live.sql_name}: would take away the CHECK of a conversion that was cut short"
        if not self.is_ours:
            return ""
        said = [f"make {plan.ahead - self.ahead} more partitions"] if self.ahead < plan.ahead else []
        going = [old.leaf.name for old in self.old if old.may_go]
        said += [f"detach {', '.join(going)}"] if going else []
        said += [f"drop {', '.join(one.name for one in self.drop)}"] if self.drop else []
        return f"{self.live.sql_name}: " + (f"would {', '.join(said)}" if said else "every partition is there")

    def statements(self) -> Iterator[str]:
        """Of what would be retired; the others' bounds are decided when they are made."""
        for old in self.old:
            if old.may_go:
                yield leaf("detach", {"live": self.live.slot, "leaf": old.leaf.slot}).planned().sql
        for one in self.drop:
            yield Sent("partition", "drop", {"partition": one.slot}).planned().sql


def look_at_live(session: PostgresSession, connection: Connection, live: LiveTable, plan: PartitionPlan) -> LiveWork:
    """Read what is there; changes nothing."""
    state = read_live(connection, live)
    detached = list_detached(connection, live.sql_name)
    wanted = replace(plan, cutoff=plan.live_cutoff)
    past = [one for one in detached if plan.live_cutoff is not None and one.retirement.upper <= plan.live_cutoff]
    drop = tuple(one for one in past if quarantine_over(one, wanted))
    found = [_kept_again(one) for one in detached if one not in past]
    if state.state != "partitioned" or not live.is_owner:
        if state.state == "undoing":
            found.append(_undoing(live))
        if state.unmarked:
            found.append(not_marked(live, state.unmarked))
        return LiveWork(live, state, 0, (), detached, drop, tuple(found))
    there = look_ahead(session, connection, live, state, plan.now)
    old = old_leaves(session, connection, live, state, plan)
    found += findings(session, connection, live, state, plan)
    found += [pending(live, one) for one in state.pending]
    return LiveWork(live, state, len(there.leaves), old, detached, drop, tuple(found))


def maintain_live(session: PostgresSession, live: LiveTable, plan: PartitionPlan) -> Steps:
    """Make what is missing, detach what is past keeping; what is past its quarantine is the caller's to drop."""
    with session.transaction() as connection:
        work = look_at_live(session, connection, live, plan)
    if work.state.state == "bounded":
        with_moment(session, live.slot, [live.slot], [leaf("drop_bound", {"leaf": live.slot})])
        yield Step(what=f"took away the CHECK that a killed conversion had left on {live.sql_name}")
    if work.state.state == "partitioned" and not live.is_owner:
        raise BackendRefused(
            f"the role {live.role} does not own {live.sql_name}, which is partitioned: only its owner can make and "
            "retire its partitions",
            f"GRANT {quoted(work.state.owner)} TO {quoted(live.role)};",
        )
    if not work.is_ours:
        return
    yield from make_ahead(session, live, plan.ahead, plan.now)
    going = {old.leaf.oid for old in work.old if old.may_go}
    for one in work.state.leaves:
        if one.oid not in going and Retirement.parse(one.comment):
            with_ddl(session, Sent("partition", "forget", {"partition": one.slot}).send)
            yield Step(what=f"{one.sql_name} stays: its comment of an earlier retirement is gone")
    for old in work.old:
        if old.may_go:
            yield from retire(session, live, old, work.state.default, plan)


def ahead_of(works: Sequence[LiveWork]) -> list[int]:
    """How many partitions each converted table has for the time to come."""
    return [work.ahead for work in works if work.is_ours]


def _kept_again(one: Detached) -> Finding:
    return Finding(
        Severity.WARNING,
        "partition.kept-again",
        f"{one.sql_name} is in quarantine, but the policy would keep its rows now (keep_live): it is not dropped",
        one.way_back,
    )


def _undoing(live: LiveTable) -> Finding:
    return Finding(
        Severity.WARNING,
        "partition.undoing",
        f"{live.sql_name} is on its way back to a plain table, and not there yet",
        "`backendops partition undo` goes on where it ended",
    )
