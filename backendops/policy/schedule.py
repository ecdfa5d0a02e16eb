"""When a job runs: `every 90s`, a five-field cron line, or @daily."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from apscheduler.triggers.base import BaseTrigger


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule that is known to fire; `text` is what the policy says."""

    text: str
    trigger: BaseTrigger
    interval: timedelta
    """The usual gap between two firings: what back-off counts in."""

    def next_after(self, moment: datetime) -> datetime:
        """The first firing after `moment`, in UTC."""
        raise NotImplementedError
