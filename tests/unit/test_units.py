"""Durations and sizes as operators write them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import TypeAdapter, ValidationError

from backendops.contracts.units import FOREVER, ByteSize, Duration, FixedDuration, Keep, format_bytes, format_seconds


@pytest.mark.parametrize(
    ("text", "rest", "months"),
    [
        ("250ms", timedelta(milliseconds=250), 0),
        ("30s", timedelta(seconds=30), 0),
        ("1.5h", timedelta(minutes=90), 0),
        (" 15 m ", timedelta(minutes=15), 0),
        ("7d", timedelta(days=7), 0),
        ("2W", timedelta(weeks=2), 0),
        ("13 months", timedelta(), 13),
        ("1 year", timedelta(), 12),
    ],
)
def test_duration(text, rest, months):
    assert Duration.parse(text) == Duration(rest, months)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a duration: write a number and a unit"),
        (30, "30 is not a duration"),
        (None, "is not a duration"),
        ("d", "is not a duration"),
        ("-3d", "is not a duration"),
        ("1h30m", "is not a duration"),
        ("3 lightyears", "unknown unit 'lightyears'"),
        ("1.5 months", "is not a whole number of months"),
        ("0s", "is no time at all"),
        ("200 years", "is over a hundred years: say forever"),
        ("9" * 400 + "d", "is longer than backendops can count"),
        ("1000000000 months", "is over a hundred years: say forever"),
        ("100000000000 weeks", "is longer than backendops can count"),
        ("9" * 400 + " months", "is longer than backendops can count"),
    ],
)
def test_no_duration(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Duration.parse(text)


def test_months_are_calendar_months():
    assert datetime(2026, 3, 31, 5, tzinfo=UTC) - Duration.parse("1 month") == datetime(2026, 2, 28, 5, tzinfo=UTC)
    assert datetime(2026, 1, 15, tzinfo=UTC) - Duration.parse("13 months") == datetime(2024, 12, 15, tzinfo=UTC)
    assert datetime(2024, 2, 29, tzinfo=UTC) - Duration.parse("1 year") == datetime(2023, 2, 28, tzinfo=UTC)


@pytest.mark.parametrize("text", ["250ms", "30s", "15m", "6h", "3d", "2w", "1 month", "13 months"])
def test_a_duration_reads_as_it_was_written(text):
    assert str(Duration.parse(text)) == text


def test_keep():
    keep = TypeAdapter(Keep)
    assert keep.validate_python("forever") is FOREVER
    assert keep.validate_python("30d") == Duration(timedelta(days=30))
    for ambiguous in (0, "0", "never", None):
        with pytest.raises(ValidationError, match="write a duration such as 30d, or forever"):
            keep.validate_python(ambiguous)


def test_a_fixed_duration_has_no_months():
    fixed = TypeAdapter(FixedDuration)
    assert fixed.validate_python("15m") == timedelta(minutes=15)
    with pytest.raises(ValidationError, match="has no fixed length"):
        fixed.validate_python("1 month")


def test_sizes():
    size = TypeAdapter(ByteSize)
    assert [size.validate_python(text) for text in ("512MiB", "1.5 kB", 100, "7", "0")] == [
        512 * 1024**2,
        1500,
        100,
        7,
        0,
    ]
    for wrong in ("512 parsecs", "-1", -1, True, None, [], "9" * 400 + "TiB", "9" * 400):
        with pytest.raises(ValidationError, match="is not a size"):
            size.validate_python(wrong)


def test_formats():
    assert [format_bytes(n) for n in (0, 1023, 1536, 5 * 1024**3, 2**50)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 GiB",
        "1024.0 TiB",
    ]
    assert [format_seconds(s) for s in (0.25, 12.3, 93784, 3600)] == ["250 ms", "12.3 s", "1d 2h", "1h"]
