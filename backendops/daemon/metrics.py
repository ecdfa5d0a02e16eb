"""/metrics: every series from the ledger and from memory; a scrape never asks a backend anything."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import product
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from backendops import __version__
from backendops.contracts import metrics
from backendops.contracts.errors import BackendopsError
from backendops.contracts.readings import Metric
from backendops.contracts.run import Outcome
from backendops.daemon.view import Key, View
from backendops.engine.ledger import Ledger
from backendops.engine.pacing import THROTTLE_REASONS
from backendops.policy.model import Pair, Policy

log = structlog.get_logger(__name__)

PAIR: Final = ("job", "backend")


class LedgerCollector(Collector):
    """Turns the ledger and the view into metric families, anew for each scrape."""

    def __init__(self, view: View) -> None:
        self._view = view

    def describe(self) -> Iterable[Family]:
        """Nothing ahead of time: which series there are follows the policy."""
        return ()

    def collect(self) -> Iterator[Family]:
        yield from self._from_memory()
        try:
            families = [*self._from_ledger(self._view.ledger, self._view.policy)]
        except (SQLAlchemyError, BackendopsError) as error:
            # Half a truth with a flag is worth more to an operator than a failed scrape.
            log.error("metrics.ledger_unreadable", error=str(error).partition("\n")[0])  # noqa: TRY400 - a sentence for operators
            families = []
        yield _gauge(
            "backendops_ledger_up",
            "1 where the ledger could be read for this scrape, and last be written to; else 0.",
            bool(families) and not self._view.ledger.failure,
        )
        yield from families

    def _from_memory(self) -> Iterator[Family]:
        view = self._view
        yield InfoMetricFamily(
            "backendops_build",
            "Which backendops this is.",
            {
                "version": __version__,
                "python": platform.python_version(),
                "implementation": platform.python_implementation(),
            },
        )
        yield _gauge(
            "backendops_policy_valid",
            "1 while the policy in force is the one in the file; 0 after a reload was refused.",
            not view.problems,
        )
        yield _gauge(
            "backendops_policy_loaded_timestamp_seconds",
            "When the policy in force was loaded, in seconds since 1970.",
            view.loaded_at.timestamp(),
        )

    def _from_ledger(self, ledger: Ledger, policy: Policy) -> Iterator[Family]:
        last_runs, successes, paused = ledger.last_runs(), ledger.last_success(), ledger.paused()
        running = {(run.job, run.backend) for run in ledger.running()}
        runs: dict[tuple[str, str, str], float] = {}
        rows: dict[Key, float] = {}
        for total in ledger.totals():
            runs[total.job, total.backend, total.outcome] = total.runs
            rows[total.job, total.backend] = rows.get((total.job, total.backend), 0) + total.rows

        family = CounterMetricFamily("backendops_job_runs", "Runs that ended, by outcome.", labels=[*PAIR, "outcome"])
        for pair, outcome in product(policy.pairs, Outcome):
            family.add_metric([*_key(pair), outcome.value], runs.get((*_key(pair), outcome.value), 0))
        yield family
        family = CounterMetricFamily("backendops_job_rows", "Rows (or keys) that runs changed.", labels=PAIR)
        for pair in policy.pairs:
            family.add_metric(_key(pair), rows.get(_key(pair), 0))
        yield family
        throttled = {(t.job, t.backend, t.reason): t.seconds for t in ledger.throttled()}
        family = CounterMetricFamily(
            "backendops_job_throttled_seconds",
            "Time runs held back for the application's sake, by reason, in seconds.",
            labels=[*PAIR, "reason"],
        )
        for pair in (pair for pair in policy.pairs if pair.job.changes):
            reasons = {reason for job, backend, reason in throttled if (job, backend) == _key(pair)}
            for reason in sorted(reasons | set(THROTTLE_REASONS)):
                family.add_metric([*_key(pair), reason], throttled.get((*_key(pair), reason), 0))
        yield family

        next_runs = self._view.next_runs()
        yield _per_pair(
            "backendops_job_next_run_timestamp_seconds",
            "When the job runs next, in seconds since 1970; 0 where nothing is scheduled or the job is paused.",
            policy,
            lambda pair: _seconds(None if pair.job_name in paused else next_runs.get(_key(pair))),
        )
        yield _per_pair(
            "backendops_job_interval_seconds",
            "The usual time between two of the job's slots, in seconds; 0 where it has no schedule.",
            policy,
            lambda pair: pair.schedule.interval.total_seconds() if pair.schedule else 0,
        )
        yield _per_pair(
            "backendops_job_last_success_timestamp_seconds",
            "When the job last completed, in seconds since 1970; 0 where it never did.",
            policy,
            lambda pair: _seconds(successes.get(_key(pair))),
        )
        yield _per_pair(
            "backendops_job_last_duration_seconds",
            "How long the job's last run took, in seconds.",
            policy,
            lambda pair: last_runs[_key(pair)].seconds if _key(pair) in last_runs else 0,
        )
        yield _per_pair(
            "backendops_job_running",
            "1 while the job runs, whoever started it.",
            policy,
            lambda pair: _key(pair) in running,
        )
        yield _per_pair(
            "backendops_job_paused",
            "1 while an operator has paused the job.",
            policy,
            lambda pair: pair.job_name in paused,
        )
        yield from self._readings(ledger, policy)

    def _readings(self, ledger: Ledger, policy: Policy) -> Iterator[Family]:
        stored, successes = ledger.readings(), ledger.last_success()
        up = reached(ledger, policy)
        # Once a job has looked, what it did not find does not exist: PgBouncer's queue, the ids of a cache.
        declared, values = zeros(policy, lambda pair: _key(pair) not in successes or not up.get(pair.backend_name))
        values[metrics.BACKEND_UP.name] = {(("backend", name),): float(up[name]) for name in policy.backends}
        declared[metrics.BACKEND_UP.name] = metrics.BACKEND_UP
        known = {(metric.name, *_key(pair)) for pair in policy.pairs for metric in pair.job.metrics}
        known |= {(name, "", backend) for name, _, backend in known}
        for reading in stored:
            metric, labels = declared.get(reading.name), reading.labels
            if metric is None or set(labels) != _label_names(metric):
                continue  # of another version
            if (metric.name, labels.get("job", ""), labels["backend"]) not in known:
                continue  # of a job or a backend that the policy no longer has
            values[metric.name][tuple(sorted(labels.items()))] = reading.value
        for name, series in sorted(values.items()):
            family = GaugeMetricFamily(name, declared[name].help, labels=sorted(_label_names(declared[name])))
            for labelled, value in sorted(series.items()):
                family.add_metric([text for _, text in labelled], value)
            if series:
                yield family


Series = dict[tuple[tuple[str, str], ...], float]


def zeros(policy: Policy, waits: Callable[[Pair], bool]) -> tuple[dict[str, Metric], dict[str, Series]]:
    """What the policy's jobs can read, and each series of a pair that still waits for its first look, at zero.

    An alert can so tell zero from a job that does not exist, from the moment the policy loads.
    """
    declared: dict[str, Metric] = {}
    values: dict[str, Series] = {}
    for pair in policy.pairs:
        for metric in pair.job.metrics:
            declared[metric.name] = metric
            series = values.setdefault(metric.name, {})
            if not waits(pair):
                continue
            choices: dict[str, tuple[str, ...]] = {"backend": (pair.backend_name,)}
            if metric.per_job:
                choices["job"] = (pair.job_name,)
            for name, known in metric.labels.items():
                choices[name] = known or pair.backend.table_names()
            names = sorted(choices)
            for combination in product(*(choices[name] for name in names)):
                series[tuple(zip(names, combination, strict=True))] = 0.0
    return declared, values


def reached(ledger: Ledger, policy: Policy) -> dict[str, bool]:
    """Whether each backend could be reached: by its last probe, or where no job probes it, by the last run on it."""
    newest: dict[str, tuple[datetime, bool]] = {}
    for (_, backend), run in ledger.last_runs().items():
        if backend not in newest or newest[backend][0] < run.ended_at:
            newest[backend] = (run.ended_at, run.outcome is not Outcome.UNREACHABLE)
    probed = {pair.backend_name for pair in policy.pairs if metrics.BACKEND_UP in pair.job.metrics}
    probes = {r.labels["backend"]: bool(r.value) for r in ledger.readings() if r.name == metrics.BACKEND_UP.name}
    return {
        name: probes.get(name, False) if name in probed else name in newest and newest[name][1]
        for name in policy.backends
    }


def registry(view: View) -> CollectorRegistry:
    """What the daemon's /metrics serves: the policy's series and the process's own."""
    collectors = CollectorRegistry(auto_describe=False)
    collectors.register(LedgerCollector(view))
    ProcessCollector(registry=collectors)
    return collectors


def negotiate(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """The encoder and content type for an Accept header: OpenMetrics where asked for, else Prometheus text."""
    return choose_encoder(accept)


def render_textfile(policy: Policy, ledger: Ledger) -> bytes:
    """The same series for node_exporter's textfile collector, after `run-once`."""
    collectors = CollectorRegistry(auto_describe=False)
    collectors.register(LedgerCollector(View(policy, ledger)))
    return generate_latest(collectors)


def _key(pair: Pair) -> Key:
    return pair.job_name, pair.backend_name


def _seconds(moment: datetime | None) -> float:
    return moment.timestamp() if moment else 0.0


def _label_names(metric: Metric) -> set[str]:
    return {"backend", *metric.labels, *(("job",) if metric.per_job else ())}


def _gauge(name: str, documentation: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, documentation, value=float(value))


def _per_pair(name: str, documentation: str, policy: Policy, value: Callable[[Pair], float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=PAIR)
    for pair in policy.pairs:
        family.add_metric(_key(pair), float(value(pair)))
    return family
