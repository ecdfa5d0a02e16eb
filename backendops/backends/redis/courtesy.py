"""How long one call may hold the server: longer where nobody else uses it, short where an application waits."""

from __future__ import annotations

import time
from typing import Any, Final

import redis
from redis.exceptions import NoPermissionError

# Asking costs the server about 50 microseconds: a two-thousandth of its time.
ASK_EVERY: Final = 0.1
FIRST_LOOK: Final = 0.01

# Requests of others in a second, from which on they are an application and not a probe or a person.
BUSY_FROM: Final = 30

# A third of what a request to a server of one's own takes anyway: with the rest after each call, 99 of 100 requests of
# others take less than twice as long as without us; a survey of a million keys takes twenty seconds instead of one.
AMONG_OTHERS: Final = 0.00005
REST: Final = 3
# Keys that one SCAN of a call asks for there: what a call does between two looks at the clock must fit into its time.
FEW_KEYS: Final = 20
# A call that was longer than asked for, as one large value may be, earns no pause that adds up over a million keys.
LONGEST_REST: Final = 0.0012


class Courtesy:
    """The time of the next call, from how much others ask of the server; `alone` is the longest, in seconds."""

    def __init__(self, alone: float) -> None:
        self._alone = alone
        self._asked_at, self._reads, self._ours = 0.0, -1, 0
        self._client: redis.Redis | None = None
        self.among_others = True

    def seconds(self, client: redis.Redis) -> float:
        """How long the next call may take; one request to the server now and then."""
        now = time.monotonic()
        if client is not self._client:
            self._client, self._reads, self.among_others = client, -1, True
        if self._reads < 0 or now - self._asked_at >= ASK_EVERY:
            self._ask(client, now)
        self._ours += 1
        return AMONG_OTHERS if self.among_others else self._alone

    def keys(self, alone: int) -> int:
        """The most keys that one SCAN of the next call may ask for; `alone` where nobody else is there."""
        return min(FEW_KEYS, alone) if self.among_others else alone

    def rest(self, seconds: float) -> None:
        """Leave the server to the others for three times what the call took; nothing where there are none."""
        if self.among_others:
            time.sleep(min(seconds * REST, LONGEST_REST))

    def _ask(self, client: redis.Redis, now: float) -> None:
        try:
            stats: Any = client.info("stats")
        except NoPermissionError:
            stats = {}
        reads = stats.get("total_reads_processed")
        if reads is None:
            self._reads, self._asked_at = 0, now
            return  # nobody can say: as if there were others
        if self._reads >= 0:
            others = int(reads) - self._reads - self._ours - 1
            self.among_others = others / (now - self._asked_at) >= BUSY_FROM
        else:
            # The first look: a moment of one's own tells whether somebody is there.
            time.sleep(FIRST_LOOK)
            again: Any = client.info("stats")
            others = int(again.get("total_reads_processed", reads)) - int(reads) - 1
            self.among_others = others / (FIRST_LOOK) >= BUSY_FROM
            reads, now = again.get("total_reads_processed", reads), time.monotonic()
        self._reads, self._asked_at, self._ours = int(reads), now, 0
