"""restore: put archived results back among the live ones, wherever the archive is."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import click

from backendops.cli.console import ProgressListener, distance, exit_code, moment, pairs_named, print_json
from backendops.cli.options import Options
from backendops.contracts.archive import Removal, Selection
from backendops.contracts.errors import BackendError
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.retention import Retention
from backendops.contracts.run import Outcome, Trigger
from backendops.contracts.units import format_seconds
from backendops.engine.drive import history
from backendops.engine.ledger import Ledger
from backendops.engine.report import RunReport
from backendops.engine.runner import Runner
from backendops.engine.stop import Stop, stop_on_signals
from backendops.jobs.archive import Archive
from backendops.jobs.expire import Expire
from backendops.jobs.moving import stays_archived
from backendops.jobs.restore import Restore
from backendops.jobs.rules import cutoff
from backendops.log import LogListener, masked
from backendops.policy.model import Pair, Policy

NAME = "restore"


def _moment(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    """A date or a moment, in UTC unless it says another zone."""
    if value is None:
        return None
    try:
        read = datetime.fromisoformat(value)
    except ValueError:
        way = "write 2026-11-20, or 2026-11-20T15:30+01:00"
        raise click.BadParameter(f"{value!r} is no date or moment: {way}", ctx, param) from None
    return read if read.tzinfo is not None else read.replace(tzinfo=UTC)


@click.command("restore")
@click.option("--task-id", "ids", multiple=True, metavar="ID", help="A task's or group's id; may be given many times.")
@click.option(
    "--from", "since", metavar="MOMENT", callback=_moment, help="Results that finished at this moment or later (UTC)."
)
@click.option(
    "--to", "until", metavar="MOMENT", callback=_moment, help="Results that finished before this moment (UTC)."
)
@click.option("--backend", metavar="NAME", help="Only to this backend; left out: to each that has an archive.")
@click.option("--job", metavar="NAME", help="Only from the archive of this job; left out: of every archive job.")
@click.option("--although-expired", is_flag=True, help="Also what an expire job, or Celery itself, will remove again.")
@click.option("--dry-run", is_flag=True, help="Only say what would be put back.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, with every id.")
@click.pass_obj
def command(  # noqa: PLR0913, PLR0917 - one argument per option
    options: Options,
    ids: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    backend: str | None,
    job: str | None,
    although_expired: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Put archived results back: by id, or by when they finished.

    An id that is live again is reported and left. Takes the backend's lock and is in the history, as any run.
    """
    if not ids and since is None and until is None:
        raise click.UsageError("say which results: --task-id ID, or --from and --to")
    if since is not None and until is not None and since >= until:
        raise click.UsageError(f"--from {since.isoformat()} is not before --to {until.isoformat()}")
    policy = options.load_policy()
    options.configure_log("info" if options.wants_log else "error")
    selection = Selection(tuple(dict.fromkeys(ids)), since, until)
    pairs = archives(policy, job, backend)
    if dry_run:
        return _preview(pairs, selection, as_json)
    return _restore(options, policy, pairs, selection, although_expired, as_json)


def archives(policy: Policy, job: str | None, backend: str | None) -> list[Pair]:
    """The archive jobs of the policy on their backends; raises UsageError where there is none."""
    named = pairs_named(policy, [job] if job else [], backend)
    pairs = [pair for pair in named if isinstance(pair.job, Archive)]
    if not pairs:
        raise click.UsageError(f"{job!r} is no archive job" if job else "the policy has no archive job here")
    return pairs


def _preview(pairs: list[Pair], selection: Selection, as_json: bool) -> int:
    ledger = Ledger.in_memory()
    codes, documents = [], []
    try:
        for pair in pairs:
            document: dict[str, Any] = {"job": pair.job_name, "backend": pair.backend_name}
            findings: tuple[Finding, ...] = ()
            try:
                restoring = _restoring(pair, selection)
                preview = Runner(ledger).preview(restoring)
                assert isinstance(restoring.job, Restore)  # noqa: S101 - made so just now
                document |= {"rows": preview.rows, "oldest": preview.oldest, "summary": preview.summary}
                document["quarantined"] = [asdict(one) for one in restoring.job.quarantined]
                codes.append(0)
                oldest = f", the oldest of {moment(preview.oldest)} UTC" if preview.oldest else ""
                said = f"{pair}: {preview.summary}{oldest}"
                findings = preview.findings
            except BackendError as error:
                document |= {"error": str(error), "hint": error.hint}
                codes.append(error.exit_code)
                said = f"{pair}: cannot tell: {error}; {error.hint}"
            documents.append(document)
            if not as_json:
                click.echo(masked(said))
                _warn(pair, findings)
    finally:
        ledger.close()
    if as_json:
        print_json(documents)
    return exit_code(codes)


def _warn(pair: Pair, findings: Iterable[Finding]) -> None:
    for finding in findings:
        if finding.severity is not Severity.INFO:
            click.echo(masked(f"{pair.backend_name}: {finding.sentence}; {finding.fix}"), err=True)


def _restoring(pair: Pair, selection: Selection, *, names_all: bool = True) -> Pair:
    assert isinstance(pair.job, Archive)  # noqa: S101 - archives() has seen to it
    return Pair(NAME, Restore.of(pair.job, selection, names_all=names_all), pair.backend_name, pair.backend, None)


def _restore(  # noqa: PLR0913, PLR0917 - what the command was told
    options: Options,
    policy: Policy,
    pairs: list[Pair],
    selection: Selection,
    although_expired: bool,
    as_json: bool,
) -> int:
    ledger = Ledger.open(policy.state)
    stop = Stop()
    codes: list[int] = []
    documents: list[dict[str, Any]] = []
    found: set[str] = set()
    quarantined: set[str] = set()
    try:
        with history("look for runs whose process is gone"):
            ledger.mark_orphans()
        with stop_on_signals(stop):
            for archive in pairs:
                removals = () if although_expired else tuple(_removals(policy, archive, ledger))
                pair = _restoring(
                    archive, replace(selection, removals=removals), names_all=as_json or bool(selection.ids)
                )
                listeners = (
                    [LogListener()] if options.wants_log else [ProgressListener()] if sys.stderr.isatty() else []
                )
                report = Runner(ledger, listeners, stop).run(pair, Trigger.COMMAND)
                assert isinstance(pair.job, Restore)  # noqa: S101 - made so above
                if selection.ids:
                    found.update(pair.job.restored, pair.job.live_again)
                quarantined.update(key for one in pair.job.quarantined for key in one.ids)
                codes.append(report.outcome.exit_code)
                documents.append(_document(archive, pair.job, report))
                if not as_json:
                    _tell(archive, pair.job, report)
    finally:
        stop.close()
        ledger.close()
    missing = [one for one in selection.ids if one not in found | quarantined]
    if as_json:
        print_json({"restores": documents, "not_archived": missing})
    elif missing and not any(codes):
        click.echo(f"backendops: in none of the archives: {', '.join(missing)}", err=True)
    not_put_back = missing or quarantined - found
    return exit_code(codes) if any(codes) or not not_put_back else Outcome.FAILED.exit_code


def _removals(policy: Policy, archive: Pair, ledger: Ledger) -> Iterator[Removal]:
    """Who removes old results of this backend: Celery itself, and each job that is not paused."""
    paused = ledger.paused()
    now = datetime.now(UTC)
    backend = archive.backend
    # What expires by itself is put back with a time to live of its own.
    if backend.result_expires is not None and not stays_archived(backend):
        yield Removal(
            f"Celery itself, once a day (result_expires of the backend is {backend.result_expires})",
            Retention(cutoff(now, backend.result_expires)),
            "set result_expires of the Celery application, and of the backend in the policy, to a longer time",
        )
    for pair in policy.pairs:
        if pair.backend_name == archive.backend_name and isinstance(pair.job, Expire) and pair.job_name not in paused:
            newest = pair.job.keep_newest
            # What an archive job has taken once it is not waited for again.
            retention = pair.job.behind_these({}).retention(now)
            unless = f", unless it is one of the {newest:,} newest" if newest else ""
            yield Removal(
                f"the next run of the job {pair.job_name!r}{unless}",
                retention,
                f"pause that job first (`backendops pause {pair.job_name}`)",
            )


def _document(archive: Pair, job: Restore, report: RunReport) -> dict[str, Any]:
    return {
        "job": archive.job_name,
        "backend": archive.backend_name,
        "outcome": report.outcome,
        "run": report.run_id,
        "rows": report.rows,
        "restored": job.restored,
        "live_again": job.live_again,
        "quarantined": [asdict(one) for one in job.quarantined],
        "error": report.error or None,
        "hint": report.hint or None,
    }


def _tell(archive: Pair, job: Restore, report: RunReport) -> None:
    if report.outcome.exit_code:
        click.echo(masked(f"backendops: {report}"), err=True)
    elif report.rows or sys.stdout.isatty():
        took = format_seconds(report.seconds)
        click.echo(f"{archive.backend_name}: {report.rows:,} results put back from {archive.job_name!r} in {took}")
        if report.rows:
            schedule = archive.schedule
            soon = distance(schedule.next_after(datetime.now(UTC)), datetime.now(UTC)) if schedule else "when asked"
            click.echo(
                f"{archive.job_name!r} archives them again in its next run ({soon}); `backendops pause` holds it"
            )
    _warn(archive, report.findings)
    for key in job.live_again:
        click.echo(f"{archive.backend_name}: left, as it is live again: {key}", err=True)
    if more := job.left - len(job.live_again):
        click.echo(f"{archive.backend_name}: left, as they are live again: {more:,} more (--json names all)", err=True)
