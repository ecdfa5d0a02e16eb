"""The survey's call where scripts are forbidden: SCAN, then each key by itself in a pipeline."""

from __future__ import annotations

from typing import Any, Final

import redis
from redis.exceptions import ResponseError

from backendops.backends.redis.census import KINDS, bucket_of
from backendops.backends.redis.keys import ResultKeys, is_broker_key, is_reply_list
from backendops.contracts.keyspace import BUCKETS, KEY_KINDS

# A pipeline of so many single commands lets other clients in between.
COUNT: Final = 500
SAMPLES: Final = 50
WHOLE: Final = 2048
HEAD: Final = 256

_TASK, _, _, _RPC, _BROKER, _FOREIGN = range(KINDS)


def page(  # noqa: PLR0913, PLR0917 - what the script takes
    client: redis.Redis, cursor: int, keys: ResultKeys, may: bool, left: list[int], every: list[int]
) -> list[Any]:
    """The same answer as the script's."""
    answer: Any = client.scan(cursor, count=COUNT)
    cursor, names = answer
    kinds = [_kind(keys, name) for name in names]
    asked = [n for n, kind in enumerate(kinds) if kind < _RPC or may]
    ttls = _ask(client, [("PTTL", names[n]) for n in asked])
    replies = [n for n in asked if kinds[n] == _RPC]
    for n, type_of in zip(replies, _ask(client, [("TYPE", names[n]) for n in replies]), strict=True):
        if type_of != b"list":
            kinds[n] = _FOREIGN
    flat = [0] * (KINDS * (2 + len(BUCKETS)))
    known = dict(zip(asked, ttls, strict=True))
    chosen, left = [], list(left)
    for n, kind in enumerate(kinds):
        place = kind * (2 + len(BUCKETS))
        flat[place] += 1
        ttl = known.get(n)
        if isinstance(ttl, ResponseError):
            if kind < _RPC:
                raise ttl
            may = False
        elif ttl == -1:
            flat[place + 1] += 1
        elif ttl is not None and ttl >= 0:
            flat[place + 2 + bucket_of(ttl / 1000)] += 1
        left[kind] = min(left[kind], every[kind] - 1) - 1
        if left[kind] < 0:
            left[kind] = every[kind] - 1
            chosen += [n] if kind < _RPC or may else []
    bindings = [name for name, kind in zip(names, kinds, strict=True) if kind == _BROKER and b"_kombu.binding" in name]
    weighed = _weigh(client, [(kinds[n], names[n]) for n in chosen])
    return [cursor, len(names), int(may), bindings, flat, left, *weighed]


def _kind(keys: ResultKeys, name: bytes) -> int:
    if (kind := keys.kind(name)) is not None:
        return KEY_KINDS.index(kind)
    if is_reply_list(name):
        return _RPC
    return _BROKER if is_broker_key(name) else _FOREIGN


def _weigh(client: redis.Redis, chosen: list[tuple[int, bytes]]) -> list[list[Any]]:
    sizes = _ask(client, [("MEMORY", "USAGE", name, "SAMPLES", SAMPLES) for _, name in chosen])
    tasks = [name for kind, name in chosen if kind == _TASK]
    lengths = dict(zip(tasks, _ask(client, [("STRLEN", name) for name in tasks]), strict=True))
    heads = dict(zip(tasks, _ask(client, [("GETRANGE", name, 0, WHOLE - 1) for name in tasks]), strict=True))
    tails = dict(zip(tasks, _ask(client, [("GETRANGE", name, HEAD - WHOLE, -1) for name in tasks]), strict=True))
    weighed = []
    for (kind, name), size in zip(chosen, sizes, strict=True):
        if isinstance(size, int):
            length, value = lengths.get(name, 0), heads.get(name, b"")
            if not isinstance(length, int) or not isinstance(value, bytes):
                length, value = 0, b""
            elif length > WHOLE:
                value = value[:HEAD] + tails[name]
            weighed.append([kind + 1, name, size, length, value])
    return weighed


def _ask(client: redis.Redis, commands: list[tuple[Any, ...]]) -> list[Any]:
    if not commands:
        return []
    pipe = client.pipeline(transaction=False)
    for command in commands:
        pipe.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py has no types for it
    return list(pipe.execute(raise_on_error=False))
