"""The statements of a conversion, in order: what `--plan` prints is what is sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from backendops.backends.postgres.convert_checks import Index, Inspected
from backendops.backends.postgres.free_names import FreeNames
from backendops.backends.postgres.live_lock import planned_moment
from backendops.backends.postgres.live_table import Marker
from backendops.backends.postgres.periods import fit
from backendops.backends.postgres.sent import SHARE_UPDATE, Sent
from backendops.backends.postgres.tables import LiveTable, quoted
from backendops.backends.sql_files import literal
from backendops.contracts.partitions import PlannedStatement
from backendops.contracts.units import format_bytes, format_seconds

# What a slow disk reads in a second, for an estimate that is rather too long than too short.
READ_BYTES: Final = 200 * 2**20


@dataclass(frozen=True, slots=True)
class NewLeaf:
    """A partition for what comes; by id the last one has no end."""

    name: str
    lower: int | datetime
    upper: int | datetime | None


@dataclass(frozen=True, slots=True)
class Course:
    """One table's way to partitions: every name and bound is decided."""

    live: LiveTable
    found: Inspected
    marker: Marker
    indexes: tuple[Index, ...]
    """Those of the table, and the one that is still to be built."""
    grants: tuple[tuple[str, dict[str, str]], ...]
    leaves: tuple[NewLeaf, ...]
    """The partitions that take what comes, one after the other."""
    key_name: str
    """The new parent's primary key, by id."""
    index_name: str
    """The new parent's index on date_done."""

    @property
    def bound(self) -> int | datetime:
        """What the table has now stays below it."""
        return self.leaves[0].lower

    @property
    def first(self) -> str:
        """The table under its name as a leaf, as a slot."""
        return self._named(self.marker.first)

    def index(self) -> Iterator[Sent]:
        """One by one outside any transaction."""
        for index in self.found.invalid:
            yield Sent("convert", "drop_invalid", {"index": self._named(index.name)}, lock=SHARE_UPDATE, hold="none")
        if self.found.date_index is None:
            built = next(one for one in self.indexes if not one.oid)
            slots = {"name": literal(quoted(built.name)), "live": self.live.slot}
            yield Sent("convert", "index_date_done", slots, lock=SHARE_UPDATE, hold=f"none; {self._reading(2)}")

    def bounding(self) -> Sent:
        """In a short transaction of its own."""
        name = "bound_ids" if self.marker.by == "id" else "bound_dates"
        return Sent("live_partition", name, {"leaf": self.live.slot}, {"bound": self.bound})

    def validating(self) -> Sent:
        """In a transaction of its own."""
        slots = {"leaf": self.live.slot}
        return Sent("live_partition", "validate_bound", slots, lock=SHARE_UPDATE, hold=f"none; {self._reading(1)}")

    def prepare(self) -> Iterator[Sent]:
        """In the swap's transaction before the lock: tables that nobody knows of yet."""
        hold = "none: the tables are new"
        return (replace(sent, lock="no lock on the table", hold=hold) for sent in self._new_tables())

    def _new_tables(self) -> Iterator[Sent]:
        parent, first = self._named(self._parent), self.live.slot
        by_id, owner = self.marker.by == "id", literal(quoted(self.found.owner))
        key, index = (literal(quoted(self._of_parent(one))) for one in ("key", "index"))
        slots = {"live": parent, "first": first, "key": key}
        yield Sent("convert", "create_by_id" if by_id else "create_by_date", slots)
        yield Sent("convert", "index_parent", {"name": index, "live": parent})
        for one in self.leaves:
            leaf = {"live": parent, "leaf": self._named(one.name)}
            yield Sent("live_partition", "make_leaf", {**leaf, "model": first})
            yield Sent("live_partition", "drop_bound", leaf)
            if storage := self.found.storage:
                yield Sent("live_partition", "set_storage", {**leaf, "storage": literal(f"({storage})")})
            attach = "attach_dates" if not by_id else "attach_ids" if one.upper is not None else "attach_tail"
            bounds = {"lower": one.lower, "upper": one.upper}
            yield Sent("live_partition", attach, leaf, {name: at for name, at in bounds.items() if at is not None})
        for name, grant in self.grants:
            yield Sent("convert", name, {"live": parent, **grant})
        yield Sent("convert", "describe", {"live": parent}, {"comment": str(self.marker)})
        if self.found.owner != self.live.role:
            yield Sent("convert", "own", {"live": parent, "owner": owner})
            for one in self.leaves:
                yield Sent("live_partition", "own_leaf", {"leaf": self._named(one.name), "owner": owner})

    def swap(self) -> Iterator[Sent]:
        """Behind the lock: names, and one partition attached; no row is read."""
        live, first, parent = self.live.slot, self.first, self._named(self._parent)
        yield Sent("convert", "rename_table", {"live": live, "name": literal(quoted(self.marker.first))})
        for index in self.indexes:
            yield self._rename(index)
        yield Sent("convert", "rename_table", {"live": parent, "name": literal(quoted(self.live.name))})
        if self.marker.by == "id":
            old, new = (literal(quoted(one)) for one in (self._of_parent("key"), self.key_name))
            yield Sent("convert", "rename_constraint", {"live": live, "old": old, "name": new})
        index_slots = {"index": self._named(self._of_parent("index")), "name": literal(quoted(self.index_name))}
        yield Sent("convert", "rename_index", index_slots)
        if self.marker.by == "id":
            yield Sent("convert", "attach_first", {"live": live, "first": first}, {"upper": self.bound})
        else:
            yield Sent("convert", "attach_default", {"live": live, "first": first})
        yield Sent("live_partition", "drop_bound", {"leaf": first})

    @property
    def _parent(self) -> str:
        """What the parent is called until the table has given its name away."""
        return fit(self.live.name, "_backendops_parent")

    def _of_parent(self, what: str) -> str:
        return fit(self.live.name, f"_backendops_{what}")

    def planned(self) -> Iterator[PlannedStatement]:
        """Every statement, for people."""
        live = self.live.slot
        yield from (sent.planned() for sent in self.index())
        yield from planned_moment(live, [live], [self.bounding()], "about 2 ms")
        yield self.validating().planned()
        hold = "about 10 ms, waited for 2 s at most,"
        yield from planned_moment(live, [live], self.swap(), hold, self.prepare())

    def _rename(self, index: Index) -> Sent:
        old = index.constraint or index.name
        new = next(new for new, was in self.marker.renamed.items() if was == old)
        if index.constraint:
            slots = {"live": self.first, "old": literal(quoted(old)), "name": literal(quoted(new))}
            return Sent("convert", "rename_constraint", slots)
        return Sent("convert", "rename_index", {"index": self._named(old), "name": literal(quoted(new))})

    def _named(self, name: str) -> str:
        return literal(f"{quoted(self.live.schema)}.{quoted(name)}")

    def _reading(self, times: int) -> str:
        size = self.found.row.heap_bytes * times
        return f"reads {format_bytes(size)}, up to {format_seconds(max(size / READ_BYTES, 0.1))}"


def new_names(live: LiveTable, first: str, indexes: tuple[Index, ...], names: FreeNames) -> dict[str, str]:
    """What the first leaf's indexes and constraints are to be called, and what they were called."""
    renamed: dict[str, str] = {}
    for index in indexes:
        old = index.constraint or index.name
        # Cut by bytes, as the server's own limit is: 40 leave room for the mark of a table's long name.
        cut = f"_{old}".encode()[:40].decode(errors="ignore")
        new = fit(old.replace(live.name, first, 1)) if live.name in old else fit(first, cut)
        renamed[names.take(new)] = old
    return renamed
