"""What the Redis tests share: an opened backend, a pace that does not change, and every key as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import redis

from backendops.backends.redis import RedisBackend
from backendops.contracts.run import Limits, NoWatermarks, Pace, Watermarks


class FixedPace(Pace):
    """The same size for every batch; remembers what it was told."""

    def __init__(self, size: int = 1000) -> None:
        self._size = size
        self.batches: list[int] = []

    @property
    def size(self) -> int:
        return self._size

    def measured(self, rows: int, seconds: float) -> None:
        self.batches.append(rows)

    def timed_out(self) -> None:
        raise AssertionError("no batch here meets a timeout")


@contextmanager
def opened(
    url: str, *, limits: Limits | None = None, watermarks: Watermarks | None = None, **policy: Any
) -> Iterator[RedisBackend]:
    """The backend of this URL, connected."""
    backend = RedisBackend(url=url, **policy)
    with backend.open(limits or Limits(), watermarks or NoWatermarks()) as connected:
        yield connected


@contextmanager
def client_of(url: str) -> Iterator[redis.Redis]:
    """A plain client, closed afterwards."""
    client = redis.Redis.from_url(url)
    try:
        yield client
    finally:
        client.close()


@contextmanager
def configured(client: redis.Redis, **settings: str | int) -> Iterator[None]:
    """The server with these settings, and its own again afterwards."""
    names = {name.replace("_", "-"): value for name, value in settings.items()}
    before: dict[str, Any] = {name: client.config_get(name)[name] for name in names}
    try:
        for name, value in names.items():
            client.config_set(name, value)
        yield
    finally:
        for name, value in before.items():
            client.config_set(name, value)


def everything(client: redis.Redis) -> dict[bytes, tuple[bytes, int]]:
    """Every key of the database: its content byte by byte, and the moment it expires (-1: never)."""
    with client.client() as quiet:
        # Looking must not make a key look used. Redis before 7.2 cannot help it.
        with suppress(redis.ResponseError):
            quiet.execute_command("CLIENT", "NO-TOUCH", "ON")
        names: Any = list(quiet.scan_iter(count=1000))
        return {name: (quiet.dump(name), _expires_at(quiet, name)) for name in names}


def _expires_at(client: redis.Redis, name: bytes) -> int:
    try:
        return client.pexpiretime(name)
    except redis.ResponseError:  # Redis before 7.0 tells only how long a key has left
        return min(client.pttl(name), 0)


def about(seconds: float, expected: timedelta, slack: float = 60) -> bool:
    """Is this TTL what was expected, give or take what the test itself takes, on a machine that others use?"""
    return abs(seconds - expected.total_seconds()) <= slack
