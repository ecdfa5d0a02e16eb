"""kill -9 and SIGTERM in the middle of an archive: every row is in one place, as it was, and the next run finishes.

`BACKENDOPS_KILL_ROWS=200000 pytest tests/acceptance/test_kill_archive.py` is the same at full size.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest

from backendops.engine.ledger import Ledger
from backendops.engine.ledger_rows import ORPHANED
from tests.acceptance.installed import Installed

ROWS = int(os.environ.get("BACKENDOPS_KILL_ROWS", "20000"))
KILLS = 5
DEADLINE = 120

# Of one moment, so that a row on its way between two statements would be seen twice or not at all.
EVERYTHING = """
    WITH everywhere AS (
        SELECT 'live' AS place, task_id, status, result, date_done FROM celery_taskmeta
        UNION ALL
        SELECT 'archive', task_id, status, result, date_done FROM celery_taskmeta_archive
    )
    SELECT count(*) FILTER (WHERE place = 'live'),
           count(*) FILTER (WHERE place = 'archive'),
           count(DISTINCT task_id),
           sum(hashtextextended(concat_ws(',', task_id, status, md5(result), date_done), 0))
    FROM everywhere
"""


@dataclass(frozen=True)
class Rows:
    live: int
    archive: int
    different: int
    checksum: object


class Store:
    """The results in PostgreSQL, seen by somebody else."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg2.connect(url.removeprefix("db+"))
        self._connection.autocommit = True

    def one(self, statement: str) -> tuple[object, ...]:
        with self._connection.cursor() as cursor:
            cursor.execute(statement)
            row = cursor.fetchone()
            assert row is not None
            return tuple(row)

    def execute(self, statement: str) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(statement)

    def everything(self) -> Rows:
        return Rows(*self.one(EVERYTHING))

    def archived(self) -> int:
        if self.one("SELECT to_regclass('celery_taskmeta_archive')") == (None,):
            return 0
        (count,) = self.one("SELECT count(*) FROM celery_taskmeta_archive")
        assert isinstance(count, int)
        return count

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def store(postgres18_url: str, fill_celery_table: Callable[..., None]) -> Iterator[Store]:
    fill_celery_table(postgres18_url, ROWS, due=0.9)
    with closing(Store(postgres18_url)) as store:
        yield store


@pytest.fixture
def command(postgres18_url: str, tmp_path: Path) -> Installed:
    # Small batches, so that the run is long enough to be met in the middle.
    job = "{backend: results, older_than: 7d, batch_size: 100, batch_time: 10ms, pace: full}"
    return Installed.with_policy(
        tmp_path, f"backends: {{results: {{url: '{postgres18_url}'}}}}\njobs: {{archive: {job}}}"
    )


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE} s in vain: {what}"
        time.sleep(0.002)


def finish(command: Installed) -> None:
    """Run to the end; the server needs a moment to see that a killed client is gone, and to free its lock."""
    deadline = time.monotonic() + DEADLINE
    while (ended := command.run("run-once", "archive")).returncode == 75:
        assert time.monotonic() < deadline, ended.stderr
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_kill_9_at_five_moments_loses_and_doubles_nothing(store: Store, command: Installed, tmp_path: Path) -> None:
    assert store.archived() == 0
    due = round(ROWS * 0.9)
    checksum = None
    for kill in range(KILLS):
        process = command.start("run-once", "archive")
        before = store.archived()
        threshold = max(due * kill // (KILLS + 1), before + 1)
        until(
            lambda goal=threshold, process=process: store.archived() >= goal or process.poll() is not None,
            f"{threshold} archived rows",
        )
        # Not always just after a commit: somewhere within the batches that follow.
        time.sleep(0.003 * kill)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=DEADLINE)
        assert process.returncode == -signal.SIGKILL, "it was over before it was killed"
        rows = store.everything()
        assert rows.live + rows.archive == rows.different == ROWS
        assert rows.archive < due
        assert checksum in {None, rows.checksum}
        checksum = rows.checksum
    finish(command)
    assert store.everything() == Rows(ROWS - due, due, ROWS, checksum)

    ledger = Ledger.open(str(tmp_path / "state"))
    try:
        newest, *killed = ledger.history()
        assert newest.outcome == "completed"
        assert [report.error for report in killed if report.outcome == "failed"] == [ORPHANED] * KILLS
    finally:
        ledger.close()


def test_sigterm_stops_after_the_step_in_hand(store: Store, command: Installed) -> None:
    due = round(ROWS * 0.9)
    process = command.start("run-once", "archive")
    until(lambda: store.archived() > due // 10 or process.poll() is not None, "a tenth of the rows")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (75, "")
    assert err.startswith("backendops: archive on results: stopped: the process was asked to end (SIGTERM)")
    assert len(err.splitlines()) == 1
    assert time.monotonic() - began < 30
    rows = store.everything()
    assert rows.live + rows.archive == rows.different == ROWS
    assert due // 10 < rows.archive < due
    finish(command)
    assert store.everything() == Rows(ROWS - due, due, ROWS, rows.checksum)


def test_a_second_sigterm_interrupts_the_statement_in_hand(store: Store, command: Installed) -> None:
    """As a first one does by itself when the statement is still there 20 seconds later."""
    store.execute(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(25); RETURN NULL; END $$;"
        " CREATE TRIGGER slow BEFORE DELETE ON celery_taskmeta FOR EACH STATEMENT EXECUTE FUNCTION dawdle()"
    )
    process = command.start("run-once", "archive")
    asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    until(lambda: store.one(asleep) == (1,) or process.poll() is not None, "a statement that takes long")
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)  # the first one waits for the step
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=15)
    assert (process.returncode, out) == (75, "")
    assert "stopped: the step in hand took too long to wait for and was rolled back" in err
    assert store.one("SELECT count(*) FROM celery_taskmeta") == (ROWS,)
    assert store.one(asleep) == (0,)
