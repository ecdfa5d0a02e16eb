"""What a run that archives from Redis remembers and concludes: what the archive has already, and what it will miss."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Self

from backendops.backends.redis.handover import Reading
from backendops.backends.redis.keys import ResultKeys
from backendops.backends.redis.nodes import Nodes
from backendops.backends.redis.stored import Met
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.retention import Retention
from backendops.contracts.run import Watermarks
from backendops.contracts.units import format_seconds

# Everything that is due is compared with the archive again when it was not for an hour: an archive may lose files, and
# who copies results into Redis brings old ones.
COMPARE_EVERY: Final = timedelta(hours=1)

# A worker's clock may be late, and a result may be stored some time after it finished.
LATE: Final = timedelta(hours=1)

MARK: Final = "redis.archived:"


@dataclass(frozen=True, slots=True)
class Mark:
    """What the last run that came to its end knew: everything due by then is in the archive."""

    rules: str
    latest: datetime
    ended: datetime
    compared: datetime

    def write(self) -> str:
        return json.dumps([self.rules, *(moment.isoformat() for moment in (self.latest, self.ended, self.compared))])

    @classmethod
    def read(cls, text: str | None) -> Self | None:
        try:
            rules, *moments = json.loads(text or "")
            latest, ended, compared = map(datetime.fromisoformat, moments)
        except (ValueError, TypeError):
            return None  # of another version, or none
        return cls(rules, latest, ended, compared)


class Archiving:
    """What one run knows: to whom it hands over, what was there after the last run, and what it met."""

    def __init__(self, watermarks: Watermarks, now: datetime) -> None:
        self._watermarks, self._now = watermarks, now
        self._where = ""
        self._mark: Mark | None = None
        self._reading: Reading | None = None
        self._due: Retention | None = None

    def begin(self, where: str) -> None:
        """Say where to, and recall what is there already."""
        self._where = MARK + hashlib.sha256(where.encode()).hexdigest()[:16]
        self._mark = Mark.read(self._watermarks.recall(self._where))

    def reading(self, keys: ResultKeys, nodes: Nodes, due: Retention) -> Reading:
        """A pass that leaves out what the archive has, as far as that is known."""
        mark, latest = self._mark, due.latest
        interval = timedelta() if mark is None else max(timedelta(), self._now - mark.ended)
        if mark is None or latest is None or mark.rules != _rules(due) or not self._is_fresh(mark):
            return Reading(keys, nodes, due, interval=interval)
        since = latest - mark.latest + LATE
        return Reading(keys, nodes, due, lambda done_at, cutoff: done_at < cutoff - since, interval)

    def has_read(self, reading: Reading, due: Retention) -> None:
        """Everything was read; it is known to be in the archive when `end` is called."""
        self._reading, self._due = reading, due

    def end(self) -> tuple[Finding, ...]:
        """Take down that everything due is in the archive; what was met on the way."""
        if self._reading is None or self._due is None:
            return ()
        if self._where and self._due.latest is not None:
            mark, rules = self._mark, _rules(self._due)
            went_on = mark is not None and mark.rules == rules and self._is_fresh(mark)
            compared = mark.compared if mark is not None and went_on else self._now
            self._watermarks.remember(self._where, Mark(rules, self._due.latest, self._now, compared).write())
        return tuple(findings(self._reading.met))

    def _is_fresh(self, mark: Mark) -> bool:
        return timedelta() <= self._now - mark.compared < COMPARE_EVERY


def findings(met: Met) -> Iterator[Finding]:
    """What an operator should know of what was not handed over."""
    if met.expire_first:
        soonest = format_seconds((met.soonest or timedelta()).total_seconds())
        yield Finding(
            Severity.CRITICAL,
            "archive.expires-first",
            f"{met.expire_first:,} finished results expire before they are due for the archive, the first in "
            f"{soonest}: they will be in neither",
            "make older_than shorter than the application's result_expires, by more than the time between two runs",
        )
    if met.expire_next:
        yield Finding(
            Severity.WARNING,
            "archive.expires-before-next-run",
            f"{met.expire_next:,} finished results are not due yet, and expire before the next run if that comes as "
            "long after this one as this came after the last",
            "schedule the job more often, or make older_than shorter",
        )
    if met.other_forms:
        forms = ", ".join(f"{form} {count:,}" for form, count in met.other_forms.most_common())
        yield Finding(
            Severity.WARNING,
            "archive.not-json",
            f"{sum(met.other_forms.values()):,} results are not Celery's JSON ({forms}) and were left: what is in them "
            "is not known, not even when they finished",
            "set result_serializer to json in the Celery application; they go when their time to live ends",
        )
    if met.without_members:
        yield Finding(
            Severity.INFO,
            "archive.group-without-members",
            f"{met.without_members:,} saved groups were left: none of their results is there to say when they finished",
            "nothing, where the tasks ignore their results",
        )
    if met.too_large:
        yield Finding(
            Severity.WARNING,
            "archive.too-large",
            f"{met.too_large:,} results are larger than 64 MiB and were left",
            "keep such results in files, and their names in the result",
        )


def _rules(due: Retention) -> str:
    """The rules of a retention, the same for each run of the same policy: times as they are to the latest one."""
    latest = due.latest

    def relative(cutoff: datetime | None) -> int | None:
        return None if cutoff is None or latest is None else round((latest - cutoff).total_seconds())

    rules = [(relative(rule.cutoff), rule.state, rule.task, rule.queue) for rule in due.rules]
    return hashlib.sha256(repr((relative(due.cutoff), rules)).encode()).hexdigest()[:16]
