"""Stuck results on PostgreSQL: unfinished rows that were not written to since a mark of long ago."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import Final

from backendops.backends.postgres.archive_table import ArchiveTable, archive_name, ensure_archive, ensure_partitions
from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.ddl import with_ddl
from backendops.backends.postgres.drift import STUCK
from backendops.backends.postgres.groups import LOWEST_ID
from backendops.backends.postgres.intercepted import refuse_intercepted
from backendops.backends.postgres.survey import PREVIEW_BUDGET
from backendops.backends.postgres.tables import LiveTable, find_tables, quoted
from backendops.backends.postgres.tries import Tries
from backendops.backends.sql_files import literal, load, readable
from backendops.contracts.capabilities import ArchivePlan, CanMoveStuck
from backendops.contracts.errors import BackendBusy
from backendops.contracts.run import Pace, Preview, Step, Steps
from backendops.contracts.units import format_seconds

# Marks taken so much closer together than `stuck_after` say hardly more: some two dozen of them are remembered.
SPACING: Final = 24
# Without an index on date_done the whole table is read for a few rows that are stuck anyway: once a day is enough.
UNINDEXED_EVERY: Final = timedelta(days=1)
# The last rows of a partition may be moved when it has just ended.
AROUND_NOW: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Mark:
    """What was the oldest running transaction, and the last id, at one moment by the server's clock."""

    at: datetime
    oldest: int
    last_id: int

    @property
    def values(self) -> dict[str, int]:
        """As binds: what was written by a transaction below the oldest one of then."""
        return {"oldest": self.oldest, "last_id": self.last_id}


@dataclass(frozen=True, slots=True)
class Now:
    """This moment as a mark, the number that the next transaction will have, and whose numbers these are."""

    mark: Mark
    next: int
    line: str

    @property
    def at(self) -> datetime:
        return self.mark.at


@dataclass(frozen=True, slots=True)
class Marks:
    """The marks of one table, the oldest first. Losing them delays what is stuck, and never moves anything early."""

    line: str
    """Of what server, history, database and table they are."""
    taken: tuple[Mark, ...] = ()
    passed: datetime | None = None
    """When the whole of a table without an index was last looked at."""

    def proven(self, now: datetime, stuck_after: timedelta) -> Mark | None:
        """The newest mark that is old enough; None where there is none yet."""
        return max(
            (mark for mark in self.taken if now - mark.at >= stuck_after), key=lambda mark: mark.at, default=None
        )

    def with_one_more(self, mark: Mark, stuck_after: timedelta) -> Marks:
        """With a new mark, where it says more than the last one; without those that an old enough one makes useless."""
        taken = list(self.taken)
        if not taken or mark.at - taken[-1].at >= stuck_after / SPACING:
            taken.append(mark)
        proven = self.proven(mark.at, stuck_after)
        return Marks(self.line, tuple(one for one in taken if proven is None or one.at >= proven.at), self.passed)

    def written(self) -> str:
        """As text, for what is remembered between runs."""
        marks = [[mark.at.isoformat(), mark.oldest, mark.last_id] for mark in self.taken]
        return json.dumps([self.line, marks, self.passed and self.passed.isoformat()])

    @classmethod
    def read(cls, text: str | None, now: Now) -> Marks:
        """What was remembered, as far as it is of this line; else none."""
        line = now.line
        try:
            theirs, marks, passed = json.loads(text or "[null, [], null]")
            if theirs != line:
                return cls(line)
            taken = tuple(Mark(datetime.fromisoformat(at), int(oldest), int(last_id)) for at, oldest, last_id in marks)
            # One from after now, or of more transactions than there were, is of another history after all.
            taken = tuple(mark for mark in taken if mark.at <= now.at and mark.oldest <= now.mark.oldest)
            return cls(line, taken, passed and datetime.fromisoformat(passed))
        except (ValueError, TypeError):
            return cls(line)


class StuckOnPostgres(PostgresSession, CanMoveStuck):
    """Can archive unfinished results that are proven not to have been written to for a long time."""

    def preview_stuck(self, stuck_after: timedelta, plan: ArchivePlan) -> Preview:
        live = _tasks(self)
        if live is None:
            return Preview("no result is stuck")
        now, marks = _marks(self, live, stuck_after)
        proven = marks.proven(now.at, stuck_after)
        if proven is None:
            return Preview(_too_early(marks, now.at, stuck_after))
        schema, name = archive_name(live, plan)
        slots = _slots(live, f"{quoted(schema)}.{quoted(name)}", in_ranges=False)
        # Counted back from the next one.
        values = {**proven.values, "next": now.next}
        try:
            with self.transaction(read_only=True, statement_timeout=PREVIEW_BUDGET, prefer_indexes=True) as connection:
                rows = connection.execute(load("postgres", "stuck", "count_stuck", slots), values).scalar_one()
        except BackendBusy:
            return Preview("how many unfinished results are stuck takes too long to count")
        return Preview(
            f"would archive {rows:,} unfinished results as stuck, not written to since {proven.at:%Y-%m-%d %H:%M} UTC",
            rows=rows,
            statements=(readable(load("postgres", "stuck", "move_stuck", slots), values),),
        )

    def move_stuck(self, stuck_after: timedelta, plan: ArchivePlan, pace: Pace) -> Steps:
        live = _tasks(self)
        if live is None:
            return
        live.require_delete()
        now, marks = _marks(self, live, stuck_after)
        proven = marks.proven(now.at, stuck_after)
        marks = marks.with_one_more(now.mark, stuck_after)
        key = _key(live, stuck_after)
        self.watermarks.remember(key, marks.written())
        if proven is None:
            yield Step(what=_too_early(marks, now.at, stuck_after))
            return
        if not live.date_indexed and marks.passed is not None and now.at - marks.passed < UNINDEXED_EVERY:
            return
        archive, made_ready = ensure_archive(self, live, plan)
        archive.require_insert()
        refuse_intercepted(self, archive)
        if not any(column.name == STUCK for column in archive.columns):
            add = load("postgres", "archive_table", "add_stuck", {"archive": archive.slot})
            with_ddl(self, lambda connection: connection.execute(add))
        yield Step(what=made_ready)
        moved = 0
        for rows in _Moving(self, live, archive, plan, proven, pace).batches():
            moved += rows
            yield Step(rows=rows, what=f"moved to {archive.name} as stuck" if rows else "")
        self.watermarks.remember(key, Marks(marks.line, marks.taken, now.at).written())
        since = f"not written to since {proven.at:%Y-%m-%d %H:%M} UTC"
        yield Step(
            what=f"{moved:,} unfinished results were stuck, {since}" if moved else "no unfinished result is stuck"
        )


class _Moving:
    """One pass over what is stuck in the live table."""

    def __init__(  # noqa: PLR0913, PLR0917 - from where, to where, what, and how fast
        self,
        session: PostgresSession,
        live: LiveTable,
        archive: ArchiveTable,
        plan: ArchivePlan,
        proven: Mark,
        pace: Pace,
    ) -> None:
        self._session, self._live, self._archive, self._plan = session, live, archive, plan
        self._values, self._pace = proven.values, pace
        self._slots = _slots(live, archive.sql_name, in_ranges=not live.date_indexed)

    def batches(self) -> Iterator[int]:
        """The rows of one committed batch after another. BackendBusy where one fails thrice and cannot be smaller."""
        session, live, pace = self._session, self._live, self._pace
        low, last = LOWEST_ID, self._values["last_id"]
        more, tries = True, Tries(session, pace)
        while more:
            began, size = monotonic(), pace.size
            try:
                high = last + 1 if live.date_indexed else _range_end(session, live, low, last + 1, size)
                rows = self._move({"size": size, "low": low, "high": high})
            except BackendBusy as busy:
                tries.failed(busy, size)
                yield 0
                continue
            tries.passed()
            pace.measured(rows if live.date_indexed else size, monotonic() - began)
            yield rows
            if live.date_indexed:
                more = rows == size
            else:
                low, more = high, high <= last

    def _move(self, values: Mapping[str, int]) -> int:
        session = self._session
        with session.transaction(read_only=True) as connection:
            now = connection.execute(load("postgres", "stuck", "find_next")).one()
        around = (now.at, now.at + AROUND_NOW)
        self._archive = ensure_partitions(session, self._archive, around, self._plan.every, session.zone)
        with session.transaction(prefer_indexes=True) as connection:
            statement = load("postgres", "stuck", "move_stuck", self._slots)
            return connection.execute(statement, {**self._values, **values, "next": now.next}).rowcount


def _range_end(session: PostgresSession, live: LiveTable, low: int, end: int, size: int) -> int:
    with session.transaction(read_only=True, prefer_indexes=True) as connection:
        bound = connection.execute(
            load("postgres", "walk", "find_bounds", {"live": live.slot, "by": "id"}),
            {"low": low, "end": end, "size": size, "ranges": 1},
        ).scalar_one_or_none()
    return end if bound is None else int(bound)


def _slots(live: LiveTable, archive: str, *, in_ranges: bool) -> dict[str, str]:
    return {
        "live": live.slot,
        "archive": literal(archive),
        "columns": literal(", ".join(quoted(column.name) for column in live.columns)),
        # Rows without a date are together at the end of date_done's index: no range is needed, and none is to mislead.
        "range": "(id >= :low AND id < :high)" if in_ranges else "(true)",
    }


def _tasks(session: PostgresSession) -> LiveTable | None:
    with session.transaction(read_only=True) as connection:
        found = find_tables(session, connection).tables
    return next((live for live in found if live.holds == "task"), None)


def _marks(session: PostgresSession, live: LiveTable, stuck_after: timedelta) -> tuple[Now, Marks]:
    """This moment, which is not remembered yet, and the marks that are."""
    with session.transaction(read_only=True) as connection:
        row = connection.execute(load("postgres", "stuck", "take_mark", {"live": live.slot}), {"oid": live.oid}).one()
    now = Now(Mark(row.at, row.oldest, row.last_id or 0), row.next, row.line)
    return now, Marks.read(session.watermarks.recall(_key(live, stuck_after)), now)


def _key(live: LiveTable, stuck_after: timedelta) -> str:
    return f"stuck {stuck_after.total_seconds():.0f} {live.sql_name}"


def _too_early(marks: Marks, now: datetime, stuck_after: timedelta) -> str:
    watched = now - marks.taken[0].at if marks.taken else timedelta()
    left = max(stuck_after - watched, timedelta()).total_seconds()
    return f"which unfinished results are stuck is known in {format_seconds(left)}"
