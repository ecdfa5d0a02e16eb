"""What the ledger's tables hold, as the program speaks of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Row

from backendops.contracts.readings import Finding, Severity
from backendops.contracts.run import Outcome, Trigger
from backendops.engine.report import RunReport

ORPHANED: Final = "the process ended without a word (killed?)"


@dataclass(frozen=True, slots=True)
class Running:
    """A run that has not ended."""

    run_id: int
    job: str
    backend: str
    trigger: Trigger
    started_at: datetime
    progressed_at: datetime
    rows: int
    host: str
    pid: int
    cancel_requested: bool


@dataclass(frozen=True, slots=True)
class Totals:
    """Every run of a pair that ended this way, ever."""

    job: str
    backend: str
    outcome: Outcome
    runs: int
    rows: int


@dataclass(frozen=True, slots=True)
class Throttled:
    """Every second a pair was held back for this reason, ever."""

    job: str
    backend: str
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class StoredReading:
    """The latest value of one series."""

    name: str
    labels: Mapping[str, str]
    value: float
    at: datetime


@dataclass(frozen=True, slots=True)
class Pause:
    """Who paused a job, and when."""

    by: str
    at: datetime


def orphan_from(row: Row[Any], now: datetime) -> RunReport:
    # When it died is not known; the last sign of life is the nearest truth.
    return RunReport(
        row.id, row.job, row.backend, Trigger(row.trigger), Outcome.FAILED, row.started_at, now,
        rows=row.rows, seconds=(row.progressed_at - row.started_at).total_seconds(), error=ORPHANED,
        hint="what it had committed is kept; the next run goes on from there",
    )  # fmt: skip


def report_from(row: Row[Any]) -> RunReport:
    return RunReport(
        row.id, row.job, row.backend, Trigger(row.trigger), Outcome(row.outcome), row.started_at, row.ended_at,
        rows=row.rows, seconds=row.seconds, error=row.error, hint=row.hint, what=row.what,
        throttled=row.throttled,
        findings=tuple(
            Finding(Severity(f["severity"]), f["code"], f["sentence"], f["fix"]) for f in row.findings
        ),
    )  # fmt: skip
