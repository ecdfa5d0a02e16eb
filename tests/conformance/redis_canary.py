"""Fifty keys that are none of ours, beside results: whatever we do, they stay byte for byte."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from kombu import Connection, Exchange, Queue

from tests.conformance.redis_store import everything


@contextmanager
def canary(url: str, client: redis.Redis) -> Iterator[set[bytes]]:
    """Write them, and on leaving hold them against what they were; their names."""
    results = set(everything(client))
    connection = broker_and_others(url, client)
    try:
        before = {name: value for name, value in everything(client).items() if name not in results}
        assert len(before) >= 50, len(before)
        assert {b"_kombu.binding.celery", b"unacked", b"unacked_index", b"celery"} <= set(before)
        yield set(before)
        after = everything(client)
        assert {name: after.get(name) for name in before} == before
    finally:
        connection.close()


def broker_and_others(url: str, client: redis.Redis) -> Connection:
    """Fifty keys that are none of ours: kombu's own, foreign ones, and look-alikes. Keep the connection open."""
    connection = Connection(url)
    channel = connection.channel()
    for name in ("celery", "celery-task-meta-queue", "reports"):
        exchange = Exchange(name, type="direct")
        queue = Queue(name, exchange, routing_key=name, channel=channel, max_priority=9)
        queue.declare()
        producer = connection.Producer(channel)
        for priority in (0, 0, 3, 9):
            producer.publish({"n": priority}, exchange=exchange, routing_key=name, priority=priority)
    Queue("celery", channel=channel).get(no_ack=False)
    for kind in ("fanout", "topic"):
        Queue(f"{kind}.pidbox", Exchange(f"{kind}.pidbox", type=kind), routing_key="#", channel=channel).declare()
    channel.basic_publish(channel.prepare_message("x"), "", f"{uuid.uuid4()}.reply.celery.pidbox")
    client.rpush(str(uuid.uuid4()), "an RPC reply")
    for prefix in ("my-celery-task-meta-", "celery-task-meta", "celery-tasks-meta-", "celery-task-metadata-", "cache:"):
        client.set(f"{prefix}1", '{"status": "SUCCESS", "date_done": "2020-01-01T00:00:00"}')
        client.set(f"x{prefix}2", "text", ex=1_000_000)
    for number, prefix in enumerate(("celery-task-meta-", "celery-taskset-meta-", "Celery-Task-Meta-", "other-")):
        client.rpush(f"{prefix}list", "a", "b")
        client.sadd(f"{prefix}set", "a", "b")
        client.hset(f"{prefix}hash", "field", number)
        client.zadd(f"{prefix}zset.s", {"a": 1})
        client.xadd(f"{prefix}stream.j", {"a": 1})
    client.set("celery-task-meta-", "a prefix and nothing more")
    client.set("celery-taskset-meta-", "a prefix and nothing more")
    client.set("app_celery-task-meta-1", '{"status": "SUCCESS", "result": 1, "date_done": "2020-01-01T00:00:00"}')
    client.set("backendops:lock:1", "of another database", ex=1_000_000)
    return connection
