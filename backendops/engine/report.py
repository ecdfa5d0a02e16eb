"""What a run says of itself: while it goes to its listeners, at its end in a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from backendops.contracts.readings import Finding
from backendops.contracts.run import Outcome, Step, Trigger
from backendops.policy.model import Pair


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a job on a backend. `id` is the ledger's; 0 where the ledger could not take it down."""

    id: int
    pair: Pair
    trigger: Trigger
    started_at: datetime


@dataclass(frozen=True, slots=True)
class RunReport:
    """How a run ended. Times in UTC; `throttled` is seconds lost by reason."""

    run_id: int
    job: str
    backend: str
    trigger: Trigger
    outcome: Outcome
    started_at: datetime
    ended_at: datetime
    rows: int = 0
    seconds: float = 0.0
    error: str = ""
    hint: str = ""
    what: str = ""
    throttled: Mapping[str, float] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    def __str__(self) -> str:
        """What, why and what to do next, on one line."""
        said = f"{self.job} on {self.backend}: {self.outcome}"
        if self.error:
            said += f": {self.error}"
        return " ".join(f"{said}; {self.hint}".split()) if self.hint else " ".join(said.split())


class RunListener:
    """Is told of every run; overrides what it wants to hear. What it raises is logged and harms no run."""

    def started(self, run: Run) -> None:
        """The run begins (or has failed to: then `ended` follows at once)."""

    def stepped(self, run: Run, step: Step) -> None:
        """A step is committed."""

    def throttled(self, run: Run, reason: str, seconds: float) -> None:
        """The run has just waited `seconds` more because of `reason`."""

    def ended(self, run: Run, report: RunReport) -> None:
        """The run is over and in the ledger."""
