"""Batches aim at a time, whatever the server and the rows are like."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from backendops.engine.pacing import AIM as SHARE
from backendops.engine.pacing import (
    GENTLE_BATCH_TIME,
    GENTLE_ROWS,
    GENTLE_SMALLEST,
    GROWTH,
    LARGEST,
    REST,
    SMALLEST,
    TimedPace,
    TwoPaces,
)

# What batches of the default batch_time, 250 ms, aim at.
AIM = 0.25 * SHARE


def drive(pace: TimedPace, seconds_for: Callable[[int], float], batches: int) -> list[float]:
    """What each of so many batches takes on a server where a batch of n rows takes `seconds_for(n)`."""
    took = []
    for _ in range(batches):
        took.append(seconds_for(pace.size))
        pace.measured(pace.size, took[-1])
    return took


@pytest.mark.parametrize("rate", [200, 4_000, 30_000, 120_000])
def test_it_settles_at_the_time_it_aims_at(rate: float) -> None:
    took = drive(TimedPace(1000), lambda rows: rows / rate, 30)
    assert took[-1] == pytest.approx(AIM, rel=0.1)


def test_it_settles_where_a_batch_has_a_fixed_cost() -> None:
    took = drive(TimedPace(1000), lambda rows: 0.04 + rows / 10_000, 60)
    assert took[-1] == pytest.approx(AIM, rel=0.15)


def test_one_jump_is_never_more_than_the_growth() -> None:
    pace = TimedPace(1000)
    pace.measured(1000, 0.0001)
    assert pace.size == 1000 * GROWTH


def test_a_server_that_becomes_slow_is_followed_at_once() -> None:
    pace = TimedPace(1000)
    drive(pace, lambda rows: rows / 40_000, 20)
    took = drive(pace, lambda rows: rows / 4_000, 4)
    assert took[0] > 9 * AIM  # nobody could know
    assert took[2] < 2 * AIM


def test_it_stays_between_floor_and_ceiling() -> None:
    pace = TimedPace(1000)
    drive(pace, lambda rows: rows * 10.0, 20)
    assert pace.size == SMALLEST
    drive(pace, lambda rows: rows / 1e9, 40)
    assert pace.size == LARGEST


def test_a_policy_may_start_below_the_floor() -> None:
    assert TimedPace(3).size == 3


def test_the_last_rows_of_a_table_say_nothing() -> None:
    pace = TimedPace(1000)
    pace.measured(1000, AIM)
    pace.measured(3, 0.02)
    pace.measured(0, 0.02)
    assert pace.size == 1000


def test_a_small_batch_that_took_too_long_does_say_something() -> None:
    pace = TimedPace(1000)
    pace.measured(100, 1.0)
    assert pace.size < 100


def test_a_timeout_halves_and_the_size_recovers_slowly() -> None:
    pace = TimedPace(8000)
    pace.timed_out()
    assert pace.size == 4000
    pace.timed_out()
    assert pace.size == 2000
    sizes = []
    for _ in range(20):
        pace.measured(pace.size, 0.001)
        sizes.append(pace.size)
    assert sizes == sorted(sizes)
    assert sizes[0] < 2000 * 1.2
    assert sizes[-1] > 8000


def test_timeouts_never_go_below_the_floor() -> None:
    pace = TimedPace(1000)
    for _ in range(50):
        pace.timed_out()
    assert pace.size == SMALLEST


def test_rest_is_a_part_of_the_work_and_never_longer_than_a_batch() -> None:
    pace = TimedPace(1000, timedelta(milliseconds=100))
    assert pace.rest(0.1) == pytest.approx(0.1 * REST)
    assert pace.rest(600) == pytest.approx(0.1 * SHARE)


def gentle(first: int = 1000, batch_time: timedelta = timedelta(milliseconds=250)) -> TwoPaces:
    pace = TwoPaces(first, batch_time)
    pace.is_gentle = True
    return pace


def test_gently_a_batch_stays_small_however_fast_the_server_is() -> None:
    pace = gentle()
    for _ in range(40):
        pace.measured(pace.size, pace.size / 1e9)
    assert pace.size == GENTLE_ROWS
    assert pace.rest(0.004) == pytest.approx(0.012)


def test_gently_large_rows_make_smaller_batches_and_a_slow_network_no_tiny_ones() -> None:
    pace, aim = gentle(), GENTLE_BATCH_TIME.total_seconds() * SHARE
    for _ in range(20):
        pace.measured(pace.size, pace.size / 200_000)
    assert pace.size == pytest.approx(200_000 * aim, rel=0.1)
    for _ in range(20):
        pace.measured(pace.size, 0.1 + pace.size / 200_000)
    assert pace.size == GENTLE_SMALLEST


def test_gently_rows_that_time_out_make_the_smallest_batches_too() -> None:
    pace = gentle()
    for _ in range(20):
        pace.timed_out()
    assert pace.size == SMALLEST


def test_each_pace_remembers_its_own_batches() -> None:
    pace = TwoPaces(1000, timedelta(milliseconds=250))
    for _ in range(10):
        pace.measured(pace.size, pace.size / 200_000)
    full = pace.size
    pace.is_gentle = True
    assert pace.size == GENTLE_ROWS
    pace.measured(GENTLE_ROWS, 0.003)
    pace.is_gentle = False
    assert pace.size == full


def test_a_policy_that_wants_less_than_the_gentle_way_keeps_it() -> None:
    pace = gentle(20, timedelta(milliseconds=1))
    assert pace.size == 20
