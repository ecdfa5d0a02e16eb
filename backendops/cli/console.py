"""What people read: tables, moments, lists of exit codes and the progress of a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from backendops.contracts import metrics
from backendops.contracts.errors import BackendopsError
from backendops.contracts.run import Outcome, Step
from backendops.contracts.units import format_seconds
from backendops.engine.report import Run, RunListener, RunReport
from backendops.log import masked
from backendops.policy.model import Pair, Policy

SOME_FAILED: Final = 4
_NOT_FINISHED: Final = Outcome.STOPPED.exit_code

_COLOURS: Final = {
    Outcome.COMPLETED: "green",
    Outcome.FAILED: "red",
    Outcome.UNREACHABLE: "red",
    Outcome.REFUSED: "red",
    Outcome.LOST_LOCK: "red",
    Outcome.BUSY: "red",
}


class Misnamed(BackendopsError):
    """The command names something that the policy does not have."""

    exit_code = 2


def exit_code(codes: Iterable[int]) -> int:
    """One exit code for many runs: theirs where they agree, else that some failed and the rest ran.

    Where nothing failed and only some are not finished, that is all there is to say.
    """
    different = set(codes) or {0}
    if different == {0, _NOT_FINISHED}:
        return _NOT_FINISHED
    return different.pop() if len(different) == 1 else SOME_FAILED


def pairs_named(policy: Policy, jobs: Sequence[str], backend: str | None = None) -> list[Pair]:
    """The pairs of these jobs (of every job where none is named); raises Misnamed, which says the nearest name."""
    for name in jobs:
        if name not in policy.jobs:
            raise Misnamed(f"the policy has no job {name!r}{nearest(name, policy.jobs)}")
    if backend is not None and backend not in policy.backends:
        raise Misnamed(f"the policy has no backend {backend!r}{nearest(backend, policy.backends)}")
    pairs = []
    for name in dict.fromkeys(jobs or policy.jobs):
        mine = [pair for pair in policy.pairs_of(name) if backend in {None, pair.backend_name}]
        if not mine and jobs:
            on = ", ".join(pair.backend_name for pair in policy.pairs_of(name))
            raise Misnamed(f"{name} does not run on {backend!r}; it runs on {on}")
        pairs.extend(mine)
    return pairs


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about a name that is not there."""
    names = list(known)
    near = get_close_matches(name, names, n=1)
    return f", did you mean {near[0]!r}?" if near else f"; it has {', '.join(names)}"


def print_json(value: Any) -> None:
    """For scripts: one JSON document on stdout."""
    click.echo(json.dumps(_masked(value), indent=2, ensure_ascii=not writes_unicode()))


def writes_unicode() -> bool:
    """Does stdout take every character?"""
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def _masked(value: Any) -> Any:
    """Text by text: a password such as 1000 in the finished document would take its numbers and its keys apart."""
    match value:
        case None | bool() | int() | float():
            return value
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="seconds")
        case dict():
            return {str(key): _masked(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_masked(inner) for inner in value]
        case _:
            return masked(str(value))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """A table as wide as the terminal; elsewhere as wide as its text, for grep and awk."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in {"rows", "seconds"} else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(masked(cell)) if isinstance(cell, str) else cell for cell in row))
    # 400 characters hold the longest error sentence; nobody's terminal is asked.
    _Table(width=None if sys.stdout.isatty() else 400).print(table)


class _Table(Console):
    def on_broken_pipe(self) -> None:
        # rich itself would exit with 1, as if something had failed.
        raise BrokenPipeError


def outcome_text(outcome: Outcome) -> Text:
    """An outcome in its colour."""
    return Text(outcome.value, style=_COLOURS.get(outcome, "yellow"))


def moment(value: datetime | None) -> str:
    """A moment in UTC, to the second."""
    return "-" if value is None else f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def distance(value: datetime | None, now: datetime) -> str:
    """How long ago, or in how long."""
    if value is None:
        return "-"
    seconds = (now - value).total_seconds()
    return f"{format_seconds(seconds)} ago" if seconds >= 0 else f"in {format_seconds(-seconds)}"


class ProgressListener(RunListener):
    """A bar on the terminal for each run: rows, rate and, where the job knows what is due, the time left."""

    def __init__(self, terminal: Console | None = None) -> None:
        # Of 80 characters, millions of rows and their rate leave the bar ten, and a word or two to what was done, which
        # alone is cut where there is no room.
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(10, table_column=Column(no_wrap=True)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            console=terminal or Console(stderr=True),
            expand=True,
            transient=True,
        )
        self._task: TaskID | None = None

    def started(self, run: Run) -> None:
        self._progress.start()
        self._task = self._progress.add_task(str(run.pair), total=None, rate="", note="")

    def stepped(self, run: Run, step: Step) -> None:
        if self._task is None:
            return
        task = self._progress.tasks[self._task]
        rows = int(task.completed) + step.rows
        due = [reading.value for reading in step.readings if reading.metric is metrics.RESULTS_DUE]
        rate = rows / task.elapsed if task.elapsed else 0
        self._progress.update(
            self._task,
            completed=rows,
            # What the job counted is what was still due after this step.
            total=rows + int(due[0]) if due else task.total,
            rate=f"{rate:,.0f} rows/s" if rows else "",
            note=masked(step.what),
        )

    def throttled(self, run: Run, reason: str, seconds: float) -> None:
        if self._task is not None:
            self._progress.update(self._task, note=f"waits: {reason}")

    def ended(self, run: Run, report: RunReport) -> None:
        self._progress.stop()
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
