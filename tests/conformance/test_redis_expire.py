"""expire on Redis: keys without a TTL get what is left of their keeping, and no other key is touched."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from celery import Celery
from celery.app.task import Context
from celery.result import GroupResult

from backendops import embedded
from backendops.backends.redis import expire as sweeping
from backendops.backends.redis.decide import Decision, Gift, Tally, Uncertain
from backendops.backends.redis.keys import ResultKeys
from backendops.backends.redis.nodes import OneServer, walk
from backendops.contracts.errors import BackendBusy, BackendRefused, BackendUnreachable
from backendops.contracts.readings import Severity
from backendops.contracts.retention import Retention, Rule
from backendops.contracts.run import Limits, NoWatermarks, Preview, Step
from backendops.jobs.expire import Expire
from tests.celery_rows import celery_app
from tests.conformance.redis_canary import canary
from tests.conformance.redis_store import FixedPace, about, client_of, configured, everything, opened

# Celery 5.7 calls SETEX in the way that redis-py 8 would rather not see.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

KEEP = timedelta(days=30)
JOB = Expire.model_validate({"keep": "30d", "keep_by_state": {"FAILURE": "90d"}})


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the server under test."""
    with client_of(redis_url) as connected:
        yield connected


def run(url: str, job: Expire = JOB, size: int = 1000, **policy: Any) -> list[Step]:
    with opened(url, **policy) as backend:
        return list(job.run(backend, datetime.now(UTC), FixedPace(size)))


def preview(url: str, job: Expire = JOB, **policy: Any) -> Preview:
    with opened(url, limits=Limits(read_only=True), **policy) as backend:
        return job.preview(backend, datetime.now(UTC))


def key_of(task_id: str) -> str:
    return f"celery-task-meta-{task_id}"


def store(
    url: str,
    result: object,
    task_id: str = "",
    request: Context | None = None,
    state: str = "SUCCESS",
    **conf: Any,
) -> str:
    """Store one result through Celery's own backend; its key."""
    task_id = task_id or str(uuid.uuid4())
    app = celery_app(url, **{"result_expires": None, **conf})
    try:
        app.backend.store_result(task_id, result, state, request=request)
    finally:
        close(app)
    return key_of(task_id)


def close(app: Celery) -> None:
    backend: Any = app.backend
    backend.client.close()
    backend.client.connection_pool.disconnect()
    app.close()


def date(client: redis.Redis, key: str, done: str | None) -> None:
    """Let a stored result say another date_done, its TTL kept."""
    meta = json.loads(cast(bytes, client.get(key)))
    client.set(key, json.dumps({**meta, "date_done": done}), keepttl=True)


def test_a_result_gets_what_is_left_of_its_keeping(
    redis_url: str, client: redis.Redis, celery_results: Callable[..., list[str]], back_date: Callable[..., None]
) -> None:
    ids = celery_results(redis_url, 20, result_expires=None)
    back_date(redis_url, ids[:9], timedelta(days=10))

    steps = run(redis_url)

    # Of each ten, two are failures, kept 90 days, and the last is a retry, which is not finished.
    assert sum(step.rows for step in steps) == 18
    for number, task_id in enumerate(ids):
        keep = timedelta(days=90) if number % 10 in (3, 7) else KEEP
        ttl = cast(int, client.ttl(key_of(task_id)))
        if number % 10 == 9:
            assert ttl == -1
        else:
            assert about(ttl, keep - timedelta(days=10 if number < 10 else 0))


def test_both_spellings_of_date_done_are_utc(redis_url: str, client: redis.Redis) -> None:
    done = datetime.now(UTC) - timedelta(days=3)
    naive, berlin, zulu = (store(redis_url, n) for n in range(3))
    date(client, naive, done.replace(tzinfo=None).isoformat())
    date(client, berlin, (done + timedelta(hours=1)).replace(tzinfo=None).isoformat() + "+01:00")
    date(client, zulu, done.replace(tzinfo=None).isoformat() + "Z")

    run(redis_url)

    assert [about(cast(int, client.ttl(key)), KEEP - timedelta(days=3)) for key in (naive, berlin, zulu)] == [True] * 3


def test_what_is_overdue_gets_a_minute_or_two_and_is_not_deleted_at_once(redis_url: str, client: redis.Redis) -> None:
    keys = [store(redis_url, n) for n in range(5)]
    for key in keys:
        date(client, key, "2020-01-01T00:00:00")

    run(redis_url)

    ttls = [cast(int, client.ttl(key)) for key in keys]
    assert all(50 <= ttl <= 120 for ttl in ttls)
    assert len(set(ttls)) > 1, "they must not all expire in the same moment"


def test_a_date_in_the_future_keeps_nothing_longer(redis_url: str, client: redis.Redis) -> None:
    key = store(redis_url, 1)
    date(client, key, "2999-01-01T00:00:00+00:00")

    run(redis_url)

    assert about(cast(int, client.ttl(key)), KEEP)


def test_a_key_with_a_ttl_keeps_its_own(
    redis_url: str, client: redis.Redis, celery_results: Callable[..., Any]
) -> None:
    celery_results(redis_url, 10, groups=1, result_expires=3600)
    before = everything(client)

    assert sum(step.rows for step in run(redis_url)) == 0
    assert everything(client) == before


def test_unfinished_and_unreadable_results_are_counted_and_left_alone(
    redis_url: str, client: redis.Redis, celery_results: Callable[..., Any]
) -> None:
    celery_results(redis_url, 0, started=3, result_expires=None)
    store(redis_url, {"a": 1}, result_serializer="pickle", accept_content=["json", "pickle"])
    for name, value in {
        "text": b"not JSON",
        "list": b"[1, 2]",
        "no-status": b'{"date_done": "2020-01-01T00:00:00"}',
        "no-date": b'{"status": "SUCCESS", "result": 1}',
        "bad-date": b'{"status": "SUCCESS", "result": 1, "date_done": "soon"}',
        "number-date": b'{"status": "SUCCESS", "result": 1, "date_done": 7}',
        "deep": b"[" * 5000,
        "bomb": b"\x00celery-compressed\x00application/x-gzip\x00broken",
        "unknown": b"\x00celery-compressed\x00application/x-none\x00x",
        "empty": b"",
        "far-date": b'{"status": "SUCCESS", "result": 1, "date_done": "0001-01-01T00:00:00+23:00"}',
    }.items():
        client.set(key_of(name), value)
    before = everything(client)

    steps = run(redis_url)

    assert everything(client) == before
    assert "3 not finished" in steps[-1].what
    assert "12 not readable" in steps[-1].what
    (finding,) = steps[-1].findings
    assert (finding.severity, finding.code) == (Severity.WARNING, "redis.results-unreadable")
    assert "12 results" in finding.sentence


def test_results_kept_for_ever_are_left(redis_url: str, client: redis.Redis) -> None:
    store(redis_url, 1)
    client.set("celery-taskset-meta-g", "{}")
    before = everything(client)

    steps = run(redis_url, Expire.model_validate({"keep": "forever", "keep_by_state": {"FAILURE": "1d"}}))

    assert everything(client) == before
    assert "2 kept for ever" in steps[-1].what


LONG = "x" * 20_000
NESTED = {"date_done": "2001-01-01T00:00:00", "task_id": "another", "text": '{"date_done": "2002-02-02T00:00:00"}'}


@pytest.mark.parametrize(
    ("result", "kwargs"),
    [
        ("short", {}),
        (LONG, {}),
        ([LONG, NESTED], {}),
        ("short", {"long": LONG}),
        (NESTED, {"nested": NESTED, "long": LONG}),
        ([NESTED, "y" * 2_000_000], {"nested": NESTED}),
    ],
    ids=["short", "long", "nested", "long-kwargs", "nested-in-both", "huge"],
)
def test_a_result_of_any_length_is_read(redis_url: str, client: redis.Redis, result: object, kwargs: object) -> None:
    task_id = str(uuid.uuid4())
    request = Context(id=task_id, task="t", args=[], kwargs=kwargs, children=[], delivery_info={"routing_key": "q"})
    key = store(redis_url, result, task_id, request)
    date(client, key, (datetime.now(UTC) - timedelta(days=5)).isoformat())

    assert sum(step.rows for step in run(redis_url)) == 1
    assert about(cast(int, client.ttl(key)), KEEP - timedelta(days=5))


def test_a_value_too_large_to_read_is_left_alone(redis_url: str, client: redis.Redis) -> None:
    task_id = str(uuid.uuid4())
    request = Context(id=task_id, task="t", args=[], kwargs={"k": "x" * 1_100_000}, children=[], delivery_info={})
    key = store(redis_url, "short", task_id, request)

    assert "1 not readable" in run(redis_url)[-1].what
    assert client.ttl(key) == -1


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "lzma"])
def test_a_compressed_result_is_read(redis_url: str, client: redis.Redis, compression: str) -> None:
    key = store(redis_url, LONG, result_compression=compression)
    assert cast(bytes, client.get(key)).startswith(b"\x00celery-compressed")

    run(redis_url)

    assert about(cast(int, client.ttl(key)), KEEP)


def chord(url: str, *, ordered: bool = True) -> str:
    """A chord of three whose first part has returned, with a task added, as Celery leaves it; its group id."""
    app = celery_app(url, result_expires=None, result_backend_transport_options={"result_chord_ordered": ordered})
    backend: Any = app.backend
    group_id = str(uuid.uuid4())
    try:
        backend.set_chord_size(group_id, 3)
        backend.add_to_chord(group_id, None)
        request = Context(id=str(uuid.uuid4()), group=group_id, group_index=0, chord={"task": "t"})
        backend.on_chord_part_return(request, "SUCCESS", 1)
    finally:
        close(app)
    return group_id


def idle(client: redis.Redis, key: str, seconds: int) -> None:
    """Let a key look as if nobody had used it for so long."""
    client.restore(key, 0, cast(bytes, client.dump(key)), replace=True, idletime=seconds)


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
@pytest.mark.parametrize("ordered", [True, False], ids=["zset", "list"])
def test_a_chord_in_use_keeps_its_parts_and_one_out_of_use_loses_them(
    redis_url: str, client: redis.Redis, ordered: bool, scripts: bool
) -> None:
    url = redis_url if scripts else without_scripts(redis_url, client)
    running, ended, failed, counter = (parts_of(chord(redis_url, ordered=ordered)) for _ in range(4))
    assert [client.ttl(key) for key in running] == [-1] * 4, "this is the leak that Celery leaves"
    # It runs for longer than results are kept, and one header task has just returned.
    idle(client, running[0], 400 * 86400)
    idle(client, running[3], 400 * 86400)
    for key in ended:
        idle(client, key, 31 * 86400)
    client.delete(failed[0])  # as Celery does when a header task fails
    for key in failed[1:]:
        idle(client, key, 2 * 86400)
    client.delete(*counter[:3])
    before = {key: value for key, value in everything(client).items() if key.decode() in running}

    assert preview(url).rows == 7
    steps = run(url)

    assert sum(step.rows for step in steps) == 7
    assert "7 parts of ended chords removed" in steps[-1].what
    left = everything(client)
    assert {key.decode() for key in left} == {*running, counter[3]}
    assert {key: left[key] for key in before} == before
    idle(client, counter[3], 2 * 86400)
    assert sum(step.rows for step in run(url)) == 1, "a counter that a chord may still be coming for waits a day"
    for key in running:
        idle(client, key, 31 * 86400)
    assert sum(step.rows for step in run(url)) == 4


def parts_of(group_id: str) -> list[str]:
    return [f"celery-taskset-meta-{group_id}.{part}" for part in "sjdt"]


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_a_saved_group_is_kept_from_its_last_use(
    redis_url: str, client: redis.Redis, celery_results: Callable[..., Any], scripts: bool
) -> None:
    url = redis_url if scripts else without_scripts(redis_url, client)
    celery_results(redis_url, 0, groups=2, result_expires=3600)
    new, old = (key.decode() for key in client.keys("celery-taskset-meta-*"))
    client.persist(new)
    client.persist(old)
    idle(client, old, 10 * 86400)

    assert sum(step.rows for step in run(url)) == 2
    assert about(cast(int, client.ttl(new)), KEEP)
    assert about(cast(int, client.ttl(old)), KEEP - timedelta(days=10))


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_a_saved_group_that_is_named_like_a_part_of_a_chord_is_none(
    redis_url: str, client: redis.Redis, scripts: bool
) -> None:
    url = redis_url if scripts else without_scripts(redis_url, client)
    app = celery_app(url, result_expires=None)
    names = [f"celery-taskset-meta-nightly.{part}" for part in "stc"]
    try:
        for name in names:
            GroupResult(name.removeprefix("celery-taskset-meta-"), [], app=app).save(backend=app.backend)
            idle(client, name, 100 * 86400)
    finally:
        close(app)
    steps = run(url, Expire.model_validate({"keep": "150d", "redis": {"chord_keep": "1d"}}))
    assert [about(cast(int, client.ttl(name)), timedelta(days=50)) for name in names] == [True] * 3
    assert sum(step.rows for step in steps) == 3


def test_chord_keep_is_for_chords_alone(redis_url: str, client: redis.Redis) -> None:
    parts = parts_of(chord(redis_url))
    client.expire(parts[1], 100 * 86400)
    for key in parts:
        idle_with_ttl(client, key, 3 * 86400)
    job = {"keep": "30d", "redis": {"chord_keep": "2d"}}

    assert sum(step.rows for step in run(redis_url, Expire.model_validate(job))) == 3
    assert client.exists(*parts) == 1, "a part with a time to live keeps it"
    job["redis"] = {"chord_keep": "2d", "shorten": True}
    assert sum(step.rows for step in run(redis_url, Expire.model_validate(job))) == 1
    assert client.exists(*parts) == 0


def idle_with_ttl(client: redis.Redis, key: str, seconds: int) -> None:
    ttl = max(0, cast(int, client.pttl(key)))
    client.restore(key, ttl, cast(bytes, client.dump(key)), replace=True, idletime=seconds)


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_a_longer_ttl_is_shortened_only_when_the_policy_says_so(
    redis_url: str, client: redis.Redis, scripts: bool
) -> None:
    url = redis_url if scripts else without_scripts(redis_url, client)
    long, short, old, unfinished, nested = (store(redis_url, n, result_expires=86400) for n in range(5))
    date(client, unfinished, None)
    date(client, old, "2020-01-01T00:00:00")
    nested_meta = {**json.loads(cast(bytes, client.get(nested))), "result": NESTED}
    client.set(nested, json.dumps(nested_meta))
    for key in (long, old, unfinished, nested):
        client.expire(key, 100 * 86400)
    before = everything(client)
    run(url)
    assert everything(client) == before
    job = Expire.model_validate({"keep": "30d", "redis": {"shorten": True}})

    assert preview(url, job).rows == 3
    steps = run(url, job)

    assert sum(step.rows for step in steps) == 3
    assert "3 shortened" in steps[-1].what
    assert about(cast(int, client.ttl(long)), KEEP)
    assert about(cast(int, client.ttl(nested)), KEEP)
    assert about(cast(int, client.ttl(short)), timedelta(days=1))
    assert about(cast(int, client.ttl(unfinished)), timedelta(days=100))
    assert 50 <= cast(int, client.ttl(old)) <= 120
    assert sum(step.rows for step in run(url, job)) == 0, "not again by every sweep"


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_reply_lists_are_removed_only_on_request_and_only_when_idle(
    redis_url: str, client: redis.Redis, scripts: bool
) -> None:
    url = redis_url if scripts else without_scripts(redis_url, client)
    old, new, other = str(uuid.uuid4()), str(uuid.uuid4()), str(uuid.uuid4())
    pidbox = f"{uuid.uuid4()}.reply.celery.pidbox"
    for key in (old, new, pidbox, "reports"):
        client.rpush(key, "x")
    client.set(other, "a string of that name")
    for key in (old, pidbox, other, "reports"):
        idle(client, key, 8 * 86400)
    before = everything(client)
    run(url)
    assert everything(client) == before
    job = Expire.model_validate({"keep": "30d", "redis": {"rpc_lists": "7d"}})

    planned = preview(url, job)
    assert planned.rows == 1
    assert everything(client) == before
    steps = run(url, job)

    assert sum(step.rows for step in steps) == 1
    assert set(before) - set(everything(client)) == {old.encode()}
    assert [f.code for step in steps for f in step.findings] == ["redis.reply-lists"]
    both = Expire.model_validate({"keep": "30d", "redis": {"rpc_lists": "7d", "pidbox_lists": "7d"}})
    run(url, both)
    assert set(before) - set(everything(client)) == {old.encode(), pidbox.encode()}


def test_reading_does_not_make_a_key_look_used(redis_url: str, client: redis.Redis) -> None:
    """An LRU policy evicts what was not used for longest, and a chord's idle time is its age."""
    short, whole = store(redis_url, 1), store(redis_url, NESTED, request=Context(kwargs={"long": LONG}))
    client.set("celery-taskset-meta-g", "{}")
    keys = (short, whole, "celery-taskset-meta-g")
    for key in keys:
        idle(client, key, 1000)

    assert preview(redis_url).rows == 3
    with opened(redis_url) as backend:
        backend.report_memory(timedelta(seconds=1))

    assert [cast(int, client.object("idletime", key)) >= 1000 for key in keys] == [True] * 3


def test_under_an_lfu_policy_chords_are_kept_in_full(redis_url: str, client: redis.Redis) -> None:
    with configured(client, maxmemory_policy="allkeys-lfu"):
        group_id = chord(redis_url)
        run(redis_url)

    assert about(cast(int, client.ttl(f"celery-taskset-meta-{group_id}.t")), KEEP)


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_reply_lists_that_nobody_can_tell_the_idle_time_of_are_left_and_said(valkey_url: str, scripts: bool) -> None:
    job = Expire.model_validate({"keep": "30d", "redis": {"rpc_lists": "1s"}})
    with client_of(valkey_url) as client, configured(client, maxmemory_policy="allkeys-lfu"):
        url = valkey_url if scripts else without_scripts(valkey_url, client)
        names = [str(uuid.uuid4()) for _ in range(2)]
        for name in names:
            client.rpush(name, "x")
        client.expire(names[1], 1000)
        (finding,) = [finding for step in run(url, job) for finding in step.findings]
        assert client.exists(*names) == 2
    assert finding.code == "redis.reply-lists-untold"
    assert finding.sentence.startswith("1 of 1 reply lists without an expiry were left")


class Interrupted(Decision):
    """Decides as ever, but something happens between what it was told and what is done with its answer."""

    happens: Callable[[], None] | None = None

    def of_task(self, met: Uncertain, tally: Tally, whole: bytes | None = None) -> Gift | None:
        happens, self.happens = self.happens, None
        if happens is not None:
            happens()
        return super().of_task(met, tally, whole)


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_a_value_rewritten_after_it_was_read_keeps_its_own(redis_url: str, client: redis.Redis, scripts: bool) -> None:
    """The race: Celery stores a new state between our reading and our writing.

    With scripts only a result that the script is not certain of, as it holds another date, leaves the server at all.
    """
    with_ttl, without, given, same, gone, long = (str(uuid.uuid4()) for _ in range(6))
    # Failures first: Celery never writes over a success.
    for task_id in (with_ttl, without, given, same, gone, long):
        key = store(redis_url, ValueError(LONG if task_id == long else "old"), task_id, state="FAILURE")
        meta = {**json.loads(cast(bytes, client.get(key))), "args": NESTED, "date_done": "2020-01-01T00:00:00"}
        client.set(key, json.dumps({**meta, "task_id": meta.pop("task_id")}))
    now = datetime.now(UTC)
    sweep = sweeping.Sweep(ResultKeys(), Retention(now - KEEP), now)
    sweep.scripted = scripts

    def meanwhile() -> None:
        store(redis_url, "new", with_ttl, result_expires=777)
        store(redis_url, "new", without)
        store(redis_url, LONG, long)
        client.delete(key_of(gone))
        client.expire(key_of(given), 888)

    sweep._decision = Interrupted(ResultKeys(), sweep.due, now)
    sweep._decision.happens = meanwhile
    for _ in walk(OneServer(client), sweep.page, {}):
        pass

    assert about(cast(int, client.ttl(key_of(with_ttl))), timedelta(seconds=777))
    assert about(cast(int, client.ttl(key_of(given))), timedelta(seconds=888))
    assert client.exists(key_of(gone)) == 0
    assert 50 <= cast(int, client.ttl(key_of(same))) <= 120
    # The first try of a transaction failed as a whole; each by itself is then read again, as it is now.
    new = [cast(int, client.ttl(key_of(task_id))) for task_id in (without, long)]
    assert new == [-1, -1] if scripts else all(about(ttl, KEEP) for ttl in new)
    assert sweep.tally.changed == (5 if scripts else 0)
    run(redis_url)
    assert all(about(cast(int, client.ttl(key_of(task_id))), KEEP) for task_id in (without, long))


def without_scripts(url: str, client: redis.Redis) -> str:
    """The same server for a user who may not run scripts."""
    client.execute_command("ACL SETUSER plain reset on >secret ~* &* +@all -@scripting")
    return url.replace("redis://", "redis://plain:secret@")


def test_where_scripts_are_forbidden_the_sweep_is_the_same(
    redis_url: str, client: redis.Redis, celery_results: Callable[..., list[str]], back_date: Callable[..., None]
) -> None:
    ids = celery_results(redis_url, 20, groups=1, started=1, result_expires=None)
    back_date(redis_url, ids[:9], timedelta(days=10))
    store(redis_url, LONG)
    store(redis_url, [NESTED, "y" * 200_000])
    url = without_scripts(redis_url, client)

    with_scripts, planned = preview(redis_url), preview(url)
    with opened(url) as backend, backend.lock() as held:
        assert held is not None
        assert held.still_held()
        steps = list(JOB.run(backend, datetime.now(UTC), FixedPace(100)))

    assert planned.rows == with_scripts.rows == sum(step.rows for step in steps) > 20
    assert planned.summary == with_scripts.summary
    assert any("WATCH" in statement for statement in planned.statements)
    assert "3 not finished" in steps[-1].what
    assert about(cast(int, client.ttl(key_of(ids[0]))), KEEP - timedelta(days=10))
    assert about(cast(int, client.ttl(key_of(ids[3]))), timedelta(days=80))
    assert client.keys("backendops*") == []


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_keys_that_are_no_results_stay_byte_for_byte(redis_url: str, client: redis.Redis, scripts: bool) -> None:
    own = store(redis_url, 1)
    with canary(redis_url, client):
        url = redis_url if scripts else without_scripts(redis_url, client)
        strict = Expire.model_validate(
            {"keep": "30d", "redis": {"shorten": True, "chord_keep": "1s", "rpc_lists": "1d", "pidbox_lists": "1d"}}
        )
        for job in (JOB, strict):
            preview(url, job)
            run(url, job)
        assert about(cast(int, client.ttl(own)), KEEP)


def test_a_global_keyprefix_names_the_results_of_one_application(redis_url: str, client: redis.Redis) -> None:
    mine, others, glob = str(uuid.uuid4()), str(uuid.uuid4()), str(uuid.uuid4())
    for task_id, prefix in ((mine, "my*app"), (others, "myXapp"), (glob, "")):
        store(redis_url, 1, task_id, result_backend_transport_options={"global_keyprefix": prefix} if prefix else {})

    assert preview(redis_url, global_keyprefix="my*app").rows == 1
    run(redis_url, global_keyprefix="my*app")

    assert about(cast(int, client.ttl(f"my*app_{key_of(mine)}")), KEEP)
    assert client.ttl(f"myXapp_{key_of(others)}") == -1
    assert client.ttl(key_of(glob)) == -1


def test_a_preview_counts_what_a_run_would_do_and_sends_nothing_that_writes(
    redis_url: str, client: redis.Redis, celery_results: Callable[..., list[str]], back_date: Callable[..., None]
) -> None:
    ids = celery_results(redis_url, 30, started=2, groups=1, result_expires=None)
    back_date(redis_url, ids[:1], timedelta(days=400))
    chord(redis_url)
    before = everything(client)
    client.config_resetstat()

    planned = preview(redis_url)

    commands = {name.removeprefix("cmdstat_") for name in client.info("commandstats")}
    assert commands <= {
        "ping", "select", "client|setname", "client|setinfo", "client|no-touch", "hello", "auth", "time", "info",
        "scan", "pttl", "type", "strlen", "get", "getrange", "evalsha", "eval", "script|load", "config|resetstat",
        "exists", "object|idletime", "object|refcount",
    }  # fmt: skip
    assert everything(client) == before
    assert planned.oldest is not None
    assert about((datetime.now(UTC) - planned.oldest).total_seconds(), timedelta(days=400))
    assert any("SCAN" in statement for statement in planned.statements)
    assert planned.rows == sum(step.rows for step in run(redis_url))
    assert preview(redis_url).rows == 0


def test_a_stopped_run_goes_on_where_it_was(redis_url: str, fill_celery_keys: Callable[..., None]) -> None:
    fill_celery_keys(redis_url, 2000, 1.0)
    watermarks = NoWatermarks()
    rows = []
    for _ in range(3):  # each is stopped after its first step
        with opened(redis_url, watermarks=watermarks) as backend:
            steps = JOB.run(backend, datetime.now(UTC), FixedPace(200))
            rows.append(next(steps).rows)
            steps.close()
    cursor = watermarks.recall(sweeping.CURSOR)
    assert cursor is not None
    assert not cursor.endswith(":0")
    assert all(150 <= n <= 400 for n in rows), rows

    pace = FixedPace(500)
    with opened(redis_url, watermarks=watermarks) as backend:
        rest = list(JOB.run(backend, datetime.now(UTC), pace))

    assert sum(rows) + sum(step.rows for step in rest) == 2000
    assert sum(pace.batches) < 2000, "what was done before is not gone through again"
    assert [reading.value for reading in rest[-1].readings] == [0]
    assert watermarks.recall(sweeping.CURSOR) == "", "the next one begins anew"


def test_a_cursor_of_another_server_is_forgotten(valkey_url: str, fill_celery_keys: Callable[..., None]) -> None:
    fill_celery_keys(valkey_url, 300, 1.0)
    watermarks = NoWatermarks()
    watermarks.remember(sweeping.CURSOR, "0123456789abcdef:7")

    with opened(valkey_url, watermarks=watermarks) as backend:
        steps = list(JOB.run(backend, datetime.now(UTC), FixedPace(100)))

    assert sum(step.rows for step in steps) == 300


def test_a_server_that_goes_away_in_the_middle_is_unreachable_and_the_next_run_goes_on(
    tmp_path: Path, fill_celery_keys: Callable[..., None]
) -> None:
    server = embedded.start_valkey(tmp_path / "server", password="", settings=["appendonly yes"])
    watermarks = NoWatermarks()
    try:
        fill_celery_keys(server.url(), 1000, 1.0)
        with opened(server.url(), watermarks=watermarks) as backend, backend.lock() as held:
            assert held is not None
            steps = JOB.run(backend, datetime.now(UTC), FixedPace(100))
            given = next(steps).rows
            server.stop()
            with pytest.raises(BackendUnreachable, match="cannot be reached"):
                next(steps)
            with pytest.raises(BackendUnreachable):
                held.still_held()
        server.start()
        with opened(server.url(), watermarks=watermarks) as backend:
            rest = sum(step.rows for step in JOB.run(backend, datetime.now(UTC), FixedPace(100)))
    finally:
        server.stop()
    assert given + rest == 1000


def test_a_server_that_was_restarted_unnoticed_is_swept_from_its_beginning(
    tmp_path: Path, fill_celery_keys: Callable[..., None]
) -> None:
    """Between two calls: the driver connects anew by itself, and the cursor is another process's."""
    server = embedded.start_valkey(tmp_path / "server", password="", settings=["appendonly yes"])
    try:
        fill_celery_keys(server.url(), 2000, 1.0)
        with opened(server.url()) as backend:
            steps = JOB.run(backend, datetime.now(UTC), FixedPace(500))
            given = next(steps).rows
            server.kill()
            server.start()
            given += sum(step.rows for step in steps)
        with client_of(server.url()) as client:
            assert [key for key in cast(list[bytes], client.keys("*")) if client.ttl(key) == -1] == []
    finally:
        server.stop()
    assert given >= 2000


def test_one_run_at_a_time_and_the_lock_never_stays(redis_url: str, client: redis.Redis) -> None:
    with opened(redis_url) as one, opened(redis_url) as other:
        with one.lock() as held:
            assert held is not None
            assert held.still_held()
            assert 0 < cast(int, client.ttl(one.lock_name)) <= 60
            with other.lock() as second:
                assert second is None
            client.pexpire(one.lock_name, 500)
            assert held.still_held()
            assert cast(int, client.pttl(one.lock_name)) > 10_000, "every step renews the lease"
            client.delete(one.lock_name)
            assert not held.still_held()
            with other.lock() as second:
                assert second is not None
                assert not held.still_held()
                assert second.still_held()
        with other.lock() as free:
            assert free is not None
    assert client.keys("backendops*") == []


def test_a_full_server_can_still_be_given_expiries(redis_url: str, client: redis.Redis) -> None:
    keys = [store(redis_url, "x" * 500) for _ in range(20)]
    with configured(client, maxmemory_policy="noeviction", maxmemory=1):
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            client.set("one more", "x")
        with opened(redis_url) as backend, backend.lock() as held:
            assert held is not None
            assert held.still_held()
            assert sum(step.rows for step in JOB.run(backend, datetime.now(UTC), FixedPace())) == 20
    assert all(cast(int, client.ttl(key)) > 0 for key in keys)


def test_a_replica_is_not_changed_and_says_so(valkey_url: str) -> None:
    with client_of(valkey_url) as client:
        store(valkey_url, 1)
        with opened(valkey_url) as backend:
            assert backend.standing().read_only_because == ""
            client.replicaof("127.0.0.1", 1)
            try:
                assert "is a replica of 127.0.0.1:1" in backend.standing().read_only_because
                with pytest.raises(BackendBusy, match="read-only replica") as refused:
                    list(JOB.run(backend, datetime.now(UTC), FixedPace()))
                assert "sentinel://" in refused.value.hint
                with pytest.raises(BackendBusy, match="read-only replica"), backend.lock():
                    pass
            finally:
                client.replicaof("no", "one")


def test_nothing_is_changed_through_a_connection_for_reading(valkey_url: str) -> None:
    store(valkey_url, 1)
    with opened(valkey_url, limits=Limits(read_only=True)) as backend:
        with pytest.raises(BackendRefused, match="reading only"):
            list(JOB.run(backend, datetime.now(UTC), FixedPace()))
        with pytest.raises(BackendRefused, match="reading only"), backend.lock():
            pass


def test_rules_by_task_and_queue_decide_too(valkey_url: str, celery_results: Callable[..., list[str]]) -> None:
    ids = celery_results(valkey_url, 2, result_expires=None)
    now = datetime.now(UTC)
    due = Retention(now - KEEP, (Rule(now - timedelta(days=1), task="mail.*"), Rule(None, queue="cel*")))
    with opened(valkey_url) as backend, client_of(valkey_url) as client:
        assert sum(step.rows for step in backend.expire(due, FixedPace())) == 1
        assert about(cast(int, client.ttl(key_of(ids[0]))), timedelta(days=1))
        assert client.ttl(key_of(ids[1])) == -1
