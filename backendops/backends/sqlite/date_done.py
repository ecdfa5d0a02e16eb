"""Which moment a date_done of SQLite stands for.

SQLAlchemy writes naive text, `2026-11-20 04:30:19.304354`. Celery puts finished results in its own timezone, but
leaves the rest (RETRY rows, groups) to a default of the column that is UTC.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from zoneinfo import ZoneInfo

# celery.states.READY_STATES: where Celery itself sets date_done (celery/backends/base.py, _get_result_meta).
FINISHED: Final = frozenset({"SUCCESS", "FAILURE", "REVOKED"})


@dataclass(frozen=True, slots=True)
class Moment:
    """What a naive date_done stands for, and the latest and the earliest moment that it can stand for, all in UTC."""

    likely: datetime
    latest: datetime
    earliest: datetime


class DateDone:
    """Reads and writes date_done as Celery does with this timezone."""

    def __init__(self, zone: ZoneInfo) -> None:
        self._zone = zone

    def read(self, text: object, status: str | None) -> Moment | None:
        """The moment, or None where the value is no date that Celery wrote."""
        # An integer sorts before every text in SQLite and would always look old.
        if not isinstance(text, str):
            return None
        try:
            naive = datetime.fromisoformat(text)
        except ValueError:
            return None
        if naive.tzinfo is not None:
            return None
        # fold=1: in the hour that a clock change repeats, the later of the two.
        early, late = (self._local(naive.replace(fold=fold)) for fold in (0, 1))
        if status in FINISHED:
            return Moment(late, late, min(early, late))
        universal = naive.replace(tzinfo=UTC)
        return Moment(universal, max(late, universal), min(early, late, universal))

    def _local(self, naive: datetime) -> datetime:
        try:
            return naive.replace(tzinfo=self._zone).astimezone(UTC)
        except OverflowError:  # on the first or the last day that there is
            return naive.replace(tzinfo=UTC)

    def before(self, moment: datetime) -> str:
        """No row whose text sorts at or after this can be due before `moment`."""
        return moment.astimezone(self._zone).strftime("%Y-%m-%d %H:%M:%S.%f")
