"""Durations and sizes as operators write them: 30s, 15m, 13 months, 512MiB."""

from __future__ import annotations

import calendar
import math
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, GetCoreSchemaHandler, GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

_SECONDS: Final = {
    "ms": 0.001,
    "s": 1, "second": 1, "seconds": 1,
    "m": 60, "minute": 60, "minutes": 60,
    "h": 3600, "hour": 3600, "hours": 3600,
    "d": 86400, "day": 86400, "days": 86400,
    "w": 604800, "week": 604800, "weeks": 604800,
}  # fmt: skip
_MONTHS: Final = {"month": 1, "months": 1, "year": 12, "years": 12}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)", re.IGNORECASE)
_EXAMPLES: Final = "write a number and a unit, such as 30s, 15m, 6h, 7d, 2w or 13 months"


@dataclass(frozen=True, slots=True)
class Duration:
    """A length of time; months and years are calendar ones, so 1 month before 31 March is 28 February."""

    rest: timedelta = timedelta()
    months: int = 0

    @classmethod
    def parse(cls, text: object) -> Duration:
        """Read `7d` or `13 months`; raises ValueError that says how to write it."""
        if isinstance(text, Duration):
            return text
        if isinstance(text, timedelta):
            return cls(text)
        match = _DURATION.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f"{text!r} is not a duration: {_EXAMPLES}")
        amount, unit = float(match[1]), match[2].lower()
        # In any unit, this is over a hundred years or a slip of the finger.
        if amount > 10**12:
            raise ValueError(f"{text!r} is longer than backendops can count")
        if unit in _MONTHS:
            if amount != int(amount):
                raise ValueError(f"{text!r} is not a whole number of months")
            # More would not fit a timedelta below; it is refused there.
            duration = cls(months=min(int(amount) * _MONTHS[unit], 12_000))
        elif unit in _SECONDS:
            try:
                duration = cls(timedelta(seconds=amount * _SECONDS[unit]))
            except OverflowError:
                raise ValueError(f"{text!r} is longer than backendops can count") from None
        else:
            raise ValueError(f"{text!r} is not a duration: unknown unit {match[2]!r}, {_EXAMPLES}")
        if not duration:
            raise ValueError(f"{text!r} is no time at all: {_EXAMPLES} (to keep results, say forever)")
        # datetime has no year before 1; nobody keeps results for a century.
        if duration.shortest > timedelta(days=36500):
            raise ValueError(f"{text!r} is over a hundred years: say forever")
        return duration

    @property
    def shortest(self) -> timedelta:
        """The least this can be: for comparing two durations, a month counts 28 days."""
        return self.rest + timedelta(days=28 * self.months)

    def __bool__(self) -> bool:
        return bool(self.rest or self.months)

    def __rsub__(self, moment: datetime) -> datetime:
        """`now - duration`, on the calendar where it has months."""
        months = moment.year * 12 + moment.month - 1 - self.months
        year, month = divmod(months, 12)
        day = min(moment.day, calendar.monthrange(year, month + 1)[1])
        return moment.replace(year=year, month=month + 1, day=day) - self.rest

    def __radd__(self, moment: datetime) -> datetime:
        """`now + duration`, on the calendar where it has months."""
        return moment - Duration(-self.rest, -self.months)

    def __str__(self) -> str:
        if self.months:
            return f"{self.months} month{'s' if self.months > 1 else ''}"
        seconds = self.rest.total_seconds()
        for unit in ("w", "d", "h", "m"):
            if seconds and seconds % _SECONDS[unit] == 0:
                return f"{seconds / _SECONDS[unit]:g}{unit}"
        return f"{seconds:g}s" if seconds >= 1 else f"{seconds * 1000:g}ms"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(cls.parse, serialization=core_schema.to_string_ser_schema())

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {
            "type": "string",
            "pattern": r"^\s*\d+(\.\d+)?\s*[A-Za-z]+\s*$",
            "examples": ["30s", "15m", "7d", "13 months"],
        }


class Forever(Enum):
    """The explicit word for keeping results without end."""

    FOREVER = "forever"

    def __str__(self) -> str:
        return self.value


FOREVER: Final = Forever.FOREVER


def _keep(value: object) -> Duration | Forever:
    if value == "forever" or value is FOREVER:
        return FOREVER
    if value in (0, "0", "never", None):
        raise ValueError(f"{value!r} is ambiguous: write a duration such as 30d, or forever")
    return Duration.parse(value)


Keep = Annotated[
    Duration | Forever,
    BeforeValidator(_keep),
    WithJsonSchema({"type": "string", "examples": ["30d", "13 months", "forever"]}),
]
"""How long results are kept: a duration, or `forever`."""


def _fixed(value: object) -> timedelta:
    duration = Duration.parse(value)
    if duration.months:
        raise ValueError(f"{value!r} has no fixed length: use days or weeks here")
    return duration.rest


FixedDuration = Annotated[
    timedelta,
    BeforeValidator(_fixed),
    WithJsonSchema({"type": "string", "examples": ["90s", "15m", "6h"]}),
]
"""A duration of fixed length, for timeouts and intervals."""

_BYTES: Final = {
    "": 1, "b": 1,
    "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4,
    "kib": 1024, "mib": 1024**2, "gib": 1024**3, "tib": 1024**4,
}  # fmt: skip


def _size(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", value.strip()) if isinstance(value, str) else None
    if match is None or match[2].lower() not in _BYTES:
        raise ValueError(f"{value!r} is not a size: write a number and a unit, such as 64KiB, 512MiB or 2GiB")
    size = float(match[1]) * _BYTES[match[2].lower()]
    if math.isinf(size):
        raise ValueError(f"{value!r} is not a size that any machine has")
    return int(size)


ByteSize = Annotated[
    int,
    BeforeValidator(_size),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["64KiB", "512MiB"]}),
]
"""A size in bytes, written as 512MiB or as a plain number of bytes."""


def format_bytes(size: float) -> str:
    """`1536` reads `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:  # noqa: PLR2004 - what a KiB is
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """`93784` reads `1d 2h`, `0.25` reads `250 ms`: two units at most."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:  # noqa: PLR2004 - what a minute is
        return f"{seconds:.1f} s"
    whole, parts = int(seconds), []
    for name, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if whole >= length:
            parts.append(f"{whole // length}{name}")
            whole %= length
    return " ".join(parts[:2])
