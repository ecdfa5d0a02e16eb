"""Tells systemd how the service stands; without systemd every call does nothing."""

from __future__ import annotations

import os
import socket
import time


def notify(*states: str) -> bool:
    """Send states such as READY=1 to $NOTIFY_SOCKET; False where nobody listens.

    The protocol is one datagram of KEY=VALUE lines: sd_notify(3).
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # an abstract socket: its first byte is zero
        address = "\0" + address[1:]
    message = "\n".join(state.replace("\n", " ") for state in states)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            # A full queue must not stop the scheduler: the next ping says the same.
            sender.setblocking(False)
            sender.sendto(message.encode(), address)
    except OSError:
        return False
    return True


def ready(status: str) -> None:
    """The service has started, or its reload is over."""
    notify("READY=1", f"STATUS={status}")


def reloading() -> None:
    """The policy is being read again; `ready` ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def stopping(status: str) -> None:
    """The service is ending."""
    notify("STOPPING=1", f"STATUS={status}")


def status(text: str) -> None:
    """The line that `systemctl status` shows."""
    notify(f"STATUS={text}")


def watchdog() -> None:
    """The scheduling loop is alive."""
    notify("WATCHDOG=1")


def watchdog_seconds() -> float | None:
    """How often systemd expects a ping, in seconds; None where it watches nobody, or another process."""
    microseconds, process = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isdigit() or process not in ("", str(os.getpid())):
        return None
    return int(microseconds) / 1_000_000 or None
