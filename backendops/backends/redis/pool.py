"""pool-health on Redis: one fresh connection, timed, and how many others there are."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import redis

from backendops.backends.redis.connection import greet
from backendops.contracts.capabilities import PoolReport

# CLIENT LIST holds the server about 1 ms per thousand clients; beyond this only its own totals are read.
MOST_LISTED: Final = 2000

# How many applications are named; the rest is one figure.
MOST_NAMED: Final = 20


def report(fresh: redis.Redis) -> PoolReport:
    """Connect with `fresh`, measure, and read how its connections stand."""
    started = time.monotonic()
    greet(fresh)
    connected = time.monotonic()
    greet(fresh)
    answered = time.monotonic()
    notes: list[str] = []
    info: Mapping[str, Any] = {}
    try:
        info = {**fresh.info("clients"), **fresh.info("stats"), **fresh.info("replication")}
    except redis.exceptions.NoPermissionError:
        notes.append("INFO is not permitted: connection figures are not known (allow it with ACL SETUSER ... +info)")
    clients = _clients(fresh, int(info.get("connected_clients", 0)), notes)
    return PoolReport(
        connect_seconds=connected - started,
        roundtrip_seconds=answered - connected,
        connections=_states(clients, info),
        connections_limit=_limit(fresh, info, notes),
        by_application=_applications(clients),
        replication_lag_seconds=_lag(info),
        rejected_connections=int(info["rejected_connections"]) if "rejected_connections" in info else None,
        notes=tuple(notes),
    )


def _clients(fresh: redis.Redis, connected: int, notes: list[str]) -> list[Mapping[str, str]]:
    if connected > MOST_LISTED:
        notes.append(f"{connected:,} clients: they are counted, not listed, so as not to hold the server")
        return []
    try:
        return list(fresh.client_list())
    except redis.exceptions.NoPermissionError:
        notes.append("CLIENT LIST is not permitted: allow it with ACL SETUSER ... +client|list")
        return []


def _states(clients: list[Mapping[str, str]], info: Mapping[str, Any]) -> dict[str, int]:
    if clients or not info:
        return dict(Counter(_state(client) for client in clients))
    blocked = int(info.get("blocked_clients", 0))
    return {"blocked": blocked, "other": int(info.get("connected_clients", 0)) - blocked}


def _state(client: Mapping[str, str]) -> str:
    flags = client.get("flags", "")
    if "b" in flags:
        return "blocked"
    if "x" in flags:
        return "idle_in_transaction"  # between MULTI and EXEC
    if any(flag in flags for flag in "SMP"):
        return "other"  # replicas, the master, subscribers that wait for results
    return "active" if client.get("idle") == "0" else "idle"


def _applications(clients: list[Mapping[str, str]]) -> dict[str, int]:
    counts = Counter(_application(client) for client in clients)
    named = dict(counts.most_common(MOST_NAMED))
    rest = counts.total() - sum(named.values())
    return {**named, "others": rest} if rest else named


def _application(client: Mapping[str, str]) -> str:
    return client.get("name") or client.get("lib-name") or "unnamed"


def _limit(fresh: redis.Redis, info: Mapping[str, Any], notes: list[str]) -> int:
    if "maxclients" in info:
        return int(info["maxclients"])
    try:
        return int(fresh.config_get("maxclients").get("maxclients") or 0)
    except redis.exceptions.ResponseError:
        notes.append("maxclients is not known: neither INFO nor CONFIG GET tells it")
        return 0


def _lag(info: Mapping[str, Any]) -> float | None:
    """Seconds since the slowest replica's last acknowledgement; on a replica, since it last heard of its master."""
    if info.get("role") == "slave":
        down, heard = info.get("master_link_down_since_seconds"), info.get("master_last_io_seconds_ago")
        seconds = [float(value) for value in (down, heard) if value is not None and float(value) >= 0]
        return max(seconds, default=None)
    lags = [value["lag"] for key, value in info.items() if key.startswith("slave") and isinstance(value, dict)]
    return max((float(lag) for lag in lags), default=None)
