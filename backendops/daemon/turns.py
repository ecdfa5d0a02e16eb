"""One turn of a job on a backend: may it run now, is the slot ours, and what follows from how it ended."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from backendops.contracts import metrics
from backendops.contracts.errors import BackendopsError
from backendops.contracts.run import Outcome, Step, Trigger
from backendops.daemon.backoff import Backoff
from backendops.daemon.slots import TRACELESS_AFTER, last_slot, missed
from backendops.daemon.view import Key
from backendops.engine.clock import Clock
from backendops.engine.ledger import Ledger
from backendops.engine.ledger_file import first_line
from backendops.engine.report import Run, RunListener, RunReport
from backendops.engine.runner import Runner
from backendops.engine.stop import Stop
from backendops.policy.model import Pair

log = structlog.get_logger(__name__)

# Another run that holds the lock ends within minutes as a rule: asking once a minute finds it soon and costs nothing.
LOCKED_RETRY: Final = timedelta(seconds=60)
# A short slot gets about this many tries before the next one comes.
LOCKED_TRIES: Final = 8

# A connection a second is the most that waiting for a lock may cost a backend.
SHORTEST_RETRY: Final = timedelta(seconds=1)
COMEBACK_GAP: Final = timedelta(seconds=2)

Later = Callable[[Key, timedelta, Callable[[], None]], None]
"""Calls a function once for a pair after a delay, on a thread that may run it; replaces one that still waits."""


class Turns(RunListener):
    """Decides about every firing. Safe for several threads: a pair has one turn at a time, different pairs many."""

    def __init__(
        self,
        ledger: Ledger,
        stop: Stop,
        later: Later,
        listeners: Iterable[RunListener] = (),
        clock: Clock | None = None,
    ) -> None:
        self._ledger = ledger
        self._stop = stop
        self._later = later
        self._clock = clock or Clock()
        self._chance = random.Random()  # noqa: S311 - jitter, not a secret
        self._runner = Runner(ledger, [*listeners, self], stop, self._clock)
        self._lock = threading.Lock()
        self._pairs: dict[Key, Pair] = {}
        self._backoffs: dict[Key, Backoff] = {}
        self._unreachable: set[Key] = set()
        self._busy: set[Key] = set()

    def load(self, pairs: Iterable[Pair]) -> None:
        """The pairs of a new policy. Failures are forgotten: the operator may just have mended their cause."""
        with self._lock:
            self._pairs = {(pair.job_name, pair.backend_name): pair for pair in pairs}
            self._backoffs.clear()
            self._unreachable.clear()

    @property
    def busy(self) -> bool:
        """Is a pair having its turn?"""
        return bool(self._busy)

    def due(self, key: Key) -> None:
        """The schedule says that it is time."""
        pair, now = self._pairs.get(key), self._clock.now()
        if pair is None or pair.schedule is None or self._stop.requested:
            return
        slot = last_slot(pair.schedule, now)
        backoff = self._backoffs.get(key)
        if slot is None:
            return
        if backoff is not None and backoff.not_before is not None and backoff.holds(now):
            log.info(
                "slot.skipped",
                job=pair.job_name,
                backend=pair.backend_name,
                reason=f"{backoff.failures} failures in a row",
                tried_again_after=backoff.not_before,
            )
            return
        self._take(pair, slot, [slot])

    def catch_up(self, key: Key) -> None:
        """Make up for the last slot, where it was missed."""
        pair, now = self._pairs.get(key), self._clock.now()
        if pair is None or pair.schedule is None or self._stop.requested:
            return
        slot = last_slot(pair.schedule, now)
        if slot is None:
            return
        try:
            last_run, success = self._ledger.last_runs().get(key), self._ledger.last_success().get(key)
            running = any((run.job, run.backend) == key for run in self._ledger.running())
        except (SQLAlchemyError, BackendopsError) as error:
            _unreadable(error)
            return
        if running or (last_run is None and pair.job.changes):
            # It has its turn now; or it is new and has missed nothing. A new job that only
            # reads is asked at once: is its backend there?
            return
        if self._take(pair, slot, missed(slot, now, last_run, success)) or not pair.job.changes:
            return
        if now - slot <= TRACELESS_AFTER and (success is None or success < slot):
            self._later(key, TRACELESS_AFTER + slot - now + COMEBACK_GAP, partial(self.catch_up, key))

    def resumes_at(self, key: Key) -> datetime | None:
        """Until when failures hold the pair back; None where they do not."""
        backoff = self._backoffs.get(key)
        return backoff.not_before if backoff else None

    def stepped(self, run: Run, step: Step) -> None:
        """A probe that reaches a backend ends the waiting of jobs that could not."""
        if any(reading.metric is metrics.BACKEND_UP and reading.value for reading in step.readings):
            self._came_back(run.pair.backend_name)

    @contextmanager
    def _turn(self, key: Key) -> Iterator[bool]:
        """Is it this pair's turn? Not while another thread of ours runs it, such as for a slot that was missed."""
        with self._lock:
            is_ours = key not in self._busy
            self._busy.add(key)
        try:
            yield is_ours
        finally:
            if is_ours:
                self._busy.discard(key)

    def _take(self, pair: Pair, slot: datetime, claims: Iterable[datetime]) -> bool:
        """Run the pair's job for this slot, unless it is paused or another daemon has it."""
        key = (pair.job_name, pair.backend_name)
        # Whose turn it is comes first: a slot that is claimed is run, even when a stop has just come. The report of
        # a stopped run is what a restart goes by.
        with self._turn(key) as is_ours:
            if not is_ours:
                return False
            try:
                if pair.job_name in self._ledger.paused():
                    return False
                if not any(self._ledger.claim_slot(*key, claim) for claim in claims):
                    return False
            except (SQLAlchemyError, BackendopsError) as error:
                # Without the ledger we cannot know whether somebody else runs it. The lock in the backend
                # keeps two runs apart, and a second run finds nothing left to do: running is the safe side.
                _unreadable(error)
            self._run(pair, slot)
        return True

    def _run(self, pair: Pair, slot: datetime) -> None:
        """Run, and where the lock is taken again until the next slot; only the last try is recorded as locked."""
        key, schedule = (pair.job_name, pair.backend_name), pair.schedule
        if schedule is None:
            return
        until = schedule.next_after(max(slot, self._clock.now()))
        delay = self._until_next_try(until)
        is_last_try = self._clock.now() + delay >= until
        report = self._runner.run(pair, Trigger.SCHEDULE, record_locked=is_last_try)
        if report.outcome is Outcome.LOCKED and not is_last_try:
            log.debug("slot.waits", job=pair.job_name, backend=pair.backend_name, reason=report.error)
            self._later(key, delay, partial(self._again, key, slot))
        else:
            self._judge(pair, report)

    def _again(self, key: Key, slot: datetime) -> None:
        """Try once more for the lock, unless the slot is over or somebody has run it meanwhile."""
        pair, now = self._pairs.get(key), self._clock.now()
        if pair is None or pair.schedule is None or self._stop.requested or pair.schedule.next_after(slot) <= now:
            return
        with self._turn(key) as is_ours:
            if not is_ours:
                return
            with suppress(SQLAlchemyError):
                success = self._ledger.last_success().get(key)
                if success is not None and success >= slot:
                    return
            self._run(pair, slot)

    def _until_next_try(self, until: datetime) -> timedelta:
        left = until - self._clock.now()
        return min(LOCKED_RETRY, max(left / LOCKED_TRIES, SHORTEST_RETRY)) * self._chance.uniform(0.5, 1.0)

    def _judge(self, pair: Pair, report: RunReport) -> None:
        key = (pair.job_name, pair.backend_name)
        if pair.schedule is None:
            return
        with self._lock:
            if report.outcome.is_failure:
                backoff = self._backoffs.setdefault(key, Backoff(pair.schedule.interval, self._chance))
                backoff.failed(self._clock.now())
            elif report.outcome is not Outcome.STOPPED:
                self._backoffs.pop(key, None)
            (self._unreachable.add if report.outcome is Outcome.UNREACHABLE else self._unreachable.discard)(key)

    def _came_back(self, backend: str) -> None:
        with self._lock:
            waiting = [key for key in self._unreachable if key[1] == backend]
            for key in waiting:
                self._unreachable.discard(key)
                self._backoffs.pop(key, None)
        for place, key in enumerate(waiting, start=1):
            log.info("backend.came_back", job=key[0], backend=backend)
            # One after the other: everybody else comes back at this moment, too.
            self._later(key, place * COMEBACK_GAP * self._chance.uniform(0.5, 1.0), partial(self.catch_up, key))


def _unreadable(error: Exception) -> None:
    said = first_line(error) if isinstance(error, SQLAlchemyError) else str(error)
    log.error("ledger.failed", doing="claim a slot", error=said)
