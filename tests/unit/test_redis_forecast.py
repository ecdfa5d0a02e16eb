"""The forecast of memory: a line that knows how wrong it may be, from a history that stays small."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from backendops.backends.redis.forecast import EVERY, MARK, MOST, OLDEST, line, remember, thinned
from backendops.contracts.readings import Finding
from backendops.contracts.run import NoWatermarks
from backendops.contracts.server_health import Clients, Growth, Replica, ServerHealth
from backendops.jobs.redis_figures import readings, summary
from backendops.jobs.redis_memory import RedisMemory
from tests.unit.test_redis_memory_findings import GIB, HEALTHY

NOW = datetime(2026, 11, 20, tzinfo=UTC)
MIB = 1024**2
HOUR = 3600.0


def minutes(
    count: int, rate: float, noise: float = 0.0, alike: float = 0.0, seed: int = 1
) -> list[tuple[float, float]]:
    """A history of so many minutes, in bytes a second, whose neighbouring errors are `alike`."""
    chance, error, points = random.Random(seed), 0.0, []  # noqa: S311 - the same numbers in each run
    for number in range(count):
        error = alike * error + math.sqrt(1 - alike * alike) * chance.gauss(0, noise)
        points.append((60.0 * number, GIB + rate * 60 * number + error))
    return points


def test_a_straight_line_is_found_exactly() -> None:
    growth = line(minutes(60, 1000))
    assert growth is not None
    assert growth.rate == pytest.approx(1000)
    assert growth.error == pytest.approx(0, abs=1)
    assert growth.reaches(3_600_000) == pytest.approx(HOUR)
    assert growth.rises


@pytest.mark.parametrize("alike", [0.0, 0.6])
def test_the_true_rate_is_within_the_error_nearly_always(alike: float) -> None:
    within = 0
    for seed in range(200):
        growth = line(minutes(120, 500, MIB, alike, seed))
        assert growth is not None
        within += abs(growth.rate - 500) <= growth.error
    # Nineteen of twenty; where neighbours are alike, how alike they are is itself only guessed.
    assert within >= (184 if alike == 0 else 174), within


def test_what_does_not_rise_for_certain_does_not_rise() -> None:
    saw = [(60.0 * n, GIB + MIB * (n % 40)) for n in range(200)]
    for points in (minutes(120, 0, MIB), minutes(120, -500, MIB), saw):
        growth = line(points)
        assert growth is not None
        assert not growth.rises


def test_too_little_is_no_history() -> None:
    assert line(minutes(9, 1000)) is None
    assert line([(float(n), GIB) for n in range(100)]) is None


def test_the_history_stays_small_and_reaches_far_back() -> None:
    marks, start = NoWatermarks(), 1_800_000_000.0
    for number in range(2000):
        growth = remember(marks, "run", start + 60 * number, GIB + 60_000 * number)
    assert growth is not None
    assert growth.rate == pytest.approx(1000, rel=0.001)
    assert growth.points <= MOST
    assert growth.span > 24 * HOUR
    written = marks.recall(MARK)
    assert written is not None
    assert len(written) < 6000


def test_one_point_a_minute_and_none_from_another_time() -> None:
    marks, start = NoWatermarks(), 1_800_000_000.0

    def points() -> list[Any]:
        found: list[Any] = json.loads(marks.recall(MARK) or "")["points"]
        return found

    for second in range(0, 125, 5):
        remember(marks, "run", start + second, GIB)
    assert [moment - start for moment, _ in points()] == [0, EVERY, 2 * EVERY]
    remember(marks, "run", start - 3600, GIB)
    assert len(points()) == 1, "a clock that was set back begins anew"
    remember(marks, "run", start + OLDEST + 1, GIB)
    assert len(points()) == 1, "what is older than a week is gone"
    remember(marks, "another", start + OLDEST + 100, GIB)
    assert len(points()) == 1, "a server that was started again begins anew"
    for rubbish in ("", "x", "[]", '{"run": "run"}', '{"run": "run", "points": [1]}', '{"run": "run", "points": 1}'):
        marks.remember(MARK, rubbish)
        assert remember(marks, "run", start, GIB) is None


def test_thinning_takes_of_the_older_half_only() -> None:
    points = [(float(n), 0.0) for n in range(MOST + 1)]
    left = thinned(points)
    assert left[-101:] == points[-101:]
    assert left[0] == points[0]
    assert len(left) == 151


def findings(
    job: RedisMemory | None = None, *, report: dict[str, Any] | None = None, **server: Any
) -> dict[str, Finding]:
    full = replace(HEALTHY, server=ServerHealth(**server), **(report or {}))
    return {finding.code: finding for finding in (job or RedisMemory()).findings(full, NOW)}


def rising(hours: float) -> Growth:
    """So fast that the healthy server, which has 3 GiB left, is full after so many hours."""
    rate = 3 * GIB / (hours * HOUR)
    return Growth(rate, rate / 4, 100, 6 * HOUR)


def test_a_server_with_nothing_wrong_has_no_finding() -> None:
    assert findings(growth=rising(1000), hits=90_000, misses=10_000, backlog=MIB) == {}


@pytest.mark.parametrize(("hours", "severity"), [(71, "warning"), (5, "critical")])
def test_memory_that_will_be_full_is_told_with_its_error(hours: float, severity: str) -> None:
    (found,) = findings(growth=rising(hours)).values()
    assert (found.code, found.severity.value) == ("redis.memory-full-soon", severity)
    assert f"in about {'2d 23h' if hours > 24 else '5h'}" in found.sentence
    assert f"not before {'2d 8h' if hours > 24 else '4h'}" in found.sentence
    assert "over the last 6h" in found.sentence


def test_no_forecast_without_a_limit_or_a_rise() -> None:
    assert "redis.memory-full-soon" not in findings(growth=rising(5), report={"limit": 0})
    assert findings(growth=Growth(100, 200, 100, HOUR)) == {}
    assert findings(RedisMemory.model_validate({"full_within": "4h"}), growth=rising(5)) == {}


def test_the_line_for_the_log_says_where_memory_goes() -> None:
    def said(growth: Growth | None, **changes: Any) -> str:
        return summary(replace(HEALTHY, server=ServerHealth(growth=growth), **changes))

    assert "full in about 5h and not before 4h" in said(rising(5))
    assert "rising by 614.4 MiB an hour;" in said(rising(5), limit=0)
    assert ", not rising;" in said(Growth(1, 2, 10, HOUR))
    assert "rising" not in said(None)


def test_the_rate_is_exported_only_where_memory_rises_for_certain() -> None:
    def rate(growth: Growth | None) -> float:
        full = replace(HEALTHY, server=ServerHealth(growth=growth))
        values = {reading.metric.name: reading.value for reading in readings(full, (), NOW)}
        return values["backendops_redis_memory_growth_bytes_per_second"]

    assert rate(rising(5)) == pytest.approx(3 * GIB / (5 * HOUR))
    assert rate(Growth(1, 2, 10, HOUR)) == rate(Growth(-5, 2, 10, HOUR)) == rate(None) == 0


LEAK = Clients("unnamed", "redis-py 5.2.0", "10.0.0.7", 240, 180, 7200, 0)


@pytest.mark.parametrize(
    ("server", "code", "severity", "words"),
    [
        (
            {"clients": (LEAK,)},
            "redis.clients-idle",
            "warning",
            "180 of 240 connections of unnamed (redis-py 5.2.0) on 10.0.0.7",
        ),
        ({"clients": (replace(LEAK, idle=0, output=40 * MIB),)}, "redis.output-buffers", "warning", "40.0 MiB"),
        (
            {"result_channels": 1200, "channels_looked_at": 500, "channels_of_the_past": 450},
            "redis.channels-left",
            "warning",
            "450 wait for a result that is there",
        ),
        (
            {"result_channels": 1200, "channels_looked_at": 500, "channels_of_the_past": 5},
            "redis.channels-left",
            "info",
            "1,200 channels",
        ),
        ({"result_channels": 20_000}, "redis.channels-left", "info", "20,000 channels wait"),
        ({"replicas": (Replica("h:1", True, 60, 100),)}, "redis.replica-late", "warning", "nothing for 1m"),
        ({"replicas": (Replica("h:1", False, 0, 100),)}, "redis.replica-late", "warning", "is not in sync"),
        (
            {"replicas": (Replica("h:1", True, 0, 6 * MIB),), "backlog": 10 * MIB},
            "redis.replica-backlog",
            "warning",
            "copy everything anew",
        ),
        ({"link_down": 90.0}, "redis.master-lost", "critical", "1m 30s ago"),
        ({"fork_seconds": 1.5}, "redis.fork-slow", "warning", "1.5 s"),
        ({"hits": 1000, "misses": 99_000}, "redis.hit-rate-low", "info", "only 1% of 100,000"),
        ({"notes": ("CLIENT LIST is not permitted",)}, "redis.not-read", "info", "not permitted"),
    ],
)
def test_each_trouble_has_its_finding(server: dict[str, Any], code: str, severity: str, words: str) -> None:
    (found,) = findings(**server).values()
    assert (found.code, found.severity.value) == (code, severity)
    assert words in found.sentence
    assert found.fix


def test_large_results_are_told_by_name() -> None:
    (found,) = findings(report={"biggest": (("celery-task-meta-a", 5 * MIB), ("celery-task-meta-b", 2 * MIB))}).values()
    assert found.code == "redis.big-values"
    assert "celery-task-meta-a takes 5.0 MiB, and 1 more" in found.sentence
