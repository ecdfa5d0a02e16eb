"""Results of Redis on their way to an archive, before they expire there: copied, never removed; and put back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from time import monotonic
from typing import Any, Final
from zoneinfo import ZoneInfo

from backendops.backends.redis.archiving import Archiving, findings
from backendops.backends.redis.handover import COUNT, SHAPES, ask_owners
from backendops.backends.redis.keys import ResultKeys
from backendops.backends.redis.nodes import Nodes
from backendops.contracts import metrics
from backendops.contracts.archive import Batch, CanHandOver, CanTakeBack, DueFound, Shape
from backendops.contracts.errors import BackendRefused
from backendops.contracts.readings import Finding
from backendops.contracts.retention import Retention
from backendops.contracts.run import Pace, Preview
from backendops.contracts.units import Keep

# How long counting may take before a run, and for a preview.
COUNT_TIME: Final = 2.0

# What a result gets when it is put back and the policy does not say what the application's result_expires is:
# Celery's own default.
EXPIRES: Final = timedelta(days=1)

# Values of one pipeline, of whatever size they are.
PUT: Final = 50


class HandOverOnRedis(CanHandOver, CanTakeBack):
    """Can have its finished results copied to an archive elsewhere, and take them back."""

    @property
    @abstractmethod
    def keys(self) -> ResultKeys: ...

    @property
    @abstractmethod
    def nodes(self) -> Nodes: ...

    @property
    @abstractmethod
    def result_keep(self) -> Keep | None:
        """What the policy says that the application's result_expires is."""

    @property
    @abstractmethod
    def archiving(self) -> Archiving:
        """What this opened copy knows of its run."""

    @abstractmethod
    def in_words(self) -> AbstractContextManager[None]:
        """Raises BackendError for what the driver raises inside."""

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo("UTC")

    @property
    def only_copies(self) -> bool:
        return True

    def begin_hand_over(self, where: str) -> None:
        self.archiving.begin(where)

    def end_hand_over(self) -> tuple[Finding, ...]:
        return self.archiving.end()

    def preview_hand_over(self, due: Retention, where: str) -> Preview:
        found = self._count(due)
        about = "" if found.exact else "about "
        return Preview(
            f"{about}{found.rows:,} results would be copied to {where}, but for those that are there already",
            rows=found.rows,
            cutoff=due.latest,
            statements=tuple(
                f"SCAN … MATCH {self.keys.pattern_of(stem)}" for stem in (self.keys.task, self.keys.group)
            ),
            readings=(metrics.RESULTS_DUE.read(found.rows),),
            findings=found.findings,
        )

    def find_due(self, due: Retention) -> DueFound:
        # What is odd is told at the end of the run, when everything was read, and once.
        return replace(self._count(due), findings=())

    def _count(self, due: Retention) -> DueFound:
        with self.in_words():
            reading = self.archiving.reading(self.keys, self.nodes, due)
            total = sum(int(node.client.dbsize()) for node in self.nodes.masters())
            began, rows, exact = monotonic(), 0, True
            for holds in SHAPES:
                for batch in reading.batches(holds, _Whole()):
                    rows += len(batch.rows)
                    if monotonic() - began > COUNT_TIME:
                        exact = False
                        break
                if not exact:
                    break
        if not exact:
            rows = round(rows * max(1.0, total / max(1, reading.scanned)))
        return DueFound(rows, exact, tuple(findings(reading.met)))

    def shapes_due(self, due: Retention) -> tuple[Shape, ...]:  # noqa: ARG002 - a key's shape is Celery's, always
        return tuple(SHAPES.values())

    def read_due(self, due: Retention, pace: Pace) -> Iterator[Batch]:
        """Read what is due, once, in the order in which SCAN meets it."""
        with self.in_words():
            reading = self.archiving.reading(self.keys, self.nodes, due)
            for holds in SHAPES:
                yield from reading.batches(holds, pace)
            self.archiving.has_read(reading, due)

    def remove(self, batch: Batch) -> frozenset[int]:  # noqa: ARG002 - never asked for
        """Nothing is ever removed: results go when their time to live ends."""
        return frozenset()

    def check_take_back(self, batch: Batch) -> None:
        if "meta" not in batch.shape.names:
            raise BackendRefused(
                f"the archive of {batch.shape.table} has no column `meta`: it was not made from Redis",
                "restore it to the backend that it came from",
            )

    def look_up(self, batch: Batch) -> dict[int, bool]:
        with self.in_words():
            answers = self._ask([("GET", name) for name in self._names(batch)])
        return {
            at: answer == batch.shape.value(batch.rows[at], "meta")
            for at, answer in enumerate(answers)
            if answer is not None
        }

    def take_back(self, batch: Batch) -> frozenset[int]:
        keep = self.result_keep
        expires = getattr(keep, "shortest", EXPIRES if keep is None else None)
        ends = () if expires is None else ("PX", round(expires.total_seconds() * 1000))
        values = [batch.shape.value(row, "meta") for row in batch.rows]
        with self.in_words():
            commands = zip(self._names(batch), values, strict=True)
            answers = self._ask([("SET", name, value, "NX", *ends) for name, value in commands])
        return frozenset(at for at, answer in enumerate(answers) if answer)

    def _names(self, batch: Batch) -> list[bytes]:
        stem = self.keys.task if batch.shape.holds == "task" else self.keys.group
        return [stem + str(batch.shape.value(row, batch.shape.key)).encode() for row in batch.rows]

    def _ask(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        client = self.nodes.masters()[0].client
        answers: list[Any] = []
        for start in range(0, len(commands), PUT):
            answers += ask_owners(self.nodes, client, commands[start : start + PUT])
        return answers


class _Whole(Pace):
    """For counting, which reads as much at once as may be."""

    @property
    def size(self) -> int:
        return COUNT

    def measured(self, rows: int, seconds: float) -> None:
        pass

    def timed_out(self) -> None:
        pass
