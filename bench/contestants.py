"""Each way to remove or move the due half, run in a process of its own: prints moments, rows, memory as JSON."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg2

from backendops.contracts.run import Step, Trigger
from backendops.engine.ledger import Ledger
from backendops.engine.report import Run
from backendops.engine.runner import RunListener, Runner
from backendops.policy.load import load_policy

KEEP = timedelta(days=7)
PLAIN_LOOP = 5000  # the batch of most scripts that people pass around

COLUMNS = (
    "id, task_id, status, result, date_done, traceback, children, name, args, kwargs, worker, retries, queue, stamps"
)

# The archive of those who script it themselves: not partitioned, with the indexes that ours has.
PLAIN_ARCHIVE = """
CREATE TABLE celery_taskmeta_archive (
    LIKE celery_taskmeta, done_at timestamptz NOT NULL, archived_at timestamptz NOT NULL DEFAULT now());
ALTER TABLE celery_taskmeta_archive ALTER COLUMN id DROP NOT NULL;
CREATE INDEX filters ON celery_taskmeta_archive USING brin (
    task_id text_bloom_ops (n_distinct_per_range = 1000, false_positive_rate = 0.001)) WITH (pages_per_range = 32);
CREATE INDEX ON celery_taskmeta_archive (done_at);
"""

SINGLE_MOVE = f"""
WITH moved AS (DELETE FROM celery_taskmeta WHERE date_done < %(cutoff)s RETURNING {COLUMNS})
INSERT INTO celery_taskmeta_archive ({COLUMNS}, done_at) SELECT {COLUMNS}, date_done AT TIME ZONE 'UTC' FROM moved
"""
LOOP_MOVE = f"""
WITH due AS (
    SELECT id FROM celery_taskmeta WHERE date_done < %(cutoff)s LIMIT %(size)s FOR UPDATE SKIP LOCKED
), moved AS (
    DELETE FROM celery_taskmeta t USING due WHERE t.id = due.id RETURNING t.*
)
INSERT INTO celery_taskmeta_archive ({COLUMNS}, done_at) SELECT {COLUMNS}, date_done AT TIME ZONE 'UTC' FROM moved
"""
LOOP_DELETE = """
DELETE FROM celery_taskmeta WHERE id IN (
    SELECT id FROM celery_taskmeta WHERE date_done < %(cutoff)s LIMIT %(size)s FOR UPDATE SKIP LOCKED)
"""
BIG_DELETE = "DELETE FROM celery_taskmeta WHERE date_done < %(cutoff)s"

POLICY = """
version: 1
state: {state}
backends:
  results: {{url: "{url}"}}
jobs:
  {job}: {{{settings}}}
"""
SETTINGS = {"archive": "older_than: 7d", "expire": "keep: 7d"}
# Beside the writer a job goes gently by itself. So long is enough to see what the writes take; what is left waits for
# the next run.
AS_IT_IS = "time_budget: 15s"


class _Steps(RunListener):
    """When each committed step ended, and its rows."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, int]] = []

    def stepped(self, run: Run, step: Step) -> None:
        self.steps.append((time.monotonic(), step.rows))


def ours(url: str, job: str, settings: str = "pace: full") -> dict[str, Any]:
    """The job as the daemon runs it: lock, ledger, safety limits, pacing and rests included."""
    with tempfile.TemporaryDirectory() as state:
        file = Path(state) / "policy.yaml"
        celery_url = url.replace("postgresql://", "db+postgresql://")
        policy_text = POLICY.format(state=state, url=celery_url, job=job, settings=f"{SETTINGS[job]}, {settings}")
        file.write_text(policy_text, encoding="utf-8")
        policy = load_policy(file)
        ledger, steps = Ledger.open(policy.state), _Steps()
        began = time.monotonic()
        report = Runner(ledger, [steps]).run(policy.pairs[0], Trigger.COMMAND)
        ended = time.monotonic()
        ledger.close()
    if report.outcome != "completed" and not (settings == AS_IT_IS and report.outcome == "out-of-time"):
        sys.exit(f"the run ended {report.outcome}: {report.error}")
    # The first step is the survey: connected, locked and counted, as the others are connected when their clock starts.
    return {"began": began, "at_work": steps.steps[0][0], "ended": ended, "steps": steps.steps}


def celery_cleanup(url: str) -> dict[str, Any]:
    """What Celery's own celery.backend_cleanup does."""
    from celery import Celery  # noqa: PLC0415 - only this contestant needs it

    app = Celery(backend=url.replace("postgresql://", "db+postgresql+psycopg2://"), set_as_current=False)
    app.conf.result_expires = KEEP
    began = time.monotonic()
    app.backend.cleanup()
    return {"began": began, "ended": time.monotonic()}


def scripted(url: str, statement: str, archive: bool, size: int | None = None) -> dict[str, Any]:
    """One statement, or one again and again until nothing is left."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    cursor = connection.cursor()
    if archive:
        cursor.execute(PLAIN_ARCHIVE)
    values = {"cutoff": datetime.now(UTC).replace(tzinfo=None) - KEEP, "size": size}
    steps, began = [], time.monotonic()
    while True:
        cursor.execute(statement, values)
        steps.append((time.monotonic(), cursor.rowcount))
        if size is None or cursor.rowcount == 0:
            break
    if archive:
        # Ours makes its filters, too: the same index is one that is as complete.
        cursor.execute("SELECT brin_summarize_new_values('filters')")
    return {"began": began, "ended": time.monotonic(), "steps": steps}


CONTESTANTS = {
    "archive: backendops, full": lambda url: ours(url, "archive"),
    "archive: backendops, as it is": lambda url: ours(url, "archive", AS_IT_IS),
    "archive: one statement": lambda url: scripted(url, SINGLE_MOVE, archive=True),
    "archive: loop of 5,000": lambda url: scripted(url, LOOP_MOVE, archive=True, size=PLAIN_LOOP),
    "expire: backendops, full": lambda url: ours(url, "expire"),
    "expire: backendops, as it is": lambda url: ours(url, "expire", AS_IT_IS),
    "expire: one DELETE": lambda url: scripted(url, BIG_DELETE, archive=False),
    "expire: loop of 5,000": lambda url: scripted(url, LOOP_DELETE, archive=False, size=PLAIN_LOOP),
    "expire: celery.backend_cleanup": celery_cleanup,
}


def main() -> None:
    """Run one contestant on one database."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=CONTESTANTS)
    parser.add_argument("url")
    arguments = parser.parse_args()
    result = CONTESTANTS[arguments.name](arguments.url)
    # ru_maxrss counts KiB on Linux.
    result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
