"""The partition job beside archive: a live partition is not retired before what is in it was archived."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backendops.contracts.order import Completed, settings_of
from backendops.engine.ledger import Ledger
from backendops.engine.runner import Runner
from backendops.jobs.archive import Archive
from backendops.jobs.partition import Partition
from backendops.policy.load import load_policy

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def partition(directory: Path, jobs: str, began: datetime | None = None) -> Partition:
    file = directory / "policy.yaml"
    file.write_text(
        f"version: 1\nstate: {directory}\nbackends:\n  results: {{url: db+postgresql://localhost/x}}\njobs:\n{jobs}"
    )
    policy, ledger = load_policy(file), Ledger.in_memory()
    if began is not None:
        (archive,) = policy.pairs_of("archive")
        assert isinstance(archive.job, Archive)
        completed, settings = Completed(ledger.watermarks("results")), settings_of(archive.job.keeps())
        completed.begins("archive", settings, began)
        completed.begins("archive", settings, began + timedelta(hours=1))  # the first one ended early
        completed.completes("archive", settings)
    (pair,) = policy.pairs_of("partition")
    told = Runner(ledger).told(pair)
    assert isinstance(told, Partition)
    return told


ARCHIVE = "  archive: {older_than: 7d, rules: [{queue: slow, older_than: 20d}]}\n"
LIVE = "  partition: {keep_live: 30d}\n"


@pytest.mark.parametrize(
    ("jobs", "began", "cutoff"),
    [
        (LIVE, None, 30),
        (ARCHIVE + LIVE, None, None),
        (ARCHIVE + LIVE, 1, 30),
        (ARCHIVE + LIVE, 15, 35),
        (ARCHIVE + "  partition: {keep_live: 30d, allow_unarchived: true}\n", None, 30),
        (ARCHIVE + "  partition: {keep: 90d}\n", None, None),
    ],
    ids=["alone", "never archived", "archived yesterday", "archived two weeks ago", "told to", "of no live table"],
)
def test_live_partitions_wait_for_the_archive(tmp_path: Path, jobs: str, began: int | None, cutoff: int | None) -> None:
    job = partition(tmp_path, jobs, began and NOW - timedelta(days=began))
    assert job.plan(NOW).live_cutoff == (None if cutoff is None else NOW - timedelta(days=cutoff))
    said = [finding.code for finding in job._waiting(NOW)]
    held_back = "keep_live" in jobs and cutoff != 30
    assert said == (["partition.unarchived"] if held_back else [])
