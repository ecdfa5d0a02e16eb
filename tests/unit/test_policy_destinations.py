"""Where archives go: what `to:` may say, which store it becomes, and every problem with it at its place."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from backendops.backends.files import FORMATS, FileStore
from backendops.contracts.capabilities import ArchivePlan, KeptFor
from backendops.contracts.errors import PolicyError
from backendops.jobs.archive import Archive
from backendops.jobs.partition import Partition
from backendops.policy.load import load_policy
from backendops.policy.model import Policy

BACKENDS = """
version: 1
backends:
  results: {url: "db+postgresql://a@host/one", date_done_timezone: Europe/Berlin}
  more: {url: "db+postgresql://a@host/two"}
  warehouse: {url: "db+postgresql://a@host/three"}
  cache: {url: "redis://host/0"}
jobs:
"""


def loaded(tmp_path: Path, jobs: str) -> Policy:
    policy = tmp_path / "policy.yaml"
    policy.write_text(BACKENDS + jobs)
    return load_policy(policy)


def problems(tmp_path: Path, jobs: str) -> list[str]:
    with pytest.raises(PolicyError) as refused:
        loaded(tmp_path, jobs)
    return [f"{problem.line}:{problem.column} {problem.message}" for problem in refused.value.problems]


def archive(policy: Policy, number: int = 0) -> Archive:
    job = policy.pairs[number].job
    assert isinstance(job, Archive)
    return job


def test_files_lie_beside_the_policy_unless_their_path_is_absolute(tmp_path: Path) -> None:
    job = archive(loaded(tmp_path, "  archive: {backend: results, older_than: 7d, to: {files: kept}}"))
    assert isinstance(job.store, FileStore)
    assert (job.store.path, job.source) == (tmp_path / "kept", "results")
    job = archive(loaded(tmp_path, "  archive: {backend: results, older_than: 7d, to: {files: /srv/kept}}"))
    assert job.store is not None
    assert job.store.label == "files in /srv/kept"


def test_left_out_it_is_a_table_in_the_same_database(tmp_path: Path) -> None:
    assert archive(loaded(tmp_path, "  archive: {backend: results, older_than: 7d}")).store is None


def test_every_backend_that_can_but_the_one_that_keeps_it(tmp_path: Path) -> None:
    policy = loaded(tmp_path, "  archive: {older_than: 7d, table: '{backend}_{table}', to: {backend: warehouse}}")
    assert [pair.backend_name for pair in policy.pairs] == ["results", "more", "cache"]
    assert all(pair.job.store for pair in policy.pairs if isinstance(pair.job, Archive))


def test_the_backends_name_in_a_path(tmp_path: Path) -> None:
    policy = loaded(tmp_path, "  archive: {backend: [results, more], older_than: 7d, to: {files: '/srv/{backend}'}}")
    stores = [archive(policy, number).store for number in range(2)]
    assert [store.label for store in stores if store] == ["files in /srv/results", "files in /srv/more"]


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("{}", "names? one of the two"),
        ("{files: /a, backend: warehouse}", "an archive goes to a backend or to files"),
        ("{backend: warehouse, format: parquet}", "format is for files"),
        ("{files: /a, format: csv}", "'to.format' must be 'jsonl.gz' or 'parquet'"),
        ("{backend: warehose}", "unknown backend 'warehose', did you mean 'warehouse'?"),
        ("{backend: results}", "'results' cannot be archived to itself: leave `to` out"),
        ("{backend: cache}", "'cache' cannot keep an archive: RedisBackend has no place for it; 'more', 'results', "),
        ("{file: /a}", "unknown key 'file' in to of job 'archive', did you mean 'files'?"),
        ("/srv/archive", "'to' must be a mapping"),
    ],
)
def test_problems(tmp_path: Path, to: str, message: str) -> None:
    found = problems(tmp_path, f"  archive: {{backend: results, older_than: 7d, to: {to}}}")
    assert any(message.replace("s?", "") in one for one in found), found
    assert all(one.startswith("9:") for one in found)


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FORMATS["parquet"], "extra", ("no_such_module", "parquet"))
    (said,) = problems(tmp_path, "  archive: {backend: results, older_than: 7d, to: {files: /a, format: parquet}}")
    assert said.endswith("what writes parquet is not installed: pip install 'backendops[parquet]'")


@pytest.mark.parametrize("to", ["{files: /srv/kept}", "{backend: warehouse}"])
def test_two_sources_in_one_archive(tmp_path: Path, to: str) -> None:
    (said,) = problems(tmp_path, f"  archive: {{backend: [results, more], older_than: 7d, to: {to}}}")
    assert "the archives of 'results' and 'more' would be one: write {backend} in" in said


def test_the_partition_job_of_the_destination_looks_after_what_is_sent_there(tmp_path: Path) -> None:
    policy = loaded(
        tmp_path,
        "  far: {kind: archive, backend: [results, cache], older_than: 7d, every: day, table: '{backend}_{table}',"
        " to: {backend: warehouse}}\n"
        "  again: {kind: archive, backend: results, older_than: 9d, every: week, table: '{backend}_{table}',"
        " to: {backend: warehouse}}\n"
        "  files: {kind: archive, backend: more, older_than: 7d, to: {files: /srv/kept}}\n"
        "  partition: {keep: 13 months}",
    )
    kept = {
        pair.backend_name: pair.job.plan(datetime.now(UTC)).kept_for
        for pair in policy.pairs
        if isinstance(pair.job, Partition)
    }
    assert kept == {
        "results": (),
        "more": (),
        "warehouse": (
            KeptFor("results", ArchivePlan("results_{table}", None, "day")),
            KeptFor("cache", ArchivePlan("cache_{table}", None, "day")),
        ),
    }


def test_what_is_sent_is_not_retired_as_it_comes(tmp_path: Path) -> None:
    jobs = "  far: {kind: archive, backend: results, older_than: 30d, to: {backend: warehouse}}\n"
    (said,) = problems(tmp_path, jobs + "  partition: {keep: 30d}")
    assert said.startswith("10:21 job 'partition' retires what 'far' sends to 'warehouse' after 30d, no later than")
    loaded(tmp_path, jobs + "  partition: {backend: [results, more], keep: 30d}")
    loaded(tmp_path, jobs + "  partition: {keep: 31d}")


@pytest.mark.parametrize("source", ["results", "cache"])
def test_the_destinations_own_archive_is_another(tmp_path: Path, source: str) -> None:
    jobs = f"  far: {{kind: archive, backend: {source}, older_than: 7d, to: {{backend: warehouse}}}}\n"
    own = "  archive: {backend: warehouse, older_than: 7d"
    (said,) = problems(tmp_path, jobs + own + "}")
    assert f"celery_taskmeta_archive would be the archive of {source!r} and, by job 'archive', of 'warehouse'" in said
    loaded(tmp_path, jobs + own + ", schema: own}")
    loaded(tmp_path, jobs + own + ", table: '{table}_own'}")


def test_a_home_that_there_is_not(tmp_path: Path) -> None:
    (said,) = problems(tmp_path, "  archive: {backend: results, older_than: 7d, to: {files: ~no-such-user/kept}}")
    assert "home directory" in said


def test_archives_elsewhere_need_not_agree_with_the_one_here(tmp_path: Path) -> None:
    policy = loaded(
        tmp_path,
        "  archive: {backend: results, older_than: 7d}\n"
        "  far: {kind: archive, backend: results, older_than: 30d, every: day, to: {files: /srv/kept}}",
    )
    assert len(policy.pairs) == 2
