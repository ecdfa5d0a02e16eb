"""Lists that RPC over Redis leaves behind: counted, and removed only where the policy asks for it by name."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any, Final

import redis
from redis.exceptions import NoPermissionError, ResponseError, WatchError

from backendops.backends.redis import scripts
from backendops.backends.redis.courtesy import Courtesy
from backendops.backends.redis.decide import milliseconds
from backendops.backends.redis.keys import is_pidbox_reply, is_reply_list
from backendops.backends.redis.nodes import Node, Nodes, walk
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.run import Step, Steps

CALL_SECONDS: Final = 0.002
STRETCH: Final = 100
MOST: Final = 10_000


class Replies:
    """The reply lists of a database. `rpc` and `pidbox` are how long one may be idle; None: never touched."""

    def __init__(self, rpc: timedelta | None, pidbox: timedelta | None, *, writes: bool = True) -> None:
        self._rpc, self._pidbox, self._writes = rpc, pidbox, writes
        self._scripted = True
        self._courtesy = Courtesy(CALL_SECONDS)
        self.found = self.untold = self.removed = 0

    def page(self, node: Node, cursor: int) -> tuple[int, int]:
        """One call: the next cursor, and how many lists were removed (or would be)."""
        if self._scripted:
            try:
                return self._scripted_page(node.client, cursor)
            except (NoPermissionError, ResponseError) as error:
                if not scripts.are_forbidden(error):
                    raise
                self._scripted = False
        return self._plain_page(node.client, cursor)

    def _scripted_page(self, client: redis.Redis, cursor: int) -> tuple[int, int]:
        limits = ["" if limit is None else milliseconds(limit) for limit in (self._rpc, self._pidbox)]
        how = "write" if self._writes else "count"
        seconds, started = self._courtesy.seconds(client), time.monotonic()
        answer: list[Any] = scripts.call(client, "lists", [], [cursor, STRETCH, MOST, seconds, how, *limits])
        self._courtesy.rest(time.monotonic() - started)
        self.found += answer[2]
        self.untold += answer[3]
        self.removed += answer[4]
        return int(answer[0]), answer[4]

    def _plain_page(self, client: redis.Redis, cursor: int) -> tuple[int, int]:
        answer: Any = client.scan(cursor, count=STRETCH, _type="list")
        cursor, names = answer
        removed = 0
        for key in names:
            if (is_reply_list(key) or is_pidbox_reply(key)) and self._ttl(client, key) == -1:
                self.found += 1
                limit = self._rpc if is_reply_list(key) else self._pidbox
                removed += limit is not None and self._remove(client, key, limit)
        self.removed += removed
        return cursor, removed

    def _remove(self, client: redis.Redis, key: bytes, limit: timedelta) -> bool:
        with client.pipeline() as transaction:
            transaction.watch(key)  # type: ignore[no-untyped-call]  # redis-py has no types for it
            try:
                idle: Any = client.object("IDLETIME", key)
            except ResponseError:  # an LFU policy, or not ours to ask about: nobody knows
                self.untold += 1
                return False
            if idle is None or timedelta(seconds=idle) < limit or client.pttl(key) != -1:
                return False
            if self._writes:
                transaction.multi()
                transaction.unlink(key)
                try:
                    transaction.execute()
                except WatchError:
                    return False
        return True

    @staticmethod
    def _ttl(client: redis.Redis, key: bytes) -> Any:
        try:
            return client.pttl(key)
        except NoPermissionError:
            return None

    def findings(self) -> tuple[Finding, ...]:
        """What is left."""
        left = self.found - self.removed
        if not left:
            return ()
        if self.untold:
            return (
                Finding(
                    Severity.WARNING,
                    "redis.reply-lists-untold",
                    f"{self.untold:,} of {left:,} reply lists without an expiry were left, as the server does not say "
                    "how long they were idle: under an LFU policy it does not know, or the user may not ask",
                    "CONFIG SET maxmemory-policy volatile-ttl, or allow OBJECT IDLETIME on these keys",
                ),
            )
        return (
            Finding(
                Severity.INFO,
                "redis.reply-lists",
                f"{left:,} reply lists of RPC over Redis or of `celery inspect` have no expiry and are in use, or not "
                "idle for long enough",
                "rpc_lists and pidbox_lists of the expire job say how long such a list may be idle",
            ),
        )


def run(replies: Replies, nodes: Nodes) -> Steps:
    """Remove what is idle for too long, a call at a time."""
    for removed in walk(nodes, replies.page, {}):
        if removed:
            yield Step(rows=removed, what="abandoned reply lists removed")
    yield Step(findings=replies.findings())
