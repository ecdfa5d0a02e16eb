"""Which report leads to which finding, for what no test server can be brought to."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from backendops.contracts.capabilities import MemoryReport
from backendops.contracts.readings import Finding
from backendops.jobs.redis_memory import RedisMemory

NOW = datetime(2026, 11, 20, tzinfo=UTC)
GIB = 1024**3
FULL = int(3.3 * GIB)

HEALTHY = MemoryReport(
    used=GIB,
    peak=GIB,
    rss=GIB,
    limit=4 * GIB,
    total=8 * GIB,
    fragmentation=1.0,
    eviction_policy="volatile-ttl",
    evicted_keys=0,
    loading=False,
    rdb_last_save=NOW - timedelta(hours=1),
    rdb_last_ok=True,
    rdb_changes=10,
    aof_enabled=True,
    aof_last_ok=True,
    keys=1000,
    keys_without_ttl=10,
    result_keys={"task": 900, "group": 50, "chord": 40},
    result_bytes={"task": GIB // 2, "group": 0, "chord": 0},
    result_keys_without_ttl=0,
    broker_keys=10,
    sampled=1.0,
    allocator="jemalloc-5.3.0",
)


def findings(job: RedisMemory | None = None, **changes: Any) -> dict[str, Finding]:
    report = replace(HEALTHY, **changes)
    return {finding.code: finding for finding in (job or RedisMemory()).findings(report, NOW)}


def test_a_healthy_server_has_none() -> None:
    assert findings() == {}


@pytest.mark.parametrize(
    ("changes", "code", "severity", "words"),
    [
        ({"rss": 2 * GIB, "fragmentation": 2.0}, "redis.fragmented", "warning", "activedefrag yes"),
        ({"rss": 2 * GIB, "fragmentation": 2.0, "allocator": "libc"}, "redis.fragmented", "warning", "libc"),
        ({"rss": GIB // 2, "fragmentation": 0.5}, "redis.swapped", "warning", "swap"),
        ({"total": GIB}, "redis.host-memory", "critical", "maxmemory"),
        ({"rdb_last_ok": False}, "redis.snapshot-failed", "critical", "BGSAVE"),
        ({"aof_last_ok": False}, "redis.aof-failed", "critical", "disk"),
        ({"rdb_last_save": NOW - timedelta(days=3)}, "redis.snapshot-old", "warning", "BGSAVE"),
        ({"evicted_keys": 7}, "redis.keys-evicted", "warning", "maxmemory"),
        ({"limit": 0}, "redis.no-memory-limit", "info", "maxmemory"),
        ({"loading": True}, "redis.loading", "info", "wait"),
        ({"result_keys_without_ttl": 7}, "redis.results-without-ttl", "warning", "expire job"),
        ({"used": FULL, "rss": FULL, "keys_without_ttl": 0}, "redis.memory-near-limit", "warning", "keep"),
    ],
)  # fmt: skip
def test_one_fault_is_one_finding(changes: dict[str, Any], code: str, severity: str, words: str) -> None:
    found = findings(**changes)
    assert set(found) == {code}
    assert found[code].severity.value == severity
    assert words in found[code].fix


@pytest.mark.parametrize(
    "changes",
    [
        {"rss": GIB + 1024, "fragmentation": 1.6},  # hardly a byte of it
        {"used": 1024**2, "rss": 10 * 1024**2, "fragmentation": 10.0},  # a small server
        {"used": 1024**2, "rss": 1024, "fragmentation": 0.1},
        {"rdb_last_save": NOW - timedelta(days=3), "rdb_changes": 0},
        {"rdb_last_save": None},
        {"aof_enabled": False, "aof_last_ok": False},
        {"eviction_policy": "allkeys-lru", "broker_keys": 0, "result_keys": {}},
    ],
)
def test_what_is_no_fault_is_no_finding(changes: dict[str, Any]) -> None:
    assert findings(**changes) == {}


def test_thresholds_are_the_jobs() -> None:
    job = RedisMemory(memory_warning=0.2, memory_critical=0.3, fragmentation_warning=1.05, fragmentation_bytes=10)
    found = findings(job, rss=int(1.1 * GIB), fragmentation=1.1)
    assert found["redis.memory-near-limit"].severity.value == "warning"
    assert "25%" in found["redis.memory-near-limit"].sentence
    assert "redis.fragmented" in found


def test_a_warning_above_the_critical_threshold_is_a_problem() -> None:
    with pytest.raises(ValidationError, match="would never be seen"):
        RedisMemory(memory_warning=0.9, memory_critical=0.5)
