"""Bad weather on real servers, through the engine: every run ends, with a clear outcome, and a later one goes on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from backendops import embedded
from backendops.contracts.run import Outcome, Step, Trigger
from backendops.engine.ledger import Ledger
from backendops.engine.report import RunReport
from backendops.engine.runner import Run, RunListener, Runner
from backendops.policy.load import load_policy
from tests.conformance.redis_store import client_of, configured
from tests.redis_fleets import until

POLICY = """
version: 1
state: {state}
backends: {{cache: {{url: "{url}"}}}}
jobs:
  expire: {{keep: 30d, statement_timeout: 500ms}}
  archive: {{backend: cache, older_than: 1h, statement_timeout: 500ms, to: {{files: {files}}}}}
  redis-memory: {{statement_timeout: 500ms}}
  pool-health: {{}}
"""
RESULTS = 400
# Half a second for the statement, four for a new connection, and a machine that others use.
PATIENCE = 10.0


class OnFirstStep(RunListener):
    """Calls a function once, in the middle of a run."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call: Callable[[], Any] | None = call

    def stepped(self, run: Run, step: Step) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()


class Bench:
    """One server of the test's own, a policy for it, and the engine."""

    def __init__(self, directory: Path, *settings: str) -> None:
        self.server = embedded.start_valkey(
            directory / "server", password="", settings=["enable-debug-command yes", *settings]
        )
        files = directory / "archive"
        files.mkdir()
        path = directory / "policy.yaml"
        path.write_text(POLICY.format(state=directory / "state", url=self.server.url(), files=files))
        self.policy = load_policy(path)
        self.ledger = Ledger.open(str(directory / "state"))
        self.client = redis.Redis(port=self.server.port)

    def run(self, job: str, in_the_middle: Callable[[], Any] | None = None) -> RunReport:
        """Run a job to its end, whatever that is; it never takes longer than it may."""
        (pair,) = self.policy.pairs_of(job)
        began = time.monotonic()
        report = Runner(self.ledger, [OnFirstStep(in_the_middle)] if in_the_middle else ()).run(pair, Trigger.COMMAND)
        assert time.monotonic() - began < PATIENCE
        assert report.outcome is Outcome.COMPLETED or report.hint, "a failure says the way out"
        assert "unexpected" not in report.error
        return report

    def without_ttl(self) -> int:
        """Result keys that have none."""
        keys = cast(list[bytes], self.client.keys("celery-task-meta-*"))
        return sum(cast(int, self.client.ttl(key)) == -1 for key in keys)

    def close(self) -> None:
        self.client.close()
        self.ledger.close()
        self.server.stop()


@pytest.fixture
def bench(tmp_path: Path, fill_celery_keys: Callable[..., None]) -> Iterator[Bench]:
    running = Bench(tmp_path, "appendonly yes", "appendfsync no")
    try:
        fill_celery_keys(running.server.url(), RESULTS, 1.0)
        yield running
    finally:
        running.close()


def test_a_server_that_stops_answering_in_the_middle(bench: Bench) -> None:
    """SIGSTOP: the connection stays, and nothing comes any more."""

    def freeze() -> None:
        os.kill(bench.server.pid, signal.SIGSTOP)

    for job in ("expire", "archive"):
        try:
            report = bench.run(job, freeze)
            assert report.outcome is Outcome.UNREACHABLE, report
            assert "did not answer in time" in report.error
            if job == "expire":
                report = bench.run("redis-memory")
                assert report.outcome is Outcome.UNREACHABLE, "and a new connection to it ends soon too"
        finally:
            os.kill(bench.server.pid, signal.SIGCONT)
        # The lease of the lock that the broken run could not give back ends after a minute; here it ends now.
        until(bench.client.ping)
        bench.client.delete("backendops:lock:0")
        report = bench.run(job)
        assert report.outcome is Outcome.COMPLETED, report
    assert bench.without_ttl() == 0
    assert bench.run("archive").rows == 0
    assert bench.run("redis-memory").outcome is Outcome.COMPLETED


def test_a_cursor_that_outlives_a_restart(bench: Bench, fill_celery_keys: Callable[..., None]) -> None:
    fill_celery_keys(bench.server.url(), 5000, 1.0)
    report = bench.run("expire", bench.server.kill)
    assert report.outcome is Outcome.UNREACHABLE
    assert bench.ledger.watermarks("cache").recall("redis.expire.cursor") is not None
    bench.server.start()
    bench.client.delete("backendops:lock:0")
    assert bench.without_ttl() > 0
    assert bench.run("expire").outcome is Outcome.COMPLETED
    assert bench.without_ttl() == 0


def test_a_server_that_is_loading(bench: Bench) -> None:
    with configured(bench.client, key_load_delay=2500, loading_process_events_interval_bytes=1024):
        loading = bench.client.connection_pool.get_connection()
        loading.send_command("DEBUG", "RELOAD")
        until(lambda: is_loading(bench.server.url()))
        reports = [bench.run(job) for job in ("expire", "redis-memory")]
        loading.read_response()
        bench.client.connection_pool.release(loading)
    for report in reports:
        assert report.outcome is Outcome.BUSY
        assert "is loading its data" in report.error
    assert bench.run("expire").rows == RESULTS


def is_loading(url: str) -> bool:
    with client_of(url) as other:
        try:
            other.ping()
        except redis.exceptions.BusyLoadingError:
            return True
    return False


def test_a_snapshot_that_fails_stops_writes_and_says_so(bench: Bench) -> None:
    """MISCONF, as with an unwritable directory: what is in the way is a directory of the file's name."""
    obstacle = bench.server.directory / cast(dict[str, str], bench.client.config_get("dbfilename"))["dbfilename"]
    obstacle.mkdir()
    with configured(bench.client, stop_writes_on_bgsave_error="yes", save="3600 1000000"):
        snapshot(bench)
        with pytest.raises(redis.ResponseError, match="MISCONF"):
            bench.client.set("foreign", "x")
        for job in ("expire", "archive"):
            report = bench.run(job)
            assert report.outcome is Outcome.REFUSED
            assert "its last snapshot or append-only write failed" in report.error
            assert "BGSAVE" in report.hint
        report = bench.run("redis-memory")
        assert report.outcome is Outcome.COMPLETED
        assert "redis.snapshot-failed" in {finding.code for finding in report.findings}
        report = bench.run("pool-health")
        assert report.outcome is Outcome.COMPLETED
        assert report.findings == (), "it is up"
        obstacle.rmdir()
        snapshot(bench)
        assert bench.run("expire").rows == RESULTS


def snapshot(bench: Bench) -> None:
    bench.client.bgsave()
    until(lambda: not cast(dict[str, Any], bench.client.info("persistence"))["rdb_bgsave_in_progress"])


def test_a_server_at_its_limit_is_given_expiries_and_reads_go_on(bench: Bench) -> None:
    with configured(bench.client, maxmemory=1):
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            bench.client.set("foreign", "x")
        assert bench.run("redis-memory").outcome is Outcome.COMPLETED
        assert bench.run("archive").rows == RESULTS
        assert bench.run("expire").rows == RESULTS


def test_a_server_that_becomes_a_replica_in_the_middle(bench: Bench, fill_celery_keys: Callable[..., None]) -> None:
    fill_celery_keys(bench.server.url(), 10_000, 1.0)
    report = bench.run("expire", lambda: bench.client.replicaof("127.0.0.1", 1))
    assert report.outcome is Outcome.BUSY, report
    assert "has become a read-only replica" in report.error
    assert "sentinel://" in report.hint
    report = bench.run("expire")
    assert report.outcome is Outcome.COMPLETED, "a replica is left alone, which is no failure"
    assert "changed nothing" in report.what
    bench.client.replicaof("NO", "ONE")
    bench.client.delete("backendops:lock:0")
    assert bench.run("expire").outcome is Outcome.COMPLETED
    assert bench.without_ttl() == 0


@pytest.mark.parametrize(
    ("weather", "words"),
    [
        (("CONFIG", "SET", "requirepass", "s3cret"), "refused the login"),
        (("ACL", "SETUSER", "default", "-@all", "+ping", "+acl", "+client"), "does not permit its user"),
        (("ACL", "SETUSER", "default", "resetkeys", "~other:*"), "does not permit its user"),
    ],
    ids=["NOAUTH", "NOPERM on commands", "NOPERM on keys"],
)
def test_a_user_who_may_not(bench: Bench, weather: tuple[str, ...], words: str) -> None:
    bench.client.ping()
    bench.client.execute_command(*weather)
    for job in ("expire", "archive"):
        report = bench.run(job)
        assert report.outcome is Outcome.REFUSED, report
        assert words in report.error
        assert "s3cret" not in report.error + report.hint


def test_a_node_of_a_cluster_is_refused_with_what_it_is(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "cluster-enabled yes")
    try:
        for job in ("expire", "archive", "redis-memory"):
            report = bench.run(job)
            assert report.outcome is Outcome.REFUSED
            assert "is a node of a Redis Cluster" in report.error
    finally:
        bench.close()
