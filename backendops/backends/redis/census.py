"""What a survey has counted on one server so far: small whatever the number of keys, and kept in the ledger as text."""

from __future__ import annotations

import heapq
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final

from backendops.backends.redis import payload
from backendops.contracts.keyspace import BOUNDS, BUCKETS, KEY_KINDS

KINDS: Final = len(KEY_KINDS)

# Names of tasks that are told apart; an application has some hundreds, and a name may be made up by whoever sends it.
MOST_TASKS: Final = 1000

# Sizes that are kept by name: more than anybody asks to see.
MOST_LARGEST: Final = 100

# Characters of a name that are shown; ids and names of tasks are much shorter.
LONGEST_NAME: Final = 200

OTHER: Final = "other"
UNKNOWN: Final = "unknown"


@dataclass(slots=True)
class Weighed:
    """Keys of one kind that were weighed: how many, their bytes, and the squares of those, for the error."""

    keys: int = 0
    size: int = 0
    squares: int = 0


@dataclass(slots=True)
class Census:
    """The counts of one server. `counts` has, for each kind, keys, those without a time to live, and each bucket."""

    counts: list[list[int]] = field(default_factory=lambda: [[0] * (2 + len(BUCKETS)) for _ in range(KINDS)])
    weighed: list[Weighed] = field(default_factory=lambda: [Weighed() for _ in range(KINDS)])
    states: dict[str, list[int]] = field(default_factory=dict)
    tasks: dict[str, list[int]] = field(default_factory=dict)
    ages: list[int] = field(default_factory=lambda: [0] * len(BUCKETS))
    largest: list[tuple[int, str]] = field(default_factory=list)
    bindings: list[str] = field(default_factory=list)

    @property
    def keys(self) -> int:
        """Every key that was met."""
        return sum(count[0] for count in self.counts)

    def count(self, flat: list[int]) -> None:
        """Add what one call counted, kind after kind."""
        width = 2 + len(BUCKETS)
        for kind, mine in enumerate(self.counts):
            for place in range(width):
                mine[place] += flat[kind * width + place]

    def weigh(self, kind: int, key: bytes, size: int) -> None:
        """Add the bytes of one key."""
        mine = self.weighed[kind]
        mine.keys += 1
        mine.size += size
        mine.squares += size * size
        if kind < KEY_KINDS.index("rpc"):
            entry = (size, shown(key.decode(errors="replace")))
            if len(self.largest) < MOST_LARGEST:
                heapq.heappush(self.largest, entry)
            elif entry > self.largest[0] and entry not in self.largest:
                heapq.heapreplace(self.largest, entry)

    def tell(self, stored: payload.Stored | None, size: int, now: datetime) -> None:
        """Add what one weighed task result says of itself."""
        _add(self.states, UNKNOWN if stored is None else shown(stored.state), size)
        _add(self.tasks, shown((stored.task if stored else None) or UNKNOWN), size)
        if stored is not None and stored.done_at is not None:
            self.ages[bucket_of((now - stored.done_at).total_seconds())] += 1

    def join(self, other: Census) -> None:
        """Add another server's counts."""
        for mine, theirs in zip(self.counts, other.counts, strict=True):
            mine[:] = [a + b for a, b in zip(mine, theirs, strict=True)]
        for one, two in zip(self.weighed, other.weighed, strict=True):
            one.keys, one.size, one.squares = one.keys + two.keys, one.size + two.size, one.squares + two.squares
        for names, more in ((self.states, other.states), (self.tasks, other.tasks)):
            for name, (keys, size) in more.items():
                _add(names, name, size, keys)
        self.ages = [a + b for a, b in zip(self.ages, other.ages, strict=True)]
        self.largest = heapq.nlargest(MOST_LARGEST, {*self.largest, *other.largest})
        self.bindings = [*self.bindings, *other.bindings]

    def as_document(self) -> dict[str, Any]:
        """For the ledger."""
        return asdict(self)

    @classmethod
    def of_document(cls, document: dict[str, Any]) -> Census:
        """From the ledger; raises KeyError or TypeError where it is another version's."""
        census = cls(**document)
        census.weighed = [Weighed(**weighed) for weighed in document["weighed"]]
        census.largest = [(size, name) for size, name in document["largest"]]
        return census


def shown(name: str) -> str:
    """The name as it may be printed: whoever sends a task chooses it, and a terminal obeys some characters."""
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in name[: LONGEST_NAME + 1])
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"


def bucket_of(seconds: float) -> int:
    """The class of a length of time."""
    return next((n for n, bound in enumerate(BOUNDS) if seconds <= bound.total_seconds()), len(BOUNDS))


def _add(names: dict[str, list[int]], name: str, size: int, keys: int = 1) -> None:
    if name not in names and len(names) >= MOST_TASKS:
        name = OTHER
    mine = names.setdefault(name, [0, 0])
    mine[0] += keys
    mine[1] += size
