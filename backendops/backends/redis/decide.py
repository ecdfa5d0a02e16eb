"""What one result key should get, decided here where the server's script could not be certain."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from backendops.backends.redis import payload
from backendops.backends.redis.keys import ResultKeys
from backendops.contracts.retention import Retention

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

# Celery gives a chord its size while its header is being sent: one without for so long has failed or is a rest.
UNSIZED: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Uncertain:
    """A result as the scan met it: a whole value, or its two ends. `ttl` is in milliseconds, -1 for none."""

    key: bytes
    length: int
    value: bytes
    ttl: int = -1


@dataclass(frozen=True, slots=True)
class Gift:
    """A time to live for one key, and what must still be true of the key when it gets it."""

    key: bytes
    how: str
    milliseconds: int
    unchanged: str
    ttl: int = -1
    done_at: datetime | None = None


@dataclass(slots=True)
class Tally:
    """What the sweep did, and what it met and left alone."""

    given: int = 0
    shortened: int = 0
    removed: int = 0
    unfinished: int = 0
    unreadable: int = 0
    kept_for_ever: int = 0
    changed: int = 0

    @property
    def rows(self) -> int:
        """Every key that the sweep changed, or would."""
        return self.given + self.shortened + self.removed

    def left_alone(self) -> str:
        """What was left alone and why, in words; empty where nothing was."""
        return _joined(
            (self.unfinished, "not finished"),
            (self.unreadable, "not readable"),
            (self.kept_for_ever, "kept for ever"),
            (self.changed, "rewritten meanwhile"),
        )

    def besides(self) -> str:
        """What was done besides giving expiries, in words; empty where nothing was."""
        return _joined((self.shortened, "shortened"), (self.removed, "parts of ended chords removed"))


def _joined(*counts: tuple[int, str]) -> str:
    return ", ".join(f"{count:,} {what}" for count, what in counts if count)


class Decision:
    """How long each result is kept, by what is known of it."""

    def __init__(self, keys: ResultKeys, due: Retention, now: datetime) -> None:
        self.keys, self.due, self.now = keys, due, now

    def of_task(self, met: Uncertain, tally: Tally, whole: bytes | None = None) -> Gift | None:
        """What a finished result should get; `whole` is its value where the ends did not tell."""
        how, value = "dated", met.value
        if whole is not None:
            how, value, stored = "whole", whole, payload.read(whole)
        elif met.length <= WHOLE:
            stored = payload.read(value)
        else:
            stored = payload.read_ends(value[:HEAD], value[HEAD:], met.key[len(self.keys.task) :])
        if stored is None:
            tally.unreadable += 1
            return None
        if stored.done_at is None:
            tally.unfinished += 1
            return None
        cutoff = self.due.cutoff_of(stored.state, stored.task, stored.queue)
        if cutoff is None:
            tally.kept_for_ever += 1
            return None
        left = min(stored.done_at - cutoff, self.now - cutoff)  # a date in the future keeps nothing longer
        if left < OVERDUE:
            left = OVERDUE + timedelta(seconds=zlib.crc32(met.key) % SPREAD)
        if met.ttl >= 0 and met.ttl <= milliseconds(left + OVERDUE) + SPREAD * 1000:
            return None
        digest = hashlib.sha1(value, usedforsecurity=False).hexdigest()
        return Gift(met.key, how, milliseconds(left), digest, met.ttl, stored.done_at)

    def needs_the_whole(self, met: Uncertain) -> bool:
        """Do the ends of a long value leave open what a look at all of it could tell?"""
        ends = payload.read_ends(met.value[:HEAD], met.value[HEAD:], met.key[len(self.keys.task) :])
        return WHOLE < met.length <= MOST_READ and ends is None

    @property
    def chord_keep(self) -> timedelta | None:
        """How long a chord is kept after its last use; None for ever."""
        if self.due.keys.chord_cutoff is not None:
            return self.now - self.due.keys.chord_cutoff
        return None if (cutoff := self.due.cutoff_of(None)) is None else self.now - cutoff

    @property
    def group_keep(self) -> timedelta | None:
        """How long a saved group is kept after its last use; None for ever."""
        return None if (cutoff := self.due.cutoff_of(None)) is None else self.now - cutoff


def milliseconds(length: timedelta) -> int:
    """As Redis counts."""
    return int(length.total_seconds() * 1000)
