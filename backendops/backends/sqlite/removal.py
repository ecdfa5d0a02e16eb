"""expire and archive: find due rows without a lock, then take a fixed set of ids in one short transaction.

SQLite has one writer at a time and no queue for it: who finds the file locked looks again after up to 100 ms, and
Celery gives up after 5 s. So the lock is held for one batch, and then free for long enough to be found free.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, Row

from backendops.backends.sql_files import fill, load, statements
from backendops.backends.sqlite.archive_table import ArchiveTable
from backendops.backends.sqlite.connection import File
from backendops.backends.sqlite.date_done import DateDone
from backendops.backends.sqlite.errors import translated
from backendops.backends.sqlite.tables import LiveTable
from backendops.contracts.errors import BackendBusy, BackendError
from backendops.contracts.retention import Retention
from backendops.contracts.run import Pace, Step, Steps

# A reader keeps a writer without a write-ahead log from committing: 50 ms are below what its busy handler sleeps.
LOOK_TIME: Final = 0.05
# What is read within that time on any machine, and few enough to hold in memory.
LOOK_ROWS: Final = 10_000
# Rows between two looks at the clock.
CHUNK: Final = 200
# The longest sleep of SQLite's busy handler (sqliteDefaultBusyCallback): who waits will have looked by then.
FREE_FOR: Final = 0.1
# Every writer waits while a batch holds the lock, on no other backend: so it holds it shorter than batches may take.
HOLD: Final = 0.1
# Below ten rows a batch is mostly the sync of its commit.
FEWEST: Final = 10
# Each attempt waits for lock_timeout; what is locked for three of them is locked by something that lasts.
ATTEMPTS: Final = 3


_SQL: Final = "remove"


def _sql(name: str, slots: Mapping[str, str]) -> str:
    return fill(statements("sqlite", _SQL)[name], slots)


@dataclass(frozen=True, slots=True)
class Due:
    """A row that is due."""

    id: int
    done_at: datetime


@dataclass(slots=True)
class Search:
    """One pass over a table, oldest first where date_done has an index, else by id."""

    table: LiveTable
    due: Retention
    clock: DateDone
    unreadable: int = 0
    finished: bool = False
    _after_id: int = field(default=-(2**63), init=False)
    _after_date: str = field(default="", init=False)

    @property
    def statement(self) -> str:
        return "look_by_date" if self.table.date_done_index else "look_by_id"

    @property
    def slots(self) -> dict[str, str]:
        """Reading name and queue costs the pages of the payload before them: only where a rule asks."""
        return self.table.slots(
            by_task=any(rule.task is not None for rule in self.due.rules),
            by_queue=any(rule.queue is not None for rule in self.due.rules),
        )

    def looks(self, connection: Connection) -> Iterator[list[Due]]:
        """The due rows of one piece of the table after another; between two of them no lock is held."""
        while not self.finished and self.due.latest is not None:
            yield self._look(connection, self.clock.before(self.due.latest))

    def _look(self, connection: Connection, latest: str) -> list[Due]:
        until = time.monotonic() + LOOK_TIME
        values = {
            "after_date": self._after_date, "after_id": self._after_id, "latest": latest, "rows": LOOK_ROWS,
        }  # fmt: skip
        found: list[Due] = []
        looked = 0
        rows = connection.execute(load("sqlite", _SQL, self.statement, self.slots), values)
        for chunk in rows.partitions(CHUNK):
            looked += len(chunk)
            self._after_id, self._after_date = chunk[-1][0], chunk[-1][1]
            found += self._due_of(chunk)
            if time.monotonic() > until:
                rows.close()
                return found
        self.finished = looked < LOOK_ROWS
        return found

    def still_due(self, connection: Connection, batch: list[Due]) -> list[Due]:
        """Those of a batch that nothing has changed since; asked under the write lock."""
        statement = load("sqlite", _SQL, "look_again", self.slots)
        return self._due_of(connection.execute(statement, {"ids": json.dumps([row.id for row in batch])}).all())

    def _due_of(self, rows: Sequence[Row[Any, Any, Any, Any, Any]]) -> list[Due]:
        found = []
        for id_, date_done, status, task, queue in rows:
            if date_done is None:
                continue
            moment = self.clock.read(date_done, status)
            if moment is None:
                self.unreadable += 1
                continue
            cutoff = self.due.cutoff_of(status, task, queue)
            if cutoff is not None and moment.latest < cutoff:
                found.append(Due(id_, moment.likely))
        return found


@dataclass(frozen=True, slots=True)
class Removal:
    """Takes the due rows of one table away, into its archive where it has one."""

    file: File
    search: Search
    archive: ArchiveTable | None

    @property
    def statements(self) -> tuple[str, ...]:
        """What a run sends for each batch."""
        live, search = self.search.table, self.search
        sent = [_sql(search.statement, search.slots), _sql("look_again", search.slots)]
        if self.archive:
            sent.append(_sql("copy_batch", self.archive.slots))
        return (*sent, _sql("delete_batch", live.slots()))

    @property
    def what(self) -> str:
        name = self.search.table.name
        return f"moved to {self.archive.name}" if self.archive else f"removed from {name}"

    def run(self, pace: Pace) -> Steps:
        """Yield after each committed batch, and after each piece of the table that had nothing due."""
        free_since, most = 0.0, pace.size
        for found in self.search.looks(self.file.connection):
            if not found:
                yield Step()
            at, attempts = 0, 0
            while at < len(found):
                batch = found[at : at + min(pace.size, most)]
                # Even where the caller rests shorter: an application that waits must get its turn.
                time.sleep(max(0.0, free_since + FREE_FOR - time.monotonic()))
                try:
                    rows, held = self._take(batch, pace)
                except BackendBusy:
                    pace.timed_out()
                    attempts += 1
                    if attempts == ATTEMPTS:
                        raise
                    yield Step(what="waited for another writer")
                    continue
                free_since = time.monotonic()
                # No more than twice as many as were measured: larger rows may come.
                most = max(FEWEST, int(len(batch) * min(HOLD / held, 2.0)))
                at, attempts = at + len(batch), 0
                yield Step(rows=rows, what=self.what)

    def _take(self, batch: list[Due], pace: Pace) -> tuple[int, float]:
        """How many rows of the batch were still due and are gone, and for how long the lock was held."""
        with translated(self.file.path):
            with self.file.writing():
                # From here others wait; waiting for them before says nothing about the batch.
                began = time.monotonic()
                rows = self.search.still_due(self.file.connection, batch)
                if rows:
                    self._move(rows)
            held = time.monotonic() - began
        pace.measured(len(rows), held)
        return len(rows), held

    def _move(self, rows: list[Due]) -> None:
        connection, live = self.file.connection, self.search.table
        values = {
            "batch": json.dumps([[row.id, row.done_at.isoformat()] for row in rows]),
            "archived_at": datetime.now(UTC).isoformat(),
        }
        copied = len(rows)
        if self.archive:
            copied = connection.execute(load("sqlite", _SQL, "copy_batch", self.archive.slots), values).rowcount
        deleted = connection.execute(load("sqlite", _SQL, "delete_batch", live.slots()), values).rowcount
        if not copied == deleted == len(rows):
            raise BackendError(
                f"{live.name}: of {len(rows)} rows {copied} were copied and {deleted} deleted; "
                "the batch was rolled back",
                "does the table have triggers? Please report this",
            )
