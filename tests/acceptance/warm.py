"""The command in a process of its own that has it imported already: a fork of one that waits for calls.

Importing is a quarter of a second of a processor, about half of what a short command takes. Started cold is all that
tests start by `Installed.start`, and the daemon, cron, systemd and the demo.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

# What commands import when they are asked for.
_IMPORTED = ("run_once", "plan", "status", "history", "control", "restore", "archive", "validate")


class Warm:
    """One process that has imported backendops, and a fork of it for each call."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.acceptance.warm"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self._process.communicate)

    def run(self, arguments: list[str], patience: int) -> subprocess.CompletedProcess[str]:
        """Run `backendops` with these arguments to its end; SIGALRM is what ends one that hangs."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with TemporaryDirectory() as directory:
            order = {"arguments": arguments, "patience": patience, "directory": directory}
            where = {"cwd": str(Path.cwd()), "environment": dict(os.environ)}
            self._process.stdin.write(json.dumps(order | where) + "\n")
            self._process.stdin.flush()
            status = int(self._process.stdout.readline())
            out, err = (Path(directory, name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess(["backendops", *arguments], status, out, err)


@cache
def warm() -> Warm:
    """The one of this test process."""
    return Warm()


def _serve() -> None:
    for name in _IMPORTED:
        import_module(f"backendops.cli.{name}")
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if child == 0:
            _become(json.loads(line))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _become(order: dict[str, Any]) -> NoReturn:
    from backendops.cli import main  # noqa: PLC0415 - imported by now

    signal.alarm(order["patience"])
    os.environ.clear()
    os.environ.update(order["environment"])
    time.tzset()
    os.chdir(order["cwd"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(order["directory"], name), os.O_WRONLY | os.O_CREAT, 0o600), number)
    sys.argv = ["backendops", *order["arguments"]]
    main()


if __name__ == "__main__":
    _serve()
