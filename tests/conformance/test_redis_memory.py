"""redis-memory: true figures from real servers, and the findings they lead to."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from kombu import Connection, Queue

from backendops import embedded
from backendops.backends.redis import clients, forecast
from backendops.contracts.capabilities import MemoryReport
from backendops.contracts.run import Limits, NoWatermarks, Preview
from backendops.jobs.redis_memory import RedisMemory
from tests.conformance.redis_store import FixedPace, client_of, configured, everything, opened
from tests.redis_fleets import until

# Celery 5.7 calls SETEX in the way that redis-py 8 would rather not see.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

JOB = RedisMemory()


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the server under test."""
    with client_of(redis_url) as connected:
        yield connected


def report(url: str, seconds: float = 5, **policy: Any) -> MemoryReport:
    with opened(url, limits=Limits(read_only=True), **policy) as backend:
        return backend.report_memory(timedelta(seconds=seconds))


def preview(url: str) -> Preview:
    with opened(url, limits=Limits(read_only=True)) as backend:
        return JOB.preview(backend, datetime.now(UTC))


def codes(url: str) -> dict[str, str]:
    return {finding.code: finding.severity.value for finding in preview(url).findings}


def queue(url: str, name: str = "celery") -> None:
    """A broker's queue with a waiting message, by kombu itself."""
    with Connection(url) as connection:
        channel = connection.channel()
        bound = Queue(name, channel=channel, exchange=name, routing_key=name)
        bound.declare()
        connection.Producer(channel).publish({}, exchange=name, routing_key=name)


def test_the_figures_are_the_servers_own(
    redis_url: str, client: redis.Redis, celery_results: Callable[..., list[str]]
) -> None:
    celery_results(redis_url, 10, groups=2, result_expires=None)
    celery_results(redis_url, 5, result_expires=3600)
    for part, value in ((".s", "3"), (".t", "1")):
        client.set(f"celery-taskset-meta-g{part}", value)
    client.set("foreign", "x")

    found = report(redis_url)

    assert found.sampled == 1.0
    assert found.result_keys == {"task": 21, "group": 2, "chord": 2}
    assert found.result_keys_without_ttl == 18, "a chord in use has no expiry on purpose"
    assert (found.keys, found.keys_without_ttl) == (26, 21)
    weighed = sum(cast(int, client.memory_usage(key)) for key in client.keys("celery-task-meta-*"))
    assert found.result_bytes["task"] == weighed
    assert found.biggest[0][1] == max(cast(int, client.memory_usage(key)) for key in client.keys("celery-*"))
    info = cast(dict[str, Any], client.info("memory"))
    assert abs(found.used - info["used_memory"]) < 1_000_000
    assert found.peak >= found.used
    assert found.total == info["total_system_memory"]
    assert found.limit == 0
    assert found.eviction_policy == "noeviction"
    assert found.allocator == info["mem_allocator"]
    assert found.rdb_last_save is None, "the test servers write no snapshots"


def test_the_run_exports_what_the_report_says(redis_url: str, celery_results: Callable[..., list[str]]) -> None:
    celery_results(redis_url, 10, result_expires=None)
    with opened(redis_url) as backend:
        (step,) = JOB.run(backend, datetime.now(UTC), FixedPace())

    values = {(reading.metric.name, reading.labels): reading.value for reading in step.readings}
    assert values["backendops_redis_result_keys", (("kind", "task"),)] == 10
    assert values["backendops_redis_keys_without_ttl", ()] == 10
    assert values["backendops_redis_memory_used_bytes", ()] > 500_000
    assert values["backendops_redis_memory_limit_bytes", ()] == 0
    assert values["backendops_findings", (("severity", "warning"),)] == 1
    missing = {metric.name for metric in JOB.metrics} - {name for name, _ in values}
    assert missing == {"backendops_redis_last_save_age_seconds"}, "there is no snapshot to tell the age of"
    assert "10 result keys" in step.what


def test_the_age_of_a_snapshot_is_told(redis_url: str, client: redis.Redis) -> None:
    with configured(client, save="3600 1"):
        client.set("a", "b")
        client.save()
        client.set("a", "c")
        found = report(redis_url)
        readings = {reading.metric.name: reading.value for reading in preview(redis_url).readings}

    assert found.rdb_last_save is not None
    assert abs(datetime.now(UTC) - found.rdb_last_save) < timedelta(seconds=10)
    assert found.rdb_last_ok
    assert found.rdb_changes == 1
    assert readings["backendops_redis_last_save_age_seconds"] < 10


def test_a_snapshot_that_fails_is_critical(redis_url: str, client: redis.Redis) -> None:
    settings = cast(dict[str, str], client.config_get("d*"))
    # In the way of the file: the server cannot rename its snapshot over a directory.
    obstacle = Path(settings["dir"]) / settings["dbfilename"]
    obstacle.unlink(missing_ok=True)
    obstacle.mkdir()
    try:
        snapshot(client)
        found = codes(redis_url)
    finally:
        obstacle.rmdir()
        snapshot(client)
        obstacle.unlink()
    assert found["redis.snapshot-failed"] == "critical"
    assert "redis.snapshot-failed" not in codes(redis_url)


def snapshot(client: redis.Redis) -> None:
    """BGSAVE, and wait until it has ended, well or not."""
    client.bgsave()
    deadline = time.monotonic() + 10
    while cast(dict[str, Any], client.info("persistence"))["rdb_bgsave_in_progress"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_large_keyspace_is_sampled_within_its_time(redis_url: str, fill_celery_keys: Callable[..., None]) -> None:
    fill_celery_keys(redis_url, 20_000, 0.25)

    found = report(redis_url, seconds=0)

    assert 0.01 < found.sampled < 0.5
    # A thousand or so of the keys were seen: a quarter of them, within what chance allows.
    assert abs(found.result_keys["task"] - 20_000) <= 20
    assert 3_500 < found.result_keys_without_ttl < 6_500
    whole = report(redis_url)
    assert whole.sampled == 1.0
    assert (whole.result_keys["task"], whole.result_keys_without_ttl) == (20_000, 5_000)
    assert found.result_bytes["task"] == pytest.approx(whole.result_bytes["task"], rel=0.02)


def test_looking_changes_nothing(redis_url: str, client: redis.Redis, celery_results: Callable[..., Any]) -> None:
    celery_results(redis_url, 10, groups=1, result_expires=None)
    queue(redis_url)
    before = everything(client)

    preview(redis_url)

    assert everything(client) == before


def test_a_broker_in_the_same_database_is_seen(redis_url: str, client: redis.Redis) -> None:
    assert report(redis_url).broker_keys == 0
    queue(redis_url, "reports")
    client.set("celery-task-meta-1", "x")

    found = report(redis_url)

    names = cast(list[bytes], client.keys("*reports*"))
    assert {b"reports", b"_kombu.binding.reports"} <= set(names)
    assert found.broker_keys == len(names)
    assert found.result_keys["task"] == 1


def test_a_broker_is_seen_without_a_full_scan_and_in_another_database(
    redis_url: str, client: redis.Redis, fill_celery_keys: Callable[..., None]
) -> None:
    queue(redis_url)
    fill_celery_keys(redis_url, 20_000, 0)
    assert report(redis_url, seconds=0).broker_keys > 0

    other = redis_url.removesuffix("/0") + "/5"
    with client_of(other) as results:
        results.set("celery-task-meta-1", "x", ex=1000)
    with configured(client, maxmemory_policy="allkeys-lru"):
        assert report(other).broker_databases == (0,)
        (found,) = (finding for finding in preview(other).findings if "broker" in finding.code)
        assert "in database 0 of the same server" in found.sentence
        assert report(redis_url, seconds=0).broker_databases == ()
    assert report(other).broker_databases == ()


@pytest.mark.parametrize(
    ("policy", "limited", "broker", "expected"),
    [
        ("allkeys-lru", True, True, {"redis.eviction-can-hit-broker": "critical"}),
        ("allkeys-lru", False, True, {"redis.eviction-can-hit-broker": "warning", "redis.no-memory-limit": "info"}),
        ("allkeys-lfu", True, False, {"redis.eviction-can-drop-results": "warning"}),
        ("volatile-ttl", True, True, {}),
        ("noeviction", True, True, {}),
    ],
)
def test_eviction_is_judged_by_what_lives_in_the_database(
    redis_url: str,
    client: redis.Redis,
    celery_results: Callable[..., Any],
    policy: str,
    limited: bool,
    broker: bool,
    expected: dict[str, str],
) -> None:
    celery_results(redis_url, 3, result_expires=3600)
    if broker:
        queue(redis_url)
    with configured(client, maxmemory_policy=policy, maxmemory=100_000_000 if limited else 0):
        assert codes(redis_url) == expected


@pytest.mark.parametrize("policy", ["noeviction", "volatile-lru"])
@pytest.mark.parametrize(("part", "severity"), [(0.85, "warning"), (0.97, "critical")])
def test_near_the_limit_results_without_an_expiry_stop_every_write(
    redis_url: str, client: redis.Redis, celery_results: Callable[..., Any], policy: str, part: float, severity: str
) -> None:
    celery_results(redis_url, 3, result_expires=None)
    # So much that what the connections take does not count; made there, as what is sent would take memory for a while.
    client.setrange("foreign", 20_000_000, b"x")
    used = cast(dict[str, Any], client.info("memory"))["used_memory"]
    with configured(client, maxmemory_policy=policy, maxmemory=int(used / part)):
        found = codes(redis_url)
    assert found == {
        "redis.memory-near-limit": severity,
        "redis.writes-will-fail": severity,
        "redis.results-without-ttl": "warning",
    }


def test_keys_that_were_evicted_are_told(redis_url: str, client: redis.Redis) -> None:
    for number in range(200):
        client.set(f"old:{number}", b"x" * 10_000, ex=5000)
    used = cast(dict[str, Any], client.info("memory"))["used_memory"]
    with configured(client, maxmemory_policy="volatile-ttl", maxmemory=used - 500_000):
        client.set("one more", "x")
        found = preview(redis_url)

    (evicted,) = (finding for finding in found.findings if finding.code == "redis.keys-evicted")
    assert evicted.severity.value == "warning"
    assert evicted.sentence.split()[0].isdigit()


def test_settings_that_may_not_be_read_are_done_without(redis_url: str, client: redis.Redis) -> None:
    client.acl_setuser("reader", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-config"])
    try:
        with opened(redis_url.replace("://", "://reader:x@")) as backend:
            assert backend.report_memory(timedelta(seconds=1)).rdb_last_save is None
    finally:
        client.acl_deluser("reader")


def found_by(url: str, **policy: Any) -> dict[str, str]:
    """The sentences of the findings, by code."""
    with opened(url, limits=Limits(read_only=True)) as backend:
        findings = RedisMemory.model_validate(policy).preview(backend, datetime.now(UTC)).findings
    return {finding.code: finding.sentence for finding in findings}


def test_connections_are_told_by_name_library_and_host(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "IDLE", 0)
    pool = redis.ConnectionPool.from_url(redis_url, client_name="leaky")
    connections = [pool.get_connection() for _ in range(7)]
    try:
        for connection in connections:
            connection.send_command("PING")
            connection.read_response()
        health = report(redis_url).server
        assert health is not None
        (leaky,) = [group for group in health.clients if group.name == "leaky"]
        assert (leaky.count, leaky.idle, leaky.host) == (7, 7, "127.0.0.1")
        assert leaky.library.startswith("redis-py")
        assert health.notes == ()
        assert (
            "7 of 7 connections of leaky (redis-py" in found_by(redis_url, idle_clients_warning=7)["redis.clients-idle"]
        )
        assert "redis.clients-idle" not in found_by(redis_url, idle_clients_warning=8)
    finally:
        for connection in connections:
            connection.disconnect()


def test_answers_that_nobody_takes_are_told(redis_url: str, client: redis.Redis) -> None:
    client.set("foreign", b"x" * 1_000_000)
    port = int(redis_url.rpartition(":")[2].partition("/")[0])
    with socket.create_connection(("127.0.0.1", port)) as hanging:
        hanging.sendall(b"CLIENT SETNAME hanging\r\n" + b"GET foreign\r\n" * 40)
        deadline = time.monotonic() + 10
        while "redis.output-buffers" not in (found := found_by(redis_url, output_buffer_warning="8MiB")):
            assert time.monotonic() < deadline, found
        assert "wait for hanging on 127.0.0.1 to take them" in found["redis.output-buffers"]
        health = report(redis_url).server
        assert health is not None
        assert health.clients_output > 8_000_000


def test_channels_that_are_left_behind_are_told(redis_url: str, client: redis.Redis) -> None:
    with client.pubsub() as waiting:
        waiting.subscribe("foreign", *(f"celery-task-meta-{number}" for number in range(6)))
        for _ in range(7):
            assert waiting.get_message(timeout=5)
        for number in range(4):
            client.set(f"celery-task-meta-{number}", "x", ex=100)
        health = report(redis_url).server
        assert health is not None
        assert (health.result_channels, health.channels_looked_at, health.channels_of_the_past) == (6, 6, 4)
        told = found_by(redis_url, channels_warning=6)["redis.channels-left"]
        assert "6 channels" in told
        assert "4 wait for a result that is there" in told
        with opened(redis_url, global_keyprefix="other") as backend:
            server = backend.report_memory(timedelta(seconds=1)).server
        assert server is not None
        assert server.result_channels == 0


def test_a_replica_that_hangs_is_told_and_one_that_lost_its_master(valkey_url: str, tmp_path: Path) -> None:
    port = int(valkey_url.rpartition(":")[2].partition("/")[0])
    with client_of(valkey_url) as master, configured(master, repl_diskless_sync_delay=0, repl_timeout=600):
        replica = embedded.start_valkey(tmp_path / "replica", password="", settings=[f"replicaof 127.0.0.1 {port}"])
        try:
            until(lambda: (health := report(valkey_url).server) and [one for one in health.replicas if one.online])
            assert "redis.replica-late" not in found_by(valkey_url)
            os.kill(replica.pid, signal.SIGSTOP)
            try:
                master.set("foreign", b"x" * 100_000)
                told = until(lambda: found_by(valkey_url, replica_lag_warning="1s").get("redis.replica-late"))
            finally:
                os.kill(replica.pid, signal.SIGCONT)
            assert told.startswith("the replica 127.0.0.1:")
            assert "97." in told
            assert "KiB behind" in told
            with client_of(replica.url()) as itself:
                itself.replicaof("127.0.0.1", 1)
                told = until(lambda: found_by(replica.url()).get("redis.master-lost"))
            assert "lost its master" in told
        finally:
            replica.stop()


def test_what_may_not_be_asked_is_said_once_and_the_rest_works(redis_url: str, client: redis.Redis) -> None:
    client.acl_setuser("reader", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-client|list", "-pubsub"])
    try:
        with client.pubsub() as waiting:
            waiting.subscribe("celery-task-meta-1")
            assert waiting.get_message(timeout=5)
            with opened(redis_url.replace("://", "://reader:x@")) as backend:
                health = backend.report_memory(timedelta(seconds=1)).server
    finally:
        client.acl_deluser("reader")
    assert health is not None
    assert [note.split(" is not permitted")[0] for note in health.notes] == ["CLIENT LIST", "PUBSUB"]
    assert (health.clients, health.result_channels) == ((), None)


def test_the_hit_rate_is_of_late_and_without_our_own_lookups(
    valkey_url: str, celery_results: Callable[..., list[str]]
) -> None:
    celery_results(valkey_url, 20, result_expires=None)
    watermarks = NoWatermarks()

    def look() -> MemoryReport:
        with opened(valkey_url, watermarks=watermarks) as backend:
            return backend.report_memory(timedelta(seconds=1))

    def ask(name: str, times: int) -> None:
        with client_of(valkey_url) as client, client.pipeline(transaction=False) as pipe:
            for _ in range(times):
                pipe.get(name)
            pipe.execute()

    ask("celery-task-meta-none", 15_000)
    first = look()
    assert first.server is not None
    assert first.server.lookups is None
    (early,) = [found for found in JOB.findings(first, datetime.now(UTC)) if found.code == "redis.hit-rate-low"]
    assert "since the server started" in early.sentence
    assert [found.code for found in JOB.findings(look(), datetime.now(UTC)) if "hit-rate" in found.code] == []
    ask("celery-task-meta-none", 12_000)
    last = look()
    assert last.server is not None
    assert last.server.lookups is not None
    assert (last.server.lookups.hits, last.server.lookups.misses) == (0, 12_000), "not our own"
    (late,) = [found for found in JOB.findings(last, datetime.now(UTC)) if found.code == "redis.hit-rate-low"]
    assert "only 0% of 12,000 lookups in the last" in late.sentence


def test_memory_that_rises_is_forecast_from_the_ledger(redis_url: str, client: redis.Redis) -> None:
    marks = NoWatermarks()
    used = cast(dict[str, Any], client.info("memory"))["used_memory"]
    run_id = cast(dict[str, Any], client.info("server"))["run_id"]
    now = time.time()
    points = [[now - 60 * (60 - n), used - 100_000 * (60 - n)] for n in range(60)]
    marks.remember(forecast.MARK, json.dumps({"run": run_id, "points": points}))
    with configured(client, maxmemory=used + 30_000_000), opened(redis_url, watermarks=marks) as backend:
        (step,) = JOB.run(backend, datetime.now(UTC), FixedPace())
    (found,) = [finding for finding in step.findings if finding.code == "redis.memory-full-soon"]
    # 100,000 bytes a minute, and 300 times as much is left: about five hours.
    assert found.severity.value == "critical"
    assert "in about 4h 5" in found.sentence or "in about 5h" in found.sentence
    written = json.loads(marks.recall(forecast.MARK) or "")
    assert len(written["points"]) == 61
    assert written["points"][:60] == [[round(moment), round(size)] for moment, size in points]
