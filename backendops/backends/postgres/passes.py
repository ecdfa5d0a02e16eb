"""Full and short passes: what an earlier run has already looked at need not be read again every quarter of an hour."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, Final

from backendops.backends.postgres.due import Due
from backendops.backends.postgres.ranges import Key
from backendops.backends.postgres.tables import LiveTable
from backendops.contracts.run import Watermarks

# Rows can be stored out of order (a restore, a worker with a wrong clock, a group row that Celery 5.4 dated when the
# worker started): a short pass may miss such a row, and it waits for the next full one, a day at most.
FULL_EVERY: Final = timedelta(days=1)
# A short pass by date looks back this far behind what was already done: the usual lateness of a commit or a clock.
LATENESS: Final = timedelta(hours=1)
# A short pass by id ends after so many rows that all finished after every cutoff: ids follow time, roughly. As many
# tasks would have to be under way at once for an older result to come after them. It begins as many before the last
# rows that were due.
QUIET_ROWS: Final = 50_000
# Fewer kept rows than this are read in a fraction of a second: every pass looks at all of them.
WORTH_SKIPPING: Final = 100_000
# The first row is one step into the index. A look that takes longer steps over what is removed and cannot be vacuumed
# yet, because a dump or a forgotten transaction may still see it: so much that it may end in a timeout tomorrow.
SLOW_LOOK: Final = timedelta(seconds=1)
# A killed process costs as much reading; each time is a write to the ledger.
REMEMBER_EVERY: Final = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Window:
    """A part of the walked column's range; `low` None is the table's beginning."""

    low: Key | None
    end: Key


class Pass:
    """One pass over one table for one job: full, or short where a full one within a day read very many kept rows.

    A full one goes on where the last run had to end, until it reaches the end, and only then begins again: however much
    is kept, what is due behind it is reached. What is remembered costs reading when it is lost, never a row.
    """

    def __init__(  # noqa: PLR0913 - of what, for whom, and after what
        self, watermarks: Watermarks, live: LiveTable, due: Due, job: str, by: str, *, follows: bool = False
    ) -> None:
        self._watermarks = watermarks
        self._live, self._job, self._follows = live, job, follows
        self._due = due
        self._by = by
        self._key = f"{job} {live.sql_name}"
        self._now = datetime.now(UTC)
        self._rules = json.dumps([by, due.sql, {k: v for k, v in due.values.items() if isinstance(v, str)}])
        self._last = self._recall()
        self.emptied_to: Key | None = self._key_of(self._last.get("emptied"))
        """Up to here nothing was left, the last time that somebody looked."""
        self._slow = self._last.get("slow")
        self._due_from: Key | None = self._key_of(self._last.get("due_from"))
        place = self._last.get("place") or {}
        self._reached: Key | None = self._key_of(place.get("at"))
        self.is_resumed = self._reached is not None
        """Does it go on where an earlier run had to end?"""
        self._began: str = place.get("began") or self._now.isoformat()
        self._first_cutoffs: dict[str, str] = place.get("cutoffs") or self._written_cutoffs()
        self._kept: int = place.get("kept", 0)
        self._has_left: bool = place.get("has_left", False)
        self._keeps_place = self.is_resumed or not self.is_short
        self._is_whole = True
        self._has_moved = False
        self._remembered_at = monotonic()
        self._quiet_rows = 0

    @property
    def is_short(self) -> bool:
        """Has everything been looked at within a day, and was it much?"""
        full = self._last.get("full")
        if self.is_resumed or full is None:
            return False
        return self._follows or (self._last.get("kept", 0) >= WORTH_SKIPPING and self._is_of_today(full))

    def following(self) -> Pass:
        """A short one after one of several runs: what became due behind its place since its first run.

        Only then is everything taken that was due when this run began, which `expire` behind `archive` relies on.
        """
        return Pass(self._watermarks, self._live, self._due, self._job, self._by, follows=True)

    def windows(self) -> tuple[Window, ...]:
        """The parts of a table by date in which a row can have become due since the last pass, in order.

        A full pass looks at everything before the latest cutoff. Where very many rows before it are kept longer, or for
        ever, a short one looks only at what each cutoff has moved over.
        """
        before = self._last.get("cutoffs", {})
        cutoffs = self._cutoffs()
        if not self.is_short or before.keys() != cutoffs.keys():
            return (Window(self._start, self._due.latest),)
        self._is_whole = False
        windows: list[tuple[datetime, datetime]] = []
        for name, end in sorted(cutoffs.items(), key=lambda item: item[1]):
            low = datetime.fromisoformat(before[name]) - LATENESS
            if windows and low <= windows[-1][1]:
                windows[-1] = (min(windows[-1][0], low), end)
            elif low < end:
                windows.append((low, end))
        return tuple(Window(low, end) for low, end in windows)

    def window_of_ids(self, last: int) -> Window:
        """The same for a table by id: a short pass leaves out what lies far before the last rows that were due.

        With several cutoffs it does not: what is kept longer lies there, and comes of age.
        """
        if self.is_short and isinstance(self._due_from, int) and len(self._cutoffs()) == 1:
            self._is_whole = False
            return Window(self._due_from - QUIET_ROWS, last + 1)
        return Window(self._start, last + 1)

    @property
    def _start(self) -> Key | None:
        if self.is_resumed:
            return self._reached
        return self.emptied_to if self._slow is not None and self._is_of_today(self._slow) else None

    def looked_for_the_first(self, took: timedelta | None) -> None:
        """So long it took to find the first row, or it timed out: then that is not looked for again within a day."""
        self._slow = self._now.isoformat() if took is None or took >= SLOW_LOOK else None

    def has_read(self, kept: int, locked: int) -> None:
        """A range was taken; so many of its rows were not due, and so many others held."""
        self._kept += kept
        self._has_left = self._has_left or locked > 0

    def has_reached(self, place: Key) -> bool:
        """Everything before `place` was looked at. Is it time to remember that, once it is certain to last?"""
        self._reached, self._has_moved = place, True
        return monotonic() - self._remembered_at >= REMEMBER_EVERY.total_seconds()

    def interrupted(self, *, failed: bool = False, is_lost: bool = False) -> None:
        """The next run goes on from here.

        From the beginning where this one could not do a single range of it, or where what it removed may come back.
        """
        if is_lost:
            self._reached = self.emptied_to = None
        if self._keeps_place or is_lost:
            here = None if self._reached is None or (failed and not self._has_moved) else self._place(self._reached)
            self._remember({**self._last, "place": here})
        self._remembered_at = monotonic()

    def is_over(self, rows: int, oldest: datetime | None) -> bool:
        """May a pass by id end here? Told of each range without a due row: its rows and its oldest date_done."""
        self._quiet_rows = self._quiet_rows + rows if oldest is None or oldest >= self._due.latest else 0
        if not self.is_short or self._quiet_rows < QUIET_ROWS:
            return False
        self._is_whole = False
        return True

    def is_not_quiet(self, low: Key) -> None:
        """The range from `low` on had due rows."""
        self._quiet_rows = 0
        self._due_from = low

    def completed(self) -> None:
        """The pass reached its end: the next one begins from the beginning."""
        done = {**self._last, "place": None}
        if not self._has_left:
            # Of several runs: what became due behind the first of them since then is still to be looked at.
            done["cutoffs"] = self._first_cutoffs
            if self._is_whole:
                done |= {"full": self._began, "kept": self._kept}
        self._remember(done)

    def _place(self, reached: Key) -> dict[str, Any]:
        return {
            "at": _written(reached),
            "began": self._began,
            "cutoffs": self._first_cutoffs,
            "kept": self._kept,
            "has_left": self._has_left,
        }

    def _remember(self, what: dict[str, Any]) -> None:
        known = {"rules": self._rules, "slow": self._slow}
        known |= {"emptied": _written(self.emptied_to), "due_from": _written(self._due_from)}
        self._last = {**what, **known}
        self._watermarks.remember(self._key, json.dumps(self._last))

    def _cutoffs(self) -> dict[str, datetime]:
        return {name: value for name, value in self._due.values.items() if isinstance(value, datetime)}

    def _written_cutoffs(self) -> dict[str, str]:
        return {name: cutoff.isoformat() for name, cutoff in self._cutoffs().items()}

    def _is_of_today(self, moment: str) -> bool:
        return timedelta() <= self._now - datetime.fromisoformat(moment) < FULL_EVERY

    def _key_of(self, written: Any) -> Key | None:
        if self._by == "date_done" and isinstance(written, str):
            return datetime.fromisoformat(written)
        return written if isinstance(written, int) else None

    def _recall(self) -> dict[str, Any]:
        try:
            last = json.loads(self._watermarks.recall(self._key) or "{}")
        except ValueError:
            return {}
        return last if isinstance(last, dict) and last.get("rules") == self._rules else {}


def _written(key: Key | None) -> str | int | None:
    return key.isoformat() if isinstance(key, datetime) else key
