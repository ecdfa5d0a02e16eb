"""Which archived results are meant, and which of them would be gone again at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime

from backendops.contracts.errors import BackendRefused
from backendops.contracts.records import Row, Shape
from backendops.contracts.retention import Retention


@dataclass(frozen=True, slots=True)
class Removal:
    """Somebody who removes live results by their age."""

    who: str
    due: Retention
    way_on: str
    """What keeps it from removing what is put back."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which archived results are meant: of these ids, if any; finished from `since` and before `until`, if given."""

    ids: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    removals: tuple[Removal, ...] = ()
    """What is meant and due for one of these is refused: it would be gone again at once."""

    def in_groups(self, most: int) -> Iterator[Selection]:
        """The same, asked for so many ids at a time; one without ids is one group."""
        for at in range(0, max(len(self.ids), 1), most):
            yield replace(self, ids=self.ids[at : at + most])

    def has(self, shape: Shape, row: Row) -> bool:
        """Is this row meant?"""
        key = shape.value(row, shape.key)
        # Without an id nobody can ask for it, nor could we tell whether it is live again.
        if key is None or (self.ids and key not in self.ids):
            return False
        return (self.since is None or row.done_at >= self.since) and (self.until is None or row.done_at < self.until)

    def refuse_due(self, key: object, done_at: datetime, *asked: str | None) -> None:
        """Raise BackendRefused where a result with this state, task and queue is due for a removal."""
        for removal in self.removals:
            cutoff = removal.due.cutoff_of(*asked)
            if cutoff is not None and done_at < cutoff:
                raise BackendRefused(
                    f"the result {key} finished {done_at:%Y-%m-%d %H:%M} UTC, and such a result that finished before "
                    f"{cutoff:%Y-%m-%d %H:%M} UTC is removed by {removal.who}",
                    f"{removal.way_on}, or say --although-expired; nothing older was put back",
                )
