"""Connections: one server, one socket or whatever master the sentinels name, with every wait bounded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, TypeVar, cast

import redis
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection
from redis.retry import Retry
from redis.sentinel import Sentinel

from backendops.backends.redis.address import Address

CLIENT_NAME: Final = "backendops"

T = TypeVar("T")


def _introduce(connection: AbstractConnection) -> None:
    untyped: Any = connection
    untyped.on_connect()
    for command in (
        ("CLIENT", "SETNAME", CLIENT_NAME),
        # What we read must not look used: that would change what an LRU policy evicts and how long a chord seems idle.
        ("CLIENT", "NO-TOUCH", "ON"),
    ):
        untyped.send_command(*command)
        # Redis before 7.2 does not know NO-TOUCH, and an ACL may forbid either: all the rest works without.
        with suppress(redis.ResponseError):
            untyped.read_response()


def connect(  # noqa: PLR0913 - Celery's own settings, each given by name
    address: Address,
    *,
    connect_timeout: timedelta,
    answer_timeout: timedelta,
    master_name: str | None = None,
    sentinel_options: dict[str, Any] | None = None,
    min_other_sentinels: int = 0,
) -> redis.Redis:
    """A client that connects at its first command; no wait is longer than the two timeouts."""
    options: dict[str, Any] = {
        "db": address.db,
        "username": address.username,
        "password": address.password,
        "socket_timeout": answer_timeout.total_seconds(),
        # One protocol on every server from 6.2 on; RESP3 would add push messages that nobody reads here.
        "protocol": 2,
        # The engine and the schedule decide about another try, not the driver.
        "retry": Retry(NoBackoff(), 0),
        "redis_connect_func": _introduce,
    }
    if address.scheme == "redis+socket":
        return redis.Redis(unix_socket_path=address.socket, **options)
    options["socket_connect_timeout"] = connect_timeout.total_seconds()
    options["socket_keepalive"] = True
    if address.tls:
        options.update(ssl=True, **address.tls)
    if address.scheme == "sentinel":
        # redis-py has no types for its Sentinel.
        sentinels: Any = cast(Any, Sentinel)(
            list(address.hosts),
            min_other_sentinels=min_other_sentinels,
            sentinel_kwargs={
                "socket_timeout": connect_timeout.total_seconds(),
                "socket_connect_timeout": connect_timeout.total_seconds(),
                "retry": Retry(NoBackoff(), 0),
                **(sentinel_options or {}),
            },
        )
        return cast(redis.Redis, sentinels.master_for(master_name or "", **options))
    ((host, port),) = address.hosts
    return redis.Redis(host=host, port=port, **options)


def greet(client: redis.Redis) -> None:
    """PING: does it answer, and may we ask? Raises what the driver raises."""
    try:
        client.ping()
    except redis.ResponseError as error:
        # After a snapshot that failed Redis refuses PING as it refuses writes, and answers everything else.
        if not str(error).startswith("MISCONF"):
            raise


def within(limit: timedelta, attempt: Callable[[], T]) -> T:
    """Call `attempt` and raise TimeoutError when it takes longer: a resolver has no timeout of its own.

    A host with several addresses is tried one after the other, each with the whole timeout of the socket.
    """
    answers: SimpleQueue[tuple[T | None, Exception | None]] = SimpleQueue()

    def run() -> None:
        try:
            answers.put((attempt(), None))
        except Exception as error:  # noqa: BLE001 - it is raised again, in the thread that waits for it
            answers.put((None, error))

    Thread(target=run, daemon=True, name="backendops-connect").start()
    try:
        answer, error = answers.get(timeout=limit.total_seconds())
    except Empty:
        raise TimeoutError(f"no answer within {limit.total_seconds():g} s") from None
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]  # attempt's own answer, whatever type that is
