"""Putting archived results back: in one statement from an archive beside the live table, by insert from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Any, Final

from sqlalchemy import Connection, Row

from backendops.backends.postgres.archive_check import check_archive
from backendops.backends.postgres.archive_table import ArchiveTable, find_archive
from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.drift import OURS
from backendops.backends.postgres.errors import CHECK_VIOLATION, UNIQUE_VIOLATION, code_of
from backendops.backends.postgres.handover import live_table
from backendops.backends.postgres.records import array_type, read_list, row_from, shape_of
from backendops.backends.postgres.selected import IDS_AT_ONCE, find_quarantined, meant_by, meant_values
from backendops.backends.postgres.tables import LiveTable, find_tables, quoted
from backendops.backends.postgres.tries import Tries
from backendops.backends.sql_files import literal, load
from backendops.contracts.archive import (
    Batch,
    CanRestore,
    CanTakeBack,
    Checked,
    PutBack,
    Quarantined,
    Restoring,
    Selection,
    fingerprint,
)
from backendops.contracts.capabilities import ArchivePlan
from backendops.contracts.errors import BackendBusy, BackendError, BackendRefused
from backendops.contracts.run import Pace, Preview

# A worker that stores the same id at the same moment makes a batch fail; the next try sees its result and leaves it.
TRIES: Final = 3


class RestoreOnPostgres(PostgresSession, CanRestore, CanTakeBack):
    """Can put archived results back among the live ones."""

    def preview_restore(self, selection: Selection, plan: ArchivePlan) -> Preview:
        rows, oldest = 0, []
        for live, archive in _archives(self, plan):
            slots = {"archive": archive.slot, "meant": meant_by(selection, live.key_column)}
            count_meant = load("postgres", "restore", "count_meant", slots)
            for some in selection.in_groups(IDS_AT_ONCE):
                with self.transaction(read_only=True) as connection:
                    found = connection.execute(count_meant, meant_values(some)).one()
                rows += found[0]
                oldest += [] if found.oldest is None else [found.oldest]
        return Preview(f"would put back {rows:,} archived results", rows=rows, oldest=min(oldest, default=None))

    def restore(self, selection: Selection, plan: ArchivePlan, pace: Pace) -> Restoring:
        found = tuple(_archives(self, plan))
        # Before the first row is put back: what is refused has changed nothing.
        with self.transaction(read_only=True) as connection:
            for live, _ in found:
                live.require_insert()
                _find_sequence(connection, live)
        for live, archive in found:
            for some in selection.in_groups(IDS_AT_ONCE):
                yield from _Restore(self, live, archive, some, pace).batches()

    def find_quarantined(self, selection: Selection, plan: ArchivePlan) -> tuple[Quarantined, ...]:
        return tuple(
            one
            for live, archive in _archives(self, plan)
            for one in find_quarantined(self, archive, live.key_column, selection)
        )

    def check_archive(self, plan: ArchivePlan) -> Iterator[Checked]:
        for live, archive in _archives(self, plan):
            yield from check_archive(self, archive, live)

    def check_take_back(self, batch: Batch) -> None:
        live = live_table(self, batch.shape)
        live.require_insert()
        for at, column in enumerate(batch.shape.columns):
            if not live.has_column(column.name) and any(row.values[at] is not None for row in batch.rows):
                raise _drifted(live, column.name)

    def look_up(self, batch: Batch) -> dict[int, bool]:
        live = live_table(self, batch.shape)
        keys = [batch.shape.value(row, batch.shape.key) for row in batch.rows]
        slots = {"live": live.slot, "columns": read_list(live.columns), "key": live.key_column}
        with self.transaction(prefer_indexes=True) as connection:
            values = {"keys": keys, "zone": self.date_done_timezone}
            found = [
                row_from(row, len(live.columns))
                for row in connection.execute(load("postgres", "restore", "look_up", slots), values)
            ]
        shape = shape_of(live)
        there = {shape.value(row, shape.key): fingerprint(shape, row, leaving_out={"id"}) for row in found}
        return {
            at: there[key] == fingerprint(batch.shape, batch.rows[at], leaving_out={"id"})
            for at, key in enumerate(keys)
            if key in there
        }

    def take_back(self, batch: Batch) -> frozenset[int]:
        live = live_table(self, batch.shape)
        try:
            keys = self._insert_back(batch, live, fresh=False)
        except BackendError as error:
            if code_of(error) != CHECK_VIOLATION:
                raise
            keys = self._insert_back(batch, live, fresh=True)
        shape = batch.shape
        return frozenset(at for at, row in enumerate(batch.rows) if shape.value(row, shape.key) in keys)

    def _insert_back(self, batch: Batch, live: LiveTable, *, fresh: bool) -> set[str]:
        types = {column.name: column.type for column in live.columns}
        shape = batch.shape
        names = [column.name for column in shape.columns if column.name != "id" and column.name in types]
        kinds = {column.name: column.kind for column in shape.columns}
        columns = literal(", ".join(quoted(name) for name in names))
        arrays = ["CAST(:id AS bigint[])"]
        selected = []
        values: dict[str, Any] = {"id": [shape.value(row, "id") for row in batch.rows]}
        for number, name in enumerate(names):
            arrays.append(f"CAST(:v{number} AS {array_type(kinds[name])}[])")
            selected.append(f"CAST({quoted(name)} AS {types[name]})" if kinds[name] == "other" else quoted(name))
            values[f"v{number}"] = [shape.value(row, name) for row in batch.rows]
        slots = {
            "live": live.slot,
            "key": live.key_column,
            "columns": columns,
            "arrays": ", ".join(arrays),
            "values": literal(", ".join(selected)),
        }
        with self.transaction() as connection:
            # What is here now is taken out of the archive next, which is another server's.
            connection.execute(load("postgres", "session", "be_durable"))
            connection.execute(load("postgres", "session", "prefer_indexes"))
            values |= _sequence(connection, live, fresh=fresh)
            return set(connection.execute(load("postgres", "restore", "insert_back", slots), values).scalars())


def _archives(session: PostgresSession, plan: ArchivePlan) -> Iterator[tuple[LiveTable, ArchiveTable]]:
    with session.transaction(read_only=True) as connection:
        found = [(live, find_archive(connection, live, plan)) for live in find_tables(session, connection).tables]
    for live, archive in found:
        if archive is not None:
            yield live, archive


def _drifted(live: LiveTable, column: str) -> BackendRefused:
    return BackendRefused(
        f"archived results have a value for {column}, which {live.sql_name} does not have: it would be lost",
        f"ALTER TABLE {live.sql_name} ADD COLUMN {quoted(column)} …; or select other results",
    )


def _sequence(connection: Connection, live: LiveTable, *, fresh: bool = False) -> dict[str, Any]:
    """The sequence that new ids come from, and up to where an old id may be kept."""
    found = _find_sequence(connection, live)
    if found is None:
        name = _celerys_sequence(live)
        raise BackendRefused(
            f"there is no sequence {name} to take new ids from", f"let a Celery worker make it: CREATE SEQUENCE {name};"
        )
    return {"sequence": found.oid, "used": -1 if fresh else found.used}


def _find_sequence(connection: Connection, live: LiveTable) -> Row[Any] | None:
    """Raises BackendRefused, naming the GRANT, where this role may not use it."""
    values = {"schema": live.schema, "celerys": _celerys_sequence(live), "live": live.sql_name}
    found = connection.execute(load("postgres", "restore", "find_sequence"), values).one_or_none()
    if found is not None and not found.can_use:
        raise BackendRefused(
            f"the role {live.role} may not use the sequence {found.name}",
            f"GRANT USAGE ON SEQUENCE {found.name} TO {quoted(live.role)};",
        )
    return found


def _celerys_sequence(live: LiveTable) -> str:
    # Celery's own names (celery/backends/database/models.py).
    return f"{live.key_column.removesuffix('_id')}_id_sequence"


@dataclass(frozen=True, slots=True)
class _Found:
    """One archived row that is meant, and where it is."""

    part: int
    place: str
    key: str
    done_at: datetime


class _Restore:
    """Putting back what is meant from one archive beside its live table."""

    def __init__(
        self,
        session: PostgresSession,
        live: LiveTable,
        archive: ArchiveTable,
        selection: Selection,
        pace: Pace,
    ) -> None:
        self._session, self._live, self._archive = session, live, archive
        self._selection, self._pace = selection, pace
        have = {column.name for column in live.columns}
        theirs = [column.name for column in archive.columns if column.name not in OURS]
        self._drifted = [name for name in theirs if name not in have]
        kept = [quoted(name) for name in theirs if name in have and name != "id"]
        drifted = " OR ".join(f"{quoted(name)} IS NOT NULL" for name in self._drifted)
        self._slots = {
            "live": live.slot,
            "archive": archive.slot,
            "key": live.key_column,
            "meant": meant_by(selection, live.key_column),
            "drifted": literal(f"({drifted or 'false'})"),
            "asked": ", ".join(
                f"{column if live.holds == 'task' and column in theirs else 'CAST(NULL AS text)'} AS {name}"
                for column, name in (("status", "state"), ("name", "task"), ("queue", "queue"))
            ),
            "archived": literal(", ".join(f"archive.{name}" for name in kept)),
            "columns": literal(", ".join(kept)),
        }

    def batches(self) -> Iterator[PutBack]:
        """BackendBusy where one fails thrice and cannot be smaller."""
        below: tuple[Any, str] = ("infinity", "")
        tries = Tries(self._session, self._pace)
        while True:
            began, size = monotonic(), self._pace.size
            try:
                found = self._find(below, size)
                if not found:
                    return
                put_back = self._put_back(found)
            except BackendBusy as busy:
                tries.failed(busy, size)
                yield PutBack()
                continue
            tries.passed()
            below = (found[-1].done_at, found[-1].key)
            self._pace.measured(len(found), monotonic() - began)
            yield put_back

    def _find(self, below: tuple[Any, str], size: int) -> list[_Found]:
        values = {**meant_values(self._selection), "below": below[0], "before": below[1], "size": size}
        with self._session.transaction(prefer_indexes=True) as connection:
            rows = connection.execute(load("postgres", "restore", "find_meant", self._slots), values).all()
        for row in rows:
            if row.drifted:
                raise _drifted(self._live, ", ".join(self._drifted))
            self._selection.refuse_due(row.key, row.done_at, row.state, row.task, row.queue)
        return [_Found(row.tableoid, row.place, row.key, row.done_at) for row in rows]

    def _put_back(self, found: list[_Found]) -> PutBack:
        newest = {row.key: row for row in reversed(found)}
        chosen = list(newest.values())
        fresh = False
        for attempt in range(1, TRIES + 1):
            try:
                with self._session.transaction(prefer_indexes=True) as connection:
                    values = {
                        "tables": [row.part for row in chosen],
                        "places": [row.place for row in chosen],
                        "keys": [row.key for row in chosen],
                        "moments": [row.done_at for row in chosen],
                        **_sequence(connection, self._live, fresh=fresh),
                    }
                    statement = load("postgres", "restore", "put_back", self._slots)
                    restored = tuple(connection.execute(statement, values).scalars())
                break
            except BackendError as error:
                code = code_of(error)
                if attempt == TRIES or code not in (UNIQUE_VIOLATION, CHECK_VIOLATION):
                    raise
                # A live table in ranges of ids has dropped those of old: they come back under new ones.
                fresh = fresh or code == CHECK_VIOLATION
        return PutBack(restored, tuple(key for key in newest if key not in set(restored)))
