"""/metrics from a real ledger and a real policy, without any backend."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics
from prometheus_client.parser import text_string_to_metric_families

from backendops.backends.sqlite import SqliteBackend
from backendops.contracts import metrics
from backendops.contracts.run import Outcome, Trigger
from backendops.daemon.metrics import negotiate, registry, render_textfile
from backendops.daemon.view import View
from backendops.engine.ledger import Ledger
from backendops.engine.pacing import THROTTLE_REASONS
from backendops.engine.report import RunReport
from backendops.policy.load import load_policy
from backendops.policy.model import Pair

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

POLICY = """
version: 1
state: {state}
backends:
  results: {{url: "db+postgresql://me@127.0.0.1:1/celery"}}
  local: {{url: "db+sqlite:////nowhere/results.db", tables: {{task: 'odd "name" with \\ and é'}}}}
  cache: {{url: "redis://127.0.0.1:1/0"}}
jobs:
  expire: {{backend: [results, cache, local], keep: 30d, schedule: every 15m}}
  archive: {{backend: results, older_than: 7d, schedule: "@daily"}}
  partition: {{backend: results}}
  vacuum: {{backend: results}}
  redis-memory: {{backend: cache, schedule: every 1m}}
  pool-health: {{schedule: every 30s}}
"""

# The names that users build their dashboards on: a renamed one is a broken promise.
PROMISED = {
    "backendops_build_info": None,
    "backendops_policy_valid": set(),
    "backendops_policy_loaded_timestamp_seconds": set(),
    "backendops_job_runs_total": {"job", "backend", "outcome"},
    "backendops_job_rows_total": {"job", "backend"},
    "backendops_job_last_success_timestamp_seconds": {"job", "backend"},
    "backendops_job_last_duration_seconds": {"job", "backend"},
    "backendops_job_next_run_timestamp_seconds": {"job", "backend"},
    "backendops_job_running": {"job", "backend"},
    "backendops_job_throttled_seconds_total": {"job", "backend", "reason"},
    "backendops_backend_up": {"backend"},
    "backendops_backend_roundtrip_seconds": {"backend"},
    "backendops_pool_connections": {"backend", "state"},
    "backendops_pool_connections_limit": {"backend"},
    "backendops_results_oldest_age_seconds": {"backend", "table"},
    "backendops_results_due": {"backend", "job"},
    "backendops_table_bytes": {"backend", "table"},
    "backendops_table_dead_rows": {"backend", "table"},
    "backendops_table_bloat_bytes": {"backend", "table"},
    "backendops_table_freeze_age_transactions": {"backend", "table"},
    "backendops_table_invalid_indexes": {"backend", "table"},
    "backendops_partitions_ahead": {"backend"},
    "backendops_id_headroom_ratio": {"backend"},
    "backendops_redis_memory_used_bytes": {"backend"},
    "backendops_redis_memory_limit_bytes": {"backend"},
    "backendops_redis_fragmentation_ratio": {"backend"},
    "backendops_redis_result_keys": {"backend", "kind"},
    "backendops_redis_keys_without_ttl": {"backend"},
}


@pytest.fixture
def view(tmp_path: Path) -> Iterator[View]:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY.format(state=tmp_path))
    with closing(Ledger.open(str(tmp_path))) as ledger:
        yield View(load_policy(file), ledger, loaded_at=NOW)


def pair_of(view: View, job: str, backend: str) -> Pair:
    return next(p for p in view.policy.pairs if (p.job_name, p.backend_name) == (job, backend))


def scrape(view: View) -> dict[str, dict[frozenset[tuple[str, str]], float]]:
    found: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    for family in text_string_to_metric_families(generate_latest(registry(view)).decode()):
        for sample in family.samples:
            series = found.setdefault(sample.name, {})
            labels = frozenset(sample.labels.items())
            assert labels not in series, f"{sample.name} has the series {sample.labels} twice"
            series[labels] = sample.value
    return found


def value(view: View, name: str, **labels: str) -> float:
    return scrape(view)[f"backendops_{name}"][frozenset(labels.items())]


def ended(view: View, pair: Pair, outcome: Outcome, **more: object) -> None:
    run_id = view.ledger.started(pair, Trigger.COMMAND, NOW)
    view.ledger.ended(
        RunReport(run_id, pair.job_name, pair.backend_name, Trigger.COMMAND, outcome, NOW, NOW, **more)  # type: ignore[arg-type]  # by name
    )


def test_every_promised_series_is_there_before_anything_ran(view: View) -> None:
    seen = scrape(view)
    assert set(PROMISED) - set(seen) == set()
    for name, labels in PROMISED.items():
        for series in seen[name]:
            assert labels is None or {label for label, _ in series} == labels, name
    zero = {name for name in PROMISED if set(seen[name].values()) == {0.0}}
    own = {"backendops_build_info", "backendops_policy_valid", "backendops_policy_loaded_timestamp_seconds"}
    assert zero == set(PROMISED) - own
    runs = {dict(series)["outcome"] for series in seen["backendops_job_runs_total"]}
    assert runs == {outcome.value for outcome in Outcome}
    assert len(seen["backendops_backend_up"]) == 3


def test_names_and_help_follow_prometheus_customs(view: View) -> None:
    for family in text_string_to_metric_families(generate_latest(registry(view)).decode()):
        if family.name.startswith("backendops_"):
            assert family.documentation.endswith("."), family.name
            assert family.type in {"gauge", "counter"}
            assert not family.name.endswith(("_ms", "_kb", "_percent"))


def test_counters_come_from_the_ledger_whoever_ran(view: View) -> None:
    pair = pair_of(view, "archive", "results")
    ended(view, pair, Outcome.COMPLETED, rows=70, seconds=1.5, throttled={"replica-lag": 2.5, "odd-reason": 1.0})
    ended(view, pair, Outcome.COMPLETED, rows=7, seconds=2.5)
    ended(view, pair, Outcome.FAILED, rows=1, seconds=0.5, error="no")
    archive = {"job": "archive", "backend": "results"}
    assert value(view, "job_runs_total", outcome="completed", **archive) == 2
    assert value(view, "job_runs_total", outcome="failed", **archive) == 1
    assert value(view, "job_rows_total", **archive) == 78
    assert value(view, "job_last_duration_seconds", **archive) == 0.5
    assert value(view, "job_last_success_timestamp_seconds", **archive) == NOW.timestamp()
    assert value(view, "job_throttled_seconds_total", reason="replica-lag", **archive) == 2.5
    assert value(view, "job_throttled_seconds_total", reason="odd-reason", **archive) == 1
    view.ledger.purge(NOW + timedelta(days=4000))
    assert value(view, "job_rows_total", **archive) == 78, "a counter never goes down"


def test_what_runs_is_paused_and_comes_next(view: View) -> None:
    archive = {"job": "archive", "backend": "results"}
    view.next_runs = lambda: {("archive", "results"): NOW + timedelta(hours=1)}
    assert value(view, "job_next_run_timestamp_seconds", **archive) == NOW.timestamp() + 3600
    assert value(view, "job_interval_seconds", **archive) == 86400
    view.ledger.started(pair_of(view, "archive", "results"), Trigger.COMMAND, NOW)
    assert value(view, "job_running", **archive) == 1
    view.ledger.pause("archive", "me")
    assert value(view, "job_paused", **archive) == 1
    assert value(view, "job_next_run_timestamp_seconds", **archive) == 0


def test_readings_are_shown_until_the_next_ones(view: View) -> None:
    odd = 'odd "name" with \\ and é'
    record = view.ledger.record
    record("pool-health", "cache", [metrics.BACKEND_UP.read(1), metrics.POOL_CONNECTIONS.read(4, state="idle")], NOW)
    record("expire", "local", [metrics.RESULTS_DUE.read(5), metrics.RESULTS_OLDEST_AGE.read(9, table=odd)], NOW)
    record("expire", "results", [metrics.RESULTS_DUE.read(6)], NOW)
    assert value(view, "backend_up", backend="cache") == 1
    assert value(view, "backend_up", backend="results") == 0
    assert value(view, "pool_connections", backend="cache", state="idle") == 4
    assert value(view, "pool_connections", backend="cache", state="active") == 0
    assert value(view, "results_due", backend="local", job="expire") == 5
    assert value(view, "results_due", backend="results", job="expire") == 6
    assert value(view, "results_due", backend="results", job="archive") == 0
    assert value(view, "results_oldest_age_seconds", backend="local", table=odd) == 9
    record("pool-health", "cache", [metrics.BACKEND_UP.read(0)], NOW)
    assert value(view, "backend_up", backend="cache") == 0


def test_what_a_job_looked_for_and_did_not_find_is_gone(view: View) -> None:
    assert value(view, "id_headroom_ratio", backend="cache") == 0
    probe = pair_of(view, "pool-health", "cache")
    view.ledger.record("pool-health", "cache", [metrics.BACKEND_UP.read(0)], NOW)
    ended(view, probe, Outcome.COMPLETED)
    assert value(view, "id_headroom_ratio", backend="cache") == 0, "it could not look"
    view.ledger.record("pool-health", "cache", [metrics.BACKEND_UP.read(1)], NOW)
    seen = scrape(view)["backendops_id_headroom_ratio"]
    assert {dict(series)["backend"] for series in seen} == {"results", "local"}


def test_what_the_policy_no_longer_has_is_gone(view: View) -> None:
    view.ledger.record("old", "removed", [metrics.BACKEND_UP.read(1), metrics.RESULTS_DUE.read(1)], NOW)
    view.ledger.record("old", "results", [metrics.RESULTS_DUE.read(1)], NOW)
    seen = scrape(view)
    assert not [series for series in seen["backendops_backend_up"] if ("backend", "removed") in series]
    assert not [series for series in seen["backendops_results_due"] if ("job", "old") in series]


def test_without_a_probe_the_last_runs_tell_whether_a_backend_is_up(view: View) -> None:
    view.ledger.record("pool-health", "results", [metrics.BACKEND_UP.read(0)], NOW)
    ended(view, pair_of(view, "expire", "results"), Outcome.COMPLETED)
    ended(view, pair_of(view, "expire", "local"), Outcome.UNREACHABLE)
    assert value(view, "backend_up", backend="results") == 0, "the probe knows best"
    view.policy = replace(view.policy, pairs=tuple(p for p in view.policy.pairs if p.job_name != "pool-health"))
    assert value(view, "backend_up", backend="results") == 1
    assert value(view, "backend_up", backend="local") == 0


def test_a_refused_policy_and_a_lost_ledger_show(view: View) -> None:
    view.problems = ("policy.yaml:1:1: wrong",)
    assert value(view, "policy_valid") == 0
    assert value(view, "policy_loaded_timestamp_seconds") == NOW.timestamp()
    assert view.ledger.directory
    view.ledger.close()
    for file in view.ledger.directory.glob("ledger.sqlite3*"):
        file.unlink()
    (view.ledger.directory / "ledger.sqlite3").mkdir()
    seen = scrape(view)
    assert seen["backendops_ledger_up"] == {frozenset(): 0}
    assert seen["backendops_policy_valid"] == {frozenset(): 0}
    assert "backendops_job_runs_total" not in seen


def test_a_scrape_asks_no_backend(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object) -> None:
        raise AssertionError("a scrape opened a backend")

    for backend in view.policy.backends.values():
        monkeypatch.setattr(type(backend), "open", opened)
    with pytest.raises(AssertionError):
        SqliteBackend.open(*[None] * 3)  # type: ignore[arg-type]  # only to see that the trap is set
    assert scrape(view)["backendops_ledger_up"] == {frozenset(): 1}


def test_open_metrics_parses_too(view: View) -> None:
    encode, content_type = negotiate("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    names = {family.name for family in parse_open_metrics(encode(registry(view)).decode())}
    assert {"backendops_job_runs", "backendops_build", "backendops_backend_up"} <= names


def test_the_textfile_has_the_same_series_and_nothing_of_the_process(view: View) -> None:
    ended(view, pair_of(view, "archive", "results"), Outcome.COMPLETED, rows=3)
    text = render_textfile(view.policy, view.ledger).decode()
    assert 'backendops_job_rows_total{backend="results",job="archive"} 3.0' in text
    assert "process_" not in text, "node_exporter has these of its own"
    assert set(PROMISED) <= {sample.name for f in text_string_to_metric_families(text) for sample in f.samples}


def test_the_documentation_names_every_series_and_no_other(view: View) -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(backendops_\w+)`", text, re.MULTILINE))
    assert documented == {name for name in scrape(view) if name.startswith("backendops_")}
    for reason in THROTTLE_REASONS:
        assert reason in text
