"""status: each job's last run and next run, what is paused, and what runs now."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click
from rich.text import Text

from backendops.cli.console import distance, outcome_text, print_json, print_table
from backendops.cli.options import Options
from backendops.engine.ledger import Ledger
from backendops.engine.ledger_rows import Pause, Running
from backendops.engine.report import RunReport
from backendops.policy.model import Pair


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def command(options: Options, as_json: bool) -> None:
    """Show each job's last run, next run and what runs now, whoever started it."""
    policy = options.load_policy()
    ledger = Ledger.open(policy.state, create=False)
    try:
        ledger.mark_orphans()
        last_runs, last_success, paused, running = (
            ledger.last_runs(),
            ledger.last_success(),
            ledger.paused(),
            ledger.running(),
        )
    finally:
        ledger.close()
    now = datetime.now(UTC)
    if as_json:
        print_json(
            {
                "policy": policy.file,
                "jobs": [
                    _document(pair, last_runs.get(key), last_success.get(key), paused.get(pair.job_name), now)
                    for pair in policy.pairs
                    for key in [(pair.job_name, pair.backend_name)]
                ],
                "running": [_running(run, now) for run in running],
            }
        )
        return
    print_table(
        ["job", "backend", "last run", "outcome", "rows", "next run", ""],
        [
            _row(pair, last_runs.get((pair.job_name, pair.backend_name)), paused.get(pair.job_name), now)
            for pair in policy.pairs
        ],
    )
    for run in running:
        ending = ", ends after this step" if run.cancel_requested else ""
        click.echo(
            f"running: {run.job} on {run.backend}, run {run.run_id} by {run.trigger.value}, "
            f"{run.rows:,} rows, started {distance(run.started_at, now)} (pid {run.pid} on {run.host}){ending}"
        )


def _next_run(pair: Pair, pause: Pause | None, now: datetime) -> datetime | None:
    return None if pair.schedule is None or pause is not None else pair.schedule.next_after(now)


def _row(pair: Pair, last: RunReport | None, pause: Pause | None, now: datetime) -> list[str | Text]:
    note = ""
    if pause is not None:
        note = f"paused by {pause.by} {distance(pause.at, now)}"
    elif last is not None and last.error:
        note = f"{last.error}; {last.hint}" if last.hint else last.error
    next_run = _next_run(pair, pause, now)
    return [
        pair.job_name,
        pair.backend_name,
        "never" if last is None else distance(last.ended_at, now),
        "-" if last is None else outcome_text(last.outcome),
        "-" if last is None else f"{last.rows:,}",
        distance(next_run, now) if next_run else ("paused" if pause else "when asked"),
        note,
    ]


def _document(
    pair: Pair, last: RunReport | None, success: datetime | None, pause: Pause | None, now: datetime
) -> dict[str, Any]:
    return {
        "job": pair.job_name,
        "backend": pair.backend_name,
        "schedule": None if pair.schedule is None else str(pair.schedule),
        "next_run": _next_run(pair, pause, now),
        "last_success": success,
        "last_run": None if last is None else report_document(last),
        "paused": None if pause is None else {"by": pause.by, "at": pause.at},
    }


def _running(run: Running, now: datetime) -> dict[str, Any]:
    return {
        "run": run.run_id,
        "job": run.job,
        "backend": run.backend,
        "trigger": run.trigger,
        "started_at": run.started_at,
        "seconds": (now - run.started_at).total_seconds(),
        "rows": run.rows,
        "host": run.host,
        "pid": run.pid,
        "cancel_requested": run.cancel_requested,
    }


def report_document(report: RunReport) -> dict[str, Any]:
    """An ended run as JSON has it."""
    return {
        "run": report.run_id,
        "job": report.job,
        "backend": report.backend,
        "trigger": report.trigger,
        "outcome": report.outcome,
        "started_at": report.started_at,
        "ended_at": report.ended_at,
        "seconds": round(report.seconds, 3),
        "rows": report.rows,
        "what": report.what,
        "error": report.error,
        "hint": report.hint,
        "throttled": dict(report.throttled),
        "findings": [
            {"severity": f.severity, "code": f.code, "sentence": f.sentence, "fix": f.fix} for f in report.findings
        ],
    }
