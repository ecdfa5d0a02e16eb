"""redis-memory's figures: INFO, beside what the survey of the keyspace found."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import redis
from redis.exceptions import ClusterCrossSlotError, NoPermissionError

from backendops.backends.redis import clients, forecast, lookups
from backendops.backends.redis.keys import ResultKeys
from backendops.contracts.capabilities import MemoryReport
from backendops.contracts.keyspace import Keyspace
from backendops.contracts.metrics import RESULT_KINDS
from backendops.contracts.run import Watermarks

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


class Look:
    """One look at a server, before the survey and after; `other` connects to another database of it."""

    def __init__(  # noqa: PLR0913 - all that a report is made of
        self,
        client: redis.Redis,
        *,
        db: int,
        other: Callable[[int], redis.Redis],
        keys: ResultKeys,
        watermarks: Watermarks,
        node: str = "",
    ) -> None:
        self._client, self._db, self._other, self._keys = client, db, other, keys
        self._watermarks, self._node = watermarks, node
        self._recent = lookups.Recent(watermarks, client.info(), time.time(), node)

    def report(self, keyspace: Keyspace) -> MemoryReport:
        """Read INFO beside what the survey found."""
        info: Mapping[str, Any] = self._client.info()
        growth = forecast.remember(
            self._watermarks, str(info.get("run_id", "")), time.time(), int(info["used_memory"]), self._node
        )
        server = clients.health(self._client, info, self._keys, growth, self._recent.lookups)
        found = replace(_report(self._client, self._db, info, keyspace, self._other), server=server, node=self._node)
        self._recent.end(self._client.info("stats"))
        return found


def _report(
    client: redis.Redis, db: int, info: Mapping[str, Any], keyspace: Keyspace, other: Callable[[int], redis.Redis]
) -> MemoryReport:
    space = info.get(f"db{db}", {})
    total, expiring = int(space.get("keys", 0)), int(space.get("expires", 0))
    kinds = keyspace.kinds
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
        result_keys={kind: kinds[kind].keys for kind in RESULT_KINDS},
        result_bytes={kind: kinds[kind].size for kind in RESULT_KINDS},
        # A chord in use has none on purpose: its parts go when it is over.
        result_keys_without_ttl=kinds["task"].without_ttl + kinds["group"].without_ttl,
        broker_keys=max(kinds["broker"].keys, _existing(client, BROKER_NAMES)),
        broker_databases=_with_a_broker(info, db, other),
        sampled=keyspace.part,
        biggest=keyspace.largest,
        allocator=str(info.get("mem_allocator", "")),
        keyspace=keyspace,
    )


def _existing(client: redis.Redis, names: Sequence[str | bytes]) -> int:
    try:
        return int(client.exists(*names)) if names else 0
    except (NoPermissionError, ClusterCrossSlotError):
        return 0  # not ours to see; or a cluster, in which no broker of Celery's can be


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
