"""Reading finished results out of Redis, a bounded piece at a time, to be kept elsewhere before they expire."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from time import monotonic
from typing import Any, Final

import redis
import redis.exceptions as driver

from backendops.backends.redis import decide, payload
from backendops.backends.redis.cluster import ClusterMasters
from backendops.backends.redis.keys import ResultKeys
from backendops.backends.redis.nodes import Node, Nodes, may_be_a_failover, walk
from backendops.backends.redis.stored import GROUPS, TASKS, Met, form_of, group_row, members_of, task_row
from backendops.contracts.archive import Batch, Holds, Row, Shape
from backendops.contracts.retention import Retention
from backendops.contracts.run import Pace

# Keys of one SCAN, and of one pipeline of small questions about them: below a millisecond of the server's time.
COUNT: Final = 500

# What one pipeline of GET asks for: all of it is in our memory, and in the server's output buffer for us.
READ_BYTES: Final = 4 * 1024**2

# One result of more is not worth the memory; Redis itself ends a string at 512 MiB.
MOST_READ: Final = 64 * 1024**2

SHAPES: Final[dict[Holds, Shape]] = {"task": TASKS, "group": GROUPS}


class Reading:
    """One pass over the finished results; `known` says which of them the archive has already."""

    def __init__(
        self,
        keys: ResultKeys,
        nodes: Nodes,
        due: Retention,
        known: Callable[[datetime, datetime], bool] = lambda done_at, cutoff: False,  # noqa: ARG005 - nothing is
        interval: timedelta = timedelta(),
    ) -> None:
        self._keys, self._nodes, self._due, self._known, self._interval = keys, nodes, due, known, interval
        self.met = Met()
        self.scanned = 0
        """About how many keys of the database were passed by, the others' among them."""

    def batches(self, holds: Holds, pace: Pace) -> Iterator[Batch]:
        """What is due of the tasks or of the groups; each item is one bounded read and may be empty."""
        stem = self._keys.task if holds == "task" else self._keys.group
        pattern = self._keys.pattern_of(stem)

        def page(node: Node, cursor: int) -> tuple[int, tuple[Node, list[bytes]]]:
            answer: Any = node.client.scan(cursor, match=pattern, count=COUNT)
            return int(answer[0]), (node, [name for name in answer[1] if self._keys.kind(name) == holds])

        for node, names in walk(self._nodes, page, {}):
            self.scanned += COUNT
            if not names:
                yield Batch(SHAPES[holds], ())
            for asked in _pieces(names, [1] * len(names), max(1, min(pace.size, COUNT))):
                began = monotonic()
                for rows in self._read(node, asked, holds, len(stem)):
                    yield Batch(SHAPES[holds], rows)
                pace.measured(len(asked), monotonic() - began)

    def _read(self, node: Node, names: Sequence[bytes], holds: Holds, stem: int) -> Iterator[tuple[Row, ...]]:
        facts = self._ask(node, [(word, name) for name in names for word in ("STRLEN", "PTTL")])
        sizes: dict[bytes, int] = {}
        ttls: dict[bytes, int] = {}
        for name, size, ttl in zip(names, facts[::2], facts[1::2], strict=True):
            # A key of another type is somebody else's; one of no length went in between.
            if isinstance(size, int) and size:
                sizes[name], ttls[name] = size, ttl
        self.met.too_large += sum(size > MOST_READ for size in sizes.values())
        wanted = [name for name, size in sizes.items() if size <= MOST_READ]
        for piece in _pieces(wanted, [sizes[name] for name in wanted], READ_BYTES):
            values = self._ask(node, [("GET", name) for name in piece])
            found = [(name, value) for name, value in zip(piece, values, strict=True) if isinstance(value, bytes)]
            if holds == "task":
                rows = [self._task(name[stem:], value, ttls[name]) for name, value in found]
            else:
                rows = [self._group(node, name[stem:], value, ttls[name]) for name, value in found]
            yield tuple(row for row in rows if row is not None)

    def _task(self, task_id: bytes, value: bytes, ttl: int) -> Row | None:
        found = task_row(task_id, value, self.met)
        if found is None:
            return None
        row, stored = found
        cutoff = self._due.cutoff_of(stored.state, stored.task, stored.queue)
        if cutoff is not None and self._known(row.done_at, cutoff):
            return None
        return self._if_due(row, cutoff, ttl)

    def _group(self, node: Node, group_id: bytes, value: bytes, ttl: int) -> Row | None:
        """A group is as old as the last of its tasks: Redis does not say when it was saved."""
        members = members_of(value)
        if members is None:
            self.met.other_forms[form_of(value)] += 1
            return None
        done = self._done(node, sorted(members))
        if done is None:
            self.met.unfinished += 1
            return None
        if not done:
            self.met.without_members += 1
            return None
        row = group_row(group_id, value, max(done))
        return None if row is None else self._if_due(row, self._due.cutoff, ttl)

    def _if_due(self, row: Row, cutoff: datetime | None, ttl: int) -> Row | None:
        if cutoff is None:
            return None
        left = row.done_at - cutoff
        if left < timedelta():
            return row
        if ttl >= 0 and timedelta(milliseconds=ttl) < left:
            self.met.expire_first += 1
            ends = timedelta(milliseconds=ttl)
            self.met.soonest = ends if self.met.soonest is None else min(self.met.soonest, ends)
        elif ttl >= 0 and timedelta(milliseconds=ttl) < left + self._interval:
            self.met.expire_next += 1
        return None

    def _done(self, node: Node, members: Sequence[str]) -> list[datetime] | None:
        """When those of the tasks finished that are still there; None where one has not."""
        done: list[datetime] = []
        for ids in _pieces(members, [1] * len(members), COUNT):
            names = [self._keys.task + name.encode() for name in ids]
            sizes = self._of_each(node, "STRLEN", names)
            known = dict(zip(names, sizes, strict=True))
            there = [name for name, size in known.items() if isinstance(size, int) and size]
            heads = self._of_each(node, "GETRANGE", there, 0, decide.HEAD - 1)
            tails = self._of_each(node, "GETRANGE", there, -decide.WHOLE, -1)
            for name, head, tail in zip(there, heads, tails, strict=True):
                size = known[name]
                if size <= decide.WHOLE:
                    stored = payload.read(tail)
                else:
                    stored = payload.read_ends(head, tail, name[len(self._keys.task) :])
                    if stored is None and size <= MOST_READ:
                        (whole,) = self._of_each(node, "GET", [name])
                        stored = payload.read(whole) if isinstance(whole, bytes) else None
                if stored is None or stored.done_at is None:
                    return None
                done.append(stored.done_at)
        return done

    def _of_each(self, node: Node, word: str, names: Sequence[bytes], *rest: int) -> list[Any]:
        return ask_owners(self._nodes, node.client, [(word, name, *rest) for name in names])

    def _ask(self, node: Node, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        return ask(self._nodes, node.client, commands)


def ask(nodes: Nodes, client: redis.Redis, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The answers to all of them, in one round trip; an answer may be WRONGTYPE, every other error is raised."""
    while commands:
        pipe = client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py has no types for it
        try:
            answers = list(pipe.execute(raise_on_error=False))
        except (driver.RedisError, OSError) as error:
            if not may_be_a_failover(error):
                raise
            nodes.follow(error)
            continue
        for answer in answers:
            if isinstance(answer, Exception) and "WRONGTYPE" not in str(answer):
                raise answer
        return answers
    return []


def ask_owners(nodes: Nodes, client: redis.Redis, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The same where the keys, the second word of each command, may be on any node; `client` is one of them."""
    if not isinstance(nodes, ClusterMasters):
        return ask(nodes, client, commands)
    places: dict[redis.Redis, list[int]] = defaultdict(list)
    for at, owner in enumerate(nodes.owners([command[1] for command in commands])):
        places[owner].append(at)
    answers: dict[int, Any] = {}
    for owner, its in places.items():
        answers.update(zip(its, ask(nodes, owner, [commands[at] for at in its]), strict=True))
    return [answers[at] for at in range(len(commands))]


def _pieces(names: Sequence[Any], sizes: Sequence[int], most: int) -> Iterator[list[Any]]:
    """The names in pieces of about `most` in size, at least one in each."""
    piece: list[Any] = []
    size = 0
    for name, its_size in zip(names, sizes, strict=True):
        if piece and size + its_size > most:
            yield piece
            piece, size = [], 0
        piece.append(name)
        size += its_size
    if piece:
        yield piece
