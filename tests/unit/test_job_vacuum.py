"""The vacuum job's keys: windows, parts of a whole, and what belongs together."""

from __future__ import annotations

from datetime import UTC, datetime, time
from pathlib import Path

import pytest

from backendops.contracts.errors import PolicyError
from backendops.jobs.vacuum import Vacuum, Window
from backendops.policy.load import load_policy

POLICY = """version: 1
backends: {{results: {{url: "db+postgresql://me@host/celery"}}}}
jobs:
  vacuum: {{{keys}}}
"""


def load(tmp_path: Path, keys: str) -> Vacuum:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY.format(keys=keys))
    job = load_policy(file).jobs["vacuum"]
    assert isinstance(job, Vacuum)
    return job


@pytest.mark.parametrize(
    ("start", "end", "now", "until"),
    [
        ("02:00", "04:00", "2026-03-01T03:00", "2026-03-01T04:00"),
        ("02:00", "04:00", "2026-03-01T04:01", None),
        ("23:00", "02:00", "2026-03-01T23:30", "2026-03-02T02:00"),
        ("23:00", "02:00", "2026-03-02T01:30", "2026-03-02T02:00"),
        ("23:00", "02:00", "2026-03-02T12:00", None),
    ],
)
def test_a_window_knows_its_end(start: str, end: str, now: str, until: str | None) -> None:
    window = Window(start=time.fromisoformat(start), end=time.fromisoformat(end))
    expected = None if until is None else datetime.fromisoformat(until).replace(tzinfo=UTC)
    assert window.until(datetime.fromisoformat(now).replace(tzinfo=UTC)) == expected


def test_a_window_is_in_its_zone() -> None:
    window = Window(start=time(2), end=time(4), timezone="America/New_York")
    assert window.until(datetime(2026, 7, 1, 7, tzinfo=UTC)) == datetime(2026, 7, 1, 8, tzinfo=UTC)


@pytest.mark.parametrize("written", ["02:00Z", "02:00+01:00"])
def test_a_zone_is_written_beside_the_time(tmp_path: Path, written: str) -> None:
    with pytest.raises(PolicyError, match="write the time alone"):
        load(tmp_path, f"full: {{start: '{written}', end: '04:00'}}")


@pytest.mark.parametrize("written", ["30%", "0.3", "30 %"])
def test_a_part_is_written_either_way(tmp_path: Path, written: str) -> None:
    window = "window: {start: '02:00', end: '04:00'}"
    job = load(tmp_path, f"bloat_ratio: {written}, indexes: {{reindex_bloated: {written}, {window}}}")
    assert (job.bloat_ratio, job.indexes.reindex_bloated) == (0.3, 0.3)
    inside = job.plan(datetime(2026, 1, 1, 3, tzinfo=UTC)).indexes
    assert (inside.reindex_bloated, inside.rebuild_until) == (0.3, datetime(2026, 1, 1, 4, tzinfo=UTC))
    assert job.plan(datetime(2026, 1, 1, 5, tzinfo=UTC)).indexes.rebuild_until is None


def test_by_default_nothing_is_done_about_indexes() -> None:
    indexes = Vacuum().plan(datetime.now(UTC)).indexes
    assert (indexes.create_missing, indexes.drop_invalid, indexes.reindex_bloated) == (False, False, None)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("indexes: {reindex_bloated: 30%}", "reindex_bloated and window belong together"),
        ("indexes: {window: {start: '02:00', end: '04:00'}}", "reindex_bloated and window belong together"),
        ("bloat_ratio: 300%", "'bloat_ratio' must be at most 1"),
        ("bloat_ratio: lots", "'bloat_ratio' must be a number"),
        ("freeze_age: 0", "'freeze_age' must be at least 1"),
        ("indexes: {create_mising: true}", "did you mean 'create_missing'?"),
    ],
)
def test_a_mistake_is_told_with_its_way_out(tmp_path: Path, keys: str, said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        load(tmp_path, keys)
    (problem,) = caught.value.problems
    assert said in problem.message
    assert problem.line == 4
