"""A Redis Cluster: its masters, each asked by itself. Celery itself cannot keep results in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import redis
import redis.exceptions as driver
from redis.crc import key_slot

from backendops.backends.redis.nodes import Followed, Node, identity_of

SLOTS: Final = 16384

NOT_FOR_CELERY: Final = (
    "Celery cannot keep results in a Redis Cluster (it uses several keys in one command, and follows no MOVED): give "
    "it a standalone server or Sentinel"
)


def is_node(client: redis.Redis) -> bool:
    """Is this server a node of a cluster? False where it does not say."""
    try:
        return bool(client.info("cluster").get("cluster_enabled", 0))
    except driver.NoPermissionError:
        return False


class ClusterMasters(Followed):
    """The masters that hold the cluster's slots; `connect` makes a client of one node by its host and port."""

    def __init__(self, seed: redis.Redis, host: str, connect: Callable[[str, int], redis.Redis]) -> None:
        super().__init__()
        self._seed, self._host, self._connect = seed, host, connect
        self._clients: dict[tuple[str, int], redis.Redis] = {}

    def masters(self) -> list[Node]:
        owners = dict.fromkeys((host, port) for _, _, host, port in self._slots())
        # Where INFO is not permitted, a node's address tells it from the others.
        return [
            Node(identity_of(client) or f"{host}:{port}".replace(":", "_"), client, f"{host}:{port}")
            for host, port in owners
            for client in [self._client(host, port)]
        ]

    def owner(self, key: str) -> redis.Redis:
        """The client of the master that has this key."""
        return self.owners([key.encode()])[0]

    def owners(self, keys: Sequence[bytes]) -> list[redis.Redis]:
        """The client of the master that has each key, all as of one moment."""
        slots = self._slots()
        found = []
        for slot in map(key_slot, keys):
            owner = next(((host, port) for first, last, host, port in slots if first <= slot <= last), None)
            if owner is None:
                raise driver.ClusterDownError("CLUSTERDOWN Hash slot not served")
            found.append(self._client(*owner))
        return found

    def are_up(self) -> bool:
        slots = self._slots()
        if sum(last - first + 1 for first, last, _, _ in slots) < SLOTS:
            return False
        owners = {(host, port) for _, _, host, port in slots}
        return all(self._client(host, port).info("replication").get("role") == "master" for host, port in owners)

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def _client(self, host: str, port: int) -> redis.Redis:
        if (host, port) not in self._clients:
            self._clients[host, port] = self._connect(host, port)
        return self._clients[host, port]

    def _slots(self) -> list[tuple[int, int, str, int]]:
        """First slot, last slot, host and port of each stretch, as the first node tells it that answers."""
        lost: Exception = driver.ConnectionError("no node of the cluster answers")
        for client, host in [(self._seed, self._host), *((known, name) for (name, _), known in self._clients.items())]:
            try:
                # Not by redis-py's own name for the command, which has no types and reads the answer for RedisCluster.
                answer: Any = client.execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
            except (driver.ConnectionError, driver.TimeoutError, OSError) as error:
                lost = error
                continue
            return [(int(first), int(last), _name(owner[0], host), int(owner[1])) for first, last, owner, *_ in answer]
        raise lost


def _name(host: bytes | str | None, asked: str) -> str:
    # A node that does not know its own address says nothing, or `?`: it is where we asked.
    name = host.decode() if isinstance(host, bytes) else host or ""
    return asked if name in {"", "?"} else name
