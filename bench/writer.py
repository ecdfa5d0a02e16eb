"""The application of a benchmark: one session that stores results at a steady rate, noting how long each took."""

from __future__ import annotations

import json
import signal
import sys
import time
import uuid
from typing import Any

import psycopg2

# A busy fleet: this many results a second leave nobody unaware of a stall.
PER_SECOND = 400

INSERT = """
INSERT INTO celery_taskmeta (id, task_id, status, result, date_done, name, args, kwargs, worker, retries, queue)
VALUES (
    nextval('task_id_sequence'), %s, 'SUCCESS', %s, now() AT TIME ZONE 'UTC', 'bench.write', '[]', '{}', 'w', 0,
    'celery'
)
"""


def main() -> None:
    """Write until SIGTERM, then print pairs of the moment and the latency in seconds as JSON."""
    connection = psycopg2.connect(sys.argv[1])
    connection.autocommit = True
    cursor = connection.cursor()
    ending: list[Any] = []
    signal.signal(signal.SIGTERM, lambda *_: ending.append(True))
    payload, latencies = b'"' + b"x" * 254 + b'"', []
    due = time.monotonic()
    sys.stdout.write("writing\n")
    sys.stdout.flush()
    while not ending:
        due += 1 / PER_SECOND
        if (wait := due - time.monotonic()) > 0:
            time.sleep(wait)
        elif wait < -1:
            due = time.monotonic()  # a stall is one latency, not a burst that follows it
        began = time.monotonic()
        cursor.execute(INSERT, (str(uuid.uuid4()), payload))
        latencies.append((began, time.monotonic() - began))
    sys.stdout.write(json.dumps(latencies))


if __name__ == "__main__":
    main()
