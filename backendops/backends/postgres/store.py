"""A table in this database as the archive of another backend: rows and their journal in one transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

from sqlalchemy import Connection

from backendops.backends.postgres.archive_check import check_archive
from backendops.backends.postgres.archive_table import (
    ensure_archive,
    ensure_partitions,
    find_archive,
    find_named,
)
from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.ddl import with_ddl
from backendops.backends.postgres.kept import (
    Kept,
    as_live,
    ends_of,
    fingerprints,
    insert_rows,
    keys_of,
    read_rows,
    slots_of,
    take_out,
    unmarked,
)
from backendops.backends.postgres.lock import take_archive_lock
from backendops.backends.postgres.periods import period_start
from backendops.backends.postgres.records import READ_BYTES, byte_count, row_from
from backendops.backends.postgres.register import ANOTHER, Entry, Register, new_batch, origin_of
from backendops.backends.postgres.selected import find_quarantined, meant_by, meant_values
from backendops.backends.postgres.tables import schema_of_new
from backendops.backends.sql_files import load
from backendops.contracts.archive import (
    ArchiveStore,
    Batch,
    CanKeepArchive,
    Checked,
    Copy,
    Quarantined,
    Selection,
    Shape,
    fingerprint,
)
from backendops.contracts.backend import Lock
from backendops.contracts.capabilities import ArchivePlan
from backendops.contracts.errors import BackendError, BackendLocked, BackendRefused, BackendUnreachable
from backendops.contracts.run import Limits, NoWatermarks, Pace

# A batch is four transactions: enough rows that they do not count, few enough that each is over in a moment.
WRITE_ROWS: Final = 2000
LATER: Final = "try again when it has ended"


class StoreOnPostgres(PostgresSession, CanKeepArchive):
    """Can keep what another backend archives."""

    def archive_store(self, plan: ArchivePlan) -> ArchiveStore:
        return TableStore(self, plan)


@dataclass(frozen=True, slots=True)
class Place:
    """The journal's name for a batch that is on its way, or nothing for one that was only found."""

    archive: str
    batch: str = ""


class TableStore(ArchiveStore):
    """Archive tables in a schema of this database, a register of them, and a journal of what is on its way."""

    def __init__(self, keeper: PostgresSession, plan: ArchivePlan) -> None:
        self._keeper = keeper
        self._plan = plan
        self._session = keeper
        self._source = self._origin = ""
        self._schema = ""
        self._lock: Lock | None = None
        self._kept: dict[str, Kept] = {}
        """Every archive of our source here, by name: another job of it may have left something on its way."""
        self._ours: set[str] = set()
        """The names of those that this job keeps."""

    @property
    def label(self) -> str:
        return f"tables of {self._keeper.display_url}"

    @property
    def identity(self) -> str:
        return f"{self.label} {self._schema}.{self._plan.name}"

    @property
    def write_rows(self) -> int:
        return WRITE_ROWS

    @contextmanager
    def open(self, source: str, limits: Limits, *, origin: str = "") -> Iterator[Self]:
        opened = type(self)(self._keeper, self._plan)
        with self._keeper.open(limits, NoWatermarks()) as session:
            opened._session, opened._source, opened._origin = session, source, origin
            with session.transaction(read_only=True) as connection:
                opened._schema = self._plan.schema or schema_of_new(connection)
                # A name that is another source's is refused first, whoever holds the lock.
                opened._find_kept(connection)
            if limits.read_only:
                yield opened
                return
            with take_archive_lock(session, opened._schema, self._plan.name) as opened._lock:
                if opened._lock is None:
                    raise BackendLocked(f"another run is using the archive in {self.label}", LATER)
                with session.transaction(read_only=True) as connection:
                    # Which partitions there are is certain from here on: the partition job takes this lock, too.
                    opened._find_kept(connection)
                yield opened

    def prepare(self, shape: Shape) -> str:
        with_ddl(self._session, self._register.make)
        live, plan = as_live(self._source, shape), ArchivePlan(self._plan.name, self._schema, self._plan.every)
        with self._session.transaction(read_only=True) as connection:
            found = find_archive(connection, live, plan)
            if found is not None and found.name not in self._kept:
                self._register.refuse_filled(connection, Entry(self._source, shape.holds, shape.table, found.name))
        table, made = ensure_archive(self._session, live, plan, is_read_by_key=True)
        table.require_insert()
        with self._session.transaction() as connection:
            self._register.add(connection, Entry(self._source, shape.holds, shape.table, table.name))
            self._find_kept(connection)
        return f"{made} in {self._keeper.display_url}" if made else ""

    def unfinished(self) -> Iterator[Copy]:
        with self._session.transaction(read_only=True) as connection:
            moves = self._register.moves(connection, self._source)
        for move in moves:
            kept = self._kept.get(move.archive)
            if kept is None:
                # Somebody dropped the archive, and the copy with it: what is live is the only one.
                continue
            with self._session.transaction() as connection:
                there = read_rows(connection, kept, list(move.keys), (move.first_done_at, move.last_done_at))
            meant = Counter(move.fingerprints)
            rows = []
            for row in there:
                mark = fingerprint(kept.shape, row).hex()
                if meant[mark] > 0:
                    meant[mark] -= 1
                    rows.append(unmarked(row))
            place = Place(move.archive, move.batch)
            settled = self._register.settled_by_hand(move.batch)
            yield Copy(Batch(kept.shape, tuple(rows)), place, move.restoring, origin_of(move.batch), settled)

    def write(self, batch: Batch, *, unless_there: bool = False) -> Sequence[Copy]:
        self._require_lock()
        kept = self._kept_of(batch.shape)
        every, zone = self._plan.every, self._session.zone
        periods = sorted({period_start(row.done_at, every, zone) for row in batch.rows})
        table = ensure_partitions(self._session, kept.table, periods, every, zone)
        kept = self._kept[table.name] = Kept(kept.holds, kept.live, table)
        with self._session.transaction() as connection:
            # Removed from the source next, which is another server's.
            connection.execute(load("postgres", "session", "be_durable"))
            if unless_there:
                there = Counter(fingerprints(connection, kept, batch))
                batch = batch.only(
                    [at for at, row in enumerate(batch.rows) if not there[fingerprint(batch.shape, row)]]
                )
            if not batch.rows:
                return []
            insert_rows(connection, kept, batch)
            place = self._begin(connection, kept, batch, restoring=False)
            there = Counter(fingerprints(connection, kept, batch))
            lacking = Counter(fingerprint(batch.shape, row) for row in batch.rows) - there
            if lacking:
                # Raised before the commit: what a trigger made of the rows is gone with them.
                raise BackendError(
                    f"{lacking.total():,} of {len(batch.rows):,} rows were not read back from {kept.table.sql_name} as "
                    "they were written",
                    "is there a trigger or rule on the archive? No result was removed because of it",
                )
        return [Copy(batch, place)]

    def settle(self, copy: Copy, kept: Collection[int]) -> None:
        archive = self._kept[copy.place.archive]
        gone = copy.batch.only(set(range(len(copy.batch.rows))) - set(kept))
        with self._session.transaction(prefer_indexes=True) as connection:
            if gone.rows:
                take_out(connection, archive, gone)
            connection.execute(load("postgres", "store", "end_move", self._register.slots), {"batch": copy.place.batch})

    def find(self, selection: Selection, pace: Pace) -> Iterator[Copy]:
        for kept in self._ours_kept():
            shape = kept.shape
            slots = slots_of(kept) | {"meant": meant_by(selection, shape.key), "bytes": byte_count(shape.columns)}
            below: tuple[Any, Any] = ("infinity", "")
            while True:
                values = {
                    **meant_values(selection),
                    "below": below[0],
                    "before": below[1],
                    "size": min(pace.size, WRITE_ROWS),
                }
                with self._session.transaction(prefer_indexes=True) as connection:
                    count_readable = load("postgres", "store", "count_readable", slots)
                    readable = connection.execute(count_readable, {**values, "most": READ_BYTES}).scalar_one()
                    # One that is larger than that by itself, and the end of all.
                    values["size"] = max(readable, 1)
                    found = connection.execute(load("postgres", "store", "find_rows", slots), values)
                    rows = tuple(unmarked(row_from(row, len(shape.columns))) for row in found)
                if not rows:
                    break
                below = (rows[-1].done_at, shape.value(rows[-1], shape.key))
                yield Copy(Batch(shape, rows), Place(kept.table.name))

    def find_quarantined(self, selection: Selection) -> tuple[Quarantined, ...]:
        return tuple(
            one
            for kept in self._ours_kept()
            for one in find_quarantined(self._session, kept.table, kept.shape.key, selection)
        )

    def begin_restore(self, copy: Copy, positions: Collection[int]) -> Copy:
        self._require_lock()
        batch = copy.batch.only(positions)
        with self._session.transaction() as connection:
            # Forgotten in a crash, nobody would know that they are in both.
            connection.execute(load("postgres", "session", "be_durable"))
            place = self._begin(connection, self._kept[copy.place.archive], batch, restoring=True)
        return Copy(batch, place, restoring=True)

    def check(self) -> Iterator[Checked]:
        for kept in self._ours_kept():
            yield from check_archive(self._session, kept.table, None)

    @property
    def _register(self) -> Register:
        return Register(self._schema)

    def _require_lock(self) -> None:
        """Raise BackendUnreachable where the connection that keeps other runs out of the archive is gone."""
        if self._lock is None or not self._lock.still_held():
            raise BackendUnreachable(
                f"the lock of the archive in {self.label} was lost", "the next run goes on where this ended"
            )

    def _find_kept(self, connection: Connection) -> None:
        """The archives of our source here; raises BackendRefused where one of our names is another source's."""
        for entry in self._register.entries(connection):
            ours = entry.is_named_by(self._plan)
            if entry.source != self._source and ours:
                raise BackendRefused(
                    f"{entry.archive} is the archive of the backend {entry.source!r}, not of {self._source!r}",
                    f"{ANOTHER}; or, where the backend was renamed in the policy, give it its old name",
                )
            if entry.source == self._source and (table := find_named(connection, self._schema, entry.archive)):
                self._kept[entry.archive] = Kept(entry.holds, entry.live, table)
                self._ours |= {entry.archive} if ours else set()

    def _ours_kept(self) -> tuple[Kept, ...]:
        return tuple(kept for name, kept in self._kept.items() if name in self._ours)

    def _kept_of(self, shape: Shape) -> Kept:
        return next(kept for kept in self._ours_kept() if (kept.holds, kept.live) == (shape.holds, shape.table))

    def _begin(self, connection: Connection, kept: Kept, batch: Batch, *, restoring: bool) -> Place:
        place = Place(kept.table.name, new_batch(self._origin))
        keys, (first, last) = keys_of(batch), ends_of(batch)
        connection.execute(
            load("postgres", "store", "begin_move", self._register.slots),
            {
                "batch": place.batch,
                "source": self._source,
                "archive": kept.table.name,
                "restoring": restoring,
                "keys": keys,
                "first": first,
                "last": last,
                "fingerprints": [fingerprint(batch.shape, row).hex() for row in batch.rows],
            },
        )
        return place
