"""redis-memory's figures: INFO, and as much of the keyspace as the time allows, read without holding the server."""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import redis
from redis.exceptions import NoPermissionError

from backendops.backends.redis.keys import ResultKeys, is_broker_key
from backendops.contracts.capabilities import MemoryReport

# SCAN of a thousand keys holds the server about 0.2 ms, the pipelined PTTLs are single commands of microseconds.
COUNT: Final = 1000

# One result key in this many is weighed: a weight costs a command, and a few thousand give a mean within some percent.
WEIGHED: Final = 20

# Elements of a chord's set that MEMORY USAGE looks at: all of a large one would hold the server.
SAMPLES: Final = 50

BIGGEST: Final = 5

# Redis' own default number of databases; who has more does not keep a broker in the seventeenth.
MOST_DATABASES: Final = 16

# kombu's own fixed names: a sampled scan may pass by a handful of keys, EXISTS does not.
BROKER_NAMES: Final = (
    "_kombu.binding.celery",
    "_kombu.binding.celery.pidbox",
    "_kombu.binding.celeryev",
    "unacked",
    "unacked_index",
    "celery",
)


@dataclass(slots=True)
class Survey:
    """What a scan has met so far."""

    keys: int = 0
    complete: bool = False
    kinds: Counter[str] = field(default_factory=Counter)
    without_ttl: int = 0
    broker: int = 0
    bindings: set[bytes] = field(default_factory=set)
    weights: dict[str, list[int]] = field(default_factory=lambda: {"task": [], "group": [], "chord": []})
    biggest: list[tuple[int, str]] = field(default_factory=list)

    def mean_weight(self, kind: str) -> float:
        """Bytes of a key of this kind, as weighed; 0 where none was."""
        weights = self.weights[kind]
        return sum(weights) / len(weights) if weights else 0.0


def report(
    client: redis.Redis, keys: ResultKeys, db: int, time_limit: timedelta, other: Callable[[int], redis.Redis]
) -> MemoryReport:
    """Read INFO, then scan for at most `time_limit`; figures by kind are scaled up where the scan did not end.

    `other` connects to another database of the same server.
    """
    info: Mapping[str, Any] = client.info()
    space = info.get(f"db{db}", {})
    total, expiring = int(space.get("keys", 0)), int(space.get("expires", 0))
    survey = scan(client, keys, time_limit)
    part = 1.0 if survey.complete else min(1.0, survey.keys / total) if total else 1.0
    scale = 1 / part if part else 0.0
    counts = {kind: round(survey.kinds[kind] * scale) for kind in survey.weights}
    used, rss = int(info["used_memory"]), int(info.get("used_memory_rss", 0))
    return MemoryReport(
        used=used,
        peak=int(info.get("used_memory_peak", used)),
        rss=rss,
        limit=int(info.get("maxmemory", 0)),
        total=int(info.get("total_system_memory", 0)),
        fragmentation=float(info.get("mem_fragmentation_ratio", 0.0)),
        eviction_policy=str(info.get("maxmemory_policy", "")),
        evicted_keys=int(info.get("evicted_keys", 0)),
        loading=bool(info.get("loading", 0)),
        rdb_last_save=_last_save(client, info),
        rdb_last_ok=info.get("rdb_last_bgsave_status", "ok") == "ok",
        rdb_changes=int(info.get("rdb_changes_since_last_save", 0)),
        aof_enabled=bool(info.get("aof_enabled", 0)),
        aof_last_ok=all(
            info.get(name, "ok") == "ok" for name in ("aof_last_write_status", "aof_last_bgrewrite_status")
        ),
        keys=total,
        keys_without_ttl=max(0, total - expiring),
        result_keys=counts,
        result_bytes={kind: round(count * survey.mean_weight(kind)) for kind, count in counts.items()},
        result_keys_without_ttl=round(survey.without_ttl * scale),
        broker_keys=max(survey.broker, _existing(client, BROKER_NAMES)),
        broker_databases=_with_a_broker(info, db, other),
        sampled=part,
        biggest=tuple((name, size) for size, name in sorted(survey.biggest, reverse=True)),
        allocator=str(info.get("mem_allocator", "")),
    )


def scan(client: redis.Redis, keys: ResultKeys, time_limit: timedelta) -> Survey:
    """Go through the keyspace until it ends or the time does.

    SCAN's order follows the hash of the names, so a part of it is a fair sample of the whole.
    """
    survey, cursor, deadline = Survey(), 0, time.monotonic() + time_limit.total_seconds()
    while True:
        answer: Any = client.scan(cursor, count=COUNT)  # names are bytes: responses are not decoded
        cursor, batch = answer
        _examine(client, keys, batch, survey)
        if cursor == 0:
            survey.complete = True
            break
        if time.monotonic() >= deadline:
            break
    survey.broker += _queues(client, survey.bindings)
    return survey


def _examine(client: redis.Redis, keys: ResultKeys, batch: list[bytes], survey: Survey) -> None:
    survey.keys += len(batch)
    results = []
    for key in batch:
        kind = keys.kind(key)
        if kind is not None:
            results.append((key, kind))
        elif is_broker_key(key):
            survey.broker += 1
            if b"_kombu.binding." in key:
                survey.bindings.add(key)
    # The first keys of each kind are all weighed, so that a small store is weighed exactly.
    weighed = [
        (key, kind)
        for key, kind in results
        if len(survey.weights[kind]) < COUNT or random.randrange(WEIGHED) == 0  # noqa: S311 - a sample, no secret
    ]
    pipe = client.pipeline(transaction=False)
    for key, _ in results:
        pipe.pttl(key)
    for key, _ in weighed:
        pipe.memory_usage(key, samples=SAMPLES)
    answers = pipe.execute(raise_on_error=True) if results else []
    for (_, kind), ttl in zip(results, answers, strict=False):
        if ttl != -2:  # it is still there  # noqa: PLR2004 - Redis' own answer for a missing key
            survey.kinds[kind] += 1
            survey.without_ttl += ttl == -1
    for (key, kind), size in zip(weighed, answers[len(results) :], strict=True):
        if size is not None:
            survey.weights[kind].append(size)
            _keep_biggest(survey, size, key)


def _keep_biggest(survey: Survey, size: int, key: bytes) -> None:
    entry = (size, key.decode(errors="replace"))
    if entry in survey.biggest:
        return  # SCAN may give a key twice
    if len(survey.biggest) < BIGGEST:
        heapq.heappush(survey.biggest, entry)
    elif entry > survey.biggest[0]:
        heapq.heapreplace(survey.biggest, entry)


def _queues(client: redis.Redis, bindings: set[bytes]) -> int:
    """How many queue lists there are, of the queues that the bindings name (kombu: routing key, pattern, queue)."""
    names: set[bytes] = set()
    for binding in bindings:
        try:
            members: Any = client.smembers(binding) if client.type(binding) == b"set" else ()
        except NoPermissionError:
            return 0  # a user of the results only: the bindings' own names, which SCAN gives, say enough
        names.update(member.rpartition(b"\x06\x16")[2] for member in members)
    # kombu's priority steps 3, 6 and 9 are lists of their own.
    lists = [name + suffix for name in names if name for suffix in (b"", b"\x06\x163", b"\x06\x166", b"\x06\x169")]
    return _existing(client, lists)


def _existing(client: redis.Redis, names: Sequence[str | bytes]) -> int:
    try:
        return int(client.exists(*names)) if names else 0
    except NoPermissionError:
        return 0


def _with_a_broker(info: Mapping[str, Any], db: int, other: Callable[[int], redis.Redis]) -> tuple[int, ...]:
    if not str(info.get("maxmemory_policy", "")).startswith("allkeys"):
        return ()  # only these policies reach a broker's keys, which have no expiry
    numbers = sorted(int(name[2:]) for name in info if name.startswith("db") and name[2:].isdigit())
    found = []
    for number in numbers[:MOST_DATABASES]:
        if number != db:
            client = other(number)
            try:
                if _existing(client, BROKER_NAMES):
                    found.append(number)
            finally:
                client.close()
    return tuple(found)


def _last_save(client: redis.Redis, info: Mapping[str, Any]) -> datetime | None:
    # Without save points Redis still shows a time, that of its start. Where CONFIG is not permitted, on rented
    # servers, snapshots are the provider's.
    try:
        saves = client.config_get("save").get("save", "")
    except redis.exceptions.ResponseError:
        return None
    return datetime.fromtimestamp(int(info.get("rdb_last_save_time", 0)), UTC) if saves else None
