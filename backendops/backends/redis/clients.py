"""Who is connected to the server, who waits on channels for results, and how its replicas and its forks fare."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis
from redis.exceptions import NoPermissionError, ResponseError

from backendops.backends.redis.keys import ResultKeys
from backendops.contracts.server_health import Clients, Growth, Lookups, Replica, ServerHealth

# CLIENT LIST holds the server about 1 ms per thousand clients; beyond this only its own totals are read.
MOST_LISTED: Final = 2000

# PUBSUB CHANNELS holds it about as long for ten thousand names.
MOST_CHANNELS: Final = 10_000

# Channels whose results are looked for.
LOOKED_AT: Final = 500

# Kinds of clients that are told apart; the rest hold fewer connections than any of these.
MOST_NAMED: Final = 50

# A pool keeps a connection open for as long as its process lives: an hour of silence is only a sign in great numbers.
IDLE: Final = 3600


def health(
    client: redis.Redis, info: Mapping[str, Any], keys: ResultKeys, growth: Growth | None, lookups: Lookups | None
) -> ServerHealth:
    """What INFO (already read), CLIENT LIST and PUBSUB tell."""
    notes: list[str] = []
    listed = _listed(client, int(info.get("connected_clients", 0)), notes)
    channels = _channels(client, int(info.get("pubsub_channels", 0)), keys, notes)
    replica = info.get("role") == "slave" and info.get("master_link_status") == "down"
    snapshot = float(info.get("rdb_last_bgsave_time_sec", -1))
    return ServerHealth(
        growth=growth,
        clients=_grouped(listed),
        clients_output=max(sum(_number(one, "omem") for one in listed), int(info.get("mem_clients_normal", 0))),
        result_channels=channels.count,
        channels_looked_at=channels.looked_at,
        channels_of_the_past=channels.past,
        replicas=_replicas(info),
        backlog=int(info.get("repl_backlog_size", 0)),
        link_down=max(0.0, float(info.get("master_link_down_since_seconds", 0))) if replica else None,
        fork_seconds=int(info.get("latest_fork_usec", 0)) / 1e6,
        snapshot_seconds=snapshot if snapshot >= 0 else None,
        hits=int(info.get("keyspace_hits", 0)),
        misses=int(info.get("keyspace_misses", 0)),
        lookups=lookups,
        notes=tuple(notes),
    )


def _listed(client: redis.Redis, connected: int, notes: list[str]) -> list[Mapping[str, str]]:
    if connected > MOST_LISTED:
        notes.append(f"{connected:,} clients are connected: they are counted, not listed, so as not to hold the server")
        return []
    try:
        return list(client.client_list())
    except NoPermissionError:
        notes.append("CLIENT LIST is not permitted: who is connected is not known (allow it with ACL SETUSER ... "
                     "+client|list)")  # fmt: skip
        return []


def _grouped(listed: Sequence[Mapping[str, str]]) -> tuple[Clients, ...]:
    groups: dict[tuple[str, str, str], list[Mapping[str, str]]] = defaultdict(list)
    for one in listed:
        library = " ".join(filter(None, (one.get("lib-name"), one.get("lib-ver"))))
        # A unix socket's address is its path, and the port 0.
        groups[one.get("name") or "unnamed", library, one.get("addr", "").rpartition(":")[0]].append(one)
    found = [
        Clients(
            name,
            library,
            host,
            len(members),
            sum(_number(one, "idle") >= IDLE for one in members),
            max(_number(one, "idle") for one in members),
            sum(_number(one, "omem") for one in members),
        )
        for (name, library, host), members in groups.items()
    ]
    return tuple(sorted(found, key=lambda group: (-group.count, group.name, group.host))[:MOST_NAMED])


def _number(client: Mapping[str, str], name: str) -> int:
    written = client.get(name, "0")
    return int(written) if written.isdigit() else 0


@dataclass(frozen=True, slots=True)
class _Channels:
    count: int | None
    looked_at: int = 0
    past: int = 0


def _channels(client: redis.Redis, every: int, keys: ResultKeys, notes: list[str]) -> _Channels:
    """Channels are named as the key of the result that is waited for."""
    if every > MOST_CHANNELS:
        notes.append(f"{every:,} channels are subscribed: they are counted, not listed, so as not to hold the server")
        return _Channels(every)
    try:
        answer: Any = client.pubsub_channels(keys.pattern_of(keys.task)) if every else []
        sample = answer[:LOOKED_AT]
        if not sample:
            return _Channels(len(answer))
        pipe = client.pipeline(transaction=False)
        for name in sample:
            pipe.exists(name)
        return _Channels(len(answer), len(sample), sum(pipe.execute()))
    except (NoPermissionError, ResponseError) as error:
        if not isinstance(error, NoPermissionError) and "permission" not in str(error):
            raise
        notes.append("PUBSUB is not permitted: who waits for results is not known (allow it with ACL SETUSER ... "
                     "+pubsub|channels)")  # fmt: skip
        return _Channels(None)


def _replicas(info: Mapping[str, Any]) -> tuple[Replica, ...]:
    offset = int(info.get("master_repl_offset", 0))
    return tuple(
        Replica(
            f"{value.get('ip')}:{value.get('port')}",
            value.get("state") == "online",
            float(value.get("lag", 0)),
            max(0, offset - int(value.get("offset", 0))),
        )
        for key, value in sorted(info.items())
        if key.startswith("slave") and key[5:].isdigit() and isinstance(value, dict)
    )
