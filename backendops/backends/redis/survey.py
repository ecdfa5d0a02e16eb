"""The survey: what every key is, how large, and when it goes, read in calls that no client notices."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import redis
from redis.exceptions import NoPermissionError, ResponseError

from backendops.backends.redis import payload, plain_survey, scripts
from backendops.backends.redis.census import KINDS, OTHER, Census
from backendops.backends.redis.courtesy import Courtesy
from backendops.backends.redis.keys import ResultKeys, is_broker_key
from backendops.backends.redis.nodes import Node, Nodes, finished, walk
from backendops.contracts.keyspace import BUCKETS, KEY_KINDS, Keyspace, KindOfKeys, Share
from backendops.contracts.run import Watermarks

# The script ends at the next stretch after this, by the server's own clock, where nobody else asks the server.
CALL_SECONDS: Final = 0.002

# Keys of one SCAN inside the script, by which the call may pass its time: about 0.1 ms. The script takes fewer where
# they take longer, as each of the first ones does, which are weighed, and begins with few.
STRETCH: Final = 100
FIRST_STRETCH: Final = 10

# Keys of one call at most, should a server's clock stand still in a script.
MOST_PER_CALL: Final = 5000

# The first of each kind are all weighed, so that a small store is weighed exactly; of more, one in so many that about
# two thousand are: their mean is within some percent.
FIRST: Final = 500
WEIGHED: Final = 2000

# What of a value is read to know its state, its task and its date.
WHOLE: Final = 2048
HEAD: Final = 256
TAIL: Final = WHOLE - HEAD

# Elements of a chord's set that are weighed: all of a large one would hold the server.
SAMPLES: Final = 50

# Exchanges whose bindings are read, names read of one, and of one call: some tenths of a millisecond.
MOST_BINDINGS: Final = 1000
MOST_BOUND: Final = 5000
ASKED_AT_ONCE: Final = 500

MARK: Final = "redis.survey"

# An older beginning tells of another keyspace.
LONGEST_PAUSE: Final = timedelta(hours=1)

# Half of the interval that has the true mean nineteen times of twenty, in standard errors.
CONFIDENCE: Final = 1.96


class Survey:
    """One pass over every master's keys; it can be put down and taken up again."""

    def __init__(self, keys: ResultKeys, total: int, now: datetime, *, weigh_all: bool = False) -> None:
        self._keys, self._total, self._now, self._weigh_all = keys, total, now, weigh_all
        self._censuses: dict[str, Census] = {}
        self._left = [0] * KINDS
        self._may, self.scripted = True, True
        self.cursors: dict[str, int] = {}
        self.seconds = self.longest_call = 0.0
        self.complete = False
        self._finished: set[str] = set()
        self._courtesy = Courtesy(CALL_SECONDS)
        self._stretch = FIRST_STRETCH

    def page(self, node: Node, cursor: int) -> tuple[int, int]:
        """One call; the next cursor, and how many keys were met."""
        if cursor == 0 or node.identity not in self._censuses:
            self._censuses[node.identity] = Census()
            cursor = 0
        census, started = self._censuses[node.identity], time.monotonic()
        answer = self._call(node.client, cursor, census)
        took = time.monotonic() - started
        self.longest_call = max(self.longest_call, took)
        self._courtesy.rest(took)
        cursor, seen, may, bindings, flat, self._left, *weighed = answer
        self._may = bool(may)
        room = MOST_BINDINGS - len(census.bindings)
        census.bindings += [name.decode(errors="replace") for name in bindings[: max(0, room)]]
        census.count(flat)
        for kind, key, size, length, value in weighed:
            census.weigh(kind - 1, key, size)
            if kind == 1:
                census.tell(self._stored(key, length, value), size, self._now)
        return int(cursor), seen

    def _call(self, client: redis.Redis, cursor: int, census: Census) -> list[Any]:
        every = [self._every(census.counts[kind][0]) for kind in range(KINDS)]
        if self.scripted:
            seconds = self._courtesy.seconds(client)
            most = self._courtesy.keys(STRETCH)
            arguments: list[Any] = [
                cursor, min(self._stretch, most), most, MOST_PER_CALL, seconds, self._keys.task, self._keys.group,
                int(self._may), WHOLE, HEAD, TAIL, SAMPLES,
                *(number for kind in range(KINDS) for number in (min(self._left[kind], every[kind] - 1), every[kind])),
            ]  # fmt: skip
            try:
                answer = scripts.call(client, "survey", [], arguments)
                cursor, seen, self._stretch, may, bindings, counts, left, *weighed = answer
                # Numbers as text: reading seventy answers one by one would take longer than the call.
                return [cursor, seen, may, bindings, [*map(int, counts.split())], [*map(int, left.split())], *weighed]
            except (NoPermissionError, ResponseError) as error:
                if not scripts.are_forbidden(error):
                    raise
                self.scripted = False
        return plain_survey.page(client, cursor, self._keys, self._may, self._left, every)

    def _every(self, counted: int) -> int:
        if self._weigh_all or counted < FIRST:
            return 1
        return max(1, self._total // WEIGHED)

    def _stored(self, key: bytes, length: int, value: bytes) -> payload.Stored | None:
        if length <= WHOLE:
            return payload.read(value)
        return payload.read_ends(value[:HEAD], value[HEAD:], key[len(self._keys.task) :])

    def go_on(
        self, nodes: Nodes, time_limit: timedelta | None, progress: Callable[[float], None] | None = None
    ) -> None:
        """Go through the keys until they end or the time does."""
        began = time.monotonic()
        met = sum(census.keys for census in self._censuses.values())
        self.complete = True
        for seen in walk(nodes, self.page, self.cursors, self._finished):
            met += seen
            if progress is not None:
                progress(min(1.0, met / self._total) if self._total else 1.0)
            if time_limit is not None and time.monotonic() - began >= time_limit.total_seconds():
                # Between two masters no cursor says that there is more.
                ended = finished(self.cursors)
                self.complete = len(ended) == len(self.cursors) and ended.issuperset(
                    node.identity for node in nodes.masters()
                )
                break
        self.seconds += time.monotonic() - began

    def keyspace(self, top: int, queues: Callable[[list[str]], int]) -> Keyspace:
        """What is known so far, scaled up to the whole; `queues` counts the lists that bindings name."""
        sum_of = Census()
        for identity, census in self._censuses.items():
            if identity in self.cursors:  # a master that was replaced in the middle does not count
                sum_of.join(census)
        met = sum_of.keys
        part = 1.0 if self.complete or not self._total else min(1.0, met / self._total)
        scale = 1 / part if part else 0.0
        # Queues have free names: until their bindings are known, they were taken for somebody else's.
        lists = min(queues(sum_of.bindings), sum_of.counts[-1][0]) if sum_of.bindings else 0
        kinds = {name: _kind(sum_of, kind, scale) for kind, name in enumerate(KEY_KINDS)}
        if lists:
            kinds["broker"] = _moved(kinds["broker"], round(lists * scale))
            kinds["foreign"] = _moved(kinds["foreign"], -round(lists * scale))
        told = sum_of.weighed[0].keys
        each = kinds["task"].keys / told if told else 0.0
        dated = sum(sum_of.ages)
        return Keyspace(
            keys=self._total,
            part=part,
            seconds=self.seconds,
            kinds=kinds,
            states=_shares(sum_of.states, each, top),
            tasks=_shares(sum_of.tasks, each, top),
            ages=tuple(round(count * each) for count in sum_of.ages) if dated else (0,) * len(BUCKETS),
            largest=tuple((name, size) for size, name in sorted(sum_of.largest, reverse=True)[:top]),
            longest_call=self.longest_call,
            notes=tuple(self._notes()),
        )

    def _notes(self) -> list[str]:
        notes = []
        if not self._may:
            notes.append("keys that are not results may not be looked at: of them only the names are known")
        if not self.scripted:
            notes.append("scripts are forbidden to this user: the survey asks for each key by itself, and is slower")
        return notes

    def write(self, watermarks: Watermarks) -> None:
        """Put it down, to be taken up by the next run; a finished one is forgotten."""
        document = {
            "at": datetime.now(UTC).isoformat(),
            "cursors": self.cursors,
            "seconds": self.seconds,
            "censuses": {name: census.as_document() for name, census in self._censuses.items()},
        }
        watermarks.remember(MARK, "" if self.complete else json.dumps(document))

    def read(self, watermarks: Watermarks) -> None:
        """Take up what the last run put down, where that is not too long ago."""
        try:
            document = json.loads(watermarks.recall(MARK) or "null")
            if document is None or datetime.now(UTC) - datetime.fromisoformat(document["at"]) > LONGEST_PAUSE:
                return
            censuses = {name: Census.of_document(census) for name, census in document["censuses"].items()}
            cursors = {str(name): int(cursor) for name, cursor in document["cursors"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # of another version
        self._finished = finished(cursors)
        self._censuses, self.cursors, self.seconds = censuses, cursors, float(document["seconds"])


def queues(client: redis.Redis, bindings: Iterable[str]) -> int:
    """How many queue lists there are, of the queues that the bindings name (kombu: routing key, pattern, queue)."""
    names: set[bytes] = set()
    try:
        for binding in sorted(set(bindings))[:MOST_BINDINGS]:
            # Of an exchange whose reply queues were never unbound, hundreds of thousands: not all in one call.
            cursor, read = 0, 0
            while (cursor or not read) and read < MOST_BOUND and client.type(binding) == b"set":
                answer: Any = client.sscan(binding, cursor, count=ASKED_AT_ONCE)
                cursor, read = int(answer[0]), read + ASKED_AT_ONCE
                names.update(member.rpartition(b"\x06\x16")[2] for member in answer[1])
        # kombu's priority steps 3, 6 and 9 are lists of their own. Names of Celery's own form were counted already.
        lists = [name + suffix for name in names if name for suffix in (b"", b"\x06\x163", b"\x06\x166", b"\x06\x169")]
        lists = [name for name in lists if not is_broker_key(name)]
        found = 0
        for start in range(0, len(lists), ASKED_AT_ONCE):
            found += int(client.exists(*lists[start : start + ASKED_AT_ONCE]))
    except NoPermissionError:
        return 0  # a user of the results only: the bindings' own names, which SCAN gives, say enough
    return found


def _kind(census: Census, kind: int, scale: float) -> KindOfKeys:
    keys, without, *ttl = census.counts[kind]
    weighed = census.weighed[kind]
    size = error = 0.0
    if weighed.keys:
        mean = weighed.size / weighed.keys
        size = mean * keys * scale
        if 1 < weighed.keys < keys * scale:
            variance = max(0.0, weighed.squares / weighed.keys - mean * mean) * weighed.keys / (weighed.keys - 1)
            # Of a kind that was weighed in full the error is nothing: the correction for a finite whole.
            unknown = 1 - weighed.keys / (keys * scale)
            error = CONFIDENCE * math.sqrt(variance / weighed.keys * unknown) * keys * scale
    return KindOfKeys(
        keys=round(keys * scale),
        without_ttl=round(without * scale),
        ttl=tuple(round(count * scale) for count in ttl),
        size=round(size),
        size_error=round(error),
        weighed=weighed.keys,
    )


def _moved(kind: KindOfKeys, keys: int) -> KindOfKeys:
    """The same with so many keys more; a queue has no time to live, and few enough are weighed to leave its bytes."""
    return KindOfKeys(
        max(0, kind.keys + keys), max(0, kind.without_ttl + keys), kind.ttl, kind.size, kind.size_error, kind.weighed
    )


def _shares(names: dict[str, list[int]], each: float, top: int) -> tuple[Share, ...]:
    ranked = sorted(names.items(), key=lambda item: (item[0] == OTHER, -item[1][1], item[0]))
    shown, rest = ranked[:top], ranked[top:]
    shares = [Share(name, round(keys * each), round(size * each)) for name, (keys, size) in shown]
    if rest:
        keys, size = (sum(counts[place] for _, counts in rest) for place in (0, 1))
        shares.append(Share(OTHER, round(keys * each), round(size * each)))
    return tuple(shares)
