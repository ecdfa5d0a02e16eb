"""The calendar of partitions: months, weeks and days as the backend's zone has them, as moments in UTC."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol
from zoneinfo import ZoneInfo

from backendops.contracts.capabilities import Every

# NAMEDATALEN of every packaged server, less its closing zero; the server cuts a longer name without a word.
NAME_BYTES: Final = 63


class Span(Protocol):
    """A part of the calendar that is taken."""

    @property
    def start(self) -> datetime: ...

    @property
    def end(self) -> datetime: ...


def period_start(moment: datetime, every: Every, zone: ZoneInfo) -> datetime:
    """The first moment of the month, week (from Monday) or day that `moment` is in, in UTC."""
    day = moment.astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None, fold=0)
    if every == "month":
        day = day.replace(day=1)
    elif every == "week":
        day -= timedelta(days=day.weekday())
    return day.replace(tzinfo=zone).astimezone(UTC)


def next_period(start: datetime, every: Every, zone: ZoneInfo) -> datetime:
    """The first moment of the period after the one that begins at `start`, in UTC."""
    # Landing anywhere inside the next period will do; 32 days reach the next month from any first of a month,
    # and a day is never longer than 25 hours.
    length = {"month": timedelta(days=32), "week": timedelta(days=7, hours=12), "day": timedelta(days=1, hours=12)}
    return period_start(start + length[every], every, zone)


def partition_name(archive: str, start: datetime, every: Every, zone: ZoneInfo) -> str:
    """`celery_taskmeta_archive_p2026_11`, `…_p2026_w47` or `…_p2026_11_20`, within the server's 63 bytes."""
    local = start.astimezone(zone)
    if every == "month":
        suffix = f"_p{local:%Y_%m}"
    elif every == "week":
        year, week, _ = local.isocalendar()
        suffix = f"_p{year:04}_w{week:02}"
    else:
        suffix = f"_p{local:%Y_%m_%d}"
    return fit(archive, suffix)


def fit(name: str, suffix: str = "") -> str:
    """`name` and `suffix` within 63 bytes: a longer name is cut and marked by a hash, so that no two become one."""
    whole = name + suffix
    if len(whole.encode()) <= NAME_BYTES:
        return whole
    mark = "_" + hashlib.sha256(name.encode()).hexdigest()[:8]
    room = NAME_BYTES - len((mark + suffix).encode())
    return name.encode()[:room].decode(errors="ignore") + mark + suffix


def free_period(
    moment: datetime, every: Every, zone: ZoneInfo, taken: Iterable[Span]
) -> tuple[datetime, datetime] | None:
    """The part of `moment`'s period that no span has taken; None where `moment` itself is taken.

    Spans of another length stay as they are: a policy that changes from months to weeks fits its weeks between them.
    """
    start = period_start(moment, every, zone)
    end = next_period(start, every, zone)
    for span in taken:
        if span.start <= moment < span.end:
            return None
        if span.end <= moment:
            start = max(start, span.end)
        else:
            end = min(end, span.start)
    return start, end
