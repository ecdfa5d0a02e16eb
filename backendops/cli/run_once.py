"""run-once: run jobs now, one after the other, then exit; for cron, timers and people."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from backendops.cli.console import ProgressListener, exit_code, pairs_named
from backendops.cli.options import Options
from backendops.cli.textfile import write_textfile
from backendops.contracts.readings import Severity
from backendops.contracts.run import Outcome, Trigger
from backendops.contracts.units import format_seconds
from backendops.engine.drive import history
from backendops.engine.ledger import Ledger
from backendops.engine.report import RunListener, RunReport
from backendops.engine.runner import Runner
from backendops.engine.stop import Stop, stop_on_signals
from backendops.log import LogListener, masked
from backendops.policy.model import Pair


@click.command("run-once")
@click.argument("jobs", nargs=-1, required=True, metavar="JOB...")
@click.option("--backend", metavar="NAME", help="Only on this backend; left out: on each of the job's.")
@click.option(
    "--textfile",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Leave the metrics here for node_exporter's textfile collector (a name that ends in .prom).",
)
@click.option(
    "--accept-volume", is_flag=True, help="Let these runs pass though more is due than max_rows or than ever before."
)
@click.pass_obj
def command(
    options: Options, jobs: tuple[str, ...], backend: str | None, textfile: Path | None, accept_volume: bool
) -> int:
    """Run jobs now, then exit.

    Takes the same locks and writes the same ledger as the daemon. Says nothing on success when nobody watches, so
    that cron sends no mail; one line on stderr for each failure. SIGTERM and Ctrl-C end it after the step in hand.
    """
    policy = options.load_policy()
    pairs = pairs_named(policy, jobs, backend)
    if textfile is not None and not textfile.absolute().parent.is_dir():
        raise click.UsageError(f"--textfile {textfile}: there is no directory {textfile.absolute().parent}")
    options.configure_log("info" if options.wants_log else "error")
    ledger = Ledger.open(policy.state)
    stop = Stop()
    try:
        with history("look for runs whose process is gone"):
            ledger.mark_orphans()
        with stop_on_signals(stop):
            codes = [_run(pair, ledger, stop, options, accept_volume) for pair in pairs]
        with history("forget old runs"):
            ledger.purge(datetime.now(UTC))
        if textfile is not None:
            write_textfile(textfile, ledger, policy)
    finally:
        stop.close()
        ledger.close()
    return exit_code(codes)


def _run(pair: Pair, ledger: Ledger, stop: Stop, options: Options, accept_volume: bool) -> int:
    if stop.requested:
        return _not_started(pair, f"the process was asked to end ({stop.reason})", "run it again")
    pause = None
    with history("look for pauses"):
        pause = ledger.paused().get(pair.job_name)
    if pause is not None:
        since = f"paused by {pause.by} since {pause.at:%Y-%m-%d %H:%M} UTC"
        return _not_started(pair, since, f"`backendops resume {pair.job_name}` lets it run")
    runner = Runner(ledger, _listeners(options), stop)
    report = runner.run(pair, Trigger.COMMAND, accept_volume=accept_volume)
    _tell(report)
    return report.outcome.exit_code


def _listeners(options: Options) -> list[RunListener]:
    if options.wants_log:
        return [LogListener()]
    return [ProgressListener()] if sys.stderr.isatty() else []


def _not_started(pair: Pair, why: str, way_on: str) -> int:
    click.echo(masked(f"backendops: {pair}: not started: {why}; {way_on}"), err=True)
    # As one that could not get the lock: nothing is wrong, and it should be tried again later.
    return Outcome.LOCKED.exit_code


def _tell(report: RunReport) -> None:
    if report.outcome.exit_code:
        click.echo(masked(f"backendops: {report}"), err=True)
    elif sys.stdout.isatty():
        what = f"; {report.what}" if report.what else ""
        click.echo(masked(f"{report}, {report.rows:,} rows in {format_seconds(report.seconds)}{what}"))
    for finding in report.findings:
        # A probe that finds the worst has succeeded as a run; whoever relies on cron's mail must hear of it still.
        if finding.severity is Severity.CRITICAL or sys.stderr.isatty():
            said = f"{finding.severity}: {finding.sentence}; {finding.fix}"
            click.echo(masked(f"backendops: {report.job} on {report.backend}: {said}"), err=True)
