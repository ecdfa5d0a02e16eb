"""Celery writers in processes of their own: each stores tasks as a worker does, and remembers every id it stored."""

from __future__ import annotations

import json
import random
import select
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from celery import states

from tests.celery_rows import Failure, celery_app
from tests.servers import ROOT

READY = "ready"


class Writers:
    """Some processes that store STARTED, now and then RETRY, and then the result of task after task."""

    def __init__(self, url: str, directory: Path, count: int = 4, pause: float = 0.002) -> None:
        self._files = [directory / f"writer-{number}.json" for number in range(count)]
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tests.celery_writers", url, str(file), str(pause)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for file in self._files
        ]

    def __enter__(self) -> Writers:
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == READY
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            try:
                code = process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
            finally:
                assert process.stdout is not None
                process.stdout.close()
            assert code == 0 or error is not None

    def told(self) -> dict[str, Any]:
        """What they remember, once they have ended: every id with its last state, the errors, the longest call."""
        reports = [json.loads(file.read_text()) for file in self._files]
        return {
            "stored": {task: state for report in reports for task, state in report["stored"].items()},
            "errors": [error for report in reports for error in report["errors"]],
            "longest": max(report["longest"] for report in reports),
        }


@contextmanager
def writers(url: str, directory: Path, count: int = 4, pause: float = 0.002) -> Iterator[Writers]:
    """Four of them, all under way when the block begins and ended when it ends."""
    with Writers(url, directory, count, pause) as running:
        yield running


def _write(url: str, file: Path, pause: float) -> None:
    # As in production: Celery tries again where two of its own statements met, or where the table was locked.
    app = celery_app(url, result_backend_always_retry=True)
    backend: Any = app.backend
    stored: dict[str, str] = {}
    errors: list[str] = []
    longest = 0.0
    told = False
    while not _is_over():
        task_id = str(uuid.uuid4())
        for state in _life():
            began = time.monotonic()
            try:
                result: Any = Failure("again") if state in (states.RETRY, states.FAILURE) else {"text": "naïve ☃" * 10}
                backend.store_result(task_id, result, state, traceback=None)
                stored[task_id] = state
            except Exception as error:  # noqa: BLE001 - whatever Celery could not store is what the test is about
                errors.append(f"{type(error).__name__}: {error}"[:300])
            longest = max(longest, time.monotonic() - began)
        if not told:
            sys.stdout.write(f"{READY}\n")
            sys.stdout.flush()
            told = True
        time.sleep(pause)
    file.write_text(json.dumps({"stored": stored, "errors": errors, "longest": longest}))


def _life() -> list[str]:
    chance = random.random()  # noqa: S311 - which states, not which secret
    if chance < 0.1:
        return [states.STARTED, states.RETRY, states.STARTED, states.SUCCESS]
    return [states.STARTED, states.FAILURE if chance < 0.2 else states.SUCCESS]


def _is_over() -> bool:
    readable, _, _ = select.select([sys.stdin], [], [], 0)
    return bool(readable)


if __name__ == "__main__":
    _write(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
