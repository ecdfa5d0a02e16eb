"""Which rows of a SQLite table are due: looked up in pieces, without a lock, oldest first."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row

from backendops.backends.sql import SAMPLE, nothing_named
from backendops.backends.sql_files import load
from backendops.backends.sqlite.date_done import DateDone
from backendops.backends.sqlite.groups import Members
from backendops.backends.sqlite.newest import newest_kept
from backendops.backends.sqlite.tables import LiveTable
from backendops.contracts.readings import Finding
from backendops.contracts.retention import Retention

# A reader keeps a writer without a write-ahead log from committing: 50 ms are below what its busy handler sleeps.
LOOK_TIME: Final = 0.05
# What is read within that time on any machine, and few enough to hold in memory.
LOOK_ROWS: Final = 10_000
# Rows between two looks at the clock.
CHUNK: Final = 200

_SQL: Final = "remove"


@dataclass(frozen=True, slots=True)
class Due:
    """A row that is due."""

    id: int
    done_at: datetime
    past_margin: bool = False
    """Is it due even where nobody can tell what it waits for?"""


@dataclass(slots=True)
class Search:
    """One pass over a table, oldest first where date_done has an index, else by id."""

    table: LiveTable
    due: Retention
    clock: DateDone
    members: Members | None = None
    """Of a table of groups: what says which of the due ones may go."""
    newest: str | None = None
    """From this date on results are among the newest, which stay whatever their age."""
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
            by_task=self.due.by_task,
            by_queue=self.due.by_queue,
        )

    def looks(self, connection: Connection) -> Iterator[list[Due]]:
        """The due rows of one piece of the table after another; between two of them no lock is held."""
        while not self.finished and self.due.latest is not None:
            latest = self.clock.before(self.due.latest)
            found = self._look(connection, latest if self.newest is None else min(latest, self.newest))
            yield found if self.members is None else self._settled(connection, self.members, found)

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

    def _settled(self, connection: Connection, members: Members, found: list[Due]) -> list[Due]:
        known = members.known(connection, [group.id for group in found])
        return [group for group in found if known.get(group.id, group.past_margin)]

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
            if cutoff is None or moment.latest >= cutoff or (self.newest is not None and date_done >= self.newest):
                continue
            found.append(Due(id_, moment.likely, moment.latest < cutoff - self.due.group_margin))
        return found


def searches(connection: Connection, tables: Sequence[LiveTable], due: Retention, clock: DateDone) -> Iterator[Search]:
    """A search of each table, with what it must know of the whole of it."""
    tasks = next((table for table in tables if table.result_id == "task_id"), None)
    for table in tables:
        search = Search(table, due, clock, None if table is tasks else Members(table, tasks))
        if due.keep_newest:
            search.newest = newest_kept(connection, table, clock, due.keep_newest)
            search.finished = search.newest is None
        yield search


def nameless(connection: Connection, tables: Sequence[LiveTable], due: Retention) -> tuple[Finding, ...]:
    """A finding where rules ask for what Celery does not store."""
    tasks = next((table for table in tables if table.result_id == "task_id"), None)
    if tasks is None or not (due.by_task or due.by_queue):
        return ()
    statement = load("sqlite", _SQL, "sample_names", tasks.slots(by_task=True, by_queue=True))
    row = connection.execute(statement, {"rows": SAMPLE}).one()
    return tuple(
        nothing_named(tasks.name, word, row.rows)
        for word, asked, found in (("task", due.by_task, row.names), ("queue", due.by_queue, row.queues))
        if asked and row.rows and not found
    )
