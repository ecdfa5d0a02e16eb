"""What a job must leave alone until other jobs on the same backend have been there."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Self

from backendops.contracts.readings import Finding, Severity
from backendops.contracts.run import Watermarks
from backendops.contracts.units import Duration, Keep

# An archive that runs daily is up to a day behind, and a day's results are what every run removes.
BEHIND_AS_USUAL: Final = timedelta(days=1)


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

    @abstractmethod
    def held_back(self, now: datetime) -> Collection[str]:
        """Those of its `keeps` that do not decide yet, as what it waits for is far behind."""


def reached(due: datetime | None, behind: Collection[Behind], completed: Mapping[str, datetime]) -> datetime | None:
    """The cutoff, or the earlier one up to which all of these have taken what is theirs; None: nothing is due."""
    for one in behind:
        began = completed.get(one.job)
        if due is None or began is None:
            return None
        due = min(due, began - one.older_than)
    return due


def is_far_behind(due: datetime | None, taken: datetime | None) -> bool:
    """Is what may go, as it was taken, far from what is past keeping?"""
    return due is not None and (taken is None or due - taken > BEHIND_AS_USUAL)


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
    """When the runs of a job began that together took everything, by its settings.

    A run that ends early leaves the rest to the next one, which may go on there: the first of them counts.
    """

    def __init__(self, watermarks: Watermarks) -> None:
        self._watermarks = watermarks

    def begins(self, job: str, settings: str, at: datetime) -> None:
        """A run begins: on a whole course, or on what is left of one."""
        began, since = self._recall(job, settings)
        self._remember(job, settings, began, since or at)

    def completes(self, job: str, settings: str) -> None:
        """That run has completed."""
        began, since = self._recall(job, settings)
        self._remember(job, settings, since or began, None)

    def began(self, behind: Behind) -> datetime | None:
        """When the last whole course began; None where there was none with these settings, or nobody knows any more."""
        return self._recall(behind.job, behind.settings)[0]

    def _recall(self, job: str, settings: str) -> tuple[datetime | None, datetime | None]:
        try:
            found = json.loads(self._watermarks.recall(self._key(job)) or "{}")
            if found.get("settings") != settings:
                return None, None
            began, since = (found[name] and datetime.fromisoformat(found[name]) for name in ("began", "since"))
        except (ValueError, TypeError, KeyError, AttributeError):
            return None, None  # of another version: the next run of that job says it again
        else:
            return began, since

    def _remember(self, job: str, settings: str, began: datetime | None, since: datetime | None) -> None:
        moments = {"began": began and began.isoformat(), "since": since and since.isoformat()}
        self._watermarks.remember(self._key(job), json.dumps({"settings": settings, **moments}))

    def _key(self, job: str) -> str:
        return f"completed {job}"
