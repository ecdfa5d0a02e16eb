"""Schedules: the same slots for every daemon, cron as cron reads it, and what clocks do in spring and autumn."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from apscheduler.schedulers.background import BackgroundScheduler

from backendops.policy.schedule import Schedule

BERLIN = ZoneInfo("Europe/Berlin")
UTC_ZONE = ZoneInfo("UTC")
WEDNESDAY = datetime(2026, 3, 4, 10, 17, 30, tzinfo=UTC)


def firings(text, count, start=WEDNESDAY, zone=UTC_ZONE):
    schedule, moments = Schedule.parse(text, zone), []
    for _ in range(count):
        start = schedule.next_after(start)
        moments.append(start)
    assert all(moment.tzinfo is UTC for moment in moments)
    return [f"{moment:%m-%d %H:%M:%S}" for moment in moments]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("every 90s", ["03-04 10:18:00", "03-04 10:19:30"]),
        ("every 15m", ["03-04 10:30:00", "03-04 10:45:00"]),
        ("every 1h 0", None),
        ("@every 6h", ["03-04 12:00:00", "03-04 18:00:00"]),
        ("every day", ["03-05 00:00:00", "03-06 00:00:00"]),
        # 1970-01-01 was a Thursday: weeks are counted from there.
        ("every 1w", ["03-05 00:00:00", "03-12 00:00:00"]),
        ("*/20 * * * *", ["03-04 10:20:00", "03-04 10:40:00"]),
        ("15 2 * * *", ["03-05 02:15:00", "03-06 02:15:00"]),
        ("0 9-11 * * *", ["03-04 11:00:00", "03-05 09:00:00"]),
        ("0 22-1 * * *", ["03-04 22:00:00", "03-04 23:00:00", "03-05 00:00:00", "03-05 01:00:00", "03-05 22:00:00"]),
        ("5,10 10-18/4 * * *", ["03-04 14:05:00", "03-04 14:10:00", "03-04 18:05:00"]),
        # 0 and 7 are Sunday, the 8th.
        ("0 0 * * 0", ["03-08 00:00:00", "03-15 00:00:00"]),
        ("0 0 * * 7", ["03-08 00:00:00", "03-15 00:00:00"]),
        ("0 0 * * sun", ["03-08 00:00:00", "03-15 00:00:00"]),
        ("0 0 * * 1", ["03-09 00:00:00", "03-16 00:00:00"]),
        ("0 0 * * 5-7", ["03-06 00:00:00", "03-07 00:00:00", "03-08 00:00:00", "03-13 00:00:00"]),
        ("0 0 * * fri-mon", ["03-06 00:00:00", "03-07 00:00:00", "03-08 00:00:00", "03-09 00:00:00", "03-13 00:00:00"]),
        ("0 0 * * 5-1", ["03-06 00:00:00", "03-07 00:00:00", "03-08 00:00:00", "03-09 00:00:00", "03-13 00:00:00"]),
        ("0 0 * * MON-FRI", ["03-05 00:00:00", "03-06 00:00:00", "03-09 00:00:00"]),
        ("0 0 1 nov-jan *", ["11-01 00:00:00", "12-01 00:00:00", "01-01 00:00:00", "11-01 00:00:00"]),
        # Both day fields: one of them is enough. With a star in one, even */2, both must fit.
        ("0 0 13 * fri", ["03-06 00:00:00", "03-13 00:00:00", "03-20 00:00:00"]),
        ("0 0 6 * mon", ["03-06 00:00:00", "03-09 00:00:00", "03-16 00:00:00"]),
        ("0 0 */2 * mon", ["03-09 00:00:00", "03-23 00:00:00", "04-13 00:00:00"]),
        ("0 0 31 * *", ["03-31 00:00:00", "05-31 00:00:00", "07-31 00:00:00"]),
        ("0 0 29 2 *", ["02-29 00:00:00"]),
        ("@hourly", ["03-04 11:00:00"]),
        ("@daily", ["03-05 00:00:00"]),
        ("@midnight", ["03-05 00:00:00"]),
        ("@weekly", ["03-08 00:00:00"]),
        ("@monthly", ["04-01 00:00:00"]),
        ("@yearly", ["01-01 00:00:00"]),
        (" @Annually ", ["01-01 00:00:00"]),
    ],
)
def test_firings(text, expected):
    if expected is None:
        with pytest.raises(ValueError, match="is not a duration"):
            Schedule.parse(text, UTC_ZONE)
    else:
        assert firings(text, len(expected)) == expected


def test_weekdays_agree_with_the_calendar_for_a_year():
    for weekday, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat")):
        for text in (f"0 12 * * {weekday}", f"0 12 * * {name}"):
            schedule, moment = Schedule.parse(text, UTC_ZONE), WEDNESDAY
            for _ in range(53):
                moment = schedule.next_after(moment)
                assert f"{moment:%a}".lower() == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the schedule is empty"),
        ("nightly", "'nightly' is not a schedule: write `every 15m`"),
        ("at noon", "is not a schedule"),
        ("every", "is not a duration"),
        ("every 0s", "is no time at all"),
        ("every 500ms", "is under a second: the shortest is `every 1s`"),
        ("every 2 months", "has no fixed length: write '@monthly'"),
        ("every fortnight", "unknown unit 'fortnight'"),
        ("@dayly", "did you mean '@daily'?"),
        ("@reboot", "the daemon catches up a missed run by itself"),
        ("@fortnightly-ish", "'@fortnightly-ish' is not a schedule: "),
        ("* * *", "has 3 fields: cron has five"),
        ("0 0 2 * * *", "has six fields: cron has five and no seconds"),
        ("60 * * * *", "minute 60 does not exist: it goes from 0 to 59"),
        ("0 24 * * *", "hour 24 does not exist: it goes from 0 to 23"),
        ("0 0 0 * *", "day of month 0 does not exist"),
        ("0 0 32 * *", "day of month 32 does not exist"),
        ("0 0 * 13 *", "month 13 does not exist"),
        ("0 0 * * 8", "day of week 8 does not exist"),
        ("0 0 * * funday", "'funday' is no day of week: write 0 to 7, or sun to sat"),
        ("0 0 * sun *", "'sun' is no month: write 1 to 12, or jan to dec"),
        ("a * * * *", "'a' is no minute: write 0 to 59"),
        ("-5 * * * *", "'' is no minute"),
        ("5- * * * *", "'' is no minute"),
        ("1,,2 * * * *", "'' is no minute"),
        ("٣ * * * *", "is no minute"),
        ("*/0 * * * *", "'/0' is not a step of the minute"),
        ("*/x * * * *", "'/x' is not a step of the minute"),
        ("*/90 * * * *", "for longer gaps write a schedule such as `every 90m`"),
        ("5/15 * * * *", "'5/15' steps from a single minute: write 5-59/15"),
        ("0 0 28-3 * *", "'28-3' runs backwards: write 28-31,1-3"),
        ("0 0 L * *", "L, W, #, ? and H belong to other schedulers"),
        ("0 0 ? * *", "belong to other schedulers"),
        ("H * * * *", "belong to other schedulers"),
        ("0 0 * * 5#2", "belong to other schedulers"),
        ("0 0 31 2 *", "'0 0 31 2 *' never fires: no such month has a day 31"),
        ("0 0 30-31 2 *", "never fires: no such month has a day 30"),
        ("0 0 31 4,6,9,11 *", "never fires"),
        ("99999999999999999999 * * * *", "does not exist"),
    ],
)
def test_a_schedule_that_is_none(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Schedule.parse(text, UTC_ZONE)


def test_an_impossible_date_is_possible_beside_a_weekday():
    assert firings("0 0 31 2 mon", 2, datetime(2026, 2, 1, tzinfo=UTC)) == ["02-02 00:00:00", "02-09 00:00:00"]


def test_hours_are_those_of_the_time_zone():
    assert firings("15 2 * * *", 1, zone=BERLIN) == ["03-05 01:15:00"]
    assert firings("15 2 * * *", 1, datetime(2026, 7, 1, 12, tzinfo=UTC), BERLIN) == ["07-02 00:15:00"]


def test_a_skipped_hour_fires_an_hour_later_by_the_clock():
    # 29 March 2026, 02:00 to 03:00 does not exist in Berlin.
    assert firings("30 2 * * *", 3, datetime(2026, 3, 28, tzinfo=UTC), BERLIN) == [
        "03-28 01:30:00",
        "03-29 01:30:00",  # 03:30
        "03-30 00:30:00",
    ]
    assert firings("30 2-3 29 3 *", 1, datetime(2026, 3, 29, tzinfo=UTC), BERLIN) == ["03-29 01:30:00"]


def test_a_repeated_hour_fires_a_nightly_job_once_and_an_hourly_one_twice():
    # 25 October 2026, 02:00 to 03:00 comes twice in Berlin.
    night = datetime(2026, 10, 24, 23, 0, tzinfo=UTC)
    assert firings("30 2 * * *", 2, night, BERLIN) == ["10-25 00:30:00", "10-26 01:30:00"]
    assert firings("30 * * * *", 3, night, BERLIN) == ["10-24 23:30:00", "10-25 00:30:00", "10-25 01:30:00"]


@pytest.mark.parametrize(
    "zone", ["America/Sao_Paulo", "Asia/Beirut", "Australia/Lord_Howe", "Pacific/Apia", "Africa/Cairo"]
)
def test_firings_only_ever_go_forward(zone):
    for text in ("*/10 * * * *", "0 0 * * *", "30 23 * * *", "45 1 * * *"):
        schedule, moment = Schedule.parse(text, ZoneInfo(zone)), datetime(2011, 12, 20, tzinfo=UTC)
        for _ in range(400):
            following = schedule.next_after(moment)
            assert following > moment
            assert following - moment <= timedelta(days=2)
            moment = following


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("every 90s", timedelta(seconds=90)),
        ("*/5 * * * *", timedelta(minutes=5)),
        ("15 2 * * *", timedelta(days=1)),
        ("0 9-17 * * mon-fri", timedelta(hours=1)),
        ("0 0 * * mon-fri", timedelta(days=1)),
        ("@weekly", timedelta(days=7)),
        ("@monthly", timedelta(days=31)),
    ],
)
def test_interval_is_the_usual_gap(text, interval):
    assert Schedule.parse(text, UTC_ZONE).interval == interval


def test_slots_of_an_interval_are_the_same_whoever_asks_and_when():
    schedule = Schedule.parse("every 7m", UTC_ZONE)
    slots = {schedule.next_after(WEDNESDAY + timedelta(seconds=second)) for second in range(0, 7 * 60, 13)}
    assert len(slots) <= 2
    assert all(slot.timestamp() % (7 * 60) == 0 for slot in slots)
    slot = min(slots)
    assert schedule.next_after(slot) == slot + timedelta(minutes=7)
    assert schedule.next_after(slot - timedelta(microseconds=1)) == slot


def test_apscheduler_asks_for_the_slot_after_the_last_one():
    for text in ("every 1m", "* * * * *"):
        trigger = Schedule.parse(text, UTC_ZONE).trigger
        slot = datetime(2026, 3, 4, 10, 18, tzinfo=UTC)
        assert trigger.get_next_fire_time(None, WEDNESDAY) == slot
        assert trigger.get_next_fire_time(None, slot) == slot
        assert trigger.get_next_fire_time(slot, slot) == slot + timedelta(minutes=1)


def test_a_host_that_slept_owes_one_run():
    trigger = Schedule.parse("every 1s", UTC_ZONE).trigger
    awake = WEDNESDAY + timedelta(hours=8, milliseconds=300)
    late = trigger.get_next_fire_time(WEDNESDAY, awake)
    assert late == WEDNESDAY + timedelta(hours=8)
    assert trigger.get_next_fire_time(late, awake) == late + timedelta(seconds=1)


def test_many_jobs_of_every_minute_are_read_at_once():
    began = time.monotonic()
    for _ in range(100):
        Schedule.parse("* * * * *", BERLIN)
    assert time.monotonic() - began < 5, "it was 15 s"


def test_a_cron_line_owes_one_run_too():
    trigger = Schedule.parse("*/5 * * * *", BERLIN).trigger
    awake = WEDNESDAY + timedelta(days=30)
    late = trigger.get_next_fire_time(WEDNESDAY, awake)
    assert late == awake.replace(minute=15, second=0)
    assert trigger.get_next_fire_time(late, awake) == late + timedelta(minutes=5)


@pytest.mark.parametrize("text", ["every 10m", "0 3 * * *"])
def test_apscheduler_takes_the_trigger(text):
    scheduler = BackgroundScheduler(timezone=UTC)
    scheduler.start(paused=True)
    try:
        schedule = Schedule.parse(text, BERLIN)
        before = datetime.now(UTC)
        job = scheduler.add_job(print, schedule.trigger)
        assert job.next_run_time in {schedule.next_after(before), schedule.next_after(datetime.now(UTC))}
    finally:
        scheduler.shutdown()
