"""Which process a run belongs to, and whether that process is still there."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """A process of a host. Numbers come back after a while, so its start is part of who it is.

    `world` is the boot and the process namespace in which `pid` and `start` mean anything.
    """

    host: str
    world: str
    pid: int
    start: str

    @classmethod
    def this(cls) -> Process:
        """The process that asks."""
        return cls(socket.gethostname(), _world(), os.getpid(), _start_of(os.getpid()) or "")

    def is_gone(self) -> bool | None:
        """Has it ended? None where that cannot be seen from here: another host, another container."""
        here = Process.this()
        if self.host != here.host or self.world != here.world:
            return None
        if not self.start or not Path(f"/proc/{self.pid}").exists():
            # A system without /proc; or it hides what other users run (systemd's ProtectProc=, hidepid=).
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return True
            except PermissionError:
                pass
            # Somebody has the number; whether it is still the same process cannot be seen.
            return None if self.start else False
        return _start_of(self.pid) != self.start


def _world() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """The start of a process in clock ticks since boot (field 22 of proc(5) stat); None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name, field 2, is in parentheses and may hold anything.
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]
