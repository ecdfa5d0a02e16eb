"""Rows of an archive table that is another backend's: put in, read again, taken out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from backendops.backends.postgres.archive_table import ArchiveTable
from backendops.backends.postgres.drift import OURS
from backendops.backends.postgres.records import array_type, kind_of, read_list, row_from, type_of
from backendops.backends.postgres.tables import Column as TableColumn
from backendops.backends.postgres.tables import LiveTable, quoted
from backendops.backends.sql_files import literal, load
from backendops.contracts.archive import KEYS, Batch, Column, Holds, Row, Shape, fingerprint


@dataclass(frozen=True, slots=True)
class Kept:
    """One archive table here, and whose rows it has."""

    holds: Holds
    live: str
    table: ArchiveTable

    @property
    def shape(self) -> Shape:
        """What its rows look like, to others."""
        columns = (Column(c.name, kind_of(c.type), c.type) for c in self.table.columns if c.name not in OURS)
        return Shape(self.holds, self.live, tuple(columns))


def as_live(source: str, shape: Shape) -> LiveTable:
    """The live table of another backend, as one that the archive is made after."""
    columns = tuple(TableColumn(column.name, type_of(column), False, False, None) for column in shape.columns)
    return LiveTable(
        holds=shape.holds,
        label=shape.table,
        oid=0,
        schema=source,
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


def slots_of(kept: Kept) -> dict[str, str]:
    """What a statement about it is filled with."""
    return {"archive": kept.table.slot, "key": KEYS[kept.holds], "columns": read_list(kept.shape.columns)}


def insert_rows(connection: Connection, kept: Kept, batch: Batch) -> None:
    """Put every row in, with one statement."""
    columns = batch.shape.columns
    values: dict[str, Any] = {f"v{at}": [row.values[at] for row in batch.rows] for at in range(len(columns))}
    slots = {
        "archive": kept.table.slot,
        "columns": literal(", ".join(quoted(column.name) for column in columns)),
        "arrays": ", ".join(f"CAST(:v{at} AS {array_type(column.kind)}[])" for at, column in enumerate(columns)),
    }
    values["done_at"] = [row.done_at for row in batch.rows]
    connection.execute(load("postgres", "store", "insert_rows", slots), values)


def read_rows(connection: Connection, kept: Kept, keys: list[Any], ends: tuple[datetime, datetime]) -> list[Row]:
    """What it has of these ids, finished between these two moments; the mark of each is its place."""
    connection.execute(load("postgres", "session", "prefer_indexes"))
    values = {"keys": keys, "nameless": None in keys, "first": ends[0], "last": ends[1]}
    found = connection.execute(load("postgres", "store", "read_rows", slots_of(kept)), values)
    width = len(kept.shape.columns)
    return [row_from(row, width) for row in found]


def fingerprints(connection: Connection, kept: Kept, batch: Batch) -> list[bytes]:
    """The content of what it has of a batch's ids and time."""
    shape = kept.shape
    return [fingerprint(shape, row) for row in read_rows(connection, kept, keys_of(batch), ends_of(batch))]


def take_out(connection: Connection, kept: Kept, gone: Batch) -> None:
    """Remove these very rows, each once."""
    wanted = Counter(fingerprint(gone.shape, row) for row in gone.rows)
    shape = kept.shape
    keys, tables, places = [], [], []
    for row in read_rows(connection, kept, keys_of(gone), ends_of(gone)):
        content = fingerprint(shape, row)
        if wanted[content] > 0:
            wanted[content] -= 1
            table, _, place = row.mark.partition(" ")
            keys.append(shape.value(row, shape.key))
            tables.append(int(table))
            places.append(place)
    first, last = ends_of(gone)
    connection.execute(
        load("postgres", "store", "take_out", slots_of(kept)),
        {"keys": keys, "nameless": None in keys, "tables": tables, "places": places, "first": first, "last": last},
    )


def unmarked(row: Row) -> Row:
    """The row as others see it."""
    return Row(row.values, row.done_at.astimezone(UTC))


def keys_of(batch: Batch) -> list[Any]:
    """The ids that its results are asked for by."""
    return [batch.shape.value(row, batch.shape.key) for row in batch.rows]


def ends_of(batch: Batch) -> tuple[datetime, datetime]:
    """When its first and its last result finished."""
    moments = [row.done_at for row in batch.rows]
    return min(moments), max(moments)
