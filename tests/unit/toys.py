"""A backend and a job of ten lines each, for the engine's own tests: it does not care what a step does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from pydantic import PrivateAttr, SecretStr

from backendops.contracts.backend import Backend, Lock, Standing
from backendops.contracts.capabilities import CanReportPressure, Pressure
from backendops.contracts.errors import BackendUnreachable
from backendops.contracts.job import Job
from backendops.contracts.run import Limits, Pace, Preview, Step, Steps, Watermarks
from backendops.engine.clock import Clock
from backendops.engine.report import Run, RunListener, RunReport
from backendops.engine.stop import Stop
from backendops.policy.model import Pair

START = datetime(2025, 1, 1, tzinfo=UTC)


class FakeClock(Clock):
    """Time passes only when somebody says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds


class FakeStop(Stop):
    """Waiting moves the fake clock on."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock
        self.waited: list[float] = []

    def wait(self, seconds: float) -> bool:
        self._clock.seconds += seconds
        self.waited.append(seconds)
        return self.requested


class ToyLock(Lock):
    def __init__(self, backend: ToyBackend) -> None:
        self._backend = backend

    def still_held(self) -> bool:
        return self._backend.behave.get("lock_held", True)


class ToyBackend(Backend, CanReportPressure):
    """Does what `behave` says, and writes down what was asked of it."""

    kind: ClassVar[str] = "toy"
    schemes: ClassVar[tuple[str, ...]] = ("toy",)
    url: SecretStr = SecretStr("toy://me:hunter22@nowhere/0")
    _behave: dict[str, Any] = PrivateAttr(default_factory=dict)
    _asked: list[Any] = PrivateAttr(default_factory=list)

    @property
    def behave(self) -> dict[str, Any]:
        return self._behave

    @property
    def asked(self) -> list[Any]:
        return self._asked

    @property
    def display_url(self) -> str:
        return "toy://nowhere/0"

    @contextmanager
    def open(self, limits: Limits, watermarks: Watermarks) -> Iterator[ToyBackend]:
        self._asked.append(limits)
        if error := self._behave.get("open"):
            raise error
        yield self
        self._asked.append("closed")
        if error := self._behave.get("close"):
            raise error

    def standing(self) -> Standing:
        return self._behave.get("standing", Standing(START))

    @contextmanager
    def lock(self) -> Iterator[Lock | None]:
        yield ToyLock(self) if self._behave.get("lock_free", True) else None
        self._asked.append("unlocked")

    def pressure(self) -> Pressure:
        reasons = self._behave.get("pressure", [])
        found = reasons.pop(0) if reasons else None
        if isinstance(found, Exception):
            raise found
        return found if isinstance(found, Pressure) else Pressure(wait=found)

    def interrupt(self) -> None:
        self._asked.append("interrupted")


class ToyJob(Job):
    """Yields `steps` steps of a hundred rows; before each it calls what the test gave it."""

    kind_name: ClassVar[str] = "toy"
    needs: ClassVar[type] = ToyBackend
    changes: ClassVar[bool] = True
    steps: int = 5
    before: Callable[[int], None] = lambda number: None
    _closed: list[int] = PrivateAttr(default_factory=list)

    @property
    def closed(self) -> list[int]:
        """The last step that was gone past, of each run whose generator is closed."""
        return self._closed

    def preview(self, backend: ToyBackend, now: datetime) -> Preview:
        return Preview("would do it", rows=self.steps * 100)

    def run(self, backend: ToyBackend, now: datetime, pace: Pace) -> Steps:
        done = 0
        try:
            for number in range(1, self.steps + 1):
                self.before(number)
                yield Step(rows=100, what="did it")
                done = number
        finally:
            self._closed.append(done)


class ToyProbe(ToyJob):
    """A job that reads only, and for which a dead backend is a result."""

    changes: ClassVar[bool] = False

    def when_unreachable(self, error: BackendUnreachable) -> Step:
        return Step(what=f"down: {error}")


def toy_pair(job: Job | None = None) -> Pair:
    """A pair of a fresh toy backend and this job."""
    return Pair("toy", job or ToyJob(), "place", ToyBackend(), None)


class Heard(RunListener):
    """Writes down what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def started(self, run: Run) -> None:
        self.lines.append("started")

    def stepped(self, run: Run, step: Step) -> None:
        self.lines.append(f"stepped {step.rows}")

    def throttled(self, run: Run, reason: str, seconds: float) -> None:
        self.lines.append(f"throttled {reason} {seconds:g}")

    def ended(self, run: Run, report: RunReport) -> None:
        self.lines.append(f"ended {report.outcome}")
