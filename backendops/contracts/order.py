"""What a job must leave alone until other jobs on the same backend have been there."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from backendops.contracts.readings import Finding, Severity
from backendops.contracts.run import Watermarks
from backendops.contracts.units import Duration, Keep


@dataclass(frozen=True, slots=True)
class Behind:
    """Results that an archive job takes once they are older than `older_than`: until then they are nobody else's."""

    job: str
    settings: str
    """What a run of that job must have had: with other times it took other results."""
    older_than: Duration


class ComesBehind(ABC):
    """A job that removes results, but none that an archive job on the same backend has still to take."""

    @property
    @abstractmethod
    def behind(self) -> Collection[Behind]:
        """What it waits for; empty where nobody else takes anything."""

    @abstractmethod
    def knowing(self, completed: Mapping[str, datetime]) -> Self:
        """The same job, told when the last completed run of each of those jobs began; left out: there was none."""


def reached(due: datetime | None, behind: Collection[Behind], completed: Mapping[str, datetime]) -> datetime | None:
    """The cutoff, or the earlier one up to which all of these have taken what is theirs; None: nothing is due."""
    for one in behind:
        began = completed.get(one.job)
        if due is None or began is None:
            return None
        due = min(due, began - one.older_than)
    return due


def unarchived(code: str, what: str, behind: Collection[Behind], completed: Mapping[str, datetime]) -> Finding:
    """What stays although it is past keeping, why, and what lets it go."""
    names = sorted({one.job for one in behind})
    never = [name for name in names if name not in completed]
    if never:
        why = f"of {' and '.join(map(repr, never))} no run has completed with its present times"
    else:
        oldest = min(names, key=lambda name: completed[name])
        why = f"the last completed run of {oldest!r} began {completed[oldest]:%Y-%m-%d %H:%M} UTC"
    return Finding(
        Severity.WARNING,
        code,
        f"{what} past keeping stay until their results are archived: {why}",
        f"`backendops run-once {' '.join(never or names)}`; or, to remove them unarchived, `allow_unarchived: true` in "
        "this job",
    )


def settings_of(keeps: Mapping[str, Keep]) -> str:
    """The times of a job as text, in the order in which they decide."""
    return json.dumps([[key, str(keep)] for key, keep in keeps.items()])


class Completed:
    """When a job last began a run that completed, by its settings: what it takes had been taken then."""

    def __init__(self, watermarks: Watermarks) -> None:
        self._watermarks = watermarks

    def remember(self, job: str, settings: str, began: datetime) -> None:
        """A run that began then has completed."""
        self._watermarks.remember(self._key(job), json.dumps([settings, began.isoformat()]))

    def began(self, behind: Behind) -> datetime | None:
        """When the last one began; None where there was none with these settings, or nobody knows any more."""
        try:
            settings, began = json.loads(self._watermarks.recall(self._key(behind.job)) or "[null, null]")
            return datetime.fromisoformat(began) if settings == behind.settings else None
        except (ValueError, TypeError):
            return None  # of another version: the next run of that job says it again

    def _key(self, job: str) -> str:
        return f"completed {job}"
