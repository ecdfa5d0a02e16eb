"""The archives of other backends in a database are partitioned and retired by that database's own partition job."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backendops.backends.postgres import PostgresBackend
from backendops.contracts import metrics
from backendops.contracts.archive import CanKeepArchive
from backendops.contracts.capabilities import VacuumPlan
from backendops.contracts.errors import BackendLocked
from backendops.contracts.run import Limits, Outcome, Trigger
from backendops.engine.ledger import Ledger
from backendops.engine.report import RunReport
from backendops.engine.runner import Runner
from backendops.jobs.archive import Archive
from backendops.jobs.partition import Partition
from backendops.policy.load import load_policy
from backendops.policy.model import Pair
from tests.celery_rows import fill_celery_table
from tests.conformance.stores import LIVE, FixedPace, TableStore, drive
from tests.servers import Postgres

CAPABILITY = CanKeepArchive

DAY = timedelta(days=1)
NOW = datetime.now(UTC)
ARCHIVE = "results_celery_taskmeta"
POLICY = """
version: 1
backends: {{results: {{url: "{results}"}}, warehouse: {{url: "{warehouse}"}}}}
jobs:
  archive: {{backend: results, older_than: 7d, every: week, table: "{{backend}}_{{table}}", to: {{backend: warehouse}}}}
  partition: {{backend: warehouse, keep: 60d, ahead: 2}}
"""


class Two:
    """A result store and another database that keeps its archive, under one policy."""

    def __init__(self, results: str, warehouse: str, directory: Path) -> None:
        self.results = TableStore(PostgresBackend, results)
        self.warehouse = TableStore(PostgresBackend, warehouse)
        policy = directory / "policy.yaml"
        policy.write_text(POLICY.format(results=results, warehouse=warehouse))
        self.pairs = {pair.job_name: pair for pair in load_policy(policy).pairs}
        self.ledger = Ledger.in_memory()

    def run(self, job: str) -> RunReport:
        """Run one of the two jobs now."""
        return Runner(self.ledger).run(self.pairs[job], Trigger.COMMAND)

    def partition(self, now: datetime, stop_after: int | None = None) -> list[str]:
        """The partition job as it is at that moment; what it says it did."""
        pair: Pair = self.pairs["partition"]
        assert isinstance(pair.job, Partition)
        with self.warehouse.opened() as backend:
            steps = drive(pair.job.run(backend, now, FixedPace(100)), stop_after)
        assert [finding for step in steps for finding in step.findings if "no table" in finding.sentence] == []
        return [step.what for step in steps if step.what]

    def archived(self) -> int:
        """How many results are in the archive."""
        found = self.warehouse.execute(f"SELECT count(*) FROM {ARCHIVE}")
        return int(found[0][0])

    def attached(self, archive: str = ARCHIVE) -> list[str]:
        """The partitions of an archive."""
        rows = self.warehouse.execute(
            f"SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = '{archive}'::regclass ORDER BY 1"
        )
        return [row[0] for row in rows]


@pytest.fixture
def two(postgres18_server: Postgres, postgres18_url: str, tmp_path: Path) -> Iterator[Two]:
    name = postgres18_server.create_database()
    stores = Two(postgres18_url, postgres18_server.celery_url(name), tmp_path)
    yield stores
    stores.ledger.close()
    postgres18_server.drop_database(name)


def test_made_ahead_retired_quarantined_and_dropped(two: Two) -> None:
    assert two.partition(NOW) == ["no other backend has archived anything here yet: nothing to partition"]
    fill_celery_table(two.results.url, 60, older_than=50 * DAY, spread=30 * DAY)
    assert two.run("archive").rows == 30
    ended = two.run("partition")
    assert (ended.outcome, ended.findings) == (Outcome.COMPLETED, ())
    # How many are made depends on the day of the week: the ten sentences it keeps may not come to what it detached.
    assert f'made "public"."{ARCHIVE}_p' in ended.what
    assert len(two.attached("results_celery_tasksetmeta")) == 1 + 2
    # Of weeks, as the archive job makes them, the one of today, two ahead, and every gap up to them.
    starts = [name for name in two.attached() if "_w" in name]
    assert len(starts) == len(two.attached()) >= 8 + 3
    assert 0 < two.archived() < 30
    assert two.partition(NOW) == []
    with two.warehouse.previewing() as backend:
        preview = two.pairs["partition"].job.preview(backend, NOW + 8 * DAY)
        quarantined = next(one.value for one in preview.readings if one.metric is metrics.PARTITIONS_QUARANTINED)
    assert quarantined > 0
    assert "drop results_celery_taskmeta_p" in preview.summary
    assert sum(said.startswith("dropped") for said in two.partition(NOW + 8 * DAY)) == quarantined


def test_a_run_that_archives_and_one_that_retires_keep_each_other_out(two: Two) -> None:
    fill_celery_table(two.results.url, 20, older_than=70 * DAY)
    two.run("archive")
    archive = two.pairs["archive"].job
    assert isinstance(archive, Archive)
    assert archive.store is not None
    with archive.store.open("results", Limits()):
        ended = two.run("partition")
        assert ended.outcome is Outcome.LOCKED
        assert "a run that archives from 'results', or restores to it" in ended.error
    pair = two.pairs["partition"]
    with two.warehouse.opened() as backend:
        steps = pair.job.run(backend, NOW, FixedPace(100))
        next(steps)
        assert two.run("archive").outcome is Outcome.LOCKED
        with pytest.raises(BackendLocked), archive.store.open("results", Limits()):
            pass
        steps.close()
    assert two.run("archive").outcome is Outcome.COMPLETED
    assert two.run("partition").outcome is Outcome.COMPLETED


def test_a_partition_with_a_copy_that_is_not_settled_waits(two: Two) -> None:
    fill_celery_table(two.results.url, 20, older_than=70 * DAY)
    archive = two.pairs["archive"].job
    with two.results.opened() as backend:
        steps = archive.run(backend, NOW, FixedPace(100))
        while not (two.warehouse.has_table(ARCHIVE) and two.archived()):
            next(steps)
        steps.close()
    assert len(two.results.ids()) == 20
    ended = two.run("partition")
    assert {finding.code for finding in ended.findings} == {"partition.batch-not-settled"}
    assert two.archived() == 10
    assert two.run("archive").rows == 10
    assert two.archived() == 10
    assert two.run("partition").findings == ()
    assert two.archived() == 0


def test_a_live_table_of_the_destination_does_not_make_the_archive_its_own(two: Two) -> None:
    """By its name it would be: both jobs agree that it is the other backend's."""
    fill_celery_table(two.warehouse.url, 20)
    fill_celery_table(two.results.url, 20)
    two.run("archive")
    two.warehouse.execute(f"ALTER TABLE {LIVE} RENAME TO live")
    two.warehouse.execute(f"CREATE TABLE {LIVE} (LIKE live)")
    archive, partition = two.pairs["archive"].job, two.pairs["partition"].job
    assert isinstance(archive, Archive)
    assert isinstance(partition, Partition)
    assert archive.store is not None
    named_alike = partition.model_copy(update={"table": "results_{table}"}).looking_after(partition.plan(NOW).kept_for)
    before = two.attached()
    with archive.store.open("results", Limits()), two.warehouse.opened() as backend:
        with pytest.raises(BackendLocked):
            drive(named_alike.run(backend, NOW, FixedPace(100)))
        assert two.attached() == before
    assert two.run("archive").outcome is Outcome.COMPLETED


def test_vacuum_there_looks_after_them_too(two: Two) -> None:
    fill_celery_table(two.results.url, 40, older_than=50 * DAY)
    two.run("archive")
    with two.warehouse.opened() as backend:
        plan = VacuumPlan(NOW, 1000, 0.1, timedelta(days=7))
        said = [step.what for step in drive(backend.vacuum(plan, FixedPace(100)))]
    assert any(f'froze "public"."{ARCHIVE}_p' in one for one in said)
