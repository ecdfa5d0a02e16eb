"""Slots, turns and back-off with a clock the test holds; the loop itself with the real one."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import ClassVar
from zoneinfo import ZoneInfo

import pytest

from backendops.contracts import metrics
from backendops.contracts.errors import BackendUnreachable
from backendops.contracts.run import Outcome, Step, Trigger
from backendops.daemon import schedule as schedule_module
from backendops.daemon.backoff import LONGEST, Backoff
from backendops.daemon.schedule import Scheduler
from backendops.daemon.slots import last_slot, missed
from backendops.daemon.turns import LOCKED_RETRY, Turns
from backendops.daemon.view import Key
from backendops.engine.ledger import Ledger
from backendops.engine.report import Run, RunReport
from backendops.engine.stop import Stop
from backendops.policy.model import Http, Pair, Policy
from backendops.policy.schedule import Schedule
from tests.acceptance.daemon import eventually
from tests.unit.toys import START, FakeClock, ToyBackend, ToyJob, ToyProbe

KEY = ("toy", "place")
HOUR = timedelta(hours=1)


def when(text: str, zone: str = "UTC") -> Schedule:
    return Schedule.parse(text, ZoneInfo(zone))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("schedule", "now", "slot"),
    [
        ("every 15m", "2025-06-01 10:14:59", "2025-06-01 10:00:00"),
        ("every 15m", "2025-06-01 10:15:00", "2025-06-01 10:15:00"),
        ("15 2 * * *", "2025-06-01 02:14:00", "2025-05-31 02:15:00"),
        ("15 2 * * *", "2025-06-01 02:15:00", "2025-06-01 02:15:00"),
        ("0 3 * * 1", "2025-06-01 12:00:00", "2025-05-26 03:00:00"),
        ("* 9-17 * * *", "2025-06-01 04:00:00", "2025-05-31 17:59:00"),
        ("@yearly", "2025-06-01 00:00:00", "2025-01-01 00:00:00"),
    ],
)
def test_the_last_slot(schedule: str, now: str, slot: str) -> None:
    assert last_slot(when(schedule), at(now)) == at(slot)


def test_a_slot_of_long_ago_is_not_made_up_for() -> None:
    assert last_slot(when("* * 29 2 *"), at("2027-06-01 00:00:00")) is None


def report(outcome: Outcome, ended: datetime) -> RunReport:
    return RunReport(1, *KEY, Trigger.SCHEDULE, outcome, ended - timedelta(seconds=9), ended)


SLOT = at("2025-06-01 02:15:00")
SOON = SLOT + timedelta(seconds=5)
LATE = SLOT + timedelta(hours=5)
MICROSECOND = timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("last_run", "success", "now", "claims"),
    [
        (None, None, LATE, [SLOT, SLOT + MICROSECOND]),
        (report(Outcome.COMPLETED, SOON), SOON, LATE, []),
        (report(Outcome.COMPLETED, SLOT - HOUR), SLOT - HOUR, LATE, [SLOT, SLOT + MICROSECOND]),
        (report(Outcome.COMPLETED, SLOT - HOUR), SLOT - HOUR, SOON, [SLOT]),
        (report(Outcome.FAILED, SOON), SLOT - HOUR, LATE, [SLOT, SOON]),
        (report(Outcome.STOPPED, SOON), SLOT - HOUR, LATE, [SLOT, SOON]),
        (report(Outcome.LOCKED, SOON), None, LATE, [SLOT, SOON]),
        (report(Outcome.OUT_OF_TIME, SOON), SLOT - HOUR, LATE, [SLOT]),
        (report(Outcome.CANCELLED, SOON), SLOT - HOUR, LATE, [SLOT]),
    ],
)
def test_what_to_make_up_for(
    last_run: RunReport | None, success: datetime | None, now: datetime, claims: list[datetime]
) -> None:
    assert missed(SLOT, now, last_run, success) == claims


def test_back_off_grows_to_five_intervals_and_no_further() -> None:
    backoff = Backoff(HOUR, random.Random(1))  # noqa: S311 - jitter
    backoff.failed(START)
    assert not backoff.holds(START), "the first failure costs no slot"
    for longest in (2, 4, 5, 5, 5):
        backoff.failed(START)
        assert backoff.not_before is not None
        waits = (backoff.not_before - START) / HOUR
        assert longest / 2 <= waits <= longest <= LONGEST
    jitter = set()
    for seed in range(20):
        other = Backoff(HOUR, random.Random(seed))  # noqa: S311 - jitter
        other.failed(START)
        other.failed(START)
        jitter.add(other.not_before)
    assert len(jitter) > 10, "jobs that failed together do not come back together"
    backoff.succeeded()
    assert not backoff.holds(START)


class Work(ToyJob):
    """A job on a backend whose clock stands still."""

    minds_the_clock: ClassVar[bool] = False


class Probe(ToyProbe):
    """Says that its backend is up."""

    minds_the_clock: ClassVar[bool] = False
    metrics: ClassVar = (metrics.BACKEND_UP,)


@dataclass
class Bench:
    """Turns whose clock and waiting calls the test holds in its hand."""

    ledger: Ledger
    clock: FakeClock = field(default_factory=FakeClock)
    stop: Stop = field(default_factory=Stop)
    waiting: dict[Key, tuple[timedelta, Callable[[], None]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.backend = ToyBackend()
        self.turns = Turns(self.ledger, self.stop, self._later, clock=self.clock)
        self.load(Work(steps=1))

    def _later(self, key: Key, delay: timedelta, call: Callable[[], None]) -> None:
        self.waiting[key] = (delay, call)

    def load(self, job: ToyJob, schedule: str | None = "every 1h") -> Pair:
        pair = Pair(*KEY[:1], job, KEY[1], self.backend, when(schedule) if schedule else None)
        self.turns.load([pair])
        return pair

    def go_on(self) -> timedelta:
        """Let the waiting call come; how long it waited."""
        delay, call = self.waiting.pop(KEY)
        self.clock.seconds += delay.total_seconds()
        call()
        return delay

    @property
    def outcomes(self) -> list[str]:
        return [past.outcome.value for past in reversed(self.ledger.history(limit=100))]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(Ledger.open(str(tmp_path)))
    yield bench
    bench.stop.close()
    bench.ledger.close()


def test_a_slot_is_run_once_however_many_daemons(bench: Bench) -> None:
    other = Bench(bench.ledger)
    for daemon in (bench, other, bench):
        daemon.turns.due(KEY)
    assert bench.outcomes == ["completed"]
    for daemon in (bench, other):
        daemon.clock.seconds += 3600
        daemon.turns.due(KEY)
    assert bench.outcomes == ["completed"] * 2


def test_a_paused_job_is_left_alone(bench: Bench) -> None:
    bench.ledger.pause("toy", "me")
    bench.turns.due(KEY)
    assert bench.outcomes == []
    bench.ledger.resume("toy")
    bench.turns.due(KEY)
    assert bench.outcomes == ["completed"], "a pause costs no claim"


def test_without_its_ledger_it_works_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = bench.ledger.directory
    assert directory
    bench.ledger.close()
    for file in directory.glob("ledger.sqlite3*"):
        file.unlink()
    (directory / "ledger.sqlite3").mkdir()
    bench.turns.due(KEY)
    assert bench.backend.asked, "losing the ledger costs history, never the work"


def test_a_taken_lock_is_tried_again_within_the_slot_and_recorded_at_its_end(bench: Bench) -> None:
    bench.backend.behave["lock_free"] = False
    bench.turns.due(KEY)
    tries = 1
    while bench.waiting:
        assert bench.outcomes == []
        delay = bench.go_on()
        assert timedelta(0) < delay <= LOCKED_RETRY
        tries += 1
    assert bench.outcomes == ["locked"]
    assert 3600 / 60 <= tries <= 3600 / 30 + 10
    assert 3600 - 60 <= bench.clock.seconds <= 3600


def test_a_lock_that_is_freed_lets_the_slot_run(bench: Bench) -> None:
    bench.backend.behave["lock_free"] = False
    bench.turns.due(KEY)
    bench.go_on()
    bench.backend.behave["lock_free"] = True
    bench.go_on()
    assert bench.outcomes == ["completed"]
    assert not bench.waiting
    assert bench.clock.seconds <= 2 * LOCKED_RETRY.total_seconds()


def test_a_waiting_slot_that_somebody_else_ran_is_left(bench: Bench) -> None:
    bench.backend.behave["lock_free"] = False
    bench.turns.due(KEY)
    pair = bench.load(Work(steps=1))
    run_id = bench.ledger.started(pair, Trigger.COMMAND, bench.clock.now())
    bench.ledger.ended(replace(report(Outcome.COMPLETED, bench.clock.now()), run_id=run_id))
    bench.backend.behave["lock_free"] = True
    bench.go_on()
    assert bench.outcomes == ["completed"], "only the other one's"
    assert not bench.waiting


def test_a_lock_wait_follows_the_policy_that_is_loaded_meanwhile(bench: Bench) -> None:
    bench.backend.behave["lock_free"] = False
    bench.turns.due(KEY)
    bench.turns.load([])
    bench.backend.behave["lock_free"] = True
    bench.go_on()
    assert bench.outcomes == []


def test_failures_back_off_and_a_success_forgets_them(bench: Bench) -> None:
    bench.backend.behave["open"] = BackendUnreachable("down")
    tried = []
    for slot in range(24):
        bench.clock.seconds = slot * 3600
        before = len(bench.outcomes)
        bench.turns.due(KEY)
        if len(bench.outcomes) > before:
            tried.append(slot)
    gaps = [later - earlier for earlier, later in pairwise(tried)]
    assert gaps[0] == 1
    assert 2 <= max(gaps) <= LONGEST
    del bench.backend.behave["open"]
    bench.clock.seconds += 6 * 3600
    bench.turns.due(KEY)
    assert bench.outcomes[-1] == "completed"
    assert bench.turns.resumes_at(KEY) is None


def test_a_backend_that_comes_back_is_served_at_once(bench: Bench) -> None:
    bench.backend.behave["open"] = BackendUnreachable("down")
    for slot in range(3):
        bench.clock.seconds = slot * 3600
        bench.turns.due(KEY)
    assert bench.turns.resumes_at(KEY)
    del bench.backend.behave["open"]
    probe = Pair("pool-health", Probe(), KEY[1], bench.backend, None)
    bench.turns.stepped(
        Run(7, probe, Trigger.SCHEDULE, bench.clock.now()), Step(readings=(metrics.BACKEND_UP.read(0),))
    )
    assert not bench.waiting
    bench.turns.stepped(
        Run(8, probe, Trigger.SCHEDULE, bench.clock.now()), Step(readings=(metrics.BACKEND_UP.read(1),))
    )
    assert bench.turns.resumes_at(KEY) is None
    assert bench.go_on() <= timedelta(seconds=5)
    assert bench.outcomes[-1] == "completed"


def test_a_restart_makes_up_for_a_missed_slot_once(bench: Bench) -> None:
    bench.turns.due(KEY)
    bench.clock.seconds = 5 * 3600 + 600
    for _ in range(3):
        bench.turns.catch_up(KEY)
    assert bench.outcomes == ["completed"] * 2


def test_a_new_job_has_missed_nothing_but_a_probe_looks_at_once(bench: Bench) -> None:
    bench.turns.catch_up(KEY)
    assert bench.outcomes == []
    bench.load(Probe(steps=1))
    bench.turns.catch_up(KEY)
    bench.turns.catch_up(KEY)
    assert bench.outcomes == ["completed"]


def test_a_killed_run_is_made_up_for_once(bench: Bench) -> None:
    bench.turns.due(KEY)
    bench.clock.seconds = 3600
    assert bench.ledger.claim_slot(*KEY, bench.clock.now())
    pair = bench.load(Work(steps=1))
    run_id = bench.ledger.started(pair, Trigger.SCHEDULE, bench.clock.now())
    bench.turns.catch_up(KEY)
    assert bench.outcomes == ["completed"], "it may still be running"
    bench.ledger.ended(replace(report(Outcome.FAILED, bench.clock.now() + timedelta(seconds=1)), run_id=run_id))
    bench.clock.seconds += 60
    for _ in range(2):
        bench.turns.catch_up(KEY)
    assert bench.outcomes == ["completed", "failed", "completed"]


def test_a_slot_that_was_claimed_and_never_run_is_made_up_for(bench: Bench) -> None:
    """The daemon was ended while its run waited for another run's lock: nothing of it is in the ledger."""
    bench.turns.due(KEY)
    bench.clock.seconds = 3605
    assert bench.ledger.claim_slot(*KEY, START + HOUR)
    bench.turns.catch_up(KEY)
    assert bench.outcomes == ["completed"], "its owner may be about to begin"
    assert bench.go_on() >= timedelta(seconds=55)
    assert bench.outcomes == ["completed"] * 2
    bench.turns.catch_up(KEY)
    assert bench.outcomes == ["completed"] * 2


def test_a_pair_has_one_turn_at_a_time(bench: Bench) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def hold(_: int) -> None:
        inside.set()
        assert go_on.wait(10)

    bench.load(Work(steps=1, before=hold), "every 10m")
    first = threading.Thread(target=bench.turns.due, args=[KEY])
    first.start()
    assert inside.wait(10)
    assert bench.turns.busy
    bench.clock.seconds += 600
    bench.turns.due(KEY)
    go_on.set()
    first.join(10)
    assert bench.outcomes == ["completed"]
    assert not bench.turns.busy
    other = Bench(bench.ledger, bench.clock)
    other.load(Work(steps=1), "every 10m")
    other.turns.due(KEY)
    assert bench.outcomes == ["completed"] * 2, "the slot that it had no time for was not claimed"


def policy_of(*pairs: Pair) -> Policy:
    return Policy(
        file="policy.yaml", timezone=ZoneInfo("UTC"), state="", http=Http(),
        backends={pair.backend_name: pair.backend for pair in pairs},
        jobs={pair.job_name: pair.job for pair in pairs}, pairs=pairs,
    )  # fmt: skip


class Loop:
    """A scheduler on the real clock."""

    def __init__(self, ledger: Ledger) -> None:
        self.stop = Stop()
        self.beats = threading.Semaphore(0)
        self.hang = threading.Event()
        self.scheduler = Scheduler(ledger, self.stop, beat=self._beat)

    def _beat(self) -> None:
        self.beats.release()
        if self.hang.is_set():
            threading.Event().wait(1.5)


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    ledger = Ledger.open(str(tmp_path))
    loop = Loop(ledger)
    yield loop
    loop.hang.clear()
    loop.stop.request("the test is over")
    loop.scheduler.stop()
    loop.stop.close()
    # What still runs opens the ledger again to say how it ended.
    assert eventually(lambda: not loop.scheduler.busy)
    ledger.close()


def test_probes_go_on_beside_long_jobs_and_each_failure_stays_alone(loop: Loop) -> None:
    probes, go_on = threading.Semaphore(0), threading.Event()

    def fail(_: int) -> None:
        raise ZeroDivisionError

    def long(_: int) -> None:
        go_on.wait(20)

    every = when("every 1s")
    pairs = [Pair(f"long-{n}", Work(steps=1, before=long), f"store-{n}", ToyBackend(), every) for n in range(3)]
    pairs.append(Pair("broken", Work(steps=1, before=fail), "store-9", ToyBackend(), every))
    pairs.append(Pair("probe", Probe(steps=1, before=lambda _: probes.release()), "store-0", ToyBackend(), every))
    loop.scheduler.start(policy_of(*pairs))
    try:
        for _ in range(3):
            assert probes.acquire(timeout=10)
        assert loop.scheduler.busy
        following = loop.scheduler.next_runs()
        assert {key[0] for key in following} == {"long-0", "long-1", "long-2", "broken", "probe"}
        assert all(moment.tzinfo is UTC for moment in following.values())
    finally:
        go_on.set()


def test_a_reload_changes_what_fires_and_ends_no_run(loop: Loop) -> None:
    inside, go_on, fired = threading.Event(), threading.Event(), threading.Event()

    def hold(_: int) -> None:
        inside.set()
        go_on.wait(20)

    every = when("every 1s")
    loop.scheduler.start(policy_of(Pair("old", Work(steps=1, before=hold), "a", ToyBackend(), every)))
    try:
        assert inside.wait(10)
        loop.scheduler.load(
            policy_of(Pair("new", Work(steps=1, before=lambda _: fired.set()), "b", ToyBackend(), every))
        )
        assert fired.wait(10)
        assert loop.scheduler.busy
        assert {key[0] for key in loop.scheduler.next_runs()} == {"new"}
    finally:
        go_on.set()


def test_a_reload_keeps_who_waits_for_a_lock(loop: Loop) -> None:
    """Its slot is claimed: nobody else would run it, and a daily job would wait a day."""
    fired = threading.Event()
    pair = Pair("toy", Work(steps=1), "place", ToyBackend(), when("every 1h"))
    loop.scheduler.start(policy_of(pair))
    loop.scheduler._later(KEY, timedelta(seconds=0.5), fired.set)
    for _ in range(2):
        loop.scheduler.load(policy_of(pair))
    assert fired.wait(10)


def test_what_comes_next_may_be_asked_while_a_reload_takes_it_away(loop: Loop) -> None:
    loop.scheduler.start(policy_of(Pair("toy", Work(steps=1), "place", ToyBackend(), when("every 1h"))))
    loop.scheduler._pairs = {}
    assert set(loop.scheduler.next_runs()) == {KEY}


def test_a_clock_that_was_set_back_stops_nothing(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    probes = threading.Semaphore(0)
    probe = Probe(steps=1, before=lambda _: probes.release())
    loop.scheduler.start(policy_of(Pair("probe", probe, "place", ToyBackend(), when("every 1s"))))
    assert probes.acquire(timeout=10)
    # As it is just after a jump: everything waits for a time that was an hour ahead.
    for entry in loop.scheduler._loop.get_jobs():
        entry.modify(next_run_time=entry.next_run_time + HOUR)
    while probes.acquire(timeout=0.2) or loop.beats.acquire(timeout=0.2):
        pass
    loop.scheduler._ahead += 3600
    loop.scheduler.follow_clock()
    assert probes.acquire(timeout=5)
    assert loop.beats.acquire(timeout=5)
    # Not in the moment in which it is due.
    assert eventually(lambda: datetime.now(UTC) < loop.scheduler.next_runs()["probe", "place"])
    assert loop.scheduler.next_runs()["probe", "place"] < datetime.now(UTC) + timedelta(seconds=3)


def test_a_loop_that_hangs_stops_beating(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule_module, "HEARTBEAT", timedelta(seconds=0.2))
    monkeypatch.setattr(schedule_module, "ALIVE_WITHIN", 1.0)
    loop.scheduler.start(policy_of())
    assert loop.beats.acquire(timeout=10)
    assert loop.scheduler.alive()
    loop.hang.set()
    assert loop.beats.acquire(timeout=10)
    assert not loop.beats.acquire(timeout=1.2), "no beat comes from anywhere else"
    assert not loop.scheduler.alive()
