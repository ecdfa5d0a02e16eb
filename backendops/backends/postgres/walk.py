"""Walking a live table forward by key, so that the last batch of ten million rows costs what the first one did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import Any, Final

from sqlalchemy import Connection

from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.errors import (
    CHECK_VIOLATION,
    DEADLOCK,
    LOCK_NOT_AVAILABLE,
    SERIALIZATION,
    STATEMENT_TIMEOUT,
    code_of,
)
from backendops.backends.postgres.passes import Pass, Window
from backendops.backends.postgres.ranges import Cuts, Key, Span, Taken
from backendops.backends.postgres.survey import Target
from backendops.backends.postgres.tables import LiveTable
from backendops.backends.postgres.tries import Tries
from backendops.backends.sql_files import load
from backendops.contracts.errors import BackendBusy, BackendError, BackendUnreachable
from backendops.contracts.run import Pace

# A batch that waits for a row holds the rows it already has: no writer may wait longer behind it than for a slow disk.
LOCK_PATIENCE: Final = timedelta(milliseconds=50)


class _Uneven(Exception):
    """The statements of a batch did not meet the same rows: a trigger or a policy of the table's owner decides too."""


def _nothing_to_prepare(span: Span, failed: bool) -> None:
    pass


def _nothing_to_finish() -> Iterator[None]:
    yield from ()


@dataclass(frozen=True, slots=True)
class Deed:
    """What is done to the due rows of a range: statements of one .sql file, and their slots and values."""

    job: str
    whole: tuple[str, ...]
    """The statements that take every due row of a range; of several each meets the same rows, on one snapshot."""
    unlocked: str
    """The statement that takes up to `:size` of them, without those that others hold."""
    slots: Mapping[str, str]
    values: Mapping[str, Any]
    done: str
    """What was done, in plain words: "moved to celery_taskmeta_archive"."""
    lazy: bool = False
    """Need a batch not wait for the disk? Then only the end of the walk does."""
    made_ready: str = ""
    """What was done before the first row, if anything: "made the archive"."""
    prepare: Callable[[Span, bool], None] = _nothing_to_prepare
    """Called before a range is taken, outside any transaction; again, told so, where the range then failed."""
    finish: Callable[[], Iterator[None]] = _nothing_to_finish
    """Called when every range was taken; each item is a moment to stop."""


class Walk:
    """One pass over one live table: by date_done where an index leads on it, else by id."""

    def __init__(self, session: PostgresSession, target: Target, deed: Deed, pace: Pace) -> None:
        live, due = target.live, target.due
        self.by = walked_column(live)
        self._session = session
        self._due = due
        self._members = target.members
        self._settled: Mapping[str, list[int]] = {}
        self._deed = deed
        self._pace = pace
        self._pass = Pass(session.watermarks, live, due, deed.job, self.by)
        self._slots = {"live": live.slot, "by": self.by, "due": due.sql, **deed.slots}
        self._is_unflushed = False
        self._is_among_locks = False
        self.emptied_to: Key | None = None
        """Up to here nothing is left: looking for the oldest from here on skips what the walk has just removed."""

    def batches(self) -> Iterator[Taken]:
        """Take every due row, one committed batch per item.

        Raises BackendBusy where a range that cannot be made smaller fails three times in a row.
        """
        try:
            yield from self._batches()
            if self._pass.is_resumed:
                self._complete()
                self._pass = self._pass.following()
                yield from self._batches()
        except BaseException as end:
            # Where the server is gone, what it had not on its disk comes back.
            is_lost = self._is_unflushed and isinstance(end, BackendUnreachable)
            # It says how many rows it removed as well, and why it ended: that is what counts.
            with suppress(BackendError):
                if not is_lost:
                    self._wait_for_disk()
                self._pass.interrupted(failed=isinstance(end, BackendError), is_lost=is_lost)
            raise
        self._complete()

    def _complete(self) -> None:
        self._wait_for_disk()
        self._pass.completed()

    def _batches(self) -> Iterator[Taken]:
        for low, end, is_from_start in self._courses():
            is_emptied = is_from_start
            for one in self._along(low, end):
                if one is None:
                    yield Taken(0, 0.0)
                    continue
                span, taken = one
                self._is_unflushed = self._is_unflushed or (self._deed.lazy and taken.rows > 0)
                if is_emptied:
                    is_emptied = span.full and taken.rows == span.size
                    self.emptied_to = self._pass.emptied_to = span.high if is_emptied and taken.is_done else span.low
                kept = span.size - taken.rows if span.full and not span.crowded else 0
                self._pass.has_read(kept, taken.locked)
                if self._pass.has_reached(span.high if taken.is_done else span.low):
                    self._wait_for_disk()
                    self._pass.interrupted()
                yield taken
                if self.by == "id" and self._is_over(span, taken):
                    break

    def _wait_for_disk(self) -> None:
        if self._is_unflushed:
            with self._session.transaction() as connection:
                connection.execute(load("postgres", "session", "wait_for_disk"))
            self._is_unflushed = False

    def _courses(self) -> Iterator[tuple[Key, Key, bool]]:
        """Where to walk: from, to, and whether that is from the table's own beginning."""
        if self.by == "id":
            with self._transaction() as connection:
                last = connection.execute(load("postgres", "walk", "find_last", self._slots)).scalar_one()
            windows: tuple[Window, ...] = () if last is None else (self._pass.window_of_ids(last),)
        else:
            windows = self._pass.windows()
        for window in windows:
            is_from_start = window.low is None or window.low == self._pass.emptied_to
            low = self._first(window.end) if window.low is None else window.low
            # What is remembered may be of other cutoffs, or of a table that is emptied since.
            if low is not None and low < window.end:  # type: ignore[operator] # both are of the walked column
                if is_from_start:
                    self.emptied_to = low
                yield low, window.end, is_from_start

    def _first(self, end: Key) -> Key | None:
        began = monotonic()
        try:
            with self._transaction() as connection:
                find = load("postgres", "walk", "find_first", self._slots)
                low: Key | None = connection.execute(find, {"end": end}).scalar_one()
                if low == datetime.min:  # noqa: DTZ901 - naive as date_done; the driver's word for -infinity
                    find = load("postgres", "walk", "find_next", self._slots)
                    low = connection.execute(find, {"low": low, "end": end}).scalar_one()
        except BackendBusy as busy:
            # Removed rows that no vacuum may clear away yet lie before it: an earlier run knows where they end.
            low = self._pass.emptied_to
            if low is None or self._session.interrupted or code_of(busy) != STATEMENT_TIMEOUT:
                raise
            self._pass.looked_for_the_first(None)
            return low
        self._pass.looked_for_the_first(timedelta(seconds=monotonic() - began))
        return low

    def _along(self, start: Key, end: Key) -> Iterator[tuple[Span, Taken] | None]:
        """Each range that was taken; None where one failed and is tried again, which is a moment to stop."""
        low: Key | None = start
        cuts = Cuts(self._session, self._slots)
        tries, failed_check = Tries(self._session, self._pace), False
        while low is not None:
            size = self._pace.size
            try:
                span = cuts.cut(low, end, size)
                self._deed.prepare(span, failed_check)
                self._ask_members(span)
                taken = self._take(span)
            except BackendError as error:
                failed_check = code_of(error) == CHECK_VIOLATION
                # Without the server's code it is ours, and names a way out that is not waiting.
                if not failed_check and (not isinstance(error, BackendBusy) or code_of(error) is None):
                    raise
                tries.failed(error, size)
                yield None
                continue
            failed_check = False
            tries.passed()
            self._pace.measured(span.size if span.full and not span.crowded else taken.rows, taken.seconds)
            yield span, taken
            if taken.is_done:
                low = span.high if span.high < end else None  # type: ignore[operator] # both are of the walked column

    def _is_over(self, span: Span, taken: Taken) -> bool:
        if taken.rows or taken.locked:
            self._pass.is_not_quiet(span.low)
            return False
        if not self._pass.is_short:
            return False
        with self._transaction() as connection:
            oldest = connection.execute(
                load("postgres", "walk", "find_oldest_of_range", self._slots), span.values
            ).scalar_one()
        return self._pass.is_over(span.size, oldest)

    def _ask_members(self, span: Span) -> None:
        if self._members is not None:
            within = f"({self.by} >= :low AND {self.by} < :high)"
            self._settled = {"settled": self._members.settled(within, span.values, most=span.size)}

    def _take(self, span: Span) -> Taken:
        values = {**self._due.values, **self._settled, **self._deed.values, **span.values}
        # Where one range met a lock the next one may: taken whole, it would wait for it, be rolled back, and leave as
        # many dead rows in an archive.
        if not (span.crowded or self._is_among_locks):
            try:
                return self._take_whole(values)
            except _Uneven:
                pass
            except BackendBusy as busy:
                if code_of(busy) not in (LOCK_NOT_AVAILABLE, DEADLOCK, SERIALIZATION):
                    raise
        with self._transaction(lazily=self._deed.lazy) as connection:
            unlocked = load("postgres", self._deed.job, self._deed.unlocked, self._slots)
            began = monotonic()
            rows = connection.execute(unlocked, {**values, "size": span.size}).rowcount
            is_done, left = rows < span.size, 0
            if is_done:
                left = connection.execute(load("postgres", "walk", "count_left", self._slots), values).scalar_one()
        self._is_among_locks = not is_done or left > 0
        return Taken(rows, monotonic() - began, left, is_done)

    def _take_whole(self, values: Mapping[str, Any]) -> Taken:
        deed = self._deed
        with self._transaction(
            lock_timeout=LOCK_PATIENCE, one_state=len(deed.whole) > 1, lazily=deed.lazy
        ) as connection:
            began = monotonic()
            counts = [
                connection.execute(load("postgres", deed.job, name, self._slots), values).rowcount
                for name in deed.whole
            ]
            if len(set(counts)) > 1:
                raise _Uneven
        return Taken(counts[0], monotonic() - began)

    def _transaction(self, **options: Any) -> AbstractContextManager[Connection]:
        return self._session.transaction(prefer_indexes=True, **options)


def walked_column(live: LiveTable) -> str:
    """The column that a table's ranges are cut by."""
    return "date_done" if live.date_indexed else "id"
