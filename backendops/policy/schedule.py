"""When a job runs: `every 90s`, a five-field cron line, or @daily."""

from __future__ import annotations

import difflib
from abc import abstractmethod
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import median_low
from typing import Final
from zoneinfo import ZoneInfo

from apscheduler.triggers.base import BaseTrigger

from backendops.contracts.units import Duration
from backendops.policy.cron import Cron

_EXAMPLES: Final = "write `every 15m`, a five-field cron line such as '15 2 * * *', or '@daily'"
_NICKNAMES: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
# Below a second, starting the run takes longer than the gap to the next one.
_SHORTEST: Final = timedelta(seconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
# Enough to see past a weekend and a night; the reference is a Monday, far from any change of clocks.
_SAMPLE: Final = 12
_REFERENCE: Final = datetime(2024, 1, 1, tzinfo=UTC)


class _Slots(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """Moments that follow from the clock alone, so that every daemon and every restart sees the same ones."""

    @abstractmethod
    def next_after(self, moment: datetime) -> datetime:
        """The first slot after `moment`, in UTC."""

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        """What APScheduler asks: the slot after the previous one, or the first from `now` on."""
        if previous_fire_time is None:
            return self.next_after(now - _MICROSECOND)
        # Of slots missed in a row only the last: a host that slept owes one run, not thousands, and the loop must not
        # count them one by one either.
        return self.last_at(now, previous_fire_time) or self.next_after(previous_fire_time)

    def last_at(self, now: datetime, since: datetime) -> datetime | None:
        """The last slot up to `now` and after `since`; None where there is none."""
        if (slot := self.next_after(since)) > now:
            return None
        # A schedule of working hours has hundreds of slots in a day: halve the time between instead of counting them.
        after = now
        while (following := self.next_after(slot)) <= now:
            middle = slot + (after - slot) / 2
            nearer = self.next_after(middle)
            if nearer <= now:
                slot = nearer
            else:
                slot, after = following, middle
        return slot


class EveryTrigger(_Slots):
    """Slots of a fixed length, counted from 1970-01-01 00:00 UTC."""

    def __init__(self, interval: timedelta) -> None:
        self.interval = interval

    def next_after(self, moment: datetime) -> datetime:
        return _EPOCH + ((moment - _EPOCH) // self.interval + 1) * self.interval

    def last_at(self, now: datetime, since: datetime) -> datetime | None:
        latest = _EPOCH + ((now - _EPOCH) // self.interval) * self.interval
        return latest if latest > since else None

    def __str__(self) -> str:
        return f"every {Duration(self.interval)}"


class CronTrigger(_Slots):
    """The moments of a cron line in one time zone."""

    def __init__(self, cron: Cron, zone: ZoneInfo) -> None:
        self.cron = cron
        self.zone = zone

    def next_after(self, moment: datetime) -> datetime:
        return self.cron.next_after(moment, self.zone)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule that is known to fire; `text` is what the policy says."""

    text: str
    trigger: EveryTrigger | CronTrigger
    interval: timedelta
    """The usual gap between two firings: what back-off counts in."""

    @classmethod
    def parse(cls, text: str, zone: ZoneInfo) -> Schedule:
        """Read what the policy says; raises ValueError with the way to write it."""
        words = text.split()
        if not words:
            raise ValueError(f"the schedule is empty: {_EXAMPLES}, or leave it out to run only when asked")
        first = words[0].lower()
        if first in {"every", "@every"}:
            interval = _interval(text, " ".join(words[1:]))
            return cls(text, EveryTrigger(interval), interval)
        if first.startswith("@"):
            trigger = CronTrigger(Cron.parse(_nickname(text.strip().lower())), zone)
        elif len(words) == 1 or not any(character.isdigit() or character == "*" for character in text):
            raise ValueError(f"{text!r} is not a schedule: {_EXAMPLES}")
        else:
            trigger = CronTrigger(Cron.parse(text), zone)
        return cls(text, trigger, _usual_gap(trigger))

    def next_after(self, moment: datetime) -> datetime:
        """The first firing after `moment`, in UTC."""
        return self.trigger.next_after(moment)

    def __str__(self) -> str:
        return self.text


def _interval(text: str, length: str) -> timedelta:
    duration = Duration.parse(length if length[:1].isdigit() or not length else f"1 {length}")
    if duration.months:
        raise ValueError(f"{text!r} has no fixed length: write '@monthly', '@yearly', or a cron line")
    if duration.rest < _SHORTEST:
        raise ValueError(f"{text!r} is under a second: the shortest is `every 1s`")
    return duration.rest


def _nickname(text: str) -> str:
    if text in _NICKNAMES:
        return _NICKNAMES[text]
    if text == "@reboot":
        raise ValueError("'@reboot' is not a time: the daemon catches up a missed run by itself when it starts")
    close = difflib.get_close_matches(text, _NICKNAMES, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(_NICKNAMES)}"
    raise ValueError(f"{text!r} is not a schedule: {hint}")


def _usual_gap(trigger: CronTrigger) -> timedelta:
    moments = [_REFERENCE]
    for _ in range(_SAMPLE):
        moments.append(trigger.next_after(moments[-1]))
    # The first one only begins the count: the reference is no firing.
    return median_low(later - earlier for earlier, later in pairwise(moments[1:]))
