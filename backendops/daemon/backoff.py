"""How long a failing job is left alone."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Final

# Five intervals: a job that cannot work is still tried often enough that nobody has to wake it after the repair.
LONGEST: Final = 5


class Backoff:
    """Counts the failures of one job on one backend in a row."""

    def __init__(self, interval: timedelta, chance: random.Random) -> None:
        self.failures = 0
        self.not_before: datetime | None = None
        self._interval = interval
        self._chance = chance

    def failed(self, now: datetime) -> None:
        """The first failure costs no slot; then up to 2, 4 and 5 intervals pass, at least half of that.

        The jitter parts jobs that failed together.
        """
        self.failures += 1
        if self.failures > 1:
            intervals = min(2 ** min(self.failures - 1, LONGEST), LONGEST)
            self.not_before = now + self._interval * intervals * self._chance.uniform(0.5, 1.0)

    def succeeded(self) -> None:
        """Forget the failures."""
        self.failures, self.not_before = 0, None

    def holds(self, now: datetime) -> bool:
        """Is it too early to try again?"""
        return self.not_before is not None and now < self.not_before
