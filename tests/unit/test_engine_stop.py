"""A stop reaches every run, also one that is stuck in a statement."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import timedelta

from backendops.engine.stop import Stop, stop_on_signals

SOON = 10


def test_waiting_ends_when_it_is_requested() -> None:
    stop = Stop()
    began = time.monotonic()
    threading.Timer(0.05, stop.request, ["test"]).start()
    assert stop.wait(SOON)
    assert time.monotonic() - began < SOON / 2
    assert stop.reason == "test"
    stop.close()


def test_waiting_without_a_stop_ends_in_time() -> None:
    assert not Stop().wait(0.001)


def test_an_overdue_stop_interrupts_what_is_in_hand_and_nothing_else() -> None:
    stop = Stop(overdue_after=timedelta(milliseconds=50))
    gone, here, broken = threading.Event(), threading.Event(), threading.Event()

    def fail() -> None:
        broken.set()
        raise OSError("connection lost")

    with stop.on_overdue(gone.set):
        pass
    with stop.on_overdue(fail), stop.on_overdue(here.set):
        stop.request("SIGTERM")
        assert not stop.overdue
        assert here.wait(SOON)
    assert broken.is_set()
    assert stop.overdue
    assert not gone.is_set()


def test_a_second_request_does_not_wait() -> None:
    stop = Stop(overdue_after=timedelta(hours=1))
    interrupted = threading.Event()
    with stop.on_overdue(interrupted.set):
        stop.request("SIGINT")
        stop.request("SIGINT")
    assert interrupted.is_set()
    stop.close()


def test_a_signal_requests_a_stop_and_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = Stop()
    with stop_on_signals(stop):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(SOON)
    assert stop.reason == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before
    assert "signals" not in {thread.name for thread in threading.enumerate()}
    stop.close()
