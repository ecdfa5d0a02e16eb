"""The sweep where scripts are forbidden: what is read under WATCH is changed by MULTI and EXEC, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import redis
from redis.exceptions import ResponseError, WatchError

from backendops.backends.redis.decide import (
    HEAD,
    OVERDUE,
    TAIL,
    UNSIZED,
    WHOLE,
    Decision,
    Gift,
    Tally,
    Uncertain,
    milliseconds,
)
from backendops.backends.redis.keys import CHORD_PARTS

# A pipeline of so many single commands lets other clients in between.
COUNT: Final = 250

# OBJECT REFCOUNT of a small number before Redis 8, whose time of last use is every such key's.
SHARED: Final = 2147483647


def page(  # noqa: PLR0913 - one call of the sweep
    client: redis.Redis, cursor: int, decision: Decision, tally: Tally, *, writes: bool, at_once: int
) -> tuple[int, int, datetime | None]:
    """One stretch of the keyspace: the next cursor, keys looked at, and the oldest result that was due."""
    answer: Any = client.scan(cursor, match=decision.keys.pattern, count=COUNT)
    cursor, names = answer
    candidates = [key for key in names if decision.keys.kind(key) is not None]
    ttls = _each(client, [("PTTL", key) for key in candidates])
    shorten = decision.due.keys.shorten
    candidates = [key for key, ttl in zip(candidates, ttls, strict=True) if ttl == -1 or (shorten and ttl > 0)]
    dates: list[datetime] = []
    for start in range(0, len(candidates), at_once):
        part = candidates[start : start + at_once]
        try:
            dates += _change(client, part, decision, tally, writes)
        except WatchError:
            # One of them was written meanwhile; the others must not wait for the next sweep.
            for key in part:
                try:
                    dates += _change(client, [key], decision, tally, writes)
                except WatchError:
                    tally.changed += 1
    return cursor, COUNT, min(dates, default=None)


def _change(
    client: redis.Redis, names: Sequence[bytes], decision: Decision, tally: Tally, writes: bool
) -> list[datetime]:
    # Counted only when it is done: an EXEC that fails is tried again.
    counts = Tally()
    with client.pipeline() as transaction:
        if writes:
            watched = [key for name in names for key in _with_siblings(name, decision)]
            transaction.watch(*watched)  # type: ignore[no-untyped-call]  # redis-py has no types for it
        gifts, doomed = _decide(client, names, decision, counts)
        if writes and (gifts or doomed):
            transaction.multi()
            for gift in gifts:
                transaction.pexpire(gift.key, gift.milliseconds)
            if doomed:
                transaction.unlink(*doomed)
            transaction.execute()
    tally.given += sum(gift.ttl < 0 for gift in gifts)
    tally.shortened += sum(gift.ttl >= 0 for gift in gifts)
    tally.removed += len(doomed)
    tally.unfinished += counts.unfinished
    tally.unreadable += counts.unreadable
    tally.kept_for_ever += counts.kept_for_ever
    return [gift.done_at for gift in gifts if gift.done_at is not None]


def _with_siblings(name: bytes, decision: Decision) -> list[bytes]:
    if decision.keys.kind(name) != "chord":
        return [name]
    return [name[:-2] + part for part in CHORD_PARTS]


def _decide(
    client: redis.Redis, names: Sequence[bytes], decision: Decision, tally: Tally
) -> tuple[list[Gift], list[bytes]]:
    facts = _each(client, [(word, key) for key in names for word in ("PTTL", "TYPE")])
    shorten = decision.due.keys.shorten
    gifts: list[Gift] = []
    doomed: list[bytes] = []
    tasks: list[tuple[bytes, int]] = []
    for key, ttl, kind in zip(names, facts[::2], (str(kind, "ascii") for kind in facts[1::2]), strict=True):
        named = decision.keys.kind(key)
        if (
            named is None
            or not decision.keys.has_its_type(key, named, kind)
            or not (ttl == -1 or (shorten and ttl > 0))
        ):
            continue
        if named == "task":
            tasks.append((key, ttl))
        elif named == "group" or (kind == "string" and not _bytes(client.getrange(key, 0, 0)).isalnum()):
            # A saved group may be named as a part of a chord is, which is a number, a token or a word.
            gifts += _group(client, key, decision, tally) if ttl == -1 else []
        else:
            given, gone = _chord(client, key, ttl, decision, tally)
            gifts += given
            doomed += gone
    lengths = _each(client, [("STRLEN", key) for key, _ in tasks])
    for (key, ttl), length in zip(tasks, lengths, strict=True):
        met = Uncertain(key, length, _value(client, key, length), ttl)
        whole: Any = client.get(key) if decision.needs_the_whole(met) else None
        gift = decision.of_task(met, tally, whole)
        gifts += [gift] if gift is not None else []
    return gifts, doomed


def _value(client: redis.Redis, key: bytes, length: int) -> bytes:
    if length <= WHOLE:
        return _bytes(client.get(key))
    return _bytes(client.getrange(key, 0, HEAD - 1)) + _bytes(client.getrange(key, -TAIL, -1))


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else b""


def _group(client: redis.Redis, key: bytes, decision: Decision, tally: Tally) -> list[Gift]:
    keep = decision.group_keep
    if keep is None:
        tally.kept_for_ever += 1
        return []
    left = max(keep - (_idle(client, key) or timedelta()), OVERDUE)
    return [Gift(key, "idle", milliseconds(left), "")]


def _chord(
    client: redis.Redis, key: bytes, ttl: int, decision: Decision, tally: Tally
) -> tuple[list[Gift], list[bytes]]:
    keep = decision.chord_keep
    if keep is None:
        tally.kept_for_ever += 1
        return [], []
    parts = _with_siblings(key, decision)
    quiet = min((idle for part in parts if (idle := _idle(client, part)) is not None), default=None)
    if quiet is None:
        return ([Gift(key, "idle", milliseconds(keep), "")] if ttl == -1 else []), []
    stem = key[:-2]
    finished = client.get(stem + b".c") == b"done"
    if not finished and not client.exists(stem + b".s"):
        finished = quiet >= min(keep, UNSIZED)
    return [], [key] if finished or quiet >= keep else []


def _idle(client: redis.Redis, key: bytes) -> timedelta | None:
    """Since the last use; None where nobody can tell, as in the script."""
    seconds, holders = _each(client, [("OBJECT", "IDLETIME", key), ("OBJECT", "REFCOUNT", key)], raises=False)
    if isinstance(seconds, ResponseError) and "LFU" not in str(seconds):
        raise seconds
    return timedelta(seconds=seconds) if isinstance(seconds, int) and holders != SHARED else None


def _each(client: redis.Redis, commands: Sequence[tuple[str | bytes, ...]], *, raises: bool = True) -> list[Any]:
    if not commands:
        return []
    pipe = client.pipeline(transaction=False)
    for command in commands:
        pipe.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py has no types for it
    return list(pipe.execute(raise_on_error=raises))
