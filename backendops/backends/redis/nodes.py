"""The servers that hold the keys: one, whichever one the sentinels name, or every master of a cluster."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Event
from typing import Any, Final, TypeVar

import redis
import redis.exceptions as driver

# Sentinel's default takes 30 s to believe that a master is gone, and a few to agree on another; the lease of our lock
# ends after 60.
FOLLOW_FOR: Final = 50.0

# A run that meets more than this many failovers is not what is wrong.
MOST_FOLLOWED: Final = 3

ASK_EVERY: Final = 0.25

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Node:
    """One master. A cursor of SCAN is worth something on the process that gave it and on no other."""

    identity: str
    client: redis.Redis
    address: str = ""
    """Of a cluster's node."""


class Nodes(ABC):
    """The masters of one backend, as they are now."""

    @abstractmethod
    def masters(self) -> list[Node]:
        """Every server that takes writes; each key is on one of them."""

    def follow(self, error: Exception) -> None:
        """Wait until there is a master again after `error`; raises it where there will be none."""
        raise error

    def give_up(self) -> None:  # noqa: B027 - where nothing is waited for, there is nothing to end
        """End a `follow` that waits, from another thread."""

    def close(self) -> None:  # noqa: B027 - most make no connection of their own
        """Close every connection that was made here."""


class OneServer(Nodes):
    """A server by itself: when it goes away, the run ends."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def masters(self) -> list[Node]:
        return [Node(identity_of(self._client), self._client)]


class Followed(Nodes):
    """Masters that may be replaced in the middle of a run; `probe` says whether there is a full set of them."""

    def __init__(self) -> None:
        self._followed = 0
        self._gave_up = Event()

    @abstractmethod
    def are_up(self) -> bool:
        """Is every master there, and is it one? May raise what the driver raises."""

    def follow(self, error: Exception) -> None:
        self._followed += 1
        if self._followed > MOST_FOLLOWED:
            raise error
        deadline = time.monotonic() + FOLLOW_FOR
        while time.monotonic() < deadline and not self._gave_up.is_set():
            try:
                if self.are_up():
                    return
            except (driver.RedisError, OSError) as still:
                if not may_be_a_failover(still):
                    raise
            self._gave_up.wait(ASK_EVERY)
        raise error

    def give_up(self) -> None:
        self._gave_up.set()


class SentinelMaster(Followed):
    """The one master that the sentinels name; `fresh` connects to it with short waits."""

    def __init__(self, client: redis.Redis, fresh: Callable[[], redis.Redis]) -> None:
        super().__init__()
        self._client, self._fresh = client, fresh

    def masters(self) -> list[Node]:
        # An old master takes writes for a moment after another was named, and loses them: the connection that is
        # there says nothing about who is master now.
        if not self._agreed():
            raise driver.ConnectionError("the sentinels are putting another master in its place")
        probe = self._fresh()
        try:
            named = identity_of(probe)
        finally:
            probe.close()
        if identity_of(self._client) != named:
            self._client.connection_pool.disconnect()
        return [Node(named, self._client)]

    def are_up(self) -> bool:
        if not self._agreed():
            return False
        probe = self._fresh()
        try:
            # The sentinels may name the old master for a moment longer, which is a replica already.
            return probe.info("replication").get("role") == "master"
        finally:
            probe.close()

    def _agreed(self) -> bool:
        """Do the two answers of a sentinel name one server? While it fails over, only the first names the new one."""
        pool: Any = self._client.connection_pool
        lost: Exception = driver.ConnectionError("no sentinel answers")
        for sentinel in pool.sentinel_manager.sentinels:
            try:
                named = sentinel.sentinel_get_master_addr_by_name(pool.service_name)
                state = sentinel.sentinel_masters().get(pool.service_name)
            except (driver.ConnectionError, driver.TimeoutError, OSError) as error:
                lost = error
                continue
            return named is not None and state is not None and _address(*named) == _address(state["ip"], state["port"])
        raise lost


def _address(host: bytes | str, port: int | str) -> tuple[str, int]:
    return host.decode() if isinstance(host, bytes) else host, int(port)


def identity_of(client: redis.Redis) -> str:
    """The server's run id, another one after each restart; empty where INFO is not permitted."""
    try:
        return str(client.info("server").get("run_id", ""))
    except driver.NoPermissionError:
        return ""


# What a replaced master answers with or does; a wrong password or a missing right is no failover.
_FAILOVER: Final = (
    driver.ConnectionError, driver.TimeoutError, driver.ReadOnlyError, driver.MasterDownError, driver.ClusterDownError,
    driver.TryAgainError, driver.AskError, OSError,
)  # fmt: skip
_NO_FAILOVER: Final = (driver.AuthenticationError, driver.AuthorizationError, driver.MaxConnectionsError)


def may_be_a_failover(error: Exception) -> bool:
    """Is this what a run meets when its master is replaced?"""
    if isinstance(error, _NO_FAILOVER):
        return False
    return isinstance(error, _FAILOVER) or (isinstance(error, driver.ResponseError) and "READONLY" in str(error))


def walk(
    nodes: Nodes, page: Callable[[Node, int], tuple[int, T]], cursors: dict[str, int], done: set[str] | None = None
) -> Iterator[T]:
    """Go once through every master's keyspace and yield what `page` finds, from where `cursors` say.

    `cursors` is kept current; a master that takes another's place is gone through from its beginning, as its order of
    keys is another. The servers in `done` are left out, as long as there is another one.
    """
    done = set() if done is None else set(done)
    first = True
    while True:
        try:
            # One that was begun comes first: else those behind it would never have their turn.
            begun = sorted(nodes.masters(), key=lambda node: not cursors.get(node.identity))
        except (driver.RedisError, OSError) as error:
            if not may_be_a_failover(error):
                raise
            nodes.follow(error)
            continue
        if first and done.issuperset(node.identity for node in begun):
            done.clear()
        first = False
        left = [node for node in begun if node.identity not in done]
        for gone in set(cursors) - {node.identity for node in begun}:
            del cursors[gone]
        if not left:
            return
        node = left[0]
        while node.identity not in done:
            try:
                cursor, found = page(node, cursors.get(node.identity, 0))
            except (driver.RedisError, OSError) as error:
                if not may_be_a_failover(error):
                    raise
                nodes.follow(error)
                # Of a server whose identity is not known, nobody can say whether the cursor is still its own.
                cursors.pop("", None)
                break
            cursors[node.identity] = cursor
            if cursor == 0:
                done.add(node.identity)
            yield found


def finished(cursors: dict[str, int]) -> set[str]:
    """The servers that were gone through to their end: SCAN ends with a cursor of 0."""
    return {identity for identity, cursor in cursors.items() if cursor == 0}


def read_cursors(text: str | None) -> dict[str, int]:
    """What `write_cursors` wrote; nothing where it is something else."""
    pairs = (part.rpartition(":") for part in (text or "").split())
    return {identity: int(cursor) for identity, _, cursor in pairs if cursor.isdigit()}


def write_cursors(cursors: dict[str, int]) -> str:
    """Where a walk is on each server, as a watermark."""
    return " ".join(f"{identity}:{cursor}" for identity, cursor in sorted(cursors.items()))
