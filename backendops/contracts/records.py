"""Results as neutral values between two stores: columns by Celery's names, payloads as they were stored."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

Holds = Literal["task", "group"]
Kind = Literal["integer", "text", "bytes", "timestamp", "other"]
"""`timestamp` is naive, as Celery's date_done; `other` travels as the text that its store writes it as."""
Value = int | str | bytes | datetime | None

KEYS: Final[dict[Holds, str]] = {"task": "task_id", "group": "taskset_id"}
"""Celery's own column of the id that results are asked for by (celery/backends/database/models.py)."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column by Celery's name for it."""

    name: str
    kind: Kind
    declared: str = ""
    """The type in the store it came from, such as `character varying(155)`; empty where that has none."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the rows of one live table look like. A store without an `id` leaves that column out."""

    holds: Holds
    table: str
    """The live table's name, or the word that stands for it: the archive is named after it."""
    columns: tuple[Column, ...]
    names: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """The names of the columns, in the order of a row's values."""
    order: tuple[tuple[str, int], ...] = field(init=False, repr=False, compare=False)
    """The same by name, each with its place: what a fingerprint goes by."""

    def __post_init__(self) -> None:
        # Asked for with every row, so made once.
        object.__setattr__(self, "names", tuple(column.name for column in self.columns))
        object.__setattr__(self, "order", tuple(sorted((name, at) for at, name in enumerate(self.names))))

    @property
    def key(self) -> str:
        """The column that results are asked for by."""
        return KEYS[self.holds]

    def value(self, row: Row, name: str) -> Value:
        """One value of a row; None where there is no such column."""
        return row.values[self.names.index(name)] if name in self.names else None


@dataclass(frozen=True, slots=True)
class Row:
    """One result: payloads are the bytes they were stored as, never decoded."""

    values: tuple[Value, ...]
    """In the order of the shape's columns."""
    done_at: datetime
    """When it finished, with a time zone: what periods and ranges go by."""
    mark: str = ""
    """The source's own sign of this version of the row; empty where the content is all there is to compare."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one shape. Rows are spoken of by their position in it."""

    shape: Shape
    rows: tuple[Row, ...]

    def only(self, positions: Collection[int]) -> Batch:
        """The rows at these positions, in their order."""
        return Batch(self.shape, tuple(self.rows[position] for position in sorted(positions)))


def fingerprint(shape: Shape, row: Row, *, leaving_out: Collection[str] = ()) -> bytes:
    """SHA-256 of a row's content: of what is not NULL, by column name, whatever the order of the columns.

    So a column that a Celery upgrade added, empty in old rows, changes nothing.
    """
    parts: list[bytes] = []
    for name, at in shape.order:
        value = row.values[at]
        if value is None or name in leaving_out:
            continue
        written = value if isinstance(value, bytes) else _text(value).encode("utf-8", "surrogatepass")
        parts.append(f"{name}:{'b' if isinstance(value, bytes) else 't'}:{len(written)}:".encode())
        parts.append(written)
    return hashlib.sha256(b"".join(parts)).digest()


def _text(value: int | str | datetime) -> str:
    return value.isoformat(" ", "microseconds") if isinstance(value, datetime) else str(value)
