"""Cutoffs in the zone of naive dates, and the calendar of partitions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from backendops.backends.postgres.drift import takes
from backendops.backends.postgres.due import naive
from backendops.backends.postgres.periods import fit, free_period, next_period, partition_name, period_start
from backendops.contracts.capabilities import Every

NEW_YORK = ZoneInfo("America/New_York")
ZONES = [
    "UTC",
    "America/New_York",
    "Europe/Berlin",
    "Australia/Lord_Howe",
    "America/Havana",
    "Asia/Beirut",
    "Asia/Tokyo",
]


@pytest.mark.parametrize("zone", ZONES)
def test_no_row_is_due_before_its_time_whatever_the_clock_does(zone: str) -> None:
    """Every quarter of an hour of a year: whatever a naive time can stand for, it has passed when it is due."""
    place = ZoneInfo(zone)
    moment, end = datetime(2025, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
    while moment < end:
        just_due = naive(moment, place) - timedelta(microseconds=1)
        latest = max(just_due.replace(tzinfo=place, fold=fold).astimezone(UTC) for fold in (0, 1))
        # Half past two on the night that clocks skip it never was; what is written then stands for an hour later.
        assert latest < moment or _never_was(just_due, place)
        assert moment - latest <= timedelta(hours=1, microseconds=1)
        moment += timedelta(minutes=15)


def _never_was(written: datetime, zone: ZoneInfo) -> bool:
    return written.replace(tzinfo=zone).astimezone(UTC).astimezone(zone).replace(tzinfo=None) != written


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("every", ["month", "week", "day"])
def test_periods_follow_each_other_without_a_gap(zone: str, every: Every) -> None:
    place = ZoneInfo(zone)
    start, names = period_start(datetime(2024, 12, 30, 12, tzinfo=UTC), every, place), set()
    while start < datetime(2026, 2, 1, tzinfo=UTC):
        end = next_period(start, every, place)
        assert start < end
        assert period_start(start, every, place) == start
        assert period_start(end - timedelta(microseconds=1), every, place) == start
        assert period_start(end, every, place) == end
        name = partition_name("archive", start, every, place)
        assert name not in names
        names.add(name)
        start = end


def test_names_of_partitions() -> None:
    start = period_start(datetime(2026, 11, 20, 2, tzinfo=UTC), "day", NEW_YORK)
    assert start == datetime(2026, 11, 19, 5, tzinfo=UTC)
    assert partition_name("a", start, "day", NEW_YORK) == "a_p2026_11_19"
    assert partition_name("a", start, "month", NEW_YORK) == "a_p2026_11"
    # The first of January 2027 is in the last week of 2026.
    assert partition_name("a", datetime(2027, 1, 1, tzinfo=UTC), "week", ZoneInfo("UTC")) == "a_p2026_w53"


@pytest.mark.parametrize("name", ["x" * 63, "x" * 80, "☃" * 21, "é" * 31 + "x", "ok"])
def test_long_names_fit_and_stay_apart(name: str) -> None:
    for suffix in ("", "_archive", "_p2026_11"):
        fitted = fit(name, suffix)
        assert len(fitted.encode()) <= 63
        assert fitted.endswith(suffix)
        assert fit(name + "y", suffix) != fitted


class Taken:
    def __init__(self, first: int, last: int) -> None:
        self.start, self.end = datetime(2026, 4, first, tzinfo=UTC), datetime(2026, 4, last, tzinfo=UTC)


def test_a_period_fits_between_what_is_taken() -> None:
    utc, moment = ZoneInfo("UTC"), datetime(2026, 4, 15, 12, tzinfo=UTC)
    assert free_period(moment, "month", utc, []) == (datetime(2026, 4, 1, tzinfo=UTC), datetime(2026, 5, 1, tzinfo=UTC))
    assert free_period(moment, "month", utc, [Taken(15, 16)]) is None
    assert free_period(moment, "month", utc, [Taken(1, 10), Taken(20, 21)]) == (Taken(10, 20).start, Taken(10, 20).end)
    assert free_period(moment, "day", utc, [Taken(1, 15)]) == (Taken(15, 16).start, Taken(15, 16).end)


@pytest.mark.parametrize(
    ("live", "archive", "fits"),
    [
        ("bytea", "bytea", True), ("bytea", "text", False), ("integer", "bigint", True), ("bigint", "integer", False),
        ("character varying(155)", "character varying(155)", True),
        ("character varying(155)", "character varying(255)", True),
        ("character varying(255)", "character varying(155)", False),
        ("character varying(155)", "text", True), ("character varying", "character varying(155)", False),
        ("text", "character varying", True), ("text", "bytea", False),
        ("timestamp without time zone", "timestamp with time zone", False), ("character(5)", "text", False),
    ],
)  # fmt: skip
def test_which_types_take_which(live: str, archive: str, fits: bool) -> None:
    assert takes(live, archive) is fits
