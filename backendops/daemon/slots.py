"""Slots: the moments of a schedule, the same for every daemon; each is run once."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from backendops.contracts.run import Outcome
from backendops.engine.report import RunReport
from backendops.policy.schedule import Schedule

# 29 February of a weekday comes round within 28 years; looking further back finds no missed run worth making up.
_LOOK_BACK: Final = timedelta(days=400)

# What a restart tries again, once. A run that was cancelled, or that used up its time, has had its turn.
_UNFINISHED: Final = frozenset({Outcome.STOPPED, Outcome.LOCKED})
# Between the claim and the first line in the ledger lie a connection and its timeouts. A claim that
# has no run after this long is of a process that was ended, maybe while it waited for another run's lock.
TRACELESS_AFTER: Final = timedelta(minutes=1)


def last_slot(schedule: Schedule, now: datetime) -> datetime | None:
    """The latest moment of the schedule that is not after `now`; None where there was none within a year."""
    back = schedule.interval
    while (slot := schedule.trigger.last_at(now, now - back)) is None and back <= _LOOK_BACK:
        back *= 2
    return slot


def missed(slot: datetime, now: datetime, last_run: RunReport | None, last_success: datetime | None) -> list[datetime]:
    """What to claim, in this order, to make up for `slot`; nothing where it was run.

    A slot that was claimed but whose run was killed, stopped or failed is claimed by the end of that run, and one that
    was claimed but never run by the moment after it: once for everybody, however many daemons start again.
    """
    if last_success is not None and last_success >= slot:
        return []
    if last_run is None or last_run.ended_at < slot:
        return [slot, slot + timedelta(microseconds=1)] if now - slot > TRACELESS_AFTER else [slot]
    if last_run.outcome.is_failure or last_run.outcome in _UNFINISHED:
        return [slot, last_run.ended_at]
    return [slot]
