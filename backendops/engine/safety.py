"""The safety limits: what a changing run must not start on. Each says what is wrong and names the way on."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from backendops.contracts.backend import Standing
from backendops.contracts.errors import BackendRefused
from backendops.contracts.run import Preview
from backendops.contracts.units import format_seconds

# Clocks kept by NTP agree within milliseconds; five minutes is a clock nobody keeps.
CLOCK_TOLERANCE: Final = timedelta(minutes=5)
# A worker's clock may be a little ahead of the server's.
FUTURE_TOLERANCE: Final = timedelta(minutes=1)


def check_clocks(standing: Standing, now: datetime) -> None:
    """Ages mean nothing where clocks disagree; raises BackendRefused."""
    apart = standing.server_now - now
    if abs(apart) > CLOCK_TOLERANCE:
        direction = "ahead of" if apart > timedelta() else "behind"
        raise BackendRefused(
            f"the server's clock is {format_seconds(abs(apart).total_seconds())} {direction} this host's",
            "set the wrong one right (NTP), then run again",
        )
    if standing.newest_done is not None and standing.newest_done > max(now, standing.server_now) + FUTURE_TOLERANCE:
        ahead = format_seconds((standing.newest_done - now).total_seconds())
        raise BackendRefused(
            f"the newest result finished {ahead} in the future ({standing.newest_done:%Y-%m-%d %H:%M} UTC)",
            "set the backend's date_done_timezone to the zone that Celery's sessions write in, "
            "or correct the row that a worker with a wrong clock wrote",
        )


def check_volume(preview: Preview, max_rows: int) -> None:
    """Raises BackendRefused where more is due than the policy allows."""
    if preview.rows > max_rows:
        raise BackendRefused(
            f"{preview.rows:,} rows are due, more than max_rows ({max_rows:,})",
            "look at `backendops plan`, then raise max_rows in the policy or leave it out",
        )
