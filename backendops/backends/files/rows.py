"""The two forms of a file: JSON lines in gzip, which anything reads, and Parquet, which databases read."""

from __future__ import annotations

import base64
import gzip
import importlib.util
import io
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from backendops.contracts.archive import Batch, Column, Kind, Row, Shape, Value

DONE_AT: Final = "done_at"
# gzip's own default: a third smaller than 1 at a third of its speed, and the database is slower still.
_LEVEL: Final = 6
# Rows of Parquet that are in memory at once while a file is read.
_READ_ROWS: Final = 5000


class Format(ABC):
    """How rows are written to a file and read from it, to the byte."""

    suffix: str
    extra: tuple[str, str] | None = None
    """The module it needs, and the extra that installs it."""

    @abstractmethod
    def write(self, path: Path, batch: Batch) -> None:
        """Write a new file."""

    @abstractmethod
    def read(self, path: Path, shape: Shape, ids: Sequence[str] = ()) -> Iterator[tuple[int, Row]]:
        """Each row with its number; with `ids`, rows of other ids may be left out. Raises ValueError for damage."""

    def is_missing(self) -> str | None:
        """The extra that would install what it needs; None where that is there."""
        if self.extra is None or importlib.util.find_spec(self.extra[0]) is not None:
            return None
        return self.extra[1]


class JsonLines(Format):
    """One JSON object per row: bytes in base64, never decoded; moments in ISO 8601; NULL left out."""

    suffix = "jsonl.gz"

    def write(self, path: Path, batch: Batch) -> None:
        shape = batch.shape
        with path.open("wb") as raw, gzip.GzipFile("", "wb", _LEVEL, raw, mtime=0) as packed:
            for row in batch.rows:
                written = {
                    name: _to_json(value)
                    for name, value in zip(shape.names, row.values, strict=True)
                    if value is not None
                }
                written[DONE_AT] = row.done_at.isoformat()
                packed.write(json.dumps(written, separators=(",", ":")).encode() + b"\n")

    def read(self, path: Path, shape: Shape, ids: Sequence[str] = ()) -> Iterator[tuple[int, Row]]:
        # As they stand in the file: a line without any of them need not be parsed.
        wanted = [json.dumps(one).encode() for one in ids]
        readers: list[tuple[str, Callable[[Any], Value]]] = [
            (column.name, _FROM_JSON.get(column.kind, _as_it_is)) for column in shape.columns
        ]
        known = {*shape.names, DONE_AT}
        try:
            with gzip.open(path, "rb") as packed:
                for number, line in enumerate(io.BufferedReader(packed)):
                    if wanted and not any(one in line for one in wanted):
                        continue
                    written = json.loads(line)
                    if not written.keys() <= known:
                        raise _unknown(written.keys() - known)
                    yield (
                        number,
                        Row(
                            tuple(None if written.get(name) is None else read(written[name]) for name, read in readers),
                            datetime.fromisoformat(written[DONE_AT]),
                        ),
                    )
        except (EOFError, gzip.BadGzipFile, zlib.error, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is cut off or damaged ({error})") from None


def _to_json(value: int | str | bytes | datetime) -> int | str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value.isoformat() if isinstance(value, datetime) else value


def _as_it_is(value: Any) -> Any:
    return value


_FROM_JSON: Final[dict[Kind, Callable[[Any], Value]]] = {
    "bytes": partial(base64.b64decode, validate=True),
    "timestamp": datetime.fromisoformat,
}


class Parquet(Format):
    """Columns of their own types, packed with Zstandard."""

    suffix = "parquet"
    extra = ("pyarrow", "parquet")

    def write(self, path: Path, batch: Batch) -> None:
        import pyarrow as pa  # noqa: PLC0415 - only those who ask for Parquet have it
        import pyarrow.parquet as pq  # noqa: PLC0415 - as above

        columns = [
            pa.array([row.values[number] for row in batch.rows], _arrow_type(pa, column))
            for number, column in enumerate(batch.shape.columns)
        ]
        columns.append(pa.array([row.done_at for row in batch.rows], pa.timestamp("us", tz="UTC")))
        pq.write_table(pa.table(columns, names=[*batch.shape.names, DONE_AT]), path, compression="zstd")

    def read(self, path: Path, shape: Shape, ids: Sequence[str] = ()) -> Iterator[tuple[int, Row]]:  # noqa: ARG002 - may leave out, need not
        import pyarrow as pa  # noqa: PLC0415 - as above
        import pyarrow.parquet as pq  # noqa: PLC0415 - as above

        number = 0
        try:
            with pq.ParquetFile(path) as file:
                if unknown := {*file.schema_arrow.names} - {*shape.names, DONE_AT}:
                    raise _unknown(unknown)
                for group in file.iter_batches(_READ_ROWS):
                    columns = [group.column(name).to_pylist() for name in (*shape.names, DONE_AT)]
                    for *values, done_at in zip(*columns, strict=True):
                        yield number, Row(tuple(values), done_at)
                        number += 1
        except (pa.ArrowException, KeyError) as error:
            raise ValueError(f"it is cut off or damaged ({error})") from None


def _unknown(columns: Collection[str]) -> ValueError:
    # Left out, a result would come back without them.
    return ValueError(f"its manifest does not know its columns {', '.join(sorted(columns))}")


def _arrow_type(pa: Any, column: Column) -> Any:
    kinds = {"integer": pa.int64(), "bytes": pa.binary(), "timestamp": pa.timestamp("us")}
    return kinds.get(column.kind, pa.string())


FORMATS: Final[dict[str, Format]] = {form.suffix: form for form in (JsonLines(), Parquet())}
