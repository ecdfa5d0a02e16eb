"""What the partitions of one archive need now, decided from the catalog without touching anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from backendops.backends.postgres.archive_table import ArchiveTable, Partition
from backendops.backends.postgres.periods import Span, free_period, next_period, partition_name, period_start
from backendops.backends.postgres.quarantine import Detached
from backendops.contracts.capabilities import Every, PartitionPlan

# Gaps are filled for as many periods back as `ahead` may go forward. One stray row of 2015 in a daily archive is no
# reason for four thousand empty partitions: the archive job makes a late row's partition when it comes.
GAP_PERIODS: Final = 400

EVER: Final = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


@dataclass(frozen=True, slots=True)
class NewPartition:
    """A partition that should be there and is not."""

    name: str
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class Work:
    """Everything one archive needs, in the order in which it is done."""

    finish: tuple[Partition, ...]
    """Detaching them was begun and cut short."""
    note: tuple[Detached, ...]
    """Detached, but the crash came before the comment that starts their quarantine."""
    create: tuple[NewPartition, ...]
    retire: tuple[Partition, ...]
    """Wholly older than the cutoff."""
    drop: tuple[Detached, ...]
    """Their quarantine is over."""
    waiting: tuple[Detached, ...]
    """In quarantine."""
    kept_again: tuple[Detached, ...]
    """In quarantine, but the policy would keep their rows now."""

    @property
    def is_empty(self) -> bool:
        """Is there nothing to do?"""
        return not (self.finish or self.note or self.create or self.retire or self.drop)


def decide(
    name: str, archive: ArchiveTable | None, detached: Sequence[Detached], plan: PartitionPlan, zone: ZoneInfo
) -> Work:
    """What the archive called `name` needs, given what there is; None where it has yet to be made."""
    partitions, others = (archive.partitions, archive.others) if archive else ((), ())
    waiting, drop, kept_again = [], [], []
    for one in detached:
        if one.retirement.state == "retiring":
            continue
        if plan.cutoff is None or one.retirement.upper > plan.cutoff:
            kept_again.append(one)
        elif quarantine_over(one, plan):
            drop.append(one)
        else:
            waiting.append(one)
    pending = [one for one in others if one.detach_pending]
    return Work(
        finish=tuple(pending),
        note=tuple(one for one in detached if one.retirement.state == "retiring"),
        create=tuple(_missing(name, [*partitions, *pending], detached, plan, zone)),
        retire=tuple(_past_keeping(partitions, plan)),
        drop=tuple(drop),
        waiting=tuple(waiting),
        kept_again=tuple(kept_again),
    )


def quarantine_over(one: Detached, plan: PartitionPlan) -> bool:
    """May it be dropped? Its comment's promise holds where the policy's quarantine has become shorter."""
    detached_at, drop_after = one.retirement.detached_at, one.retirement.drop_after
    if detached_at is None or drop_after is None:
        return False
    return plan.now >= drop_after and plan.now >= detached_at + plan.quarantine


def count_ahead(partitions: Sequence[Partition], now: datetime) -> int:
    """How many partitions lie wholly in the future."""
    return sum(one.start > now for one in partitions)


def _past_keeping(partitions: Sequence[Partition], plan: PartitionPlan) -> Iterator[Partition]:
    if plan.cutoff is None:
        return
    # Whatever the cutoff says, the newest one stays, and so does one that still takes rows of today.
    for one in partitions[:-1]:
        if one.end <= min(plan.cutoff, plan.now) and one.start != EVER[0]:
            yield one


def _missing(
    name: str, there: Sequence[Partition], detached: Sequence[Detached], plan: PartitionPlan, zone: ZoneInfo
) -> Iterator[NewPartition]:
    every = plan.archive.every
    # Where one is in quarantine there is no gap: it could not come back.
    taken: tuple[Span, ...] = (*there, *detached)
    end = next_period(period_start(plan.now, every, zone), every, zone)
    for _ in range(plan.ahead):
        end = next_period(end, every, zone)
    moment = _oldest_wanted(there, plan, zone)
    while moment < end:
        covering = next((one for one in taken if one.start <= moment < one.end), None)
        if covering is not None:
            moment = covering.end
            continue
        start, moment = _free(moment, every, zone, taken)
        yield NewPartition(partition_name(name, start, every, zone), start, moment)


def _free(moment: datetime, every: Every, zone: ZoneInfo, taken: Sequence[Span]) -> tuple[datetime, datetime]:
    period = free_period(moment, every, zone, taken)
    assert period is not None  # noqa: S101 - the caller has looked: nothing covers this moment
    return period


def _oldest_wanted(taken: Sequence[Partition], plan: PartitionPlan, zone: ZoneInfo) -> datetime:
    """Where gaps begin to count: at the oldest partition, but never before what the next retirement would take."""
    every = plan.archive.every
    current = period_start(plan.now, every, zone)
    starts = [one.start for one in taken if one.start != EVER[0]]
    oldest = min(starts, default=current)
    if plan.cutoff is not None:
        oldest = max(oldest, period_start(plan.cutoff, every, zone))
    floor = current
    for _ in range(GAP_PERIODS):
        floor = period_start(floor - timedelta(microseconds=1), every, zone)
        if floor <= oldest:
            return min(oldest, current)
    return floor
