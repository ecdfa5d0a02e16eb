"""What a retired partition's comment is trusted to say, and what is decided from it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from backendops.backends.postgres.archive_table import ArchiveTable, Partition
from backendops.backends.postgres.partition_work import GAP_PERIODS, decide
from backendops.backends.postgres.quarantine import Detached, Retirement
from backendops.contracts.capabilities import ArchivePlan, Every, PartitionPlan
from backendops.contracts.units import Duration

NOW = datetime(2026, 11, 20, 5, tzinfo=UTC)
DAY = timedelta(days=1)
RETIREMENT = Retirement(
    "quarantined",
    '"public"."we""ird"',
    datetime(2026, 1, 1, tzinfo=UTC),
    datetime(2026, 2, 1, tzinfo=UTC),
    detached_at=NOW,
    drop_after=NOW + 7 * DAY,
)


def month(number: int, year: int = 2026) -> Partition:
    start, end = datetime(year, number, 1, tzinfo=UTC), datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    return Partition(number, "public", f"p{year}_{number:02}", start, end, is_default=False, detach_pending=False)


def archive(*partitions: Partition, others: tuple[Partition, ...] = ()) -> ArchiveTable:
    return ArchiveTable(1, "public", "archive", (), partitions, others, is_owner=True, can_insert=True, role="us")


def plan(
    cutoff: datetime | None = None, *, ahead: int = 1, every: Every = "month", now: datetime = NOW
) -> PartitionPlan:
    return PartitionPlan(now, ArchivePlan(every=every), ahead, cutoff, Duration.parse("7d"))


def detached(retirement: Retirement) -> Detached:
    return Detached(7, "public", "p2026_01", 8192, str(retirement), retirement)


def test_a_comment_is_read_as_it_was_written() -> None:
    assert Retirement.parse(str(RETIREMENT)) == RETIREMENT
    before = replace(RETIREMENT, state="retiring", detached_at=None, drop_after=None)
    assert Retirement.parse(str(before)) == before
    assert str(RETIREMENT).startswith('{"backendops"')


@pytest.mark.parametrize(
    "comment",
    [
        None,
        "",
        "backendops may drop this",
        "[]",
        "{}",
        '{"backendops": "partition"}',
        '{"backendops": "archive", "state": "retiring"}',
        str(RETIREMENT).replace("quarantined", "doomed"),
        str(RETIREMENT).replace("+00:00", ""),
        str(RETIREMENT).replace("2026-01-01", "soon"),
        str(RETIREMENT).replace('"upper"', '"higher"'),
        str(replace(RETIREMENT, drop_after=None)),
        str(replace(RETIREMENT, detached_at=None)),
        json.dumps({**json.loads(str(RETIREMENT)), "extra": 1}),
        str(RETIREMENT)[:-1],
    ],
)
def test_a_comment_that_is_not_ours_to_the_letter_is_none_of_ours(comment: str | None) -> None:
    assert Retirement.parse(comment) is None


def test_only_partitions_wholly_past_the_cutoff_are_retired() -> None:
    there = archive(*(month(number) for number in range(1, 13)))
    for cutoff, last in (
        (datetime(2026, 3, 1, tzinfo=UTC), "p2026_02"),
        (datetime(2026, 3, 31, 23, 59, tzinfo=UTC), "p2026_02"),
    ):
        assert [one.name for one in decide("archive", there, (), plan(cutoff), ZoneInfo("UTC")).retire][-1] == last
    assert decide("archive", there, (), plan(), ZoneInfo("UTC")).retire == ()


def test_neither_the_newest_nor_the_current_partition_is_ever_retired() -> None:
    old = archive(month(1), month(2))
    assert [one.name for one in decide("archive", old, (), plan(NOW), ZoneInfo("UTC")).retire] == ["p2026_01"]
    # A cutoff in the future, whatever made it.
    there = archive(*(month(number) for number in range(9, 13)), month(1, 2027))
    retired = decide("archive", there, (), plan(NOW + 90 * DAY), ZoneInfo("UTC")).retire
    assert [one.name for one in retired] == ["p2026_09", "p2026_10"]


def test_somebodys_partition_without_a_lower_bound_is_left_alone() -> None:
    open_ended = replace(month(1), start=datetime.min.replace(tzinfo=UTC), name="the_past")
    work = decide("archive", archive(open_ended, month(2), month(11)), (), plan(NOW - DAY), ZoneInfo("UTC"))
    assert [one.name for one in work.retire] == ["p2026_02"]


def test_a_stray_old_partition_does_not_fill_a_century() -> None:
    stray = archive(month(1, 1999), month(11))
    assert len(decide("archive", stray, (), plan(every="day"), ZoneInfo("UTC")).create) <= GAP_PERIODS + 2


def test_a_pending_partition_takes_its_place() -> None:
    pending = replace(month(10), detach_pending=True)
    work = decide("archive", archive(month(9), month(11), others=(pending,)), (), plan(), ZoneInfo("UTC"))
    assert work.finish == (pending,)
    assert [one.name for one in work.create] == ["archive_p2026_12"]


def test_the_comments_promise_holds_where_the_policy_became_shorter() -> None:
    left, far = detached(RETIREMENT), NOW - DAY
    for now, quarantine, dropped in (
        (NOW + 6 * DAY, "1d", False),
        (NOW + 7 * DAY, "1d", True),
        (NOW + 8 * DAY, "9d", False),
        (NOW + 9 * DAY, "9d", True),
    ):
        wanted = replace(plan(far, now=now), quarantine=Duration.parse(quarantine))
        work = decide("archive", archive(month(11)), (left,), wanted, ZoneInfo("UTC"))
        assert (work.drop == (left,)) is dropped
        assert (work.waiting == (left,)) is not dropped


def test_what_the_policy_would_keep_again_is_neither_dropped_nor_forgotten() -> None:
    left, much_later = detached(RETIREMENT), NOW + 400 * DAY
    for cutoff in (None, datetime(2026, 1, 15, tzinfo=UTC)):
        work = decide("archive", archive(month(11)), (left,), plan(cutoff, now=much_later), ZoneInfo("UTC"))
        assert (work.kept_again, work.drop) == ((left,), ())


def test_a_month_later_is_a_calendar_month_later() -> None:
    assert datetime(2026, 12, 31, tzinfo=UTC) + Duration.parse("2 months") == datetime(2027, 2, 28, tzinfo=UTC)
    assert datetime(2026, 11, 20, tzinfo=UTC) + Duration.parse("7d") == datetime(2026, 11, 27, tzinfo=UTC)
