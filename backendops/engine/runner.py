"""One run, from the outside in: open, safety limits, lock, ledger, steps, report. Everybody runs jobs this way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import structlog

from backendops.contracts.capabilities import CanReportPressure, Pressure
from backendops.contracts.errors import (
    BackendBusy,
    BackendError,
    BackendLocked,
    BackendopsError,
    BackendRefused,
    BackendUnreachable,
)
from backendops.contracts.job import Job
from backendops.contracts.masking import mask, secrets_of
from backendops.contracts.order import ComesBehind, Completed, settings_of
from backendops.contracts.run import Limits, Outcome, Preview, Step, Trigger
from backendops.engine.clock import Clock
from backendops.engine.drive import Drive, Tally, history
from backendops.engine.ending import Ending, ending_of, unexpected
from backendops.engine.ledger import Ledger
from backendops.engine.report import Run, RunListener, RunReport
from backendops.engine.safety import KeepsBefore, check_clocks, check_keeps, check_volume
from backendops.engine.stop import Stop
from backendops.policy.model import Pair

__all__ = ["Run", "RunListener", "RunReport", "Runner"]

log = structlog.get_logger(__name__)


class Runner:
    """Runs pairs; one runner serves every thread of a process."""

    def __init__(
        self,
        ledger: Ledger,
        listeners: Sequence[RunListener] = (),
        stop: Stop | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.ledger = ledger
        self.listeners = tuple(listeners)
        self.stop = stop or Stop()
        self.clock = clock or Clock()

    def told(self, pair: Pair) -> Job:
        """The pair's job, told how far the jobs have come that it must not overtake."""
        job = pair.job
        if not isinstance(job, ComesBehind) or not job.behind:
            return job
        completed = Completed(self.ledger.watermarks(pair.backend_name))
        began = {one.job: completed.began(one) for one in job.behind}
        return job.knowing({name: moment for name, moment in began.items() if moment is not None})

    def run(
        self, pair: Pair, trigger: Trigger, *, record_locked: bool = True, accept_volume: bool = False
    ) -> RunReport:
        """Run the pair's job once, now. Whatever the backend does, the answer is a report, never an exception.

        Without `record_locked` a run that the lock keeps from beginning leaves no trace: the caller tries again soon.
        With `accept_volume` no number of rows is too large for this once.
        """
        return _Running(self, pair, trigger, accept_volume).to_report(record_locked)

    def preview(self, pair: Pair) -> Preview:
        """What a run would do now, on a read-only connection; raises BackendError."""
        try:
            with pair.backend.open(_limits(pair, read_only=True), self.ledger.remembered(pair.backend_name)) as backend:
                return self.told(pair).preview(backend, self.clock.now())
        except BackendopsError:
            raise
        except Exception as error:
            raise BackendError(*unexpected(error)) from error

    def foresee(self, pair: Pair, preview: Preview) -> Foreseen:
        """What would keep a run with this preview from changing anything, if anything; raises BackendError."""
        if not pair.job.changes:
            return Foreseen()
        try:
            check_keeps(pair.job)
            with pair.backend.open(_limits(pair, read_only=True), self.ledger.remembered(pair.backend_name)) as backend:
                standing = backend.standing()
                if standing.read_only_because:
                    return Foreseen(idle=standing.read_only_because)
                if pair.job.minds_the_clock:
                    check_clocks(standing, self.clock.now())
                self.check_volume(pair, lambda: preview)
                pressure = backend.pressure() if isinstance(backend, CanReportPressure) else Pressure()
        except BackendRefused as refused:
            return Foreseen(refused=refused)
        except BackendopsError:
            raise
        except Exception as error:
            raise BackendError(*unexpected(error)) from error
        return Foreseen(pressure=pressure)

    def check_volume(self, pair: Pair, preview: Callable[[], Preview]) -> None:
        """Raises BackendRefused where more is due than the policy or the runs before allow; counts only if it must."""
        before = KeepsBefore(self.ledger.watermarks(pair.backend_name), pair.job_name)
        shortened = before.shortened(pair.job)
        if pair.job.max_rows is None and not shortened:
            return
        found = preview()
        if pair.job.max_rows is not None:
            check_volume(found, pair.job.max_rows)
        if shortened:
            largest = 0
            with history("look up the largest run"):
                largest = self.ledger.largest_run(pair.job_name, pair.backend_name)
            before.check(pair.job, found, largest)


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What would happen to a run before its first step."""

    refused: BackendRefused | None = None
    idle: str = ""
    """Why the backend takes no changes at all."""
    pressure: Pressure = field(default_factory=Pressure)
    """What it would wait for, or end at."""


class _Running:
    """One run's way through the runner."""

    def __init__(self, runner: Runner, pair: Pair, trigger: Trigger, accept_volume: bool) -> None:
        self._ledger = runner.ledger
        self._stop = runner.stop
        self._clock = runner.clock
        self._runner = runner
        self._accept_volume = accept_volume
        self._pair = pair
        self._trigger = trigger
        self._started_at = runner.clock.now()
        self._tally = Tally()
        self._run: Run | None = None
        self._ending: Ending | None = None

    def to_report(self, record_locked: bool) -> RunReport:
        began = self._clock.monotonic()
        try:
            with ExitStack() as held:
                # Taken down before lock and connection are closed: what fails there no longer changes how it ended.
                self._ending = self._attempt(held)
        except Exception as error:  # noqa: BLE001 - the engine is the one place where any failure becomes an outcome
            self._ending = self._failed(error)
        except BaseException:
            # Ctrl-C without a Stop: the step in hand is rolled back, those before it are committed.
            self._report(Ending(Outcome.STOPPED, "interrupted"), began)
            raise
        if self._ending.outcome is Outcome.LOCKED and not record_locked and self._run is None:
            return self._summary(self._ending, 0, self._clock.monotonic() - began)
        return self._report(self._ending, began)

    def _attempt(self, held: ExitStack) -> Ending:
        self._pair = replace(self._pair, job=self._runner.told(self._pair))
        job = self._pair.job
        watermarks = self._ledger.watermarks(self._pair.backend_name)
        if job.changes:
            check_keeps(job)
        backend = held.enter_context(self._pair.backend.open(_limits(self._pair), watermarks))
        held.enter_context(self._stop.on_overdue(backend.interrupt))
        lock = None
        if job.changes:
            standing = backend.standing()
            if standing.read_only_because:
                return Ending(Outcome.COMPLETED, what=f"changed nothing: {standing.read_only_because}")
            if job.minds_the_clock:
                check_clocks(standing, self._clock.now())
            if not self._accept_volume:
                self._runner.check_volume(self._pair, lambda: self._runner.preview(self._pair))
            lock = held.enter_context(backend.lock())
            if lock is None:
                return Ending(
                    Outcome.LOCKED,
                    "another run that changes this backend has its lock",
                    "try again when it has ended: `backendops status` shows it",
                )
            held_back: Collection[str] = ()
            if isinstance(job, ComesBehind) and not self._accept_volume:
                held_back = job.held_back(self._started_at)
            KeepsBefore(watermarks, self._pair.job_name).remember(job, held_back)
        run = self._begin()
        course = Completed(watermarks) if job.takes_first else None
        if course is not None:
            course.begins(self._pair.job_name, settings_of(job.keeps()), self._started_at)
        drive = Drive(run, backend, lock, self._tally, self._ledger, self._stop, self._clock)
        outcome = drive.to_the_end(self._stepped, self._throttled)
        if course is not None and outcome is Outcome.COMPLETED:
            course.completes(self._pair.job_name, settings_of(job.keeps()))
        stopped_by = drive.ended_by or f"the process was asked to end ({self._stop.reason})"
        return ending_of(outcome, self._pair, stopped_by, self._tally.throttled)

    def _failed(self, error: Exception) -> Ending:
        if self._ending is not None:
            log.warning("run.not_closed", job=self._pair.job_name, backend=self._pair.backend_name, error=str(error))
            return self._ending
        if self._stop.overdue and isinstance(error, BackendError):
            return Ending(
                Outcome.STOPPED,
                "the step in hand took too long to wait for and was rolled back",
                "the next run goes on from there",
            )
        if isinstance(error, BackendUnreachable):
            return self._unreachable(error)
        if isinstance(error, BackendError):
            special = {BackendRefused: Outcome.REFUSED, BackendLocked: Outcome.LOCKED, BackendBusy: Outcome.BUSY}
            return Ending(special.get(type(error), Outcome.FAILED), str(error), error.hint)
        log.debug("run.traceback", job=self._pair.job_name, backend=self._pair.backend_name, exc_info=error)
        return Ending(Outcome.FAILED, *unexpected(error))

    def _unreachable(self, error: BackendUnreachable) -> Ending:
        step = self._pair.job.when_unreachable(error)
        if step is None:
            return Ending(Outcome.UNREACHABLE, str(error), error.hint)
        self._begin()
        self._tally.add(step)
        self._stepped(step)
        return Ending(Outcome.COMPLETED)

    def _begin(self) -> Run:
        """The run in the ledger; it begins only once."""
        if self._run is None:
            run_id = 0
            with history("take down that a run begins"):
                run_id = self._ledger.started(self._pair, self._trigger, self._started_at)
            self._run = run = Run(run_id, self._pair, self._trigger, self._started_at)
            self._tell(lambda listener: listener.started(run))
        return self._run

    def _stepped(self, step: Step) -> None:
        run = self._begin()
        if step.readings:
            with history("keep readings"):
                self._ledger.record(self._pair.job_name, self._pair.backend_name, step.readings, self._clock.now())
        self._tell(lambda listener: listener.stepped(run, step))

    def _throttled(self, reason: str, seconds: float) -> None:
        run = self._begin()
        self._tell(lambda listener: listener.throttled(run, reason, seconds))

    def _report(self, ending: Ending, began: float) -> RunReport:
        run = self._begin()
        report = self._summary(ending, run.id, self._clock.monotonic() - began)
        with history("take down how a run ended"):
            self._ledger.ended(report)
        self._tell(lambda listener: listener.ended(run, report))
        return report

    def _summary(self, ending: Ending, run_id: int, seconds: float) -> RunReport:
        secrets = set(secrets_of(self._pair.backend))
        whats = [what for what in (self._tally.what, ending.what) if what]
        return RunReport(
            run_id=run_id,
            job=self._pair.job_name,
            backend=self._pair.backend_name,
            trigger=self._trigger,
            outcome=ending.outcome,
            started_at=self._started_at,
            ended_at=self._clock.now(),
            rows=self._tally.rows,
            seconds=seconds,
            error=mask(ending.error, secrets),
            hint=mask(ending.hint, secrets),
            what=mask("; ".join(whats), secrets),
            throttled=dict(self._tally.throttled),
            findings=tuple(
                replace(found, sentence=mask(found.sentence, secrets), fix=mask(found.fix, secrets))
                for found in self._tally.findings
            ),
        )

    def _tell(self, say: Callable[[RunListener], None]) -> None:
        for listener in self._runner.listeners:
            try:
                say(listener)
            except Exception:
                # A listener that fails must not end the run it listens to.
                log.exception("listener.failed", listener=type(listener).__name__)


def _limits(pair: Pair, read_only: bool = False) -> Limits:
    job = pair.job
    return Limits(statement_timeout=job.statement_timeout, budget=job.time_budget, read_only=read_only)
