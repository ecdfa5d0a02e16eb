"""history: past runs, newest first."""

from __future__ import annotations

import click

from backendops.cli.console import moment, outcome_text, print_json, print_table
from backendops.cli.options import Options
from backendops.cli.status import report_document
from backendops.contracts.units import format_seconds
from backendops.engine.ledger import Ledger
from backendops.engine.report import RunReport


@click.command("history")
@click.argument("job", required=False)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many runs to show.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def command(options: Options, job: str | None, limit: int, as_json: bool) -> None:
    """Show past runs, of one job or of all, newest first.

    A job that has left the policy keeps its history.
    """
    policy = options.load_policy()
    ledger = Ledger.open(policy.state, create=False)
    try:
        reports = ledger.history(job, limit)
    finally:
        ledger.close()
    if as_json:
        print_json([report_document(report) for report in reports])
        return
    if not reports:
        click.echo(f"no run of {job} yet" if job else "no run yet")
        return
    print_table(
        ["run", "ended (UTC)", "job", "backend", "by", "outcome", "rows", "took", ""],
        [
            [
                str(report.run_id),
                moment(report.ended_at),
                report.job,
                report.backend,
                report.trigger.value,
                outcome_text(report.outcome),
                f"{report.rows:,}",
                format_seconds(report.seconds),
                _note(report),
            ]
            for report in reports
        ],
    )


def _note(report: RunReport) -> str:
    waited = [f"waited {format_seconds(seconds)}: {reason}" for reason, seconds in report.throttled.items()]
    return "; ".join(part for part in (report.error, report.hint, report.what, *waited) if part)
