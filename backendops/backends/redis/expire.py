"""expire on Redis: result keys that have no time to live get one, and nothing else is touched."""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import redis

from backendops.backends.redis import payload, scripts
from backendops.backends.redis.keys import ResultKeys
from backendops.contracts import metrics
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.retention import Retention
from backendops.contracts.run import Pace, Preview, Step, Steps, Watermarks

# One call examines at most this many keys: below 1 ms of the server's single thread, which every client waits for.
# Larger calls are hardly faster in all, and the clients would notice them.
MOST_PER_CALL: Final = 250

# Values up to this are read whole in the scan's own call; of longer ones, the two ends that hold status and date.
WHOLE: Final = 8 * 1024
HEAD: Final = 256
TAIL: Final = WHOLE - HEAD

# What the ends do not tell is read whole up to here: hashing 1 MiB holds the server about 3 ms.
MOST_READ: Final = 1024 * 1024

# Results past keeping get a minute or two, not a DEL: whoever is about to fetch one still can, and the server
# frees them in its own small pieces. Spread over a second minute, so that they do not all fall due at once.
OVERDUE: Final = timedelta(seconds=60)
SPREAD: Final = 60

CURSOR: Final = "redis.expire.cursor"


@dataclass(frozen=True, slots=True)
class Gift:
    """A time to live for one key, and what must still be true of the key when it gets it."""

    key: bytes
    how: str
    milliseconds: int
    unchanged: str
    done_at: datetime | None = None


@dataclass(slots=True)
class Tally:
    """What the sweep met and left alone."""

    given: int = 0
    unfinished: int = 0
    unreadable: int = 0
    kept_for_ever: int = 0
    changed: int = 0

    def left_alone(self) -> str:
        """What was left alone and why, in words; empty where nothing was."""
        counts = (
            (self.unfinished, "not finished"),
            (self.unreadable, "not readable"),
            (self.kept_for_ever, "kept for ever"),
            (self.changed, "rewritten meanwhile"),
        )
        return ", ".join(f"{count:,} {why}" for count, why in counts if count)


class Sweep:
    """One pass over the result keys of a database."""

    def __init__(self, client: redis.Redis, keys: ResultKeys, due: Retention, now: datetime) -> None:
        self._client, self._keys, self._due, self._now = client, keys, due, now
        self.tally = Tally()

    @property
    def pattern(self) -> str:
        """The names that are looked at."""
        return self._keys.pattern

    def stretch(self, cursor: int, count: int) -> tuple[int, list[Gift]]:
        """The next cursor, and what the keys up to there should get."""
        answer: list[Any] = scripts.call(
            self._client,
            "find",
            [],
            [cursor, self._keys.pattern, min(count, MOST_PER_CALL), self._keys.task, WHOLE, HEAD, TAIL],
        )
        gifts = (self._gift(key, str(kind, "ascii"), length, value) for key, kind, length, value in answer[1:])
        return int(answer[0]), [gift for gift in gifts if gift is not None]

    def give(self, gifts: list[Gift]) -> int:
        """Give the keys what they should get; how many were still as they were read."""
        given = 0
        for part in _parts(gifts):
            arguments: list[Any] = [WHOLE, HEAD, TAIL, _milliseconds(OVERDUE)]
            for gift in part:
                arguments += [gift.how, gift.milliseconds, gift.unchanged]
            answers = scripts.call(self._client, "give", [gift.key for gift in part], arguments)
            given += sum(answers)
        self.tally.given += given
        self.tally.changed += len(gifts) - given
        return given

    def _gift(self, key: bytes, redis_type: str, length: int, value: bytes) -> Gift | None:
        kind = self._keys.kind(key)
        if kind is None or not self._keys.has_its_type(key, kind, redis_type):
            return None
        return self._dated(key, length, value) if kind == "task" else self._undated(key, redis_type)

    def _undated(self, key: bytes, redis_type: str) -> Gift | None:
        # Groups and chords carry no date: they are kept from their last use on.
        cutoff = self._due.cutoff_of(None)
        if cutoff is None:
            self.tally.kept_for_ever += 1
            return None
        return Gift(key, "idle", _milliseconds(self._now - cutoff), redis_type)

    def _whole(self, key: bytes) -> bytes:
        value = self._client.get(key)
        return value if isinstance(value, bytes) else b""

    def _dated(self, key: bytes, length: int, value: bytes) -> Gift | None:
        how = "dated"
        if length <= WHOLE:
            stored = payload.read(value)
        else:
            stored = payload.read_ends(value[:HEAD], value[HEAD:], key[len(self._keys.task) :])
            if stored is None and length <= MOST_READ:
                how, value = "whole", self._whole(key)
                stored = payload.read(value)
        if stored is None:
            self.tally.unreadable += 1
            return None
        if stored.done_at is None:
            self.tally.unfinished += 1
            return None
        cutoff = self._due.cutoff_of(stored.state, stored.task, stored.queue)
        if cutoff is None:
            self.tally.kept_for_ever += 1
            return None
        left = min(stored.done_at - cutoff, self._now - cutoff)  # a date in the future keeps nothing longer
        if left < OVERDUE:
            left = OVERDUE + timedelta(seconds=zlib.crc32(key) % SPREAD)
        digest = hashlib.sha1(value, usedforsecurity=False).hexdigest()
        return Gift(key, how, _milliseconds(left), digest, stored.done_at)


def _milliseconds(length: timedelta) -> int:
    return int(length.total_seconds() * 1000)


def _parts(gifts: list[Gift]) -> Iterator[list[Gift]]:
    # A value hashed whole takes up to 3 ms of the server by itself; of the others a hundred take half of one.
    small = [gift for gift in gifts if gift.how != "whole"]
    for start in range(0, len(small), MOST_PER_CALL // 2):
        yield small[start : start + MOST_PER_CALL // 2]
    for gift in gifts:
        if gift.how == "whole":
            yield [gift]


def run(sweep: Sweep, pace: Pace, watermarks: Watermarks, server: str) -> Steps:
    """Sweep from where the last run stopped; every yielded step is done and its cursor remembered.

    A cursor of another server (`server` is its run id) would skip keys until the next sweep: it is forgotten.
    """
    remembered_server, _, remembered = (watermarks.recall(CURSOR) or "").partition(":")
    cursor = int(remembered) if remembered_server == server and remembered.isdigit() else 0
    while True:
        size, started, examined, given = pace.size, time.monotonic(), 0, 0
        while True:
            cursor, gifts = sweep.stretch(cursor, size - examined)
            given += sweep.give(gifts)
            examined += min(size - examined, MOST_PER_CALL)
            if cursor == 0 or examined >= size:
                break
        pace.measured(examined, time.monotonic() - started)
        watermarks.remember(CURSOR, f"{server}:{cursor}")
        if cursor == 0:
            break
        yield Step(rows=given, what="given an expiry")
    yield _last(sweep.tally, given)


def _last(tally: Tally, given: int) -> Step:
    left = tally.left_alone()
    return Step(
        rows=given,
        what="given an expiry" + (f"; left alone: {left}" if left else ""),
        readings=(metrics.RESULTS_DUE.read(0),),
        findings=findings(tally),
    )


def findings(tally: Tally) -> tuple[Finding, ...]:
    """What a sweep cannot mend by itself."""
    if not tally.unreadable:
        return ()
    return (
        Finding(
            Severity.WARNING,
            "redis.results-unreadable",
            f"{tally.unreadable:,} results without an expiry are not readable (not JSON, or over "
            f"{MOST_READ // 1024 // 1024} MiB), so their age is not known and they were left alone",
            "set result_expires in the Celery application, so that every new result has its expiry from the start; "
            "result_serializer json lets old ones be read",
        ),
    )


def preview(sweep: Sweep, due: Retention) -> Preview:
    """What a sweep would do, found by reading only."""
    cursor, rows, oldest = 0, 0, None
    while True:
        cursor, gifts = sweep.stretch(cursor, MOST_PER_CALL)
        rows += len(gifts)
        dates = [gift.done_at for gift in gifts if gift.done_at is not None]
        oldest = min([*dates, *([oldest] if oldest else [])], default=None)
        if cursor == 0:
            break
    left = sweep.tally.left_alone()
    return Preview(
        summary=f"{rows:,} result keys have no expiry and would get one" + (f"; left alone: {left}" if left else ""),
        rows=rows,
        oldest=oldest,
        cutoff=due.cutoff,
        statements=(
            f"SCAN cursor MATCH {sweep.pattern} COUNT {MOST_PER_CALL}",
            "PTTL key",
            "PEXPIRE key (date_done + keep - now), where the value is unchanged and there is still no expiry",
        ),
        readings=(metrics.RESULTS_DUE.read(rows),),
        findings=findings(sweep.tally),
    )
