"""The history of used memory, small enough for the ledger, and the straight line through it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from backendops.contracts.run import Watermarks
from backendops.contracts.server_health import Growth

MARK: Final = "redis.memory-history"

# One point a minute at most, and two hundred in all: some 4 KiB in the ledger. The older half is thinned, so that the
# points reach back further and further: after a day, about an hour of minutes and then ever longer steps.
EVERY: Final = 60.0
MOST: Final = 200

# What was a week ago says little of tomorrow.
OLDEST: Final = 7 * 86400.0

# Fewer points, or a shorter time, make a line of anything.
FEWEST: Final = 10
SHORTEST: Final = 600.0

# Half of the interval that has the true value nineteen times of twenty, in standard errors.
CONFIDENCE: Final = 1.96

# However alike neighbouring points are, ten of them say something.
_MOST_ALIKE: Final = 0.95

Points = list[tuple[float, float]]


def remember(watermarks: Watermarks, run_id: str, now: float, used: int, node: str = "") -> Growth | None:
    """Add what is used now to the history of this server; the line through it, where there is enough of one.

    Another `run_id`, which each start of the server changes, begins a new history. Each node of a cluster has its own.
    """
    mark = f"{MARK}:{node}" if node else MARK
    points = _recall(watermarks, run_id, mark)
    # A clock that was set back would make a history that runs backwards.
    points = [point for point in points if now - OLDEST <= point[0] <= now]
    if not points or now - points[-1][0] >= EVERY:
        points = thinned([*points, (now, float(used))])
        written = [[round(moment), round(size)] for moment, size in points]
        watermarks.remember(mark, json.dumps({"run": run_id, "points": written}, separators=(",", ":")))
    return line(points)


def _recall(watermarks: Watermarks, run_id: str, mark: str) -> Points:
    try:
        document = json.loads(watermarks.recall(mark) or "{}")
        if document.get("run") != run_id:
            return []
        return [(float(moment), float(used)) for moment, used in document["points"]]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []  # of another version


def thinned(points: Points) -> Points:
    """Every second one of the older half away, where there are too many."""
    if len(points) <= MOST:
        return points
    half = len(points) // 2
    return points[:half:2] + points[half:]


def line(points: Sequence[tuple[float, float]]) -> Growth | None:
    """Least squares; its error allows for neighbouring points being alike, which a plain standard error does not."""
    if len(points) < FEWEST or points[-1][0] - points[0][0] < SHORTEST:
        return None
    count = len(points)
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    rate = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    rest = [y - mean_y - rate * (x - mean_x) for x, y in points]
    squares = sum(each * each for each in rest)
    alike = sum(a * b for a, b in pairwise(rest)) / squares if squares else 0.0
    alike = min(max(alike, 0.0), _MOST_ALIKE)
    error = math.sqrt(squares / (count - 2) / spread * (1 + alike) / (1 - alike))
    return Growth(rate, CONFIDENCE * error, count, points[-1][0] - points[0][0])
