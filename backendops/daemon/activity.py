"""What the daemon does at this moment, in one line for `systemctl status`."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import datetime

from backendops.daemon.view import Key
from backendops.engine.report import Run, RunListener, RunReport


class Activity(RunListener):
    """Follows the runs of this process."""

    def __init__(self) -> None:
        self._running: dict[int, Run] = {}
        self._lock = threading.Lock()

    def started(self, run: Run) -> None:
        with self._lock:
            self._running[id(run)] = run

    def ended(self, run: Run, report: RunReport) -> None:  # noqa: ARG002 - the listener's shape
        with self._lock:
            self._running.pop(id(run), None)

    @property
    def running(self) -> list[Run]:
        """The runs under way, oldest first."""
        with self._lock:
            return sorted(self._running.values(), key=lambda run: run.started_at)

    def sentence(self, next_runs: Mapping[Key, datetime]) -> str:
        """`running archive on results; next expire on results at 02:15:00 UTC`."""
        running = ", ".join(str(run.pair) for run in self.running)
        now = f"running {running}" if running else "idle"
        if not next_runs:
            return f"{now}; nothing is scheduled"
        (job, backend), at = min(next_runs.items(), key=lambda item: item[1])
        return f"{now}; next {job} on {backend} at {at:%Y-%m-%d %H:%M:%S} UTC"
