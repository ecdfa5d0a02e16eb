"""`make run`'s demo: every job has work, the terminal says so, and nothing outlives it, not even after kill -9."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.servers import ROOT, children_of, quiet_port

JOBS = {"expire", "archive", "partition", "vacuum", "redis-memory", "pool-health"}
# Those whose rows are rows or keys that they changed.
CHANGING = {("expire", "cache"), ("expire", "results"), ("archive", "results"), ("vacuum", "results")}

# It takes ten seconds on an idle machine with two processors.
PATIENCE = 90


@contextmanager
def demo(directory: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    output = directory / "output.txt"
    with output.open("wb") as terminal:
        process = subprocess.Popen(
            [sys.executable, "-m", "backendops.demo", "--directory", directory / "demo", "--port", str(port)],
            cwd=ROOT,
            stdout=terminal,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until(true: Callable[[], bool], what: str, output: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen within {PATIENCE} s; the terminal says:\n{output.read_text()}")
        time.sleep(0.1)


def completed(port: int) -> dict[tuple[str, str], float]:
    """Rows by job and backend, of those that completed a run."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    series = re.findall(r"^(backendops_job_\w+)\{([^}]*)\} (\S+)$", text, re.MULTILINE)
    values = {}
    for name, labels, value in series:
        found = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        values[name, found["job"], found["backend"], found.get("outcome")] = float(value)
    return {
        (job, backend): values["backendops_job_rows_total", job, backend, None]
        for name, job, backend, outcome in values
        if name == "backendops_job_runs_total" and outcome == "completed" and values[name, job, backend, outcome] > 0
    }


def alive(pids: set[int]) -> set[int]:
    running = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            running.add(pid)
    return running


def test_every_job_has_work_and_ctrl_c_ends_it_all(tmp_path: Path) -> None:
    port, output = quiet_port(), tmp_path / "output.txt"
    with demo(tmp_path, port) as process:

        def all_done() -> bool:
            done = completed(port)
            return {job for job, _ in done} == JOBS and all(done.get(pair, 0) > 0 for pair in CHANGING)

        wait_until(all_done, "a completed run of each job, with rows", output)
        children = children_of(process.pid)
        # Two servers, the daemon, and two workers of three processes each, at the least.
        assert len(children) >= 9
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=PATIENCE) == 0
        assert alive(children) == set()
    said = output.read_text()
    assert "nothing of it is left running" in said
    assert re.search(r"archive +on results +[\d,]+ moved", said)
    assert re.search(r"expire +on cache +[\d,]+ given an expiry", said)
    assert re.search(r"expire +on results +[\d,]+ removed from celery_taskmeta", said)
    assert "Traceback" not in said


def test_nothing_outlives_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port, output = quiet_port(), tmp_path / "output.txt"
    monkeypatch.setenv("TMPDIR", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    with demo(tmp_path, port) as process:
        wait_until(lambda: bool(completed(port)), "the first run", output)
        children = children_of(process.pid)
        assert len(children) >= 9
        process.kill()
        process.wait()
        wait_until(lambda: not alive(children), "the end of every process it started", output)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_taken_port_and_a_wrong_policy_are_said(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("version: 2\n")
    with subprocess.Popen([sys.executable, "-c", _LISTEN], stdout=subprocess.PIPE, stdin=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        taken = int(holder.stdout.readline())
        said = subprocess.run(
            [
                *(sys.executable, "-m", "backendops.demo", "--port", str(taken)),
                *("--directory", tmp_path / "demo", "--policy", tmp_path / "policy.yaml"),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        holder.kill()
    assert f"Port {taken} is taken" in said.stdout
    # And a policy that is wrong ends it with the daemon's own words.
    assert "policy.yaml:1:10:" in said.stdout
    assert "the daemon ended with exit code 2" in said.stderr


def test_a_second_demo_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = subprocess.run(
            [sys.executable, "-m", "backendops.demo", "--directory", tmp_path],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    assert said.returncode == 1
    assert said.stderr == (f"a demo runs in {tmp_path} already: end that one, or give this one another --directory\n")
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


_LISTEN = """
import socket, sys
taken = socket.create_server(("127.0.0.1", 0))
print(taken.getsockname()[1], flush=True)
sys.stdin.read()
"""
