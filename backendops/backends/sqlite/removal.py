"""expire and archive: find due rows without a lock, then take a fixed set of ids in one short transaction.

SQLite has one writer at a time and no queue for it: who finds the file locked looks again after up to 100 ms, and
Celery gives up after 5 s. So the lock is held for one batch, and then free for long enough to be found free.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from backendops.backends.sql_files import fill, load, statements
from backendops.backends.sqlite.archive_table import ArchiveTable
from backendops.backends.sqlite.connection import File
from backendops.backends.sqlite.errors import translated
from backendops.backends.sqlite.search import Due, Search
from backendops.contracts.errors import BackendBusy, BackendError
from backendops.contracts.run import Pace, Step, Steps

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
        for found in self._looks():
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

    def _looks(self) -> Iterator[list[Due]]:
        # Looking takes no lock of its own, and still waits for who has the whole file, or finds a disk that is gone.
        with translated(self.file.path):
            yield from self.search.looks(self.file.connection)

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
