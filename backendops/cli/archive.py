"""archive: look after what archive jobs have kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from backendops.cli.console import exit_code, print_json
from backendops.cli.options import Options
from backendops.cli.restore import archives
from backendops.contracts.archive import CanRestore, Checked
from backendops.contracts.errors import BackendError, BackendRefused
from backendops.contracts.run import Limits, NoWatermarks
from backendops.jobs.archive import Archive
from backendops.log import masked
from backendops.policy.model import Pair


@click.group("archive")
def command() -> None:
    """Look after archives: `backendops archive verify` reads them again, and says what is not as it was written."""


@command.command("verify")
@click.option("--job", metavar="NAME", help="Only the archive of this job; left out: of every archive job.")
@click.option("--backend", metavar="NAME", help="Only what came from this backend.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def verify(options: Options, job: str | None, backend: str | None, as_json: bool) -> int:
    """Read every archive again: SHA-256, counts and dates of files, counts and bounds of partitions.

    Changes nothing and takes no lock. Exits with 1 where something is wrong, and says what.
    """
    policy = options.load_policy()
    options.configure_log("info" if options.wants_log else "error")
    codes, documents = [], []
    for pair in archives(policy, job, backend):
        checked: list[Checked] = []
        problem: BackendError | None = None
        try:
            for one in _checks_or_none(pair):
                checked.append(one)
                if not as_json:
                    _tell(pair, one)
        except BackendError as error:
            problem = error
            if not as_json:
                click.echo(masked(f"backendops: {pair}: {error}; {error.hint}"), err=True)
        codes.append(problem.exit_code if problem else int(any(one.wrong for one in checked)))
        documents.append(_document(pair, checked, problem))
        if not as_json:
            click.echo(masked(f"{pair}: {_summary(checked, is_all=problem is None)}"))
    if as_json:
        print_json(documents)
    return exit_code(codes)


def _checks_or_none(pair: Pair) -> Iterator[Checked]:
    """What is told of the archive; where there is none, that: 'all as they were written' would be said of nothing."""
    is_there = False
    for checked in _checks(pair):
        is_there = True
        yield checked
    if not is_there:
        assert isinstance(pair.job, Archive)  # noqa: S101 - archives() has seen to it
        name = pair.job.table if pair.job.store is None else f"{pair.job.table} in {pair.job.store.label}"
        why = "there is no such archive: the job has not run yet, or it names another (`table:`, `schema:`, `to:`)"
        yield Checked(name, 0, (why,))


def _checks(pair: Pair) -> Iterator[Checked]:
    assert isinstance(pair.job, Archive)  # noqa: S101 - archives() has seen to it
    limits = Limits(pair.job.statement_timeout, budget=pair.job.time_budget, read_only=True)
    if pair.job.store is not None:
        with pair.job.store.open(pair.job.source, limits) as store:
            yield from store.check()
        return
    if not isinstance(pair.backend, CanRestore):
        raise BackendRefused(
            f"{type(pair.backend).__name__} cannot verify its archive table", "count it with SQL beside the live table"
        )
    with pair.backend.open(limits, NoWatermarks()) as backend:
        assert isinstance(backend, CanRestore)  # noqa: S101 - it was before it was opened
        yield from backend.check_archive(pair.job.plan)


def _summary(checked: list[Checked], *, is_all: bool) -> str:
    wrong = sum(bool(one.wrong) for one in checked)
    read = f"{sum(one.rows for one in checked):,} rows in {len(checked)} parts"
    if not is_all:
        return f"not read to the end: {read} before that" + (f", {wrong} of them wrong" if wrong else "")
    return f"{read}, " + (f"{wrong} of them wrong" if wrong else "all as they were written")


def _tell(pair: Pair, checked: Checked) -> None:
    for wrong in checked.wrong:
        click.echo(masked(f"backendops: {pair}: {checked.name}: {wrong}"), err=True)


def _document(pair: Pair, checked: list[Checked], problem: BackendError | None) -> dict[str, Any]:
    return {
        "job": pair.job_name,
        "backend": pair.backend_name,
        "rows": sum(one.rows for one in checked),
        "wrong": sum(len(one.wrong) for one in checked),
        "parts": [{"name": one.name, "rows": one.rows, "wrong": one.wrong} for one in checked],
        "error": str(problem) if problem else None,
        "hint": problem.hint if problem else None,
    }
