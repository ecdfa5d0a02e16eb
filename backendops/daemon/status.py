"""How everything stands, as plain data: what /api/status serves and the status page shows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from backendops import __version__
from backendops.daemon.metrics import reached
from backendops.daemon.view import View
from backendops.engine.runner import RunReport
from backendops.policy.model import Pair

# What fits on one screen below the jobs; `backendops history` has the rest.
RECENT_RUNS: Final = 15
SEVERITY_ORDER: Final = {"critical": 0, "warning": 1, "info": 2}


def snapshot(view: View) -> dict[str, Any]:
    """Jobs, backends, findings and recent runs; every time in ISO 8601, UTC."""
    ledger, policy = view.ledger, view.policy
    last_runs, successes, paused = ledger.last_runs(), ledger.last_success(), ledger.paused()
    running = {(run.job, run.backend): run for run in ledger.running()}
    next_runs = view.next_runs()
    keys = [(pair.job_name, pair.backend_name) for pair in policy.pairs]
    return {
        "version": __version__,
        "now": _iso(datetime.now(UTC)),
        "started_at": _iso(view.started_at),
        "policy": {
            "file": policy.file,
            "valid": not view.problems,
            "loaded_at": _iso(view.loaded_at),
            "problems": list(view.problems),
        },
        "ledger": {"failure": ledger.failure or None},
        "backends": _backends(view),
        "jobs": [
            {
                **_about(pair),
                "paused": pair.job_name in paused,
                "next_run": None if pair.job_name in paused else _iso(next_runs.get(key)),
                "last_success": _iso(successes.get(key)),
                "last_run": _run(last_runs[key]) if key in last_runs else None,
                "running": {
                    "run": running[key].run_id,
                    "since": _iso(running[key].started_at),
                    "rows": running[key].rows,
                }
                if key in running
                else None,
            }
            for key, pair in zip(keys, policy.pairs, strict=True)
        ],
        "findings": _findings([last_runs[key] for key in keys if key in last_runs]),
        "recent_runs": [_run(report) for report in ledger.history(limit=RECENT_RUNS)],
    }


def _about(pair: Pair) -> dict[str, Any]:
    return {
        "job": pair.job_name,
        "kind": pair.job.kind_name,
        "backend": pair.backend_name,
        "schedule": pair.schedule.text if pair.schedule else None,
    }


def _backends(view: View) -> list[dict[str, Any]]:
    up = reached(view.ledger, view.policy)
    readings: dict[str, dict[str, float]] = {name: {} for name in view.policy.backends}
    checked: dict[str, datetime] = {}
    for (_, tried), run in view.ledger.last_runs().items():
        checked[tried] = max(checked.get(tried, run.ended_at), run.ended_at)
    for stored in view.ledger.readings():
        backend = stored.labels["backend"]
        if backend in readings:
            rest = [value for name, value in sorted(stored.labels.items()) if name != "backend"]
            readings[backend][" ".join([stored.name.removeprefix("backendops_"), *rest])] = stored.value
    return [
        {
            "backend": name,
            "kind": backend.kind,
            "url": backend.display_url,
            "up": up[name] if name in checked else None,
            "checked_at": _iso(checked.get(name)),
            "readings": readings[name],
        }
        for name, backend in view.policy.backends.items()
    ]


def _run(report: RunReport) -> dict[str, Any]:
    return {
        "run": report.run_id,
        "job": report.job,
        "backend": report.backend,
        "trigger": report.trigger.value,
        "outcome": report.outcome.value,
        "failure": report.outcome.is_failure,
        "started_at": _iso(report.started_at),
        "ended_at": _iso(report.ended_at),
        "seconds": round(report.seconds, 3),
        "rows": report.rows,
        "what": report.what,
        "error": report.error,
        "hint": report.hint,
        "throttled_seconds": dict(report.throttled),
    }


def _findings(reports: list[RunReport]) -> list[Mapping[str, Any]]:
    found = [
        {
            "severity": finding.severity.value,
            "code": finding.code,
            "job": report.job,
            "backend": report.backend,
            "sentence": finding.sentence,
            "fix": finding.fix,
            "found_at": _iso(report.ended_at),
        }
        for report in reports
        for finding in report.findings
    ]
    return sorted(found, key=lambda finding: SEVERITY_ORDER[str(finding["severity"])])


def _iso(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).isoformat(timespec="seconds") if moment else None
