"""The safety limits: what a changing run must not start on. Each says what is wrong and names the way on."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Final

from backendops.contracts.backend import Standing
from backendops.contracts.errors import BackendRefused
from backendops.contracts.job import Job
from backendops.contracts.run import Preview, Watermarks
from backendops.contracts.units import Forever, Keep, format_seconds

# Clocks kept by NTP agree within milliseconds; five minutes is a clock nobody keeps.
CLOCK_TOLERANCE: Final = timedelta(minutes=5)
# A worker's clock may be a little ahead of the server's.
FUTURE_TOLERANCE: Final = timedelta(minutes=1)
# Celery's own result_expires is a day: who writes 30m has nearly always meant another unit.
SHORTEST_KEEP: Final = timedelta(hours=1)
# A holiday's backlog, or a week without the daemon, is some ten runs' worth; more is another policy.
TIMES_THE_LARGEST: Final = 20
# A table that small is back from a backup in seconds, and its runs are too small to compare with.
ALWAYS_ALLOWED: Final = 1000

_ENDLESS: Final = float("inf")
# How the keys of `rules` begin (jobs/rules.py): the first that matches decides, so their order counts.
_RULE: Final = "the rule "


def check_keeps(job: Job) -> None:
    """Raises BackendRefused where results would go within the hour, and the policy does not say that this is meant."""
    for key, keep in job.keeps().items():
        if not (job.allow_short_keep or isinstance(keep, Forever)) and keep.shortest < SHORTEST_KEEP:
            raise BackendRefused(
                f"{key} is {keep}: results would go less than an hour after they finished",
                f"write a longer {key}, or, where it is meant, `allow_short_keep: true` in the job",
            )


def check_clocks(standing: Standing, now: datetime) -> None:
    """Ages mean nothing where clocks disagree; raises BackendRefused."""
    apart = standing.server_now - now
    if abs(apart) > CLOCK_TOLERANCE:
        direction = "ahead of" if apart > timedelta() else "behind"
        raise BackendRefused(
            f"the server's clock is {format_seconds(abs(apart).total_seconds())} {direction} this host's",
            "set the wrong one right (NTP), then run again",
        )
    if standing.newest_done is not None and standing.newest_done > max(now, standing.server_now) + FUTURE_TOLERANCE:
        ahead = format_seconds((standing.newest_done - now).total_seconds())
        raise BackendRefused(
            f"the newest result finished {ahead} in the future ({standing.newest_done:%Y-%m-%d %H:%M} UTC)",
            "set the backend's date_done_timezone to the zone that Celery's sessions write in, "
            "or correct the row that a worker with a wrong clock wrote",
        )


def check_volume(preview: Preview, max_rows: int) -> None:
    """Raises BackendRefused where more is due than the policy allows."""
    if preview.rows > max_rows:
        raise BackendRefused(
            f"{preview.rows:,} rows are due, more than max_rows ({max_rows:,})",
            "look at `backendops plan`, then raise max_rows in the policy or leave it out, "
            "or let one run pass with `backendops run-once … --accept-volume`",
        )


class KeepsBefore:
    """How long results were kept when a job last ran on a backend: a run that keeps them shorter removes more."""

    def __init__(self, watermarks: Watermarks, job_name: str) -> None:
        self._watermarks = watermarks
        self._job_name = job_name

    def remember(self, job: Job, held_back: Collection[str] = ()) -> None:
        """From now on, so long is as usual; but for those of `held_back` that got shorter and have done nothing yet."""
        if job.keeps():
            before = self._recall()
            keeps = {key: (str(keep), _seconds(keep)) for key, keep in job.keeps().items()}
            for key in held_back:
                if key in before and keeps[key][1] < before[key][1]:
                    keeps[key] = before[key]
            self._watermarks.remember(self._key, json.dumps(keeps))

    def shortened(self, job: Job) -> str | None:
        """What got shorter since, in words; None where nothing did, or where nothing is remembered."""
        before = self._recall()
        now = {key: (str(keep), _seconds(keep)) for key, keep in job.keeps().items()}
        if self._watermarks.failed and now:
            return "how long results were kept before cannot be read, as the ledger fails"
        if not before or not now:
            return None
        return next(_shorter(before, now), None)

    def check(self, job: Job, preview: Preview, largest: int) -> None:
        """Raises BackendRefused where far more is due than in any of the last runs, after `keep` got shorter."""
        shortened = self.shortened(job)
        if shortened and preview.rows > max(largest * TIMES_THE_LARGEST, ALWAYS_ALLOWED):
            raise BackendRefused(
                f"{shortened}, and now {preview.rows:,} rows are due: more than {TIMES_THE_LARGEST} times the largest "
                f"of the last runs ({largest:,})",
                f"look at `backendops plan {self._job_name}`; where it is meant, `backendops accept {self._job_name}` "
                f"lets the scheduled runs pass, and `backendops run-once {self._job_name} --accept-volume` runs it now",
            )

    @property
    def _key(self) -> str:
        return f"keeps of {self._job_name}"

    def _recall(self) -> Mapping[str, tuple[str, float]]:
        try:
            found = json.loads(self._watermarks.recall(self._key) or "{}")
            return {str(key): (str(said), float(seconds)) for key, (said, seconds) in found.items()}
        except (ValueError, TypeError, AttributeError):
            return {}  # of another version: as if it had never run


def _seconds(keep: Keep) -> float:
    return _ENDLESS if isinstance(keep, Forever) else keep.shortest.total_seconds()


_Keeps = Mapping[str, tuple[str, float]]


def _shorter(before: _Keeps, now: _Keeps) -> Iterator[str]:
    main = next(iter(now))
    for key, (keep, seconds) in now.items():
        if key in before and seconds < before[key][1]:
            yield f"{key} went from {before[key][0]} to {keep}"
        was_before = _after(key, before) if key in before else ()
        for later in _after(key, now):
            # It takes results from what decides after it: what did so before is no change.
            if later in before and later not in was_before and seconds < before[later][1]:
                was, said = before[later][0], f"{key} ({keep}) decides before {later}"
                yield f"{key} went from {was} to {keep}" if later == main else f"{said} ({was})"
    for key, (keep, seconds) in before.items():
        for later in _after(key, before) if key not in now else ():
            if later in now and now[later][1] < seconds:
                is_now, said = now[later][0], f"without {key} ({keep})"
                yield f"{key} went from {keep} to {is_now}" if later == main else f"{said}, {later} ({is_now}) decides"


def _after(key: str, keeps: Mapping[str, object]) -> list[str]:
    """The keys that have the results which `key` leaves, or would without it; the one for most results is the first."""
    keys = list(keeps)
    if key.startswith(_RULE):
        return [other for other in keys if not other.startswith(_RULE) or keys.index(other) > keys.index(key)]
    return keys[:1] if key != keys[0] else []
