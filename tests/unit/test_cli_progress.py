"""The progress of a run on a terminal: its figures are whole, however narrow it is."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime

import pytest
from rich.console import Console

from backendops.cli.console import ProgressListener
from backendops.contracts import metrics
from backendops.contracts.run import Outcome, Step, Trigger
from backendops.engine.report import Run, RunReport
from tests.unit.toys import toy_pair

NOTE = "moved to celery_taskmeta_archive, and then much more that is only nice to know"


@pytest.mark.parametrize("width", [80, 160])
def test_figures_are_never_cut(width: int) -> None:
    terminal = io.StringIO()
    progress = ProgressListener(Console(file=terminal, force_terminal=True, width=width))
    now = datetime.now(UTC)
    run = Run(7, toy_pair(), Trigger.COMMAND, now)
    progress.started(run)
    for _ in range(3):
        progress.stepped(run, Step(1_000_000, NOTE, (metrics.RESULTS_DUE.read(9_000_000),)))
    progress.ended(run, RunReport(7, "toy", "place", Trigger.COMMAND, Outcome.COMPLETED, now, now))
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).replace("\r", "\n")
    shown = [line for line in drawn.splitlines() if "rows/s" in line][-1]
    assert str(run.pair) in shown
    assert "3000000/12000000" in shown
    assert re.search(r"[\d,]+ rows/s", shown)
    # Hours, minutes and seconds that are left, or not known yet.
    assert re.search(r"(\d|-):(\d\d|--):(\d\d|--)", shown)
    assert "moved" in shown
    assert len(shown) <= width
