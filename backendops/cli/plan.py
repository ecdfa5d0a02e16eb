"""plan: what each job would do now, found on read-only connections; changes nothing, not even the ledger."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import click

from backendops.cli.console import distance, exit_code, moment, pairs_named, print_json
from backendops.cli.options import Options
from backendops.contracts.errors import BackendError
from backendops.contracts.run import Preview
from backendops.engine.ledger import Ledger
from backendops.engine.runner import Foreseen, Runner
from backendops.log import masked
from backendops.policy.model import Pair


@dataclass(frozen=True, slots=True)
class Planned:
    """A pair and what it would do, or why that cannot be known."""

    pair: Pair
    next_run: datetime | None
    preview: Preview | None
    error: BackendError | None = None
    foreseen: Foreseen = field(default_factory=Foreseen)

    @property
    def changes_nothing(self) -> str:
        """Why a run would not begin its work now, as a sentence; empty where it would."""
        if self.foreseen.refused is not None:
            return f"would be refused: {self.foreseen.refused}; {self.foreseen.refused.hint}"
        if self.foreseen.idle:
            return f"would change nothing: {self.foreseen.idle}"
        pressure = self.foreseen.pressure
        if pressure.end is not None:
            return f"would end at once: {pressure.end}"
        return f"would wait: {pressure.why or pressure.wait}" if pressure.wait else ""


@click.command("plan")
@click.argument("jobs", nargs=-1, metavar="[JOB...]")
@click.option("--backend", metavar="NAME", help="Only on this backend.")
@click.option("--sql/--no-sql", "with_statements", default=True, help="Show the SQL that a run would send, or not.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, statements included.")
@click.pass_obj
def command(options: Options, jobs: tuple[str, ...], backend: str | None, with_statements: bool, as_json: bool) -> int:
    """Show what each job would do now: rows, oldest, cutoff, SQL and next run. Changes nothing."""
    policy = options.load_policy()
    pairs = pairs_named(policy, jobs, backend)
    options.configure_log("info" if options.wants_log else "error")
    # What ran before decides what is refused; a ledger that is not there is not made.
    ledger = Ledger.open(policy.state, create=False)
    try:
        runner = Runner(ledger)
        codes = []
        documents = []
        for pair in pairs:
            planned = _look(runner, pair)
            codes.append(0 if planned.error is None else planned.error.exit_code)
            if as_json:
                documents.append(_document(planned))
            else:
                # One at a time: counting takes a while, and what is known already need not wait.
                click.echo(masked(_paragraph(planned, with_statements)) + "\n")
        if as_json:
            print_json(documents)
    finally:
        ledger.close()
    return exit_code(codes)


def _look(runner: Runner, pair: Pair) -> Planned:
    try:
        preview = runner.preview(pair)
        return Planned(pair, _next_run(pair), preview, foreseen=runner.foresee(pair, preview))
    except BackendError as error:
        return Planned(pair, _next_run(pair), None, error)


def _next_run(pair: Pair) -> datetime | None:
    return None if pair.schedule is None else pair.schedule.next_after(datetime.now(UTC))


def _document(planned: Planned) -> dict[str, Any]:
    preview, error = planned.preview, planned.error
    return {
        "job": planned.pair.job_name,
        "backend": planned.pair.backend_name,
        "next_run": planned.next_run,
        "summary": preview.summary if preview else None,
        "rows": preview.rows if preview else None,
        "oldest": preview.oldest if preview else None,
        "cutoff": preview.cutoff if preview else None,
        "statements": preview.statements if preview else [],
        "findings": [
            {"severity": f.severity, "code": f.code, "sentence": f.sentence, "fix": f.fix}
            for f in (preview.findings if preview else ())
        ],
        "refused": str(planned.foreseen.refused) if planned.foreseen.refused else None,
        "changes_nothing": planned.changes_nothing or None,
        "error": str(error) if error else None,
        "hint": error.hint if error else None,
    }


def _paragraph(planned: Planned, with_statements: bool) -> str:
    pair, preview, now = planned.pair, planned.preview, datetime.now(UTC)
    lines = [click.style(str(pair), bold=True) + f"  ({pair.backend.display_url})"]
    if planned.error is not None:
        lines.append(click.style(f"  cannot tell: {planned.error}", fg="red"))
        lines.extend([f"  {planned.error.hint}"] if planned.error.hint else [])
    if preview is not None:
        lines.append(f"  {preview.summary}")
        if planned.changes_nothing:
            lines.append(click.style(f"  {planned.changes_nothing}", fg="yellow"))
        if preview.oldest is not None:
            lines.append(f"  oldest    {moment(preview.oldest)} UTC ({distance(preview.oldest, now)})")
        if preview.cutoff is not None:
            lines.append(f"  cutoff    {moment(preview.cutoff)} UTC ({distance(preview.cutoff, now)})")
        lines.extend(f"  {finding.severity}: {finding.sentence}; {finding.fix}" for finding in preview.findings)
    if planned.next_run is None:
        lines.append("  next run  when asked")
    else:
        lines.append(f"  next run  {moment(planned.next_run)} UTC ({distance(planned.next_run, now)}; {pair.schedule})")
    if preview is not None and with_statements:
        for statement in preview.statements:
            lines.append("")
            lines.extend(f"    {line}" for line in statement.strip().splitlines())
    return "\n".join(lines)
