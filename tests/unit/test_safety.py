"""What a run must not start on: each limit with its sentence, and its way on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from backendops.contracts.backend import Standing
from backendops.contracts.capabilities import Pressure
from backendops.contracts.errors import BackendRefused
from backendops.contracts.run import NoWatermarks, Outcome, Preview, Trigger
from backendops.contracts.units import FOREVER, Duration, Keep
from backendops.engine.ledger import Ledger
from backendops.engine.runner import Runner
from backendops.engine.safety import KeepsBefore
from backendops.jobs.expire import Expire
from backendops.policy.model import Pair
from tests.unit.toys import START, FakeClock, FakeStop, ToyBackend, ToyJob, ToyProbe, toy_pair


class Keeping(ToyJob):
    """A job that says how long it keeps, and how many rows are due."""

    keep: dict[str, str]
    due: int = 500

    def keeps(self) -> dict[str, Keep]:
        return {key: FOREVER if keep == "forever" else Duration.parse(keep) for key, keep in self.keep.items()}

    def preview(self, backend: ToyBackend, now: datetime) -> Preview:
        return Preview("would do it", rows=self.due)


@pytest.fixture
def runner() -> Runner:
    clock = FakeClock()
    return Runner(Ledger.in_memory(), stop=FakeStop(clock), clock=clock)


def keeping(keep: str | dict[str, str], due: int = 500, **keys: Any) -> Pair:
    return toy_pair(Keeping(keep={"keep": keep} if isinstance(keep, str) else keep, due=due, **keys))


@pytest.mark.parametrize(
    ("keep", "key"),
    [
        ({"keep": "59m"}, "keep"),
        ({"keep": "30d", "keep_by_state.RETRY": "30s"}, "keep_by_state.RETRY"),
    ],
)
def test_a_cutoff_under_an_hour_is_refused(runner: Runner, keep: dict[str, str], key: str) -> None:
    pair = keeping(keep)
    report = runner.run(pair, Trigger.COMMAND)
    assert report.outcome is Outcome.REFUSED
    assert report.error == f"{key} is {keep[key]}: results would go less than an hour after they finished"
    assert "allow_short_keep: true" in report.hint
    assert pair.backend.asked == [], "it was not even opened"
    assert runner.foresee(pair, Preview("")).refused is not None


@pytest.mark.parametrize("pair", [keeping("1h"), keeping("forever"), keeping("1s", allow_short_keep=True)])
def test_an_hour_is_enough_and_less_may_be_meant(runner: Runner, pair: Pair) -> None:
    assert runner.run(pair, Trigger.COMMAND).outcome is Outcome.COMPLETED
    assert runner.foresee(pair, Preview("")).refused is None


@pytest.mark.parametrize(
    ("before", "now", "what"),
    [
        ({"keep": "30d"}, {"keep": "3d"}, "keep went from 30d to 3d"),
        ({"keep": "forever"}, {"keep": "13 months"}, "keep went from forever to 13 months"),
        ({"keep": "30d"}, {"keep": "30d"}, None),
        ({"keep": "30d"}, {"keep": "forever"}, None),
        # One state leaves those that are kept for the most, or joins them.
        ({"keep": "30d"}, {"keep": "30d", "by.SUCCESS": "1d"}, "by.SUCCESS went from 30d to 1d"),
        ({"keep": "30d", "by.FAILURE": "90d"}, {"keep": "30d"}, "by.FAILURE went from 90d to 30d"),
        ({"keep": "30d"}, {"keep": "30d", "by.FAILURE": "90d"}, None),
        ({"keep": "30d", "by.SUCCESS": "1d"}, {"keep": "30d"}, None),
    ],
)
def test_what_counts_as_shorter(before: dict[str, str], now: dict[str, str], what: str | None) -> None:
    watermarks = NoWatermarks()
    keeps = KeepsBefore(watermarks, "expire")
    assert keeps.shortened(Keeping(keep=now)) is None, "a job that never ran has nothing to compare with"
    keeps.remember(Keeping(keep=before))
    assert keeps.shortened(Keeping(keep=now)) == what


R1, R2 = {"task": "reports.*", "keep": "forever"}, {"state": "SUCCESS", "keep": "1d"}
SAID_1, SAID_2 = "the rule {task: reports.*}", "the rule {state: SUCCESS}"


@pytest.mark.parametrize(
    ("before", "now", "what"),
    [
        ([R1, R2], [R1, R2], None),
        ([R1, R2], [R2, R1], f"{SAID_2} (1d) decides before {SAID_1} (forever)"),
        ([R2, R1], [R1, R2], None),
        ([R1], [R2, R1], f"{SAID_2} (1d) decides before {SAID_1} (forever)"),
        ([R1], [{**R2, "keep": "2d"}, R1], f"{SAID_2} (2d) decides before {SAID_1} (forever)"),
        ([R1], [R1, {**R2, "keep": "2d"}], None),
        ([R1, {**R2, "keep": "2d"}], [{**R2, "keep": "2d"}], f"{SAID_1} went from forever to 1d"),
        ([{**R2, "keep": "2d"}, R1], [R1], f"{SAID_2} went from 2d to 1d"),
    ],
)
def test_the_order_of_rules_counts(before: list[Any], now: list[Any], what: str | None) -> None:
    keeps = KeepsBefore(NoWatermarks(), "expire")
    keeps.remember(Expire.model_validate({"keep": "1d", "rules": before}))
    assert keeps.shortened(Expire.model_validate({"keep": "1d", "rules": now})) == what


def test_the_order_of_states_does_not_count() -> None:
    keeps = KeepsBefore(NoWatermarks(), "expire")
    keeps.remember(Expire.model_validate({"keep": "30d", "keep_by_state": {"FAILURE": "90d", "SUCCESS": "1d"}}))
    states = {"SUCCESS": "1d", "REVOKED": "40d", "FAILURE": "90d"}
    assert keeps.shortened(Expire.model_validate({"keep": "30d", "keep_by_state": states})) is None


def test_a_ledger_that_cannot_be_read_lets_nothing_large_pass(tmp_path: Path) -> None:
    clock = FakeClock()
    ledger = Ledger.open(str(tmp_path))
    runner = Runner(ledger, stop=FakeStop(clock), clock=clock)
    assert run(runner, "30d", 5000) is Outcome.COMPLETED
    with ledger._engine.begin() as connection:
        connection.execute(text("ALTER TABLE backendops_watermarks RENAME TO lost"))
    assert run(runner, "30d", 1000) is Outcome.COMPLETED
    report = runner.run(keeping("3d", 20_000), Trigger.SCHEDULE)
    assert report.outcome is Outcome.REFUSED
    assert report.error.startswith("how long results were kept before cannot be read, as the ledger fails, and now")
    assert run(runner, "30d", 20_000, accept_volume=True) is Outcome.COMPLETED
    ledger.close()


@pytest.mark.parametrize("garbage", ["", "[]", "null", '{"keep": 3}', '{"keep": ["30d"]}', "{"])
def test_what_another_version_remembered_is_no_traceback(garbage: str) -> None:
    watermarks = NoWatermarks()
    watermarks.remember("keeps of expire", garbage)
    assert KeepsBefore(watermarks, "expire").shortened(Keeping(keep={"keep": "1d"})) is None


def run(runner: Runner, keep: str, due: int, **options: Any) -> Outcome:
    return runner.run(keeping(keep, due), Trigger.SCHEDULE, **options).outcome


def test_far_more_than_ever_before_is_refused_once_keep_got_shorter(runner: Runner) -> None:
    # A run of the toy changes 500 rows, whatever was due.
    assert run(runner, "30d", 500_000) is Outcome.COMPLETED, "a first run has nothing to compare with"
    assert run(runner, "30d", 500_000) is Outcome.COMPLETED, "a backlog is no slip"
    assert run(runner, "3d", 10_000) is Outcome.COMPLETED
    assert run(runner, "1d", 10_001) is Outcome.REFUSED
    report = runner.run(keeping("1d", 10_001), Trigger.SCHEDULE)
    assert report.error == (
        "keep went from 3d to 1d, and now 10,001 rows are due: more than 20 times the largest of the last runs (500)"
    )
    assert "`backendops accept toy`" in report.hint
    assert "--accept-volume" in report.hint
    assert runner.foresee(keeping("1d", 10_001), Preview("", rows=10_001)).refused is not None
    assert run(runner, "3d", 10_001) is Outcome.COMPLETED, "the way back is open"


@pytest.mark.parametrize(
    "accept",
    [
        lambda runner, pair: runner.run(pair, Trigger.COMMAND, accept_volume=True),
        lambda runner, pair: KeepsBefore(runner.ledger.watermarks("place"), "toy").remember(pair.job),
    ],
    ids=["run-once --accept-volume", "accept"],
)
def test_accepted_once_it_runs_on(runner: Runner, accept: Callable[[Runner, Pair], object]) -> None:
    assert run(runner, "30d", 10) is Outcome.COMPLETED
    assert run(runner, "1d", 99_999) is Outcome.REFUSED
    accept(runner, keeping("1d", 99_999))
    assert run(runner, "1d", 99_999) is Outcome.COMPLETED
    assert run(runner, "2h", 99_999) is Outcome.REFUSED, "the next change is another one"


def test_a_small_table_is_not_compared(runner: Runner) -> None:
    job = Keeping(keep={"keep": "30d"}, steps=0)
    assert runner.run(toy_pair(job), Trigger.COMMAND).rows == 0
    assert run(runner, "1d", 1000) is Outcome.COMPLETED
    assert run(runner, "2h", 1001) is Outcome.COMPLETED, "20 times the 500 of the run before"


def test_a_run_that_found_the_lock_taken_accepts_nothing(runner: Runner) -> None:
    assert run(runner, "30d", 10) is Outcome.COMPLETED
    pair = keeping("1d", 10)
    assert isinstance(pair.backend, ToyBackend)
    pair.backend.behave["lock_free"] = False
    assert runner.run(pair, Trigger.SCHEDULE).outcome is Outcome.LOCKED
    assert run(runner, "1d", 99_999) is Outcome.REFUSED


def test_only_a_change_of_keep_costs_a_count(runner: Runner) -> None:
    previews: list[str] = []

    class Counted(Keeping):
        def preview(self, backend: ToyBackend, now: datetime) -> Preview:
            previews.append(self.keep["keep"])
            return Preview("would do it")

    for keep in ("30d", "30d", "3d", "3d", "13 months"):
        assert runner.run(toy_pair(Counted(keep={"keep": keep})), Trigger.COMMAND).outcome is Outcome.COMPLETED
    assert previews == ["3d"]


def test_max_rows_names_its_way_on_and_may_be_passed_once(runner: Runner) -> None:
    pair = toy_pair(ToyJob(max_rows=499))
    report = runner.run(pair, Trigger.COMMAND)
    assert report.outcome is Outcome.REFUSED
    assert "raise max_rows" in report.hint
    assert runner.run(pair, Trigger.COMMAND, accept_volume=True).outcome is Outcome.COMPLETED
    assert runner.run(pair, Trigger.COMMAND).outcome is Outcome.REFUSED


def test_plan_foresees_what_a_run_would_meet(runner: Runner) -> None:
    def foreseen(job: ToyJob | None = None, **behave: object) -> Any:
        pair = toy_pair(job)
        assert isinstance(pair.backend, ToyBackend)
        pair.backend.behave.update(behave)
        return runner.foresee(pair, Preview("", rows=500))

    assert str(foreseen(standing=Standing(START + timedelta(hours=1))).refused).startswith("the server's clock is 1h")
    assert foreseen(standing=Standing(START, newest_done=START + timedelta(hours=2))).refused is not None
    assert foreseen(ToyJob(max_rows=1)).refused is not None
    assert foreseen(pressure=[BackendRefused("pause_when is wrong", "mend it")]).refused is not None
    assert foreseen(standing=Standing(START, read_only_because="it is a replica")).idle == "it is a replica"
    assert foreseen(pressure=[Pressure(wait="replica-lag", why="far behind")]).pressure.wait == "replica-lag"
    assert foreseen(pressure=[Pressure(end="enough")]).pressure.end == "enough"
    assert foreseen(ToyProbe(max_rows=1), standing=Standing(START + timedelta(hours=1))).refused is None
