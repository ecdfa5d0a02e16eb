"""How large the next batch is and how long to rest before it: the application must not notice the run."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from backendops.contracts.run import Pace

# Why a run may wait, as labels of a metric: a backend that reports pressure uses these words.
THROTTLE_REASONS: Final = ("paused", "pause-file", "pause-when", "replica-lag", "lock-waits", "no-answer", "gentle")
GENTLE: Final = "gentle"

# Below ten rows a batch is mostly round trips and its lock no shorter.
SMALLEST: Final = 10
# Past 100,000 rows the rate no longer grows with the batch, and the one statement that is slower than all before it
# (a cold cache, a lock) should take some seconds, not a minute.
LARGEST: Final = 100_000
# One jump is a guess about rows that nobody has measured yet; it aims at a third of batch_time, so rows three times as
# slow would still keep it.
GROWTH: Final = 4.0
# A slower batch is news and counts for most of the next size; a faster one may be luck (a warm page, a sparse range).
WEIGHT_OF_SLOWER: Final = 0.7
WEIGHT_OF_FASTER: Final = 0.3
# A batch that waits for the disk takes two or three times as long as the one before it: aiming at a third keeps nearly
# all of them under batch_time, and costs no rate; what the application commits meanwhile waits a third less.
AIM: Final = 1 / 3
# A batch that timed out lowers the ceiling; each good one gives a tenth of it back, so that a
# size that timed out is tried again after seven good batches, not after the next one.
RECOVERY: Final = 1.1
# One part in fifty: 2 ms after a batch of 80 ms is enough for the writers that queued behind it to go first, and costs
# 2 % of the rate; a tenth would cost more than the rest of the engine together.
REST: Final = 0.02

# Gently: a commit of the application waits for all that was logged before it, so a batch logs little (a millisecond's
# work) and is followed by three times its length in which nothing is: docs/benchmarks.md.
GENTLE_BATCH_TIME: Final = timedelta(milliseconds=3)
GENTLE_REST: Final = 3.0
# A step that cannot be split, such as a VACUUM, earns no longer rest.
GENTLE_LONGEST_REST: Final = 0.1
# A slow network or a busy processor must not make tiny batches: their round trips would be no gentler, and the run
# would never end. Nor does a quick one make them large: what is logged goes by the rows.
GENTLE_SMALLEST: Final = 100
GENTLE_ROWS: Final = 500


class TimedPace(Pace):
    """Sizes batches so that none takes longer than `batch_time`, from what the ones before it took."""

    def __init__(  # noqa: PLR0913 - one for each number of a pace
        self,
        first: int = 1000,
        batch_time: timedelta = timedelta(milliseconds=250),
        *,
        rest: float = REST,
        longest_rest: float | None = None,
        smallest: int = SMALLEST,
        largest: int = LARGEST,
    ) -> None:
        self._size = float(first)
        self._rest = rest
        self._aim = batch_time.total_seconds() * AIM
        self._longest_rest = self._aim if longest_rest is None else longest_rest
        self._smallest = min(smallest, first)
        self._least = min(SMALLEST, first)
        self._largest = self._ceiling = float(max(largest, first))
        self._rate: float | None = None

    @property
    def size(self) -> int:
        return int(self._size)

    def measured(self, rows: int, seconds: float) -> None:
        # The last rows of a table fill no batch: what they took says nothing about a full one.
        if rows <= 0 or (rows < self._size / 2 and seconds <= self._aim):
            return
        rate = rows / max(seconds, 1e-6)
        if self._rate is None:
            self._rate = rate
        else:
            weight = WEIGHT_OF_SLOWER if rate < self._rate else WEIGHT_OF_FASTER
            self._rate += weight * (rate - self._rate)
        self._ceiling = min(self._ceiling * RECOVERY, self._largest)
        self._resize(max(min(self._rate * self._aim, self._size * GROWTH), self._smallest))

    def timed_out(self) -> None:
        self._ceiling = max(self._size / 2, self._least)
        self._rate = None
        self._resize(self._ceiling)

    def rest(self, seconds: float) -> float:
        """Seconds to rest after a step that took `seconds`; a step that cannot be split earns no longer rest."""
        return min(seconds * self._rest, self._longest_rest)

    def _resize(self, size: float) -> None:
        self._size = max(min(size, self._ceiling), self._least)


class TwoPaces(Pace):
    """At full speed, or gently: each remembers what its own batches took."""

    def __init__(self, first: int, batch_time: timedelta) -> None:
        self._full = TimedPace(first, batch_time)
        self._gentle = TimedPace(
            min(first, GENTLE_ROWS),
            min(batch_time, GENTLE_BATCH_TIME),
            rest=GENTLE_REST,
            longest_rest=GENTLE_LONGEST_REST,
            smallest=GENTLE_SMALLEST,
            largest=GENTLE_ROWS,
        )
        self.is_gentle = False

    @property
    def _now(self) -> TimedPace:
        return self._gentle if self.is_gentle else self._full

    @property
    def size(self) -> int:
        return self._now.size

    def measured(self, rows: int, seconds: float) -> None:
        self._now.measured(rows, seconds)

    def timed_out(self) -> None:
        self._now.timed_out()

    def rest(self, seconds: float) -> float:
        """Seconds to rest after a step that took `seconds`."""
        return self._now.rest(seconds)
