"""A five-field cron line, read as cron reads it, and the moments it names."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LENGTHS: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_SUNDAY_AS_7: Final = 7
_FIELDS: Final = 5
# 29 February is eight years away where a century is no leap year.
_FARTHEST: Final = 8 * 366 + 2


@dataclass(frozen=True, slots=True)
class _Field:
    what: str
    low: int
    high: int
    names: tuple[str, ...] = ()
    wraps: bool = True
    too_large: str = ""
    """The way out where an operator counts past the end, as in */90 minutes."""


_MINUTE: Final = _Field("minute", 0, 59, too_large="; for longer gaps write a schedule such as `every 90m`")
_HOUR: Final = _Field("hour", 0, 23, too_large="; for longer gaps write a schedule such as `every 36h`")
# Months differ in length, so a range past the last day has no plain meaning.
_DAY: Final = _Field("day of month", 1, 31, wraps=False)
_MONTH: Final = _Field("month", 1, 12, _MONTHS)
_WEEKDAY: Final = _Field("day of week", 0, 7, _WEEKDAYS)


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron line that fires. Sunday is 0; a day fits by its date and, or, its weekday as cron decides it."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool
    """Are both day fields restricted? Then one of them is enough, as in cron."""

    @classmethod
    def parse(cls, text: str) -> Cron:
        """Read five fields; raises ValueError that says which is wrong and why."""
        fields = text.split()
        if len(fields) == _FIELDS + 1:
            raise ValueError(f"{text!r} has six fields: cron has five and no seconds; for those write `every 30s`")
        if len(fields) != _FIELDS:
            raise ValueError(f"{text!r} has {len(fields)} fields: cron has five, minute hour day month weekday")
        minutes, hours, days, months = (
            _read(part, field) for part, field in zip(fields, (_MINUTE, _HOUR, _DAY, _MONTH), strict=False)
        )
        weekdays = frozenset(number % _SUNDAY_AS_7 for number in _read(fields[4], _WEEKDAY))
        # Cron itself looks at the first character only: */2 counts as unrestricted (crontab(5), and its source).
        either_day = not fields[2].startswith("*") and not fields[4].startswith("*")
        if not either_day and min(days) > max(_LENGTHS[month - 1] for month in months):
            raise ValueError(f"{text!r} never fires: no such month has a day {min(days)}")
        return cls(
            tuple(sorted(minutes)), tuple(sorted(hours)), frozenset(days), frozenset(months), weekdays, either_day
        )

    def next_after(self, moment: datetime, zone: ZoneInfo) -> datetime:
        """The first firing after `moment`, in UTC; `zone` is where the line's hours are."""
        # A day before: where clocks go back at midnight, yesterday's evening comes twice.
        first = moment.astimezone(zone).date() - timedelta(days=1)
        for ahead in range(_FARTHEST):
            day = first + timedelta(days=ahead)
            if self._fits(day):
                firings = _firings(self, day, zone)
                if (place := bisect_right(firings, moment)) < len(firings):
                    return firings[place]
        raise ValueError("this cron line never fires")

    def _fits(self, day: date) -> bool:
        by_date, by_weekday = day.day in self.days, day.isoweekday() % _SUNDAY_AS_7 in self.weekdays
        fits = by_date or by_weekday if self.either_day else by_date and by_weekday
        return fits and day.month in self.months


# A line of every minute has 1,440 a day, and is asked for the next one a dozen times when a policy loads.
@lru_cache(maxsize=64)
def _firings(cron: Cron, day: date, zone: ZoneInfo) -> list[datetime]:
    """The day's firings in UTC. An hour that clocks skip fires an hour later by the clock, never not at all."""
    # An hour that comes twice fires twice only where every hour does: a nightly job runs once that night.
    folds = (0, 1) if len(cron.hours) == _HOUR.high + 1 else (0,)
    return sorted(
        {
            datetime.combine(day, time(hour, minute, fold=fold), zone).astimezone(UTC)
            for hour in cron.hours
            for minute in cron.minutes
            for fold in folds
            if fold == 0 or _comes_twice(datetime.combine(day, time(hour, minute), zone))
        }
    )


def _comes_twice(local: datetime) -> bool:
    first, second = local.replace(fold=0).utcoffset(), local.replace(fold=1).utcoffset()
    return first is not None and second is not None and first > second


def _read(text: str, field: _Field) -> set[int]:
    numbers: set[int] = set()
    for part in text.split(","):
        numbers.update(_part(part, text, field))
    return numbers


def _part(part: str, whole: str, field: _Field) -> Iterator[int]:
    span, slash, step_text = part.partition("/")
    step = _step(step_text, field) if slash else 1
    if span == "*":
        return iter(range(field.low, field.high + 1 - (field is _WEEKDAY), 1)[::step])
    low_text, dash, high_text = span.partition("-")
    low = _number(low_text, whole, field)
    if not dash:
        if slash:
            raise ValueError(f"{part!r} steps from a single {field.what}: write {low}-{field.high}/{step}")
        return iter((low,))
    high = _number(high_text, whole, field)
    if low <= high:
        return iter(range(low, high + 1, step))
    if not field.wraps:
        raise ValueError(f"{part!r} runs backwards: write {low}-{field.high},{field.low}-{high}")
    last = field.high - (field is _WEEKDAY)
    return iter([*range(low, last + 1), *range(field.low, high + 1)][::step])


def _step(text: str, field: _Field) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:9]) >= 1):
        raise ValueError(f"'/{text}' is not a step of the {field.what}: write a whole number from 1")
    if int(text[:9]) > field.high:
        raise ValueError(f"a step of {text} is beyond the {field.what}, {field.low} to {field.high}{field.too_large}")
    return int(text)


def _number(text: str, whole: str, field: _Field) -> int:
    if text.lower() in field.names:
        return field.names.index(text.lower()) + field.low
    if not (text.isascii() and text.isdigit()):
        if re.search(r"[LW#?]|^H", text):
            raise ValueError(f"{whole!r} is not cron's: L, W, #, ? and H belong to other schedulers")
        named = f", or {field.names[0]} to {field.names[-1]}" if field.names else ""
        raise ValueError(f"{text!r} is no {field.what}: write {field.low} to {field.high}{named}")
    number = int(text[:9])
    if not field.low <= number <= field.high:
        raise ValueError(f"{field.what} {text} does not exist: it goes from {field.low} to {field.high}")
    return number
