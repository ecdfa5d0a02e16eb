"""expire beside archive on one backend: what is to be archived is not removed before it is."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backendops.contracts.run import Outcome, Trigger
from backendops.engine.ledger import Ledger
from backendops.engine.report import RunReport
from backendops.engine.runner import Runner
from backendops.policy.load import load_policy
from backendops.policy.model import Policy
from tests.celery_rows import fill_celery_table
from tests.conformance.stores import ARCHIVE, TableStore

ARCHIVING = "archive: {older_than: 8d}"


class Daemon:
    """Runs of a policy with one ledger."""

    def __init__(self, tables: TableStore, directory: Path) -> None:
        self._tables, self._directory = tables, directory
        self.ledger = Ledger.in_memory()

    def policy(self, *jobs: str) -> Policy:
        file = self._directory / "policy.yaml"
        lines = "\n".join(f"  {job}" for job in jobs)
        backends = f"backends:\n  results: {{url: '{self._tables.url}'}}"
        file.write_text(f"version: 1\nstate: {self._directory}\n{backends}\njobs:\n{lines}\n")
        return load_policy(file)

    def run(self, job: str, *jobs: str) -> RunReport:
        (pair,) = self.policy(*jobs).pairs_of(job)
        report = Runner(self.ledger).run(pair, Trigger.COMMAND)
        assert report.outcome is Outcome.COMPLETED, (report.error, report.hint)
        return report

    def plan(self, job: str, *jobs: str) -> tuple[int, list[str]]:
        (pair,) = self.policy(*jobs).pairs_of(job)
        preview = Runner(self.ledger).preview(pair)
        return preview.rows, [finding.code for finding in preview.findings]


@pytest.fixture
def daemon(tables: TableStore, tmp_path: Path) -> Daemon:
    fill_celery_table(tables.url, 60)  # half of them finished 7 to 27 days ago
    return Daemon(tables, tmp_path)


def codes(report: RunReport) -> list[str]:
    return [finding.code for finding in report.findings]


def test_nothing_goes_before_an_archive_run_has_completed(daemon: Daemon, tables: TableStore) -> None:
    jobs = (ARCHIVING, "expire: {keep: 10d}")
    every = tables.ids()
    assert daemon.plan("expire", *jobs) == (0, ["expire.unarchived"])
    report = daemon.run("expire", *jobs)
    assert (report.rows, codes(report), tables.ids()) == (0, ["expire.unarchived"], every)
    assert "no run has completed" in report.findings[0].sentence
    assert "run-once archive" in report.findings[0].fix
    assert daemon.run("archive", *jobs).rows > 0
    assert sorted(tables.ids() + tables.ids(ARCHIVE)) == every
    report = daemon.run("expire", *jobs)
    assert (report.rows, codes(report)) == (0, [])
    # What is stored with an old date after the archive was there is past keeping, and nobody takes it first.
    fill_celery_table(tables.url, 60)
    assert daemon.plan("expire", *jobs)[1] == []


def test_an_archive_that_does_not_complete_holds_the_expiry_back(daemon: Daemon, tables: TableStore) -> None:
    jobs = (ARCHIVING, "expire: {keep: 10d}")
    tables.execute(f"CREATE TABLE {ARCHIVE} (something int)")
    (pair,) = daemon.policy(*jobs).pairs_of("archive")
    assert Runner(daemon.ledger).run(pair, Trigger.COMMAND).outcome is Outcome.REFUSED
    assert daemon.run("expire", *jobs).rows == 0
    assert len(tables.ids()) == 60


@pytest.mark.parametrize("way", ["archive", "none"])
def test_a_shorter_keep_is_news_until_it_decides(daemon: Daemon, tables: TableStore, way: str) -> None:
    """While the archive is behind nothing is due; when it no longer is, the limit still knows what was before."""
    daemon.run("archive", ARCHIVING, "expire: {keep: 30d}")
    daemon.run("expire", ARCHIVING, "expire: {keep: 30d}")
    fill_celery_table(tables.url, 4000)
    assert daemon.run("expire", "archive: {older_than: 9d}", "expire: {keep: 10d}").rows == 0
    assert daemon.run("expire", "archive: {older_than: 9d}", "expire: {keep: 10d}").rows == 0
    if way == "archive":
        # It takes what was due.
        daemon.run("archive", "archive: {older_than: 9d}", "expire: {keep: 10d}")
        assert daemon.run("expire", "archive: {older_than: 9d}", "expire: {keep: 10d}").rows == 0
        fill_celery_table(tables.url, 4000)
        assert daemon.run("expire", "expire: {keep: 10d}").rows > 1000, "10d are as usual by now"
        return
    (pair,) = daemon.policy("expire: {keep: 10d}").pairs_of("expire")
    report = Runner(daemon.ledger).run(pair, Trigger.COMMAND)
    assert report.outcome is Outcome.REFUSED
    assert report.error.startswith("keep went from 30d to 10d, and now 1,")
    assert Runner(daemon.ledger).run(pair, Trigger.COMMAND, accept_volume=True).rows > 1000


def test_with_other_times_the_archive_took_other_results(daemon: Daemon) -> None:
    daemon.run("archive", "archive: {older_than: 20d}", "expire: {keep: 25d}")
    report = daemon.run("expire", ARCHIVING, "expire: {keep: 10d}")
    assert (report.rows, codes(report)) == (0, ["expire.unarchived"])


def test_only_what_the_archive_takes_waits_for_it(daemon: Daemon, tables: TableStore) -> None:
    tables.execute("UPDATE celery_taskmeta SET queue = 'bulk' WHERE mod(id, 3) = 0")
    archive = "archive: {older_than: 8d, rules: [{queue: bulk, older_than: forever}]}"
    report = daemon.run("expire", archive, "expire: {keep: 10d, rules: [{queue: bulk, keep: 1d}]}")
    assert report.rows == 10
    assert codes(report) == ["expire.unarchived"]
    assert tables.execute("SELECT count(*) FROM celery_taskmeta WHERE queue = 'bulk'")[0][0] == 10


def test_told_to_it_removes_what_is_not_archived(daemon: Daemon, tables: TableStore) -> None:
    report = daemon.run("expire", ARCHIVING, "expire: {keep: 10d, allow_unarchived: true}")
    assert report.rows > 0
    assert codes(report) == []


def test_alone_it_waits_for_nobody(daemon: Daemon) -> None:
    assert daemon.run("expire", "expire: {keep: 10d}").rows > 0


def test_the_last_completed_run_of_the_archive_is_what_counts(daemon: Daemon, tables: TableStore) -> None:
    """An archive that has not completed for longer than lies between the two times holds the expiry back."""
    jobs = (ARCHIVING, "expire: {keep: 10d}")
    daemon.run("archive", *jobs)
    watermarks = daemon.ledger.watermarks("results")
    known = json.loads(watermarks.recall("completed archive") or "")
    earlier = datetime.fromisoformat(known["began"]) - timedelta(days=5)
    watermarks.remember("completed archive", json.dumps(known | {"began": earlier.isoformat()}))
    fill_celery_table(tables.url, 60)
    before = len(tables.ids())
    report = daemon.run("expire", *jobs)
    assert codes(report) == ["expire.unarchived"]
    assert f"began {earlier:%Y-%m-%d}" in report.findings[0].sentence
    # Of those that finished 7 to 27 days ago the ones of over 13 days: so far the archive had been.
    assert 15 <= report.rows <= 25
    assert len(tables.ids()) == before - report.rows


def test_a_run_that_ends_early_counts_from_its_beginning(daemon: Daemon, tables: TableStore) -> None:
    """The next one may go on where it ended: what it does not look at again was looked at then."""
    jobs = ("archive: {older_than: 8d, batch_size: 1, time_budget: 1ms}", "expire: {keep: 10d}")
    (pair,) = daemon.policy(*jobs).pairs_of("archive")
    runner, runs = Runner(daemon.ledger), 0
    first = datetime.now(UTC)
    while (report := runner.run(pair, Trigger.COMMAND)).outcome is Outcome.OUT_OF_TIME and runs < 5:
        runs += 1
        assert daemon.run("expire", *jobs).rows == 0
    assert report.outcome is Outcome.OUT_OF_TIME
    later = datetime.now(UTC)
    daemon.run("archive", ARCHIVING, jobs[1])
    known = json.loads(daemon.ledger.watermarks("results").recall("completed archive") or "")
    assert first <= datetime.fromisoformat(known["began"]) < later
