"""pause, resume, cancel and accept: an operator's hand on jobs that run elsewhere, by way of the ledger."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import click

from backendops.cli.console import pairs_named
from backendops.cli.options import Options
from backendops.engine.ledger import Ledger
from backendops.engine.safety import KeepsBefore
from backendops.policy.model import Pair


@click.command("pause")
@click.argument("job")
@click.pass_obj
def pause(options: Options, job: str) -> None:
    """Let no scheduled run of JOB begin, and the one that runs rest, until `backendops resume JOB`."""
    with _ledger(options, job) as (ledger, _):
        ledger.pause(job, by=f"{_user()}@{socket.gethostname()}")
    click.echo(f"{job} is paused; `backendops resume {job}` lets it run again")


@click.command("resume")
@click.argument("job")
@click.pass_obj
def resume(options: Options, job: str) -> None:
    """End the pause of JOB; its next scheduled run begins as usual."""
    with _ledger(options, job) as (ledger, _):
        was_paused = ledger.resume(job)
    click.echo(f"{job} runs again as scheduled" if was_paused else f"{job} was not paused")


@click.command("cancel")
@click.argument("job")
@click.pass_obj
def cancel(options: Options, job: str) -> None:
    """End the run of JOB after the step in hand; what is done stays done, and the next run goes on from there."""
    with _ledger(options, job) as (ledger, _):
        ledger.mark_orphans()
        asked = ledger.request_cancel(job)
    click.echo(f"{asked} run(s) of {job} end after the step in hand" if asked else f"nothing of {job} runs now")


@click.command("accept")
@click.argument("job")
@click.option("--backend", metavar="NAME", help="Only on this backend; left out: on each of the job's.")
@click.pass_obj
def accept(options: Options, job: str, backend: str | None) -> None:
    """Accept what JOB would do since its `keep` got shorter, however much that is: its next runs are not refused.

    Look at `backendops plan JOB` first. A max_rows of the policy stays in force.
    """
    with _ledger(options, job, backend) as (ledger, pairs):
        for pair in pairs:
            KeepsBefore(ledger.watermarks(pair.backend_name), job).remember(pair.job)
            keeps = ", ".join(f"{key} {keep}" for key, keep in pair.job.keeps().items())
            click.echo(f"{pair}: accepted ({keeps})" if keeps else f"{pair}: nothing goes by its age")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return f"uid {os.getuid()}"


@contextmanager
def _ledger(options: Options, job: str, backend: str | None = None) -> Iterator[tuple[Ledger, list[Pair]]]:
    policy = options.load_policy()
    pairs = pairs_named(policy, [job], backend)
    ledger = Ledger.open(policy.state)
    try:
        yield ledger, pairs
    finally:
        ledger.close()
