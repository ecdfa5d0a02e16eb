"""The two clocks of a run: what time it is, and how long something took. Tests bring their own."""

from __future__ import annotations

import time
from datetime import UTC, datetime


class Clock:
    """The host's clocks."""

    def now(self) -> datetime:
        """The time of day, in UTC; it may jump."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds that never jump, from an arbitrary start."""
        return time.monotonic()
