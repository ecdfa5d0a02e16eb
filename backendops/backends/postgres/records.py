"""Rows of PostgreSQL as neutral ones, and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from backendops.backends.postgres.tables import Column as TableColumn
from backendops.backends.postgres.tables import LiveTable, quoted
from backendops.backends.sql_files import literal
from backendops.contracts.archive import Column, Kind, Row, Shape, Value

_KINDS: Final[tuple[tuple[str, Kind], ...]] = (
    (r"smallint|integer|bigint", "integer"),
    (r"character varying(\(\d+\))?|text", "text"),
    (r"bytea", "bytes"),
    (r"timestamp without time zone", "timestamp"),
)
# What a kind is kept as where the row came from another sort of store.
_TYPES: Final[dict[Kind, str]] = {
    "integer": "bigint",
    "text": "text",
    "bytes": "bytea",
    "timestamp": "timestamp without time zone",
    "other": "text",
}
# What is read at once passes through our memory: a row of a megabyte must not come by the thousand.
READ_BYTES: Final = 16 * 1024**2


def kind_of(type_name: str) -> Kind:
    """How a column of this type travels."""
    return next((kind for pattern, kind in _KINDS if re.fullmatch(pattern, type_name)), "other")


def shape_of(live: LiveTable) -> Shape:
    """What the rows of a live table look like."""
    columns = tuple(Column(column.name, kind_of(column.type), column.type) for column in live.columns)
    return Shape(live.holds, live.name, columns)


def type_of(column: Column) -> str:
    """The type that keeps such a column: its own where it came from PostgreSQL and travels as it is."""
    return (
        column.declared if column.kind != "other" and kind_of(column.declared) == column.kind else _TYPES[column.kind]
    )


def array_type(kind: Kind) -> str:
    """The type that values of a kind are sent as: never one with a length, which a cast would cut them to."""
    return _TYPES[kind]


def read_list(columns: Iterable[TableColumn] | Iterable[Column], alias: str = "") -> str:
    """The columns as the text of a slot; what has no kind of its own is read as text."""
    texts = []
    for column in columns:
        name = f"{alias}{quoted(column.name)}"
        kind = column.kind if isinstance(column, Column) else kind_of(column.type)
        texts.append(f"CAST({name} AS text)" if kind == "other" else name)
    return literal(", ".join(texts))


def byte_count(columns: Iterable[Column]) -> str:
    """How large a row will be in memory, as the text of a slot; what has no kind of its own counts as it is stored."""
    counted = {"bytes": "octet_length", "text": "octet_length", "other": "pg_column_size"}
    sizes = [f"coalesce({counted[c.kind]}({quoted(c.name)}), 0)" for c in columns if c.kind in counted]
    # In 64 bits: two results of a gigabyte each are one row.
    return literal(f"(CAST({' + '.join([*sizes, '0'])} AS bigint))")


def row_from(found: Sequence[Any], width: int) -> Row:
    """A row of so many columns, followed by its done_at and its version."""
    return Row(tuple(_neutral(value) for value in found[:width]), found[width], found[width + 1])


def _neutral(value: Any) -> Value:
    if isinstance(value, memoryview):
        return bytes(value)
    assert value is None or isinstance(value, int | str | bytes | datetime)  # noqa: S101 - read_list has seen to it
    return value
