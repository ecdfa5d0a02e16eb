"""The runner, with a fake clock, stopped at every step and by every reason there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import PrivateAttr
from sqlalchemy import text

from backendops.contracts.backend import Standing
from backendops.contracts.capabilities import Pressure
from backendops.contracts.errors import (
    BackendBusy,
    BackendError,
    BackendLocked,
    BackendRefused,
    BackendUnreachable,
)
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.run import Limits, Outcome, Pace, Step, Steps, Trigger
from backendops.engine.ledger import Ledger
from backendops.engine.pacing import AIM, GENTLE_LONGEST_REST, REST
from backendops.engine.report import RunListener, RunReport
from backendops.engine.runner import Runner
from backendops.policy.model import Pair
from tests.unit.toys import START, FakeClock, FakeStop, Heard, ToyBackend, ToyJob, ToyProbe, toy_pair


class Bench:
    """A runner whose clock, stop and ledger the test holds in its hand."""

    def __init__(self, directory: Path) -> None:
        self.clock = FakeClock()
        self.stop = FakeStop(self.clock)
        self.ledger = Ledger.open(str(directory))
        self.heard = Heard()
        self.runner = Runner(self.ledger, [self.heard], self.stop, self.clock)

    def run(self, pair: Pair) -> RunReport:
        return self.runner.run(pair, Trigger.COMMAND)

    def wait(self, seconds: float) -> None:
        self.clock.seconds += seconds


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.stop.close()
    bench.ledger.close()


def behaving(job: ToyJob | None = None, **behave: object) -> Pair:
    pair = toy_pair(job)
    assert isinstance(pair.backend, ToyBackend)
    pair.backend.behave.update(behave)
    return pair


def test_a_run_to_its_end(bench: Bench) -> None:
    pair = toy_pair(ToyJob(steps=3))
    report = bench.run(pair)
    assert (report.outcome, report.rows, report.what, report.error) == (Outcome.COMPLETED, 300, "did it", "")
    assert bench.heard.lines == ["started", "stepped 100", "stepped 100", "stepped 100", "ended completed"]
    assert bench.ledger.history() == [report]
    assert bench.ledger.running() == []
    assert pair.backend.asked[1:] == ["unlocked", "closed"]


@pytest.mark.parametrize("last", range(1, 6))
@pytest.mark.parametrize("ending", [Outcome.STOPPED, Outcome.CANCELLED, Outcome.OUT_OF_TIME, Outcome.LOST_LOCK])
def test_ended_at_every_step(bench: Bench, last: int, ending: Outcome) -> None:
    """However it is ended, the step in hand is the last, and the generator is closed in order."""

    def end_it(number: int) -> None:
        if number != last:
            return
        match ending:
            case Outcome.STOPPED:
                bench.stop.request("SIGTERM")
            case Outcome.CANCELLED:
                assert bench.ledger.request_cancel("toy") == 1
                bench.clock.seconds += 1
            case Outcome.OUT_OF_TIME:
                bench.clock.seconds += 3600
            case Outcome.LOST_LOCK:
                pair.backend.behave["lock_held"] = False

    job = ToyJob(steps=6, before=end_it)
    pair = toy_pair(job)
    report = bench.run(pair)
    assert (report.outcome, report.rows) == (ending, last * 100)
    # Closed while it waits at its yield: the work after the last committed step was never begun.
    assert job.closed == [last - 1]
    assert report.error
    assert bench.ledger.history()[0].outcome is ending


def test_a_stop_that_is_there_already_lets_nothing_begin(bench: Bench) -> None:
    bench.stop.request("SIGTERM")
    report = bench.run(toy_pair())
    assert (report.outcome, report.rows) == (Outcome.STOPPED, 0)


@pytest.mark.parametrize(
    ("error", "outcome", "sentence", "hint"),
    [
        (BackendUnreachable("no answer from me:hunter22", "start it"), Outcome.UNREACHABLE, "me:***", "start it"),
        (BackendRefused("no privilege", "GRANT it"), Outcome.REFUSED, "no privilege", "GRANT it"),
        (BackendBusy("locked for 30 s", "later"), Outcome.BUSY, "locked for 30 s", "later"),
        (BackendLocked("another run has the archive", "later"), Outcome.LOCKED, "another run has", "later"),
        (BackendError("odd", "look"), Outcome.FAILED, "odd", "look"),
        (ZeroDivisionError("a fault"), Outcome.FAILED, "unexpected ZeroDivisionError: a fault", "-v"),
    ],
)
@pytest.mark.parametrize("at", ["open", "third step"])
def test_errors_become_outcomes(
    bench: Bench, error: Exception, outcome: Outcome, sentence: str, hint: str, at: str
) -> None:
    def fail(number: int) -> None:
        if at == "third step" and number == 3:
            raise error

    pair = behaving(ToyJob(before=fail), **({"open": error} if at == "open" else {}))
    report = bench.run(pair)
    assert report.outcome is outcome
    assert sentence in report.error
    assert hint in report.hint
    assert report.rows == (0 if at == "open" else 200)
    assert bench.heard.lines[0] == "started"
    assert bench.heard.lines[-1] == f"ended {outcome}"
    assert bench.ledger.history() == [report]


def test_a_failure_while_closing_does_not_change_how_it_ended(bench: Bench) -> None:
    report = bench.run(behaving(close=BackendUnreachable("gone")))
    assert (report.outcome, report.rows, report.error) == (Outcome.COMPLETED, 500, "")


def test_a_dead_backend_is_a_probes_result(bench: Bench) -> None:
    report = bench.run(behaving(ToyProbe(), open=BackendUnreachable("refused")))
    assert (report.outcome, report.what) == (Outcome.COMPLETED, "down: refused")
    assert bench.heard.lines == ["started", "stepped 0", "ended completed"]


def test_locked(bench: Bench) -> None:
    pair = behaving(lock_free=False)
    assert bench.runner.run(pair, Trigger.SCHEDULE, record_locked=False).outcome is Outcome.LOCKED
    assert bench.ledger.history() == []
    assert bench.heard.lines == []
    report = bench.run(pair)
    assert report.outcome is Outcome.LOCKED
    assert bench.ledger.history() == [report]


def test_a_run_that_begins_and_finds_another_lock_taken_ends_in_the_ledger(bench: Bench) -> None:
    def fail(number: int) -> None:
        raise BackendLocked(f"another run has what step {number} needs")

    report = bench.runner.run(toy_pair(ToyJob(before=fail)), Trigger.SCHEDULE, record_locked=False)
    assert report.outcome is Outcome.LOCKED
    assert bench.ledger.history() == [report]
    assert bench.ledger.running() == []


def test_a_reading_job_takes_no_lock_and_no_rest(bench: Bench) -> None:
    report = bench.run(behaving(ToyProbe(), lock_free=False, pressure=["replica-lag"]))
    assert report.outcome is Outcome.COMPLETED
    assert bench.stop.waited == []


def test_a_read_only_backend_is_left_alone(bench: Bench) -> None:
    report = bench.run(behaving(standing=Standing(START, read_only_because="it is a replica")))
    assert (report.outcome, report.rows, report.what) == (Outcome.COMPLETED, 0, "changed nothing: it is a replica")


@pytest.mark.parametrize(
    ("standing", "refused"),
    [
        (Standing(START + timedelta(minutes=4)), False),
        (Standing(START + timedelta(minutes=6)), True),
        (Standing(START - timedelta(minutes=6)), True),
        (Standing(START, newest_done=START + timedelta(seconds=50)), False),
        (Standing(START, newest_done=START + timedelta(hours=2)), True),
        # The server's clock is allowed to be four minutes ahead: so are the results it has stamped.
        (Standing(START + timedelta(minutes=4), newest_done=START + timedelta(minutes=4)), False),
    ],
)
def test_wrong_clocks(bench: Bench, standing: Standing, refused: bool) -> None:
    report = bench.run(behaving(standing=standing))
    assert (report.outcome is Outcome.REFUSED) == refused
    assert report.rows == (0 if refused else 500)
    assert bool(report.hint) == refused


@pytest.mark.parametrize(("max_rows", "outcome"), [(499, Outcome.REFUSED), (500, Outcome.COMPLETED)])
def test_max_rows(bench: Bench, max_rows: int, outcome: Outcome) -> None:
    pair = toy_pair(ToyJob(max_rows=max_rows))
    report = bench.run(pair)
    assert report.outcome is outcome
    # The count behind the limit was made on a connection that cannot change anything.
    limits = [asked for asked in pair.backend.asked if isinstance(asked, Limits)]
    assert [limit.read_only for limit in limits] == [False, True]


def test_throttled_until_it_is_clear(bench: Bench) -> None:
    report = bench.run(behaving(ToyJob(steps=1), pressure=["replica-lag", "replica-lag", "lock-waits"]))
    assert report.outcome is Outcome.COMPLETED
    assert dict(report.throttled) == {"replica-lag": 2.0, "lock-waits": 1.0}
    assert bench.heard.lines[1:4] == ["throttled replica-lag 1", "throttled replica-lag 1", "throttled lock-waits 1"]
    assert {t.reason: t.seconds for t in bench.ledger.throttled()} == {"replica-lag": 2.0, "lock-waits": 1.0}


class PacedJob(ToyJob):
    """Notes the size of each batch."""

    _sizes: list[int] = PrivateAttr(default_factory=list)

    @property
    def sizes(self) -> list[int]:
        return self._sizes

    def run(self, backend: Any, now: datetime, pace: Pace) -> Steps:
        for step in super().run(backend, now, pace):
            self._sizes.append(pace.size)
            yield step


@pytest.mark.parametrize(
    ("pace", "sizes"), [("auto", [500, 1000, 500]), ("gentle", [500, 500, 500]), ("full", [1000, 1000, 1000])]
)
def test_gently_while_others_use_the_server(bench: Bench, pace: Any, sizes: list[int]) -> None:
    job = PacedJob(steps=3, pace=pace, before=lambda number: bench.wait(1))
    report = bench.run(behaving(job, pressure=[Pressure(in_use=True), Pressure(), Pressure(in_use=True)]))
    assert job.sizes == sizes
    # A step of a second earns no longer rest.
    rests = GENTLE_LONGEST_REST * sizes.count(500)
    assert report.throttled == ({"gentle": pytest.approx(rests)} if 500 in sizes else {})
    assert not any("gentle" in line for line in bench.heard.lines), "many times a second, so only at the end"


def test_who_is_out_of_time_beside_others_hears_of_the_quick_way(bench: Bench) -> None:
    job = ToyJob(steps=9, time_budget=timedelta(seconds=3), before=lambda number: bench.wait(1))
    report = bench.run(behaving(job, pressure=[Pressure(in_use=True)] * 9))
    assert report.outcome is Outcome.OUT_OF_TIME
    assert "pace: full" in report.hint
    report = bench.run(behaving(job, pressure=[Pressure()] * 9))
    assert report.outcome is Outcome.OUT_OF_TIME
    assert "pace" not in report.hint


def test_throttled_until_the_time_is_up(bench: Bench) -> None:
    job = ToyJob(time_budget=timedelta(seconds=10))
    report = bench.run(behaving(job, pressure=["replica-lag"] * 100))
    assert (report.outcome, report.rows) == (Outcome.OUT_OF_TIME, 0)
    assert report.throttled["replica-lag"] == pytest.approx(10)


def test_the_backend_may_end_a_run(bench: Bench) -> None:
    """After a second of steps the backend says that it is enough."""
    job = ToyJob(steps=9, before=lambda number: bench.wait(0.6))
    report = bench.run(behaving(job, pressure=[None, "replica-lag", Pressure(end="stop_when says so: 7")]))
    assert (report.outcome, report.rows, report.error) == (Outcome.STOPPED, 200, "stop_when says so: 7")
    assert "the next run goes on" in report.hint
    assert dict(report.throttled) == {"replica-lag": pytest.approx(1)}
    assert report.outcome.exit_code == 75
    assert not bench.stop.requested, "only this run, not the process"


def test_what_the_backend_notes_is_told_once(bench: Bench) -> None:
    hidden = Finding(Severity.INFO, "toy.hidden", "cannot see it", "GRANT it")
    other = Finding(Severity.INFO, "toy.other", "cannot see that", "GRANT that")
    job = ToyJob(before=lambda number: bench.wait(2))
    notes = [Pressure(findings=(hidden,)), Pressure(wait="replica-lag", findings=(hidden, other)), Pressure()]
    report = bench.run(behaving(job, pressure=notes))
    assert (report.outcome, report.findings) == (Outcome.COMPLETED, (hidden, other))


def test_a_finding_shows_no_password(bench: Bench) -> None:
    """What a server says of a client may hold what the client sent."""
    report = bench.run(
        behaving(pressure=[Pressure(findings=(Finding(Severity.INFO, "a.code", "AUTH hunter22", "not hunter22"),))])
    )
    assert [(found.sentence, found.fix) for found in report.findings] == [("AUTH ***", "not ***")]


def test_a_wrong_question_refuses_in_mid_run(bench: Bench) -> None:
    job = ToyJob(before=lambda number: bench.wait(2))
    report = bench.run(behaving(job, pressure=[None, BackendRefused("pause_when is wrong", "mend it")]))
    assert (report.outcome, report.rows, report.error) == (Outcome.REFUSED, 100, "pause_when is wrong")


def test_it_is_asked_once_a_second(bench: Bench) -> None:
    job = ToyJob(steps=20, before=lambda number: bench.wait(0.1))
    pressure = [Pressure()] * 100
    bench.run(behaving(job, pressure=pressure))
    assert len(pressure) == 100 - 2 - 1


def test_a_backend_may_have_a_pause_file_of_its_own(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "elsewhere" / "pause-place"
    pair = replace(toy_pair(ToyJob(steps=1)), backend=ToyBackend(pause_file=file))
    assert bench.run(pair).throttled == {}
    file.parent.mkdir()
    file.touch()
    report = bench.run(replace(pair, job=ToyJob(steps=1, time_budget=timedelta(seconds=3))))
    assert (report.outcome, dict(report.throttled)) == (Outcome.OUT_OF_TIME, {"pause-file": 3.0})
    assert bench.run(toy_pair(ToyJob(steps=1))).throttled == {}, "the others go on"


def test_a_pause_holds_a_run_and_a_resume_lets_it_go(bench: Bench, tmp_path: Path) -> None:
    class Operator(RunListener):
        def throttled(self, run: object, reason: str, seconds: float) -> None:
            reasons.append(reason)
            if reasons.count("paused") == 2:
                bench.ledger.resume("toy")
                (tmp_path / "pause").touch()
            if reasons.count("pause-file") == 2:
                (tmp_path / "pause").unlink(missing_ok=True)

    def pause(number: int) -> None:
        if number == 2:
            bench.ledger.pause("toy", "me")
            bench.clock.seconds += 2

    reasons: list[str] = []
    runner = Runner(bench.ledger, [Operator()], bench.stop, bench.clock)
    report = runner.run(toy_pair(ToyJob(before=pause)), Trigger.SCHEDULE)
    assert (report.outcome, report.rows) == (Outcome.COMPLETED, 500)
    assert set(report.throttled) == {"paused", "pause-file"}


def test_it_rests_in_proportion_but_never_longer_than_a_batch(bench: Bench) -> None:
    def take(number: int) -> None:
        bench.clock.seconds += 0.2 if number == 1 else 100

    bench.run(toy_pair(ToyJob(steps=2, before=take)))
    assert bench.stop.waited == pytest.approx([0.2 * REST, 0.25 * AIM])


def test_an_overdue_stop_interrupts_the_statement_in_hand(bench: Bench) -> None:
    def stuck(number: int) -> None:
        if number == 3:
            bench.stop.request("SIGTERM")
            bench.stop.request("SIGTERM")  # the second one does not wait for the deadline
            raise BackendBusy("canceling statement due to user request")

    pair = toy_pair(ToyJob(before=stuck))
    report = bench.run(pair)
    assert (report.outcome, report.rows) == (Outcome.STOPPED, 200)
    assert "interrupted" in pair.backend.asked


def test_a_listener_that_fails_harms_no_run(bench: Bench) -> None:
    class Broken(RunListener):
        def stepped(self, run: object, step: object) -> None:
            raise OSError("disk full")

    runner = Runner(bench.ledger, [Broken(), bench.heard], bench.stop, bench.clock)
    assert runner.run(toy_pair(), Trigger.COMMAND).outcome is Outcome.COMPLETED
    assert bench.heard.lines[-1] == "ended completed"


def test_a_ledger_that_fails_costs_history_and_nothing_else(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    def break_it(number: int) -> None:
        bench.clock.seconds += 2
        if number == 2:
            with bench.ledger._engine.begin() as connection:
                connection.execute(text("DROP TABLE backendops_runs"))

    report = bench.run(toy_pair(ToyJob(before=break_it)))
    assert (report.outcome, report.rows) == (Outcome.COMPLETED, 500)
    assert "ledger.failed" in capsys.readouterr().out


def test_preview_is_read_only_and_raises_what_an_operator_can_read(bench: Bench) -> None:
    pair = toy_pair()
    assert bench.runner.preview(pair).rows == 500
    assert pair.backend.asked[0].read_only
    with pytest.raises(BackendError, match="unexpected KeyError"):
        bench.runner.preview(behaving(open=KeyError("x")))
    assert bench.ledger.history() == []


def test_a_run_of_many_sentences_is_reported_in_few(bench: Bench) -> None:
    class Talkative(ToyJob):
        def run(self, backend: object, now: object, pace: object) -> Steps:
            yield from (Step(what=f"did {number % 30}") for number in range(100))

    report = bench.run(toy_pair(Talkative()))
    assert report.what == "; ".join([*(f"did {number}" for number in range(10)), "and more"])
