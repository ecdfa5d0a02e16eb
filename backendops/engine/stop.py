"""The wish to end the process soon: runs stop after the step in hand, and a step that takes too long is interrupted."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

import structlog

# SIGTERM promises an exit within 30 s: 20 s for the step in hand to end by itself, the rest to roll back and record.
OVERDUE_AFTER: Final = timedelta(seconds=20)
_ENOUGH: Final = b"\0"  # no signal has the number 0

log = structlog.get_logger(__name__)


class Stop:
    """Requested once, seen by every run of the process; safe to use from several threads."""

    def __init__(self, overdue_after: timedelta = OVERDUE_AFTER) -> None:
        self.reason = ""
        self._overdue_after = overdue_after
        self._requested = threading.Event()
        self._overdue = threading.Event()
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._interrupts: list[Callable[[], None]] = []

    @property
    def requested(self) -> bool:
        """Has somebody asked the process to end?"""
        return self._requested.is_set()

    @property
    def overdue(self) -> bool:
        """Have the statements in hand been interrupted?"""
        return self._overdue.is_set()

    def request(self, reason: str) -> None:
        """Ask every run to stop after its step; asked a second time, the statements in hand are ended at once."""
        with self._lock:
            first = not self.requested
            if first:
                self.reason = reason
                self._timer = threading.Timer(self._overdue_after.total_seconds(), self._interrupt)
                self._timer.daemon = True
                self._timer.start()
                self._requested.set()
        if not first:
            self._interrupt()

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until a stop is requested; is one?"""
        return self._requested.wait(seconds)

    @contextmanager
    def on_overdue(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """While the block runs, a stop that is overdue calls `interrupt`, from another thread."""
        with self._lock:
            self._interrupts.append(interrupt)
        try:
            yield
        finally:
            with self._lock:
                self._interrupts.remove(interrupt)

    def close(self) -> None:
        """The process is ending in good time: forget the deadline."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()

    def _interrupt(self) -> None:
        self._overdue.set()
        with self._lock:
            interrupts = list(self._interrupts)
        for interrupt in interrupts:
            try:
                interrupt()
            except Exception as error:  # noqa: BLE001 - one backend's failure must not keep the others running
                log.warning("run.not_interrupted", error=str(error))


@contextmanager
def stop_on_signals(stop: Stop, *signals: signal.Signals) -> Iterator[None]:
    """SIGTERM and SIGINT (or `signals`) request a stop; for the main thread only.

    A Python handler would wait until the C call in hand returns, which for a long statement is its end. The wakeup
    descriptor is written to the moment the signal arrives, and another thread reads it.
    """
    watched = signals or (signal.SIGTERM, signal.SIGINT)
    reading, writing = socket.socketpair()
    writing.setblocking(False)

    def watch() -> None:
        while (received := reading.recv(1)) != _ENOUGH:
            stop.request(signal.Signals(received[0]).name)

    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    before = {number: signal.signal(number, lambda *_: None) for number in watched}
    descriptor_before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        with contextlib.suppress(OSError):
            writing.send(_ENOUGH)
        watcher.join()
        reading.close()
        writing.close()
