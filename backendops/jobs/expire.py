"""expire: remove results past keeping; on Redis, give an expiry to those that have none."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from backendops.contracts import metrics
from backendops.contracts.capabilities import CanExpire
from backendops.contracts.job import Job
from backendops.contracts.retention import Retention, Rule
from backendops.contracts.run import Pace, Preview, Steps
from backendops.contracts.units import Forever, Keep

# The length of Celery's own status column (celery/backends/database/models.py).
State = Annotated[str, StringConstraints(min_length=1, max_length=50)]


def cutoff(now: datetime, keep: Keep) -> datetime | None:
    """The moment before which results kept for `keep` are due; None for ever."""
    return None if isinstance(keep, Forever) else now - keep


class Expire(Job):
    """Remove results past `keep`, in batches the application does not notice."""

    kind_name: ClassVar[str] = "expire"
    needs: ClassVar[type] = CanExpire
    changes: ClassVar[bool] = True
    metrics: ClassVar = (metrics.RESULTS_DUE, metrics.RESULTS_OLDEST_AGE)

    keep: Keep = Field(description="How long a finished result stays: 30d, 13 months, forever.")
    keep_by_state: dict[State, Keep] = Field(
        default_factory=dict,
        description="Other times for some states, such as {FAILURE: 90d}.",
    )

    def keeps(self) -> Mapping[str, Keep]:
        return {"keep": self.keep, **{f"keep_by_state.{state}": keep for state, keep in self.keep_by_state.items()}}

    def retention(self, now: datetime) -> Retention:
        """The cutoffs of a run that starts at `now`."""
        by_state = (Rule(cutoff(now, keep), state=state) for state, keep in self.keep_by_state.items())
        return Retention(cutoff(now, self.keep), tuple(by_state))

    def preview(self, backend: CanExpire, now: datetime) -> Preview:
        return backend.preview_expire(self.retention(now))

    def run(self, backend: CanExpire, now: datetime, pace: Pace) -> Steps:
        yield from backend.expire(self.retention(now), pace)
