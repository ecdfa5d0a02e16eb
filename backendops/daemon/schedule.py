"""The scheduling loop: APScheduler in memory, rebuilt from the policy; the policy and the ledger are the only truth."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import structlog
from apscheduler.events import EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED, JobExecutionEvent, JobSubmissionEvent
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.job import Job as Entry
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy.exc import SQLAlchemyError

from backendops.contracts.errors import BackendopsError
from backendops.daemon.turns import Turns
from backendops.daemon.view import Key
from backendops.engine.ledger import Ledger
from backendops.engine.report import RunListener
from backendops.engine.stop import Stop
from backendops.policy.model import Pair, Policy
from backendops.policy.schedule import CronTrigger, EveryTrigger

log = structlog.get_logger(__name__)

# Threads are made when needed, and changing jobs on one backend exclude each other: this bounds
# how many backends are worked on at once. Probes have threads of their own, so they never wait behind an archive.
WORKERS: Final = {"changing": 32, "reading": 32}
HEARTBEAT: Final = timedelta(seconds=1)
# A machine that swaps, or a suspended one, is late by seconds; a loop that hangs is late for ever.
ALIVE_WITHIN: Final = 30.0
# Runs of cron that were killed are found by then; a daemon's own when it starts.
ORPHANS_EVERY: Final = timedelta(minutes=5)
PURGE_EVERY: Final = timedelta(days=1)
# Missed changing runs start this far apart, so that a host that comes up is not met by all of them.
CATCH_UP_GAP: Final = timedelta(seconds=2)
# Less than this is made good by the loop's own second.
SET_BACK: Final = timedelta(seconds=2)


class Scheduler:
    """Fires every pair of the policy at its slots."""

    def __init__(
        self, ledger: Ledger, stop: Stop, listeners: Iterable[RunListener] = (), beat: Callable[[], None] = lambda: None
    ) -> None:
        """`beat` is called by the loop itself, once a second: a loop that hangs stops calling."""
        self._ledger = ledger
        self._stop = stop
        self._beat = beat
        self._beaten_at = time.monotonic()
        self._ahead = _ahead()
        self._turns = Turns(ledger, stop, self._later, listeners)
        self._chance = random.Random()  # noqa: S311 - jitter, not a secret
        self._entries: dict[Key, Entry] = {}
        self._pairs: dict[Key, Pair] = {}
        # Its lines are about its own machinery; ours name the job and the way out.
        logging.getLogger("apscheduler").setLevel(logging.CRITICAL)
        self._loop = BackgroundScheduler(
            executors={
                "loop": DebugExecutor(),
                **{name: ThreadPoolExecutor(size, {"thread_name_prefix": name}) for name, size in WORKERS.items()},
            },
            job_defaults={"coalesce": True, "max_instances": 1},
            timezone=UTC,
        )
        self._loop.add_listener(self._skipped, EVENT_JOB_MAX_INSTANCES | EVENT_JOB_MISSED)

    def start(self, policy: Policy) -> None:
        """Begin with a policy: what was missed is made up for, backends are probed at once."""
        self._forget_orphans()
        every = partial(self._loop.add_job, trigger="interval", misfire_grace_time=None)
        every(self._turn, seconds=HEARTBEAT.total_seconds(), executor="loop", id="heartbeat")
        every(self._forget_orphans, seconds=ORPHANS_EVERY.total_seconds(), executor="reading", id="orphans")
        soon = datetime.now(UTC) + timedelta(minutes=1)
        every(self._purge, seconds=PURGE_EVERY.total_seconds(), executor="reading", id="purge", next_run_time=soon)
        self._loop.start()
        self.load(policy)

    def load(self, policy: Policy) -> None:
        """Follow a new policy from now on; runs under way end under the old one."""
        # Paused, the loop fires nothing between the old entries' end and the new ones' start.
        self._loop.pause()
        for entry in self._entries.values():
            entry.remove()
        self._pairs = {(pair.job_name, pair.backend_name): pair for pair in policy.pairs}
        self._turns.load(policy.pairs)
        self._entries = {
            key: self._loop.add_job(
                self._turns.due,
                pair.schedule.trigger,
                args=[key],
                id=str(pair),
                executor=_executor(pair),
                # A slot is worth running until the next one comes; later, that one covers it.
                misfire_grace_time=max(1, int(pair.schedule.interval.total_seconds())),
            )
            for key, pair in self._pairs.items()
            if pair.schedule is not None
        }
        delay = timedelta()
        for key in self._entries:
            if self._pairs[key].job.changes:
                if self._loop.get_job(_again(self._pairs[key])) is not None:
                    continue  # it waits for another run's lock: its slot is claimed, and would be nobody's
                delay += CATCH_UP_GAP * self._chance.uniform(0.5, 1.0)
                self._later(key, delay, partial(self._turns.catch_up, key))
            else:
                self._later(key, timedelta(), partial(self._turns.catch_up, key))
        self._loop.resume()

    def stop(self) -> None:
        """Fire nothing more; runs under way are not waited for."""
        self._loop.shutdown(wait=False)

    @property
    def busy(self) -> bool:
        """Is a run under way, from its first try to connect to its last line in the ledger?"""
        return self._turns.busy

    def next_runs(self) -> Mapping[Key, datetime]:
        """When each pair fires next, back-off counted in."""
        found = {}
        for key, entry in list(self._entries.items()):
            slot, held = getattr(entry, "next_run_time", None), self._turns.resumes_at(key)
            pair = self._pairs.get(key)  # none where a reload is just taking it away
            if slot is not None and held is not None and held > slot and pair is not None and pair.schedule is not None:
                slot = pair.schedule.next_after(held)
            if slot is not None:
                found[key] = slot.astimezone(UTC)
        return found

    def alive(self) -> bool:
        """Has the loop turned lately?"""
        return time.monotonic() - self._beaten_at < ALIVE_WITHIN

    def follow_clock(self) -> None:
        """Where the clock was set back, begin with it: the loop would wait for the old time to come round again."""
        ahead = _ahead()
        back, self._ahead = self._ahead - ahead, ahead
        if back < SET_BACK.total_seconds():
            return
        log.warning("clock.set_back", seconds=round(back), reason="slots go by the new time from now on")
        now = datetime.now(UTC)
        for entry in self._loop.get_jobs():
            slots = isinstance(entry.trigger, (EveryTrigger, CronTrigger))
            # What is no slot waits as long as it would have.
            following = entry.trigger.next_after(now) if slots else entry.next_run_time - timedelta(seconds=back)
            with suppress(JobLookupError):  # its moment came just now
                entry.modify(next_run_time=following)

    def _turn(self) -> None:
        self._beaten_at = time.monotonic()
        self._beat()

    def _later(self, key: Key, delay: timedelta, call: Callable[[], None]) -> None:
        pair = self._pairs.get(key)
        if pair is None or self._stop.requested:
            return
        self._loop.add_job(
            call,
            "date",
            run_date=datetime.now(UTC) + delay,
            id=_again(pair),
            replace_existing=True,
            executor=_executor(pair),
            misfire_grace_time=None,
        )

    def _skipped(self, event: JobExecutionEvent | JobSubmissionEvent) -> None:
        if event.code == EVENT_JOB_MAX_INSTANCES:
            log.warning("slot.skipped", slot=event.job_id, reason="the run before has not ended")
        else:
            log.warning("slot.skipped", slot=event.job_id, reason="the machine was too late for it")

    def _forget_orphans(self) -> None:
        with _history("look for killed runs"):
            if orphans := self._ledger.mark_orphans():
                log.warning("runs.orphaned", runs=orphans, reason="their process ended without a word; now failed")

    def _purge(self) -> None:
        with _history("purge old history"):
            self._ledger.purge(datetime.now(UTC))


def _ahead() -> float:
    """How far the clock is ahead of one that nobody sets; both are slewed alike."""
    return time.time() - time.monotonic()


def _again(pair: Pair) -> str:
    return f"{pair}, again"


def _executor(pair: Pair) -> str:
    return "changing" if pair.job.changes else "reading"


@contextmanager
def _history(doing: str) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, BackendopsError, OSError) as error:
        log.error("ledger.failed", doing=doing, error=str(error).partition("\n")[0])  # noqa: TRY400 - a sentence for operators
