"""How many lookups found their key lately, from the server's counters and what the ledger keeps of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from backendops.contracts.run import Watermarks
from backendops.contracts.server_health import Lookups

MARK: Final = "redis.lookups"

# Two stretches of time are counted, the younger begun an hour after the older: what is told is of one hour to two.
STRETCH: Final = 3600.0


class Recent:
    """The lookups between runs: what this job itself asks for in a run, every key's time to live, is left out."""

    def __init__(self, watermarks: Watermarks, info: Mapping[str, Any], now: float, node: str) -> None:
        self._watermarks, self._mark, self._run = watermarks, f"{MARK}:{node}" if node else MARK, _run_id(info)
        self._now, self._windows = now, [(now, 0, 0), (now, 0, 0)]
        self._known = False
        try:
            document = json.loads(watermarks.recall(self._mark) or "{}")
            (hits, misses), (older, younger) = document["counters"], document["windows"]
            new_hits, new_misses = _counters(info)[0] - hits, _counters(info)[1] - misses
            # Another start of the server, its counters set back, or a clock set back: begun anew.
            if document["run"] != self._run or min(new_hits, new_misses, now - younger[0]) < 0:
                return
            self._windows = [(float(since), h + new_hits, m + new_misses) for since, h, m in (older, younger)]
            self._known = True
        except (ValueError, TypeError, KeyError, IndexError):
            return  # none, or of another version

    @property
    def lookups(self) -> Lookups | None:
        """Those since the older stretch began; None where the ledger knows of no earlier run."""
        if not self._known:
            return None
        since, hits, misses = self._windows[0]
        return Lookups(hits, misses, self._now - since)

    def end(self, info: Mapping[str, Any]) -> None:
        """Take down where the counters are when the run has asked for all it asks for."""
        if self._now - self._windows[1][0] >= STRETCH:
            self._windows = [self._windows[1], (self._now, 0, 0)]
        document = {"run": self._run, "counters": _counters(info), "windows": self._windows}
        self._watermarks.remember(self._mark, json.dumps(document, separators=(",", ":")))


def _counters(info: Mapping[str, Any]) -> tuple[int, int]:
    return int(info.get("keyspace_hits", 0)), int(info.get("keyspace_misses", 0))


def _run_id(info: Mapping[str, Any]) -> str:
    return str(info.get("run_id", ""))
