"""The installed daemon as a subprocess, and what a test wants to know of it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

COMMAND = Path(sys.executable).with_name("backendops")

# Ninety times what an idle machine needs: a test waits so long only when it fails, and a processor that a dozen others
# want has taken more than thirty to start the command.
PATIENCE = 90.0

T = TypeVar("T")


def eventually(what: Callable[[], T], patience: float = PATIENCE) -> T:
    """The first true value of `what`, asked again and again; fails when none comes in time."""
    deadline = time.monotonic() + patience
    while True:
        try:
            value = what()
        except (OSError, http.client.HTTPException) as error:
            value, why = None, f"{type(error).__name__}: {error}"
        else:
            why = repr(value)
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patience:.0f} s; the last answer was {why}")
        time.sleep(0.02)


@dataclass
class Answer:
    """What the daemon said to one request."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Daemon:
    """One `backendops run`."""

    policy: Path
    process: subprocess.Popen[bytes]
    log_file: Path
    url: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def log(self, event: str | None = None) -> list[dict[str, Any]]:
        """Its log lines so far, or those of one event."""
        lines = [json.loads(line) for line in self.log_file.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if event in (None, line.get("event"))]

    def logged(self, event: str, patience: float = PATIENCE, **fields: object) -> dict[str, Any]:
        """Wait for a line of this event with these fields."""

        def found() -> dict[str, Any] | None:
            assert self.process.poll() is None or self.log(event), self.log_file.read_text()
            return next((line for line in self.log(event) if fields.items() <= line.items()), None)

        return eventually(found, patience)

    def get(self, path: str, method: str = "GET", verify: str | None = None, **headers: str) -> Answer:
        """Ask for one page."""
        where = urlsplit(self.url)
        assert where.hostname
        if where.scheme == "https":
            context = ssl.create_default_context(cafile=verify)
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                where.hostname, where.port, timeout=5, context=context
            )
        else:
            connection = http.client.HTTPConnection(where.hostname, where.port, timeout=5)
        try:
            connection.request(method, path, headers={**self.headers, **headers})
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def metrics(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        """Every series of /metrics: name, then sorted labels."""
        found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for family in text_string_to_metric_families(self.get("/metrics").body.decode()):
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        return found

    def value(self, name: str, **labels: str) -> float:
        """One series of /metrics."""
        return self.metrics()[name][tuple(sorted(labels.items()))]

    def reload(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def stop(self, how: signal.Signals = signal.SIGTERM, patience: float = 30.0) -> int:
        """Signal it and wait; its exit status. One that hangs shows where each of its threads is."""
        self.process.send_signal(how)
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            self.process.wait(patience)
            raise AssertionError(f"did not end within {patience:.0f} s:\n{self.log_file.read_text()[-8000:]}") from None


def write_policy(directory: Path, text: str, listen: str = "127.0.0.1:0", more_http: str = "") -> Path:
    """A policy with its own state directory and, unless said, a port of the system's choosing."""
    file = directory / "policy.yaml"
    state = directory / "state"
    # In one step: a daemon that is told to reload must never see half a file.
    unfinished = directory / "policy.unfinished"
    unfinished.write_text(f"version: 1\nstate: {state}\nhttp: {{listen: '{listen}'{more_http}}}\n{text}")
    unfinished.replace(file)
    return file


@contextmanager
def daemon(policy: Path, wait: bool = True, **environment: str) -> Iterator[Daemon]:
    """Run the daemon on a policy until the block ends."""
    number = len(list(policy.parent.glob("daemon-*.log")))
    log_file = policy.parent / f"daemon-{number}.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [COMMAND, "--policy", policy, "--log-format", "json", "run"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONFAULTHANDLER": "1", **environment},
        )
    running = Daemon(policy, process, log_file)
    try:
        if wait:
            running.url = running.logged("service.started")["status_page"]
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def free_of_tracebacks(running: Daemon) -> bool:
    """Does the log hold sentences only?"""
    return not re.search(r"Traceback|internal error|unexpected ", running.log_file.read_text())
