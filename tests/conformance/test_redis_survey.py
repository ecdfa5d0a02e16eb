"""The survey: every key is counted once, by kind, time left and age; nothing is changed, nothing private is shown."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from click.testing import CliRunner, Result

from backendops.backends.redis import scripts
from backendops.backends.redis import survey as surveying
from backendops.backends.redis.courtesy import AMONG_OTHERS, FEW_KEYS, REST, Courtesy
from backendops.cli import cli
from backendops.contracts.keyspace import BUCKETS, Keyspace
from backendops.contracts.run import NoWatermarks
from backendops.jobs.expire import Expire
from backendops.jobs.redis_memory import RedisMemory
from tests.conformance.redis_canary import broker_and_others, canary
from tests.conformance.redis_store import FixedPace, client_of, everything, opened
from tests.redis_fleets import until

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with client_of(redis_url) as connected:
        yield connected


def surveyed(url: str, **options: Any) -> Keyspace:
    with opened(url) as backend:
        return backend.survey_keys(**options)


def without_scripts(url: str, client: redis.Redis) -> str:
    client.execute_command("ACL SETUSER plain reset on >secret ~* &* +@all -@scripting")
    return url.replace("redis://", "redis://plain:secret@")


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_every_key_is_counted_once(
    redis_url: str, client: redis.Redis, celery_results: Callable[..., list[str]], back_date: Any, scripts: bool
) -> None:
    url = redis_url if scripts else without_scripts(redis_url, client)
    ids = celery_results(redis_url, 20, groups=2, started=3, result_expires=86400)
    back_date(redis_url, ids[:5], timedelta(days=10))
    client.persist(f"celery-task-meta-{ids[0]}")
    client.expire(f"celery-task-meta-{ids[1]}", 30)
    client.sadd("celery-taskset-meta-x.d", "1:0")
    tasks = len(client.keys("celery-task-meta-*"))
    with canary(redis_url, client) as others:
        found = surveyed(url)

        kinds = {kind: figures.keys for kind, figures in found.kinds.items()}
        assert sum(kinds.values()) == found.keys == client.dbsize()
        # Keys that have a result's name but not its type count by their name.
        named = [name for name in others if name.startswith(b"celery-task-meta-") and len(name) > 17]
        assert kinds["task"] == tasks + len(named)
        assert kinds["chord"] == 1 + sum(name[-2:] in {b".s", b".j"} for name in others if b"taskset" in name[:14])
        assert kinds["rpc"] == 1
        broker = [name for name in others if b"_kombu" in name or b"unacked" in name or b"pidbox" in name]
        assert kinds["broker"] >= len(broker) + 3, "the queues are known by their bindings"
        task = found.kinds["task"]
        assert task.keys == task.without_ttl + sum(task.ttl)
        assert task.ttl[BUCKETS.index("1m")] == 1
        assert task.ttl[BUCKETS.index("1d")] == tasks - 2
        assert found.ages[BUCKETS.index("30d")] == 5
        assert {share.name for share in found.states} >= {"SUCCESS", "FAILURE", "STARTED"}
        assert any(not note.startswith("scripts") for note in found.notes) is False
        assert bool(found.notes) is not scripts


def test_both_ways_find_the_same(redis_url: str, client: redis.Redis, celery_results: Callable[..., Any]) -> None:
    celery_results(redis_url, 50, groups=5, started=5, result_expires=3600)
    broker_and_others(redis_url, client).close()
    one, other = surveyed(redis_url), surveyed(without_scripts(redis_url, client))
    assert one.kinds == other.kinds
    assert (one.states, one.tasks, one.ages, one.largest) == (other.states, other.tasks, other.ages, other.largest)


def test_the_size_is_within_what_it_may_be_off_by(valkey_url: str, fill_celery_keys: Callable[..., None]) -> None:
    fill_celery_keys(valkey_url, 12_000, 0.25)
    with client_of(valkey_url) as client:
        for number in range(500):  # an uneven store: some results are a hundred times as large
            client.set(f"celery-task-meta-large-{number}", "x" * 40_000)
        exact = surveyed(valkey_url, weigh_all=True).kinds["task"]
        found = surveyed(valkey_url)
        mine = sum(cast(int, client.memory_usage(key)) for key in client.scan_iter(count=1000))
    assert exact.size == mine
    assert exact.size_error == 0
    task = found.kinds["task"]
    assert 1000 < task.weighed < 8000
    # Twice the interval, so that this fails once in ten thousand times.
    assert abs(task.size - exact.size) <= 2 * task.size_error
    assert 0 < task.size_error < 0.2 * task.size


def test_a_survey_that_runs_out_of_time_is_taken_up_by_the_next(
    valkey_url: str, fill_celery_keys: Callable[..., None]
) -> None:
    fill_celery_keys(valkey_url, 20_000, 0.5)
    watermarks, parts = NoWatermarks(), []
    for _ in range(200):
        with opened(valkey_url, watermarks=watermarks) as backend:
            found = backend.survey_keys(timedelta(microseconds=1))
        parts.append(found.part)
        if found.part == 1:
            break
    assert len(parts) > 3
    assert parts == sorted(parts)
    assert (found.kinds["task"].keys, found.kinds["task"].without_ttl) == (20_000, 10_000)
    assert watermarks.recall(surveying.MARK) == "", "the next one begins anew"


def test_names_cannot_write_to_a_terminal(tmp_path: Path, valkey_url: str) -> None:
    """Whoever sends a task chooses its id and its name."""
    name = "evil\x1b]0;title\x07\n" + "x" * 1000
    meta = {"status": "SUC\x1b[2JCESS", "result": 1, "date_done": "2026-01-01T00:00:00", "name": name, "task_id": name}
    with client_of(valkey_url) as client:
        client.set(f"celery-task-meta-{name}", json.dumps(meta))
    shown = command(tmp_path, valkey_url).output
    assert "evil\\x1b]0;title" in shown
    assert not [char for char in shown if char != "\n" and not char.isprintable()]
    assert "x" * 300 not in shown.replace("\n", "").replace(" ", "")


def test_an_exchange_with_too_many_bindings_is_read_in_small_calls(valkey_url: str) -> None:
    """Reply queues that were never unbound: all at once would hold the server for some fifty milliseconds."""
    with client_of(valkey_url) as client:
        names = [f"\x06\x16\x06\x16queue-{number}" for number in range(30_000)]
        for start in range(0, len(names), 5000):
            client.sadd("_kombu.binding.replies", *names[start : start + 5000])
        client.rpush("queue-1", "x")
        client.sadd("_kombu.binding.celery", "celery\x06\x16\x06\x16mine")
        client.rpush("mine", "x")
        client.config_resetstat()
        found = surveyed(valkey_url)
        calls = cast(dict[str, dict[str, float]], client.info("commandstats"))
        assert "cmdstat_smembers" not in calls
        assert calls["cmdstat_exists"]["usec_per_call"] < 2000
        assert calls["cmdstat_sscan"]["usec_per_call"] < 2000
    assert found.kinds["broker"].keys in {3, 4}, "of so many names not every one is asked about"


@pytest.mark.parametrize("text", ["", "nonsense", "[]", '{"at": "2026-01-01T00:00:00+00:00"}', '{"at": 1}'])
def test_a_mark_of_another_time_or_version_is_forgotten(valkey_url: str, text: str) -> None:
    watermarks = NoWatermarks()
    watermarks.remember(surveying.MARK, text)
    with opened(valkey_url, watermarks=watermarks) as backend:
        assert backend.survey_keys(timedelta(seconds=1)).part == 1


def test_a_user_of_the_results_only_learns_the_names_of_the_rest(redis_url: str, client: redis.Redis) -> None:
    client.set("celery-task-meta-1", "{}")
    client.set("secret", "x")
    client.rpush(str(uuid.uuid4()), "x")
    client.execute_command(
        "ACL SETUSER narrow reset on >secret ~celery-task-meta-* ~celery-taskset-meta-* ~backendops:* "
        "+ping +info +time +select +client +scan +dbsize +pttl +type +strlen +get +getrange +exists +object|idletime "
        "+memory|usage +eval +evalsha +script|load"
    )
    found = surveyed(redis_url.replace("redis://", "redis://narrow:secret@"))
    assert {kind: figures.keys for kind, figures in found.kinds.items() if figures.keys} == {"task": 1, "foreign": 2}
    assert found.kinds["task"].without_ttl == 1
    assert any("only the names are known" in note for note in found.notes)


def test_calls_are_short_where_the_servers_clock_stands_still(
    valkey_url: str, fill_celery_keys: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a script of Redis 7.2 and Valkey 7.2 and 8.0 no clock goes on: a call must end all the same."""
    real, clock = scripts.source, "pcall(function() return os.clock end)"
    assert clock in real("sweep")
    monkeypatch.setattr(scripts, "source", lambda name: real(name).replace(clock, "true, function() return 0 end"))
    scripts.script.cache_clear()
    fill_celery_keys(valkey_url, 10_000, 1.0)
    job = Expire.model_validate({"keep": "30d"})
    try:
        with client_of(valkey_url) as client, opened(valkey_url) as backend:
            client.config_resetstat()
            assert backend.survey_keys().kinds["task"].without_ttl == 10_000
            assert sum(step.rows for step in job.run(backend, datetime.now(UTC), FixedPace(5000))) == 10_000
            calls = cast(dict[str, dict[str, float]], client.info("commandstats"))
    finally:
        scripts.script.cache_clear()
    # A stretch of SCAN is somewhat more than what was asked for.
    assert calls["cmdstat_evalsha"]["calls"] > 10_000 / surveying.STRETCH, "a call is one stretch"


def test_the_job_exports_it(redis_url: str, client: redis.Redis, celery_results: Callable[..., Any]) -> None:
    celery_results(redis_url, 10, result_expires=3600)
    client.rpush(str(uuid.uuid4()), "x")
    before = everything(client)
    with opened(redis_url) as backend:
        (step,) = RedisMemory().run(backend, datetime.now(UTC), cast(Any, None))
    values = {(reading.metric.name, reading.labels): reading.value for reading in step.readings}
    assert values["backendops_redis_keys", (("kind", "task"),)] == 10
    assert values["backendops_redis_keys", (("kind", "rpc"),)] == 1
    assert values["backendops_redis_keys_by_ttl", (("kind", "task"), ("ttl", "1h"))] == 10
    assert values["backendops_redis_surveyed_ratio", ()] == 1
    assert everything(client) == before


def command(tmp_path: Path, url: str, *arguments: str) -> Result:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        f"version: 1\nstate: {tmp_path}\nbackends:\n  cache: {{url: '{url}'}}\n"
        f"  results: {{url: 'db+sqlite:///{tmp_path}/results.db'}}\njobs: {{redis-memory: {{backend: cache}}}}\n"
    )
    return CliRunner().invoke(cli, ["--policy", str(policy), "redis", "survey", *arguments], standalone_mode=False)


def test_the_command_shows_a_table_and_bars(
    tmp_path: Path, valkey_url: str, celery_results: Callable[..., Any]
) -> None:
    celery_results(valkey_url, 20, result_expires=3600)
    shown = command(tmp_path, valkey_url)
    assert shown.return_value == 0, shown.output
    for words in ("cache: 20 keys", "results of tasks", "up to 1h", "█", "SUCCESS", "largest results weighed"):
        assert words in shown.output
    assert "boom" not in shown.output, "what a result says is not shown"
    document = json.loads(command(tmp_path, valkey_url, "cache", "--json", "--top", "1").output)
    assert document[0]["kinds"]["task"]["keys"] == 20
    assert len(document[0]["largest"]) == 1


def test_the_command_says_what_is_wrong(tmp_path: Path, valkey_url: str) -> None:
    with pytest.raises(Exception, match="has no backend 'other'"):
        raise cast(Exception, command(tmp_path, valkey_url, "other").exception)
    with pytest.raises(Exception, match="has no keys to survey: it is sqlite"):
        raise cast(Exception, command(tmp_path, valkey_url, "results").exception)
    dead = command(tmp_path, "redis://127.0.0.1:1/0", "cache")
    assert dead.return_value == 3
    assert "cannot be reached" in dead.output


def test_calls_are_short_while_others_use_the_server_and_longer_while_nobody_does(valkey_url: str) -> None:
    courtesy = Courtesy(0.002)
    stop = threading.Event()

    def ask() -> None:
        with client_of(valkey_url) as other:
            while not stop.is_set():
                other.get("celery-task-meta-none")

    with client_of(valkey_url) as client:
        assert until(lambda: courtesy.seconds(client) == 0.002), "nobody else is there"
        assert courtesy.keys(100) == 100
        application = threading.Thread(target=ask)
        application.start()
        try:
            assert until(lambda: courtesy.seconds(client) == AMONG_OTHERS)
            assert (courtesy.keys(100), courtesy.keys(5)) == (FEW_KEYS, 5)
            began = time.monotonic()
            courtesy.rest(0.0002)
            assert time.monotonic() - began >= 0.0002 * REST
        finally:
            stop.set()
            application.join()
        assert until(lambda: courtesy.seconds(client) == 0.002)
