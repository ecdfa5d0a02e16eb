"""Full and short passes: what an earlier pass has already looked at need not be read again every quarter of an hour."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from backendops.backends.postgres.due import Due
from backendops.backends.postgres.tables import LiveTable
from backendops.contracts.run import Watermarks

# Rows can be stored out of order (a restore, a worker with a wrong clock, a group row that Celery 5.4 dated when the
# worker started): a short pass may miss such a row, and it waits for the next full one, a day at most.
FULL_EVERY: Final = timedelta(days=1)
# A short pass by date looks back this far behind what was already done: the usual lateness of a commit or a clock.
LATENESS: Final = timedelta(hours=1)
# A short pass by id ends after so many rows that all finished after every cutoff: ids follow time, roughly. As many
# tasks would have to be under way at once for an older result to come after them.
QUIET_ROWS: Final = 50_000


# Fewer kept rows than this are read in a fraction of a second: every pass looks at all of them.
WORTH_SKIPPING: Final = 100_000


@dataclass(frozen=True, slots=True)
class Window:
    """A part of date_done's range; `low` None is its beginning."""

    low: datetime | None
    end: datetime


class Pass:
    """One pass over one table for one job: full, or short where a full one within a day read very many kept rows.

    What it remembers costs reading when it is lost, never a row.
    """

    def __init__(self, watermarks: Watermarks, live: LiveTable, due: Due, job: str) -> None:
        self._watermarks = watermarks
        self._due = due
        self._key = f"{job} {live.sql_name}"
        self._began = datetime.now(UTC)
        self._rules = json.dumps([due.sql, {k: v for k, v in due.values.items() if isinstance(v, str)}])
        self._last = self._recall()
        self._kept = 0
        self._quiet_rows = 0
        self._is_whole = True

    @property
    def is_short(self) -> bool:
        """Has everything been looked at within a day, and was it much?"""
        full = self._last.get("full")
        if full is None or self._last.get("kept", 0) < WORTH_SKIPPING:
            return False
        return timedelta() <= self._began - datetime.fromisoformat(full) < FULL_EVERY

    def windows(self) -> tuple[Window, ...]:
        """The parts of the table in which a row can have become due since the last pass, in order.

        With one cutoff that is everything before it. With several, rows that are kept longer lie before it: a short
        pass looks only at what each cutoff has moved over.
        """
        whole = (Window(None, self._due.latest),)
        before = self._last.get("cutoffs", {})
        cutoffs = self._cutoffs()
        if len(cutoffs) == 1 or not self.is_short or before.keys() != cutoffs.keys():
            return whole
        self._is_whole = False
        windows: list[Window] = []
        for name, end in sorted(cutoffs.items(), key=lambda item: item[1]):
            low = datetime.fromisoformat(before[name]) - LATENESS
            if windows and low <= windows[-1].end:
                windows[-1] = Window(min(windows[-1].low or low, low), end)
            elif low < end:
                windows.append(Window(low, end))
        return tuple(windows)

    def has_read(self, kept: int) -> None:
        """A range was taken, and so many of its rows were not due."""
        self._kept += kept

    def is_over(self, rows: int, oldest: datetime | None) -> bool:
        """May a pass by id end here? Told of each range without a due row: its rows and its oldest date_done."""
        self._quiet_rows = self._quiet_rows + rows if oldest is None or oldest >= self._due.latest else 0
        if not self.is_short or self._quiet_rows < QUIET_ROWS:
            return False
        self._is_whole = False
        return True

    def is_not_quiet(self) -> None:
        """A range had due rows."""
        self._quiet_rows = 0

    def completed(self) -> None:
        """The pass reached its end, and no due row was left behind."""
        now = {
            "rules": self._rules,
            "full": self._began.isoformat() if self._is_whole else self._last.get("full"),
            "kept": self._kept if self._is_whole else self._last.get("kept"),
            "cutoffs": {name: cutoff.isoformat() for name, cutoff in self._cutoffs().items()},
        }
        self._watermarks.remember(self._key, json.dumps(now))

    def _cutoffs(self) -> dict[str, datetime]:
        return {name: value for name, value in self._due.values.items() if isinstance(value, datetime)}

    def _recall(self) -> dict[str, Any]:
        try:
            last = json.loads(self._watermarks.recall(self._key) or "{}")
        except ValueError:
            return {}
        return last if isinstance(last, dict) and last.get("rules") == self._rules else {}
