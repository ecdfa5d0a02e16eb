"""Runs that a command asks for and no policy names: with the same lock, ledger, limits and exit codes as any other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from backendops.cli.console import Misnamed, ProgressListener, nearest
from backendops.cli.options import GLOBAL_OPTIONS, Options
from backendops.contracts.backend import Backend
from backendops.contracts.job import Job
from backendops.contracts.run import Limits, NoWatermarks, Step, Trigger
from backendops.engine.drive import history
from backendops.engine.ledger import Ledger
from backendops.engine.report import Run, RunListener
from backendops.engine.runner import Runner
from backendops.engine.stop import Stop, stop_on_signals
from backendops.log import LogListener, masked
from backendops.policy.model import Pair, Policy


class _Telling(RunListener):
    """Says each thing that was done, once, as it is done."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def stepped(self, run: Run, step: Step) -> None:  # noqa: ARG002 - a listener's shape
        if step.what and step.what not in self._said:
            self._said.add(step.what)
            click.echo(masked(step.what))
        for finding in step.findings:
            click.echo(masked(f"{finding.severity}: {finding.sentence}; {finding.fix}"), err=True)


def backend_named(policy: Policy, name: str, capability: type, doing: str) -> Backend:
    """The policy's backend of that name; raises Misnamed where there is none, or where it cannot do that."""
    backend = policy.backends.get(name)
    if backend is None:
        raise Misnamed(f"the policy has no backend {name!r}{nearest(name, policy.backends)}")
    if not isinstance(backend, capability):
        raise Misnamed(f"{name!r} is {backend.kind}, which has no {doing}")
    return backend


def run_by_hand(options: Options, policy: Policy, backend_name: str, job: Job) -> int:
    """Run it now; gives the exit code."""
    options.configure_log("info" if options.wants_log else "error")
    ledger, stop = Ledger.open(policy.state), Stop()
    try:
        with history("look for runs whose process is gone"):
            ledger.mark_orphans()
        pair = Pair(job.kind_name, job, backend_name, policy.backends[backend_name], None)
        with stop_on_signals(stop):
            report = Runner(ledger, _listeners(options), stop).run(pair, Trigger.COMMAND)
    finally:
        stop.close()
        ledger.close()
    if report.outcome.exit_code:
        click.echo(masked(f"backendops: {report}"), err=True)
    return report.outcome.exit_code


@contextmanager
def opened_to_read(backend: Backend) -> Iterator[Backend]:
    """The backend, open for looking only."""
    with backend.open(Limits(read_only=True), NoWatermarks()) as opened:
        yield opened


def with_global_options(command: click.Command) -> click.Command:
    """Let a command inside a group take --policy and the like after its name, too."""
    command.params.extend(GLOBAL_OPTIONS)
    return command


def _listeners(options: Options) -> list[RunListener]:
    if options.wants_log:
        return [LogListener()]
    return [_Telling(), ProgressListener()] if sys.stderr.isatty() else [_Telling()]
