"""A table in this database as the archive of another backend: rows and their journal in one transaction."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

from sqlalchemy import Connection

from backendops.backends.postgres.archive_check import check_archive
from backendops.backends.postgres.archive_table import ensure_archive, ensure_partitions, find_archive, with_ddl
from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.kept import (
    Kept,
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
from backendops.backends.postgres.periods import fit, period_start
from backendops.backends.postgres.records import row_from, type_of
from backendops.backends.postgres.restore import meant_by, meant_values
from backendops.backends.postgres.tables import Column as TableColumn
from backendops.backends.postgres.tables import LiveTable, quoted
from backendops.backends.sql_files import literal, load
from backendops.contracts.archive import (
    ArchiveStore,
    Batch,
    CanKeepArchive,
    Checked,
    Copy,
    Selection,
    Shape,
    fingerprint,
)
from backendops.contracts.capabilities import ArchivePlan
from backendops.contracts.errors import BackendBusy, BackendError, BackendRefused
from backendops.contracts.run import Limits, NoWatermarks, Pace

# A batch is four transactions: enough rows that they do not count, few enough that each is over in a moment.
WRITE_ROWS: Final = 2000
REGISTER: Final = "backendops_archives"
JOURNAL: Final = "backendops_moves"


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
        self._source = ""
        self._schema = ""
        self._kept: dict[str, Kept] = {}

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
    def open(self, source: str, limits: Limits) -> Iterator[Self]:
        opened = type(self)(self._keeper, self._plan)
        with self._keeper.open(limits, NoWatermarks()) as session:
            opened._session, opened._source = session, source
            with session.transaction(read_only=True) as connection:
                opened._schema = (
                    self._plan.schema or connection.execute(load("postgres", "session", "current_schema")).scalar_one()
                )
                opened._find_kept(connection)
            if limits.read_only:
                yield opened
                return
            with take_archive_lock(session, opened._schema, self._plan.name) as lock:
                if lock is None:
                    raise BackendBusy(
                        f"another run is using the archive in {self.label}", "try again when it has ended"
                    )
                yield opened

    def prepare(self, shape: Shape) -> str:
        with_ddl(self._session, self._make_register)
        live = self._as_live(shape)
        table, made = ensure_archive(self._session, live, self._its_plan)
        table.require_insert()
        with self._session.transaction() as connection:
            connection.execute(
                load("postgres", "store", "register", self._slots()),
                {"source": self._source, "holds": shape.holds, "live": shape.table, "archive": table.name},
            )
            self._find_kept(connection)
        return f"{made} in {self._keeper.display_url}" if made else ""

    def unfinished(self) -> Iterator[Copy]:
        with self._session.transaction(read_only=True) as connection:
            if not self._has_register(connection):
                return
            moves = connection.execute(
                load("postgres", "store", "list_moves", self._slots()), {"source": self._source}
            ).all()
        for move in moves:
            kept = self._kept[move.archive]
            with self._session.transaction() as connection:
                there = read_rows(connection, kept, list(move.keys), (move.first_done_at, move.last_done_at))
            meant = Counter(move.fingerprints)
            rows = []
            for row in there:
                mark = fingerprint(kept.shape, row).hex()
                if meant[mark] > 0:
                    meant[mark] -= 1
                    rows.append(unmarked(row))
            yield Copy(Batch(kept.shape, tuple(rows)), Place(move.archive, move.batch), move.restoring)

    def write(self, batch: Batch, *, unless_there: bool = False) -> Sequence[Copy]:
        kept = self._kept_of(batch.shape)
        every, zone = self._plan.every, self._session.zone
        periods = sorted({period_start(row.done_at, every, zone) for row in batch.rows})
        table = ensure_partitions(self._session, kept.table, periods, every, zone)
        kept = self._kept[table.name] = Kept(kept.holds, kept.live, table)
        with self._session.transaction() as connection:
            if unless_there:
                there = Counter(fingerprints(connection, kept, batch))
                batch = batch.only(
                    [at for at, row in enumerate(batch.rows) if not there[fingerprint(batch.shape, row)]]
                )
            if not batch.rows:
                return []
            insert_rows(connection, kept, batch)
            place = self._begin(connection, kept, batch, restoring=False)
        with self._session.transaction() as connection:
            there = Counter(fingerprints(connection, kept, batch))
        lacking = Counter(fingerprint(batch.shape, row) for row in batch.rows) - there
        copy = Copy(batch, place)
        if lacking:
            self.settle(copy, ())
            raise BackendError(
                f"{lacking.total():,} of {len(batch.rows):,} rows were not read back from {kept.table.sql_name} as "
                "they were written",
                "is there a trigger or rule on the archive? No result was removed because of it",
            )
        return [copy]

    def settle(self, copy: Copy, kept: Collection[int]) -> None:
        archive = self._kept[copy.place.archive]
        gone = copy.batch.only(set(range(len(copy.batch.rows))) - set(kept))
        with self._session.transaction() as connection:
            connection.execute(load("postgres", "session", "prefer_indexes"))
            if gone.rows:
                take_out(connection, archive, gone)
            connection.execute(load("postgres", "store", "end_move", self._slots()), {"batch": copy.place.batch})

    def find(self, selection: Selection, pace: Pace) -> Iterator[Copy]:
        for kept in tuple(self._kept.values()):
            shape = kept.shape
            slots = slots_of(kept) | {"meant": meant_by(selection, shape.key)}
            below: tuple[Any, Any] = ("infinity", "")
            while True:
                values = {
                    **meant_values(selection),
                    "below": below[0],
                    "before": below[1],
                    "size": min(pace.size, WRITE_ROWS),
                }
                with self._session.transaction() as connection:
                    connection.execute(load("postgres", "session", "prefer_indexes"))
                    found = connection.execute(load("postgres", "store", "find_rows", slots), values)
                    rows = tuple(unmarked(row_from(row, len(shape.columns))) for row in found)
                if not rows:
                    break
                below = (rows[-1].done_at, shape.value(rows[-1], shape.key))
                yield Copy(Batch(shape, rows), Place(kept.table.name))

    def begin_restore(self, copy: Copy, positions: Collection[int]) -> Copy:
        batch = copy.batch.only(positions)
        with self._session.transaction() as connection:
            place = self._begin(connection, self._kept[copy.place.archive], batch, restoring=True)
        return Copy(batch, place, restoring=True)

    def check(self) -> Iterator[Checked]:
        for kept in self._kept.values():
            yield from check_archive(self._session, kept.table, None)

    @property
    def _its_plan(self) -> ArchivePlan:
        return ArchivePlan(self._plan.name, self._schema, self._plan.every)

    def _slots(self) -> dict[str, str]:
        return {slot: literal(name) for slot, name in self._names().items()}

    def _names(self) -> dict[str, str]:
        tables = {"register": REGISTER, "journal": JOURNAL}
        return {slot: f"{quoted(self._schema)}.{quoted(table)}" for slot, table in tables.items()}

    def _has_register(self, connection: Connection) -> bool:
        return bool(connection.execute(load("postgres", "store", "find_register"), self._names()).scalar_one())

    def _make_register(self, connection: Connection) -> None:
        if not self._has_register(connection):
            for statement in ("make_register", "make_journal"):
                connection.execute(load("postgres", "store", statement, self._slots()))

    def _find_kept(self, connection: Connection) -> None:
        """The archives of our source here; raises BackendRefused where one of our names is another source's."""
        if not self._has_register(connection):
            return
        for row in connection.execute(load("postgres", "store", "list_archives", self._slots())).all():
            ours = fit(self._plan.name.replace("{table}", row.live)) == row.archive
            if ours and row.source != self._source:
                raise BackendRefused(
                    f"{row.archive} is the archive of the backend {row.source!r}, not of {self._source!r}",
                    "name another archive under `table:` of the job, such as '{backend}_{table}_archive'; or, where "
                    "the backend was renamed in the policy, give it its old name",
                )
            if not ours:
                continue
            live = self._as_live(Shape(row.holds, row.live, ()))
            table = find_archive(connection, live, self._its_plan)
            if table is not None:
                self._kept[row.archive] = Kept(row.holds, row.live, table)

    def _as_live(self, shape: Shape) -> LiveTable:
        """The live table of another backend, as one that the archive is made after."""
        columns = tuple(TableColumn(column.name, type_of(column), False, False, None) for column in shape.columns)
        return LiveTable(
            holds=shape.holds,
            label=shape.table,
            oid=0,
            schema=self._source,
            name=shape.table,
            columns=columns,
            date_indexed=False,
            partitioned=False,
            estimated_rows=0,
            can_read=False,
            can_lock=False,
            can_delete=False,
            can_insert=False,
            is_owner=False,
            role="",
        )

    def _kept_of(self, shape: Shape) -> Kept:
        return next(kept for kept in self._kept.values() if (kept.holds, kept.live) == (shape.holds, shape.table))

    def _begin(self, connection: Connection, kept: Kept, batch: Batch, *, restoring: bool) -> Place:
        place = Place(kept.table.name, uuid.uuid4().hex)
        keys, (first, last) = keys_of(batch), ends_of(batch)
        connection.execute(
            load("postgres", "store", "begin_move", self._slots()),
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
