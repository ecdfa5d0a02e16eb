"""Driving one job, a committed step at a time, and asking after each whether to go on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from backendops.contracts.backend import Backend, Lock
from backendops.contracts.capabilities import CanReportPressure, Pressure
from backendops.contracts.readings import Finding
from backendops.contracts.run import Outcome, Step, Steps
from backendops.engine.clock import Clock
from backendops.engine.ledger import Ledger
from backendops.engine.pacing import GENTLE, TwoPaces
from backendops.engine.report import Run
from backendops.engine.stop import Stop

# A person who cancels or pauses waits a second for it; asking more often would cost a write per small batch.
ASK_EVERY: Final = 1.0
# `touch` it in the state directory, and every changing run of this host rests until it is gone.
PAUSE_FILE: Final = "pause"
_ALL_IS_WELL: Final = Pressure()
# A run of a thousand partitions must not make a log line of a thousand sentences.
_MOST_SENTENCES: Final = 10

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Tally:
    """What a run has done so far; it outlives whatever ends the run, and stays small however long that takes."""

    rows: int = 0
    findings: list[Finding] = field(default_factory=list)
    throttled: dict[str, float] = field(default_factory=dict)
    _said: dict[str, None] = field(default_factory=dict)

    def add(self, step: Step) -> None:
        """Count a step in."""
        self.rows += step.rows
        self.findings.extend(step.findings)
        if step.what and len(self._said) <= _MOST_SENTENCES:
            self._said[step.what] = None

    def note(self, findings: Iterable[Finding]) -> None:
        """Take findings down that come again and again, each once."""
        known = {finding.code for finding in self.findings}
        self.findings.extend(finding for finding in findings if finding.code not in known)

    def waited(self, reason: str, seconds: float) -> None:
        """Count time in that was lost."""
        self.throttled[reason] = self.throttled.get(reason, 0.0) + seconds

    @property
    def what(self) -> str:
        """What the steps said they did, each sentence once."""
        said = list(self._said)
        return "; ".join([*said[:_MOST_SENTENCES], "and more"] if len(said) > _MOST_SENTENCES else said)


@contextmanager
def history(doing: str) -> Iterator[None]:
    """The ledger is history, not truth: when it fails in the middle of a run, the run goes on and the log says so."""
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        log.warning("ledger.failed", doing=doing, error=str(error).partition("\n")[0])


@dataclass(slots=True)
class Drive:
    """One run between its start and its end."""

    run: Run
    backend: Backend
    lock: Lock | None
    tally: Tally
    ledger: Ledger
    stop: Stop
    clock: Clock

    ended_by: str = field(default="", init=False)
    """The sentence with which the backend ended the run, where it did."""

    _pace: TwoPaces = field(init=False)
    _deadline: float = field(init=False)
    _asked_at: float = field(default=float("-inf"), init=False)
    _pressed_at: float = field(default=float("-inf"), init=False)
    _cancelled: bool = field(default=False, init=False)
    _held: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        job = self.run.pair.job
        self._pace = TwoPaces(job.batch_size, job.batch_time)
        self._pace.is_gentle = job.pace == "gentle"
        self._deadline = self.clock.monotonic() + job.time_budget.total_seconds()

    def to_the_end(self, stepped: Callable[[Step], None], throttled: Callable[[str, float], None]) -> Outcome:
        """Step until the job is done or something ends it; a stop never falls inside a step."""
        steps: Steps = self.run.pair.job.run(self.backend, self.clock.now(), self._pace)
        with closing(steps):
            while True:
                ending = self._why_end() or self._wait_out_pressure(throttled)
                if ending is not None:
                    return ending
                began = self.clock.monotonic()
                step = next(steps, None)
                if step is None:
                    return Outcome.COMPLETED
                self.tally.add(step)
                stepped(step)
                if self.run.pair.job.changes:
                    self._rest(self.clock.monotonic() - began)

    def _rest(self, took: float) -> None:
        rest = self._pace.rest(took)
        self.stop.wait(rest)
        # Many times a second, and no news: only the run's record has it.
        if self._pace.is_gentle:
            self.tally.waited(GENTLE, rest)

    def _why_end(self) -> Outcome | None:
        self._ask_the_ledger()
        if self.stop.requested:
            return Outcome.STOPPED
        if self._cancelled:
            return Outcome.CANCELLED
        if self.clock.monotonic() >= self._deadline:
            return Outcome.OUT_OF_TIME
        if self.lock is not None and not self.lock.still_held():
            return Outcome.LOST_LOCK
        return None

    def _ask_the_ledger(self) -> None:
        now = self.clock.monotonic()
        if now - self._asked_at < ASK_EVERY:
            return
        self._asked_at = now
        with history("ask for a cancel or a pause"):
            self.ledger.progressed(self.run.id, self.tally.rows, self.clock.now())
            self._cancelled = self.ledger.cancel_requested(self.run.id)
            self._held = self.run.pair.job_name in self.ledger.paused()

    def _wait_out_pressure(self, throttled: Callable[[str, float], None]) -> Outcome | None:
        if not self.run.pair.job.changes or self.clock.monotonic() - self._pressed_at < ASK_EVERY:
            return None
        told = None
        while (pressure := self._pressure()) is not _ALL_IS_WELL:
            self.tally.note(pressure.findings)
            if self.run.pair.job.pace == "auto":
                self._pace.is_gentle = pressure.in_use
            if pressure.end is not None:
                self.ended_by = pressure.end
                return Outcome.STOPPED
            if pressure.wait is None:
                break
            if pressure.wait != told:
                log.info("run.waits", reason=pressure.wait, **({"why": pressure.why} if pressure.why else {}))
                told = pressure.wait
            began = self.clock.monotonic()
            self.stop.wait(ASK_EVERY)
            lost = self.clock.monotonic() - began
            self.tally.waited(pressure.wait, lost)
            throttled(pressure.wait, lost)
            ending = self._why_end()
            if ending is not None:
                return ending
        self._pressed_at = self.clock.monotonic()
        return None

    def _pressure(self) -> Pressure:
        if self._held:
            return Pressure(wait="paused")
        for_all = None if self.ledger.directory is None else self.ledger.directory / PAUSE_FILE
        for file in (for_all, self.backend.pause_file):
            # Not Path.exists(), which raises where a directory on the way may not be entered.
            if file is not None and os.path.exists(file):  # noqa: PTH110 - see above
                return Pressure(wait="pause-file", why=f"there is a file {file}")
        return self.backend.pressure() if isinstance(self.backend, CanReportPressure) else _ALL_IS_WELL
