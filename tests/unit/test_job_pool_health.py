"""pool-health: a report becomes readings, findings and a sentence."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from backendops.contracts import metrics
from backendops.contracts.capabilities import CanReportPool, PoolReport
from backendops.contracts.errors import BackendUnreachable
from backendops.contracts.run import Step
from backendops.engine.pacing import TimedPace
from backendops.jobs.pool_health import PoolHealth

NOW = datetime(2026, 11, 20, tzinfo=UTC)
CALM = PoolReport(
    connect_seconds=0.01,
    roundtrip_seconds=0.001,
    connections={"active": 2, "idle": 8},
    connections_limit=100,
    by_application={"celery": 9, "": 1},
)


def concluded(report: PoolReport, **fields: object) -> Step:
    class Reporting(CanReportPool):
        def report_pool(self) -> PoolReport:
            return report

    (step,) = PoolHealth.model_validate(fields).run(Reporting(), NOW, TimedPace())
    return step


def found(report: PoolReport, **fields: object) -> list[tuple[str, str]]:
    return [(one.code, one.severity.value) for one in concluded(report, **fields).findings]


def test_every_series_of_a_calm_backend() -> None:
    step = concluded(CALM)
    assert {
        (one.metric.name.removeprefix("backendops_"), *(v for _, v in one.labels)): one.value for one in step.readings
    } == {
        ("backend_up",): 1,
        ("backend_roundtrip_seconds",): 0.001,
        ("backend_connect_seconds",): 0.01,
        ("pool_connections", "active"): 2,
        ("pool_connections", "idle"): 8,
        ("pool_connections", "idle_in_transaction"): 0,
        ("pool_connections", "blocked"): 0,
        ("pool_connections", "other"): 0,
        ("pool_connections_limit",): 100,
        ("findings", "info"): 0,
        ("findings", "warning"): 0,
        ("findings", "critical"): 0,
    }
    assert step.what == "10 of 100 connections (2 active, 8 idle), most by celery (9), round trip 1.0 ms"


def test_what_a_backend_cannot_know_is_not_said() -> None:
    step = concluded(replace(CALM, connections={}, connections_limit=None, by_application={}))
    assert step.what == "round trip 1.0 ms"
    assert not any(one.metric.name.startswith("backendops_pool") for one in step.readings)


@pytest.mark.parametrize(
    ("report", "finding"),
    [
        (replace(CALM, connections={"idle": 79}), None),
        (replace(CALM, connections={"idle": 80}), ("pool.connections-near-limit", "warning")),
        (replace(CALM, connections={"idle": 95}), ("pool.connections-near-limit", "critical")),
        (replace(CALM, connections={"idle": 95}, connections_limit=0), None),
        (replace(CALM, roundtrip_seconds=0.499), None),
        (replace(CALM, roundtrip_seconds=0.5), ("pool.slow-roundtrip", "warning")),
        (replace(CALM, oldest_transaction_seconds=899), None),
        (replace(CALM, oldest_transaction_seconds=900), ("pool.old-transaction", "warning")),
        (replace(CALM, waiting_for_locks=4), None),
        (replace(CALM, waiting_for_locks=5), ("pool.waiting-for-locks", "warning")),
        (replace(CALM, replication_lag_seconds=59), None),
        (replace(CALM, replication_lag_seconds=60), ("pool.replica-lag", "warning")),
        (replace(CALM, id_headroom=0.15), None),
        (replace(CALM, id_headroom=0.149), ("pool.ids-run-out", "warning")),
        (replace(CALM, id_headroom=0.049), ("pool.ids-run-out", "critical")),
        (replace(CALM, pooler_waiting_clients=3, pooler_longest_wait_seconds=4.9), None),
        (
            replace(CALM, pooler_waiting_clients=3, pooler_longest_wait_seconds=5),
            ("pool.pooler-clients-wait", "warning"),
        ),
        (replace(CALM, pooler_error="refused"), ("pool.pooler-unreachable", "warning")),
        (replace(CALM, notes=("hidden",)), ("pool.partly-read", "info")),
    ],
)
def test_a_threshold_is_met_from_its_own_value_on(report: PoolReport, finding: tuple[str, str] | None) -> None:
    assert found(report) == ([finding] if finding else [])


def test_figures_the_backend_does_not_have_are_not_read_as_zero() -> None:
    read = [one.metric for one in concluded(CALM).readings]
    assert metrics.ID_HEADROOM not in read
    assert metrics.POOL_REPLICATION_LAG not in read
    assert metrics.ID_HEADROOM in [one.metric for one in concluded(replace(CALM, id_headroom=0.9)).readings]


def test_whatever_is_read_was_announced() -> None:
    full = replace(
        CALM,
        oldest_transaction_seconds=1,
        waiting_for_locks=1,
        replication_lag_seconds=1,
        id_headroom=1,
        rejected_connections=1,
        pooler_waiting_clients=1,
        pooler_longest_wait_seconds=1,
    )
    assert {one.metric.name for one in concluded(full).readings} == {metric.name for metric in PoolHealth.metrics}


def test_a_dead_backend_is_a_result() -> None:
    step = PoolHealth().when_unreachable(BackendUnreachable("db does not answer", "start it"))
    assert [one.value for one in step.readings if one.metric == metrics.BACKEND_UP] == [0]
    assert [(one.code, one.severity.value, one.fix) for one in step.findings] == [
        ("pool.unreachable", "critical", "start it")
    ]
    assert step.what == "down: db does not answer"


@pytest.mark.parametrize(
    "fields",
    [
        {"connections_warning": 0.9, "connections_critical": 0.8},
        {"id_headroom_warning": 0.1, "id_headroom_critical": 0.2},
    ],
)
def test_thresholds_out_of_order_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="the warning would never be seen"):
        PoolHealth.model_validate(fields)
