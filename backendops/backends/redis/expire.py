"""expire on Redis: result keys that have no time to live get one, and what ended chords left behind is removed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import redis
from redis.exceptions import NoPermissionError

from backendops.backends.redis import lists, plain, scripts
from backendops.backends.redis.courtesy import Courtesy
from backendops.backends.redis.decide import (
    HEAD,
    OVERDUE,
    SPREAD,
    TAIL,
    WHOLE,
    Decision,
    Gift,
    Tally,
    Uncertain,
    milliseconds,
)
from backendops.backends.redis.keys import CHORD_PARTS, ResultKeys
from backendops.backends.redis.nodes import Node, Nodes, finished, read_cursors, walk, write_cursors
from backendops.contracts import metrics
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.retention import Retention
from backendops.contracts.run import Pace, Preview, Step, Steps, Watermarks

# The script ends at the next stretch after this, by the server's own clock, where nobody else asks the server.
CALL_SECONDS: Final = 0.002

# Keys of one SCAN inside the script, by which the call may pass its time: about 0.1 ms for small results. The script
# takes fewer where they take longer, and begins with few, as it does not know yet.
STRETCH: Final = 100
FIRST_STRETCH: Final = 10

# Keys of one call at most, should a server's clock stand still in a script.
MOST_PER_CALL: Final = 10_000

CURSOR: Final = "redis.expire.cursor"


@dataclass(frozen=True, slots=True)
class Page:
    """What one call went through: keys of the server's own count, and the oldest result that was due."""

    examined: int
    oldest: datetime | None = None


class Sweep:
    """One pass over the result keys of every master; it changes nothing where `writes` is False."""

    def __init__(self, keys: ResultKeys, due: Retention, now: datetime, *, writes: bool = True) -> None:
        self._decision = Decision(keys, due, now)
        self._writes = writes
        self.scripted = True
        self.most = MOST_PER_CALL
        self._stretch = FIRST_STRETCH
        self._courtesy = Courtesy(CALL_SECONDS)
        # In a cluster keys of different slots may not stand in one command; harmless where there are no slots.
        self.one_by_one = False
        self.tally = Tally()
        self._arguments = self._settings()

    @property
    def due(self) -> Retention:
        """How long results are kept."""
        return self._decision.due

    @property
    def pattern(self) -> str:
        """The names that are looked at."""
        return self._decision.keys.pattern

    def page(self, node: Node, cursor: int) -> tuple[int, Page]:
        """Go on from `cursor` for as long as one call may take; the next cursor, and what was met."""
        if self.scripted:
            try:
                return self._scripted_page(node.client, cursor)
            except (NoPermissionError, redis.ResponseError) as error:
                if not scripts.are_forbidden(error):
                    raise
                self.scripted = False
        return self._plain_page(node.client, cursor)

    def _scripted_page(self, client: redis.Redis, cursor: int) -> tuple[int, Page]:
        seconds, started = self._courtesy.seconds(client), time.monotonic()
        keys = self._courtesy.keys(STRETCH)
        arguments = [cursor, self.pattern, min(self._stretch, keys), keys, self.most, seconds, *self._arguments]
        answer: list[Any] = scripts.call(client, "sweep", [], arguments)
        self._courtesy.rest(time.monotonic() - started)
        tally, oldest, self._stretch = self.tally, answer[9], answer[2]
        tally.given += answer[3]
        tally.shortened += answer[4]
        tally.removed += answer[5]
        tally.unfinished += answer[6]
        tally.unreadable += answer[7]
        tally.kept_for_ever += answer[8]
        dates = [datetime.fromtimestamp(int(oldest) / 1000, UTC)] if oldest else []
        gifts = []
        for key, _, length, value, ttl in answer[10:]:
            gift = self._decide(client, Uncertain(key, length, value, ttl))
            if gift is not None and gift.done_at is not None:
                gifts.append(gift)
                dates.append(gift.done_at)
        self._give(client, gifts)
        return int(answer[0]), Page(answer[1], min(dates, default=None))

    def _plain_page(self, client: redis.Redis, cursor: int) -> tuple[int, Page]:
        cursor, examined, oldest = plain.page(
            client, cursor, self._decision, self.tally, writes=self._writes, at_once=1 if self.one_by_one else 100
        )
        return cursor, Page(examined, oldest)

    def _decide(self, client: redis.Redis, met: Uncertain) -> Gift | None:
        if not self._decision.needs_the_whole(met):
            return self._decision.of_task(met, self.tally)
        value: Any = client.get(met.key)
        return self._decision.of_task(met, self.tally, value if isinstance(value, bytes) else b"")

    def _give(self, client: redis.Redis, gifts: list[Gift]) -> None:
        done = gifts
        if self._writes:
            done = []
            for part in _parts(gifts, 1 if self.one_by_one else 100):
                arguments: list[Any] = [WHOLE, HEAD, TAIL]
                for gift in part:
                    arguments += [gift.how, gift.milliseconds, gift.unchanged, gift.ttl]
                answers = scripts.call(client, "give", [gift.key for gift in part], arguments)
                done += [gift for gift, given in zip(part, answers, strict=True) if given]
        given = sum(gift.ttl < 0 for gift in done)
        self.tally.given += given
        self.tally.shortened += len(done) - given
        self.tally.changed += len(gifts) - len(done)

    def _settings(self) -> list[Any]:
        keys, due = self._decision.keys, self._decision.due
        # Patterns of task names and queues are Python's: the script hands every finished result over.
        by_name = any(rule.task is not None or rule.queue is not None for rule in due.rules)
        states = dict.fromkeys(rule.state for rule in due.rules if rule.state is not None)
        own = [item for state in states for item in (state, _moment(due.cutoff_of(state)))]
        now, chord_keep, group_keep = self._decision.now, self._decision.chord_keep, self._decision.group_keep
        return [
            keys.task, keys.group, "write" if self._writes else "count",
            _moment(now), _moment(due.cutoff),
            _moment(None if group_keep is None else now - group_keep),
            _moment(None if chord_keep is None else now - chord_keep),
            int(due.keys.shorten), milliseconds(OVERDUE), SPREAD * 1000, WHOLE, HEAD, TAIL, int(by_name), *own,
        ]  # fmt: skip


def _moment(moment: datetime | None) -> int | str:
    return "" if moment is None else int(moment.timestamp() * 1000)


def _parts(gifts: list[Gift], at_once: int) -> Iterator[list[Gift]]:
    # A value hashed whole takes up to 3 ms of the server by itself; of the others a hundred take half of one.
    small = [gift for gift in gifts if gift.how != "whole"]
    for start in range(0, len(small), at_once):
        yield small[start : start + at_once]
    for gift in gifts:
        if gift.how == "whole":
            yield [gift]


def run(sweep: Sweep, nodes: Nodes, replies: lists.Replies | None, pace: Pace, watermarks: Watermarks) -> Steps:
    """Sweep from where the last run stopped; every yielded step is done and its cursor remembered.

    A cursor of another server would skip keys until the next sweep: it is forgotten. A master whose turn was over is
    left to the next sweep, so that in a cluster those behind it have theirs.
    """
    cursors = read_cursors(watermarks.recall(CURSOR))
    begun, examined, before = time.monotonic(), 0, 0
    sweep.most = min(pace.size, MOST_PER_CALL)
    for page in walk(nodes, sweep.page, cursors, finished(cursors)):
        examined += page.examined
        if examined >= pace.size or not any(cursors.values()):
            pace.measured(examined, time.monotonic() - begun)
            watermarks.remember(CURSOR, write_cursors(cursors))
            yield _given(sweep.tally.rows - before)
            begun, examined, before = time.monotonic(), 0, sweep.tally.rows
        sweep.most = min(pace.size - examined, MOST_PER_CALL)
    watermarks.remember(CURSOR, "")
    if replies is not None:
        yield from lists.run(replies, nodes)
    yield _given(sweep.tally.rows - before)
    yield _last(sweep.tally)


def _given(rows: int) -> Step:
    return Step(rows=rows, what="given an expiry" if rows else "")


def _last(tally: Tally) -> Step:
    left, besides = tally.left_alone(), tally.besides()
    said = [besides, f"left alone: {left}" if left else ""]
    return Step(
        what="; ".join(filter(None, said)) or ("" if tally.rows else "every result key has an expiry"),
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
            f"{tally.unreadable:,} results without an expiry are not readable (not JSON, or over 1 MiB), so their age "
            "is not known and they were left alone",
            "set result_expires in the Celery application, so that every new result has its expiry from the start; "
            "result_serializer json lets old ones be read",
        ),
    )


def preview(sweep: Sweep, nodes: Nodes, replies: lists.Replies | None) -> Preview:
    """What a sweep that writes nothing finds."""
    dates = [page.oldest for page in walk(nodes, sweep.page, {}) if page.oldest is not None]
    tally, due = sweep.tally, sweep.due
    left = tally.left_alone()
    said = [f"{tally.given:,} result keys have no expiry and would get one"]
    said += [f"{tally.shortened:,} would be shortened"] if tally.shortened else []
    said += [f"{tally.removed:,} parts of ended chords would be removed"] if tally.removed else []
    rows = tally.rows
    found: tuple[Finding, ...] = ()
    if replies is not None:
        for _ in walk(nodes, replies.page, {}):
            pass
        rows += replies.removed
        said.append(f"{replies.removed:,} abandoned reply lists would be removed")
        found = replies.findings()
    return Preview(
        summary="; ".join(said) + (f"; left alone: {left}" if left else ""),
        rows=rows,
        oldest=min(dates, default=None),
        cutoff=due.cutoff,
        statements=_statements(sweep),
        readings=(metrics.RESULTS_DUE.read(rows),),
        findings=(*findings(tally), *found),
    )


def _statements(sweep: Sweep) -> tuple[str, ...]:
    how = "in one script with the SCAN" if sweep.scripted else "by WATCH, MULTI and EXEC, as scripts are forbidden"
    parts = ", ".join(part.decode() for part in CHORD_PARTS)
    return (
        f"SCAN cursor MATCH {sweep.pattern} COUNT {STRETCH}",
        "PTTL key",
        f"PEXPIRE key (date_done + keep - now), where there is still no expiry, {how}",
        f"UNLINK key, for the parts ({parts}) of a chord that has ended or was not used for chord_keep",
    )
