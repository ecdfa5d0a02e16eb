"""pause, resume and cancel: an operator's hand on jobs that run elsewhere, by way of the ledger."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import click

from backendops.cli.console import pairs_named
from backendops.cli.options import Options
from backendops.engine.ledger import Ledger


@click.command("pause")
@click.argument("job")
@click.pass_obj
def pause(options: Options, job: str) -> None:
    """Let no scheduled run of JOB begin, and the one that runs rest, until `backendops resume JOB`."""
    with _ledger(options, job) as ledger:
        ledger.pause(job, by=f"{getpass.getuser()}@{socket.gethostname()}")
    click.echo(f"{job} is paused; `backendops resume {job}` lets it run again")


@click.command("resume")
@click.argument("job")
@click.pass_obj
def resume(options: Options, job: str) -> None:
    """End the pause of JOB; its next scheduled run begins as usual."""
    with _ledger(options, job) as ledger:
        was_paused = ledger.resume(job)
    click.echo(f"{job} runs again as scheduled" if was_paused else f"{job} was not paused")


@click.command("cancel")
@click.argument("job")
@click.pass_obj
def cancel(options: Options, job: str) -> None:
    """End the run of JOB after the step in hand; what is done stays done, and the next run goes on from there."""
    with _ledger(options, job) as ledger:
        ledger.mark_orphans()
        asked = ledger.request_cancel(job)
    click.echo(f"{asked} run(s) of {job} end after the step in hand" if asked else f"nothing of {job} runs now")


@contextmanager
def _ledger(options: Options, job: str) -> Iterator[Ledger]:
    policy = options.load_policy()
    pairs_named(policy, [job])
    ledger = Ledger.open(policy.state)
    try:
        yield ledger
    finally:
        ledger.close()
