"""The hit rate of late, from counters that only rise, and what a cluster's nodes have in common."""

from __future__ import annotations

from typing import Any

import pytest

from backendops.backends.redis.lookups import MARK, Recent
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.run import NoWatermarks
from backendops.contracts.server_health import Lookups
from backendops.jobs.redis_nodes import by_node

HOUR = 3600.0


def info(hits: int, misses: int, run: str = "r") -> dict[str, Any]:
    return {"run_id": run, "keyspace_hits": hits, "keyspace_misses": misses}


def look(marks: NoWatermarks, at: float, before: dict[str, Any], after: dict[str, Any] | None = None) -> Lookups | None:
    recent = Recent(marks, before, at, "")
    recent.end(after or before)
    return recent.lookups


def test_what_is_told_is_of_the_last_hour_or_two_and_of_others() -> None:
    marks = NoWatermarks()
    assert look(marks, 0, info(1000, 9000), info(1500, 9000)) is None, "nobody knows since when"
    assert look(marks, 60, info(1510, 9090), info(2000, 9090)) == Lookups(10, 90, 60)
    assert look(marks, HOUR, info(2000, 9190)) == Lookups(10, 190, HOUR)
    assert look(marks, 2 * HOUR, info(2100, 9190)) == Lookups(100, 0, HOUR), "what was before has passed"


@pytest.mark.parametrize("later", [info(5, 5, "another"), info(0, 0), info(1000, 8999)])
def test_a_server_that_began_anew_has_no_history(later: dict[str, Any]) -> None:
    marks = NoWatermarks()
    look(marks, 0, info(1000, 9000))
    assert look(marks, 60, later) is None


@pytest.mark.parametrize("text", ["", "x", "[]", "{}", '{"run": "r", "counters": [0, 0], "windows": [[0, 0, 0]]}'])
def test_what_another_version_wrote_is_no_history(text: str) -> None:
    marks = NoWatermarks()
    marks.remember(MARK, text)
    assert look(marks, 60, info(1, 1)) is None
    assert look(marks, 120, info(2, 1)) == Lookups(1, 0, 60)


def test_a_finding_of_many_nodes_is_told_once_of_the_worst() -> None:
    def near(severity: Severity) -> list[Finding]:
        return [Finding(severity, "near", "it is near", "fix"), Finding(Severity.INFO, "other", "it is", "fix")]

    found = {"a:1": near(Severity.WARNING)[:1], "b:1": near(Severity.CRITICAL), "c:1": near(Severity.WARNING)}
    told = list(by_node({**found, **{f"d:{number}": near(Severity.INFO)[:1] for number in range(5)}}))
    assert [(finding.severity, finding.sentence) for finding in told] == [
        ("critical", "b:1: it is near; the same is found on a:1, c:1, d:0, d:1, d:2 and 2 more"),
        ("info", "b:1: it is; the same is found on c:1"),
    ]
