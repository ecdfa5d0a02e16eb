"""A session that reads the archive and adds to it without a pause, and notes the longest that anything took.

In a process of its own: beside the job in one interpreter it would wait for the job's Python and call that a lock.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg2

# Every partition is asked, and the newest one is written to; the rows are known by their name.
STATEMENTS = (
    "SELECT count(*) FROM celery_taskmeta_archive WHERE task_id = 'none'",
    "INSERT INTO celery_taskmeta_archive (id, task_id, done_at) VALUES (0, 'bench', now())",
)
# The first ones of a session read catalogs that it keeps from then on.
WARM_UP = 20


@dataclass
class Waits:
    """What the session saw; both are known when the block has ended."""

    longest: float = 0.0
    """Its longest statement, in seconds."""
    statements: int = 0


@contextmanager
def reading(url: str) -> Iterator[Waits]:
    """The session beside the block; ends the benchmark where it met an error, as it then saw nothing."""
    waits = Waits()
    reader = subprocess.Popen([sys.executable, "-m", "bench.reader", url], stdout=subprocess.PIPE, text=True)
    try:
        assert reader.stdout is not None  # noqa: S101 - it is a pipe
        reader.stdout.readline()
        yield waits
    finally:
        reader.terminate()
        said = reader.communicate()[0]
    if reader.returncode:
        raise SystemExit("the session that reads and writes beside it failed: nothing was measured")
    waits.longest, waits.statements = json.loads(said)


def main() -> None:
    """Read and write until SIGTERM, then print the longest in seconds and the number of statements as JSON."""
    ending: list[Any] = []
    signal.signal(signal.SIGTERM, lambda *_: ending.append(True))
    with closing(psycopg2.connect(sys.argv[1])) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        # Others' locks are what is looked for; the disk's moods are not.
        cursor.execute("SET synchronous_commit = off")
        for statement in STATEMENTS * WARM_UP:
            cursor.execute(statement)
        sys.stdout.write("reading\n")
        sys.stdout.flush()
        longest, count = 0.0, 0
        while not ending:
            for statement in STATEMENTS:
                began = time.monotonic()
                cursor.execute(statement)
                longest, count = max(longest, time.monotonic() - began), count + 1
    sys.stdout.write(json.dumps([longest, count]))


if __name__ == "__main__":
    main()
