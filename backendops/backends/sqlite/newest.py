"""keep_newest on SQLite: from which date on results are among those that stay whatever their age."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection

from backendops.backends.sql_files import load
from backendops.backends.sqlite.date_done import FINISHED, DateDone
from backendops.backends.sqlite.tables import LiveTable

# Read at once, as when looking for due rows.
ROWS: Final = 10_000
# Sorts after every date.
_AFTER_ALL: Final = "~"


def newest_kept(connection: Connection, table: LiveTable, clock: DateDone, keep: int) -> str | None:
    """The date of the last one that is kept, as it is stored; None where there are no more than those.

    Without an index on date_done it is the oldest of the last so many ids: at least as many finished since.
    """
    statement = "newest_by_date" if table.date_done_index else "newest_by_id"
    values = {"before_date": _AFTER_ALL, "before_id": 2**63 - 1, "rows": ROWS}
    kept, oldest = 0, _AFTER_ALL
    while True:
        rows = connection.execute(load("sqlite", "remove", statement, table.slots()), values).all()
        for date_done, _, status in rows:
            # A task under way can have a date by an accident of Celery's; groups have no state.
            under_way = table.has("status") and status not in FINISHED
            if under_way or clock.read(date_done, status) is None:
                continue
            kept, oldest = kept + 1, min(oldest, str(date_done))
            if kept == keep:
                return oldest
        if len(rows) < ROWS:
            return None
        values |= {"before_date": rows[-1][0], "before_id": rows[-1][1]}
