"""What a retired partition says of itself in its COMMENT, for as long as its rows live."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final, Literal, Self

from sqlalchemy import Connection

from backendops.backends.postgres.tables import quoted
from backendops.backends.sql_files import literal, load

_MARK: Final = "partition"

State = Literal["retiring", "quarantined"]


@dataclass(frozen=True, slots=True)
class Retirement:
    """Where a partition came from, its bounds, and when it may be dropped.

    `retiring` is written before the detach, so that a crash in the middle leaves a table that explains itself;
    `quarantined` after it, and only then does the time until `drop_after` begin.
    """

    state: State
    archive: str
    """The archive it was part of, quoted and with its schema."""
    lower: datetime
    upper: datetime
    detached_at: datetime | None = None
    drop_after: datetime | None = None
    bounds: str | None = None
    """Of a live table's partition, as the server writes them: its bounds are ids, or times without a zone."""

    def __str__(self) -> str:
        """The comment's text: JSON that begins with our name."""
        fields = {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in asdict(self).items()
            if value is not None
        }
        return json.dumps({"backendops": _MARK, **fields}, ensure_ascii=False)

    @classmethod
    def parse(cls, comment: str | None) -> Self | None:
        """Read a comment; None where it is not ours, or was edited so that it cannot be trusted."""
        try:
            fields = json.loads(comment or "")
            if not isinstance(fields, dict) or fields.pop("backendops", None) != _MARK:
                return None
            for name in ("lower", "upper", "detached_at", "drop_after"):
                if name in fields:
                    fields[name] = _moment(fields[name])
            retirement = cls(**fields)
        except (ValueError, TypeError):
            return None
        if not (retirement.bounds is None or isinstance(retirement.bounds, str)):
            return None
        whole = retirement.detached_at is not None and retirement.drop_after is not None
        return retirement if retirement.state == "retiring" or (retirement.state == "quarantined" and whole) else None


@dataclass(frozen=True, slots=True)
class Detached:
    """A table that carries our comment and is part of no archive any more."""

    oid: int
    schema: str
    name: str
    bytes: int
    comment: str
    retirement: Retirement
    rows: int = 0
    """The server's estimate."""

    @property
    def sql_name(self) -> str:
        """Schema and name as SQL."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    @property
    def slot(self) -> str:
        """Schema and name as the text of a slot."""
        return literal(self.sql_name)

    @property
    def start(self) -> datetime:
        """The first moment that it holds."""
        return self.retirement.lower

    @property
    def end(self) -> datetime:
        """The first moment that it does not hold."""
        return self.retirement.upper

    @property
    def way_back(self) -> str:
        """The SQL that makes it part of its archive again."""
        return (
            f"ALTER TABLE {self.retirement.archive} ATTACH PARTITION {self.sql_name} {self.bounds}; "
            f"COMMENT ON TABLE {self.sql_name} IS NULL;"
        )

    @property
    def bounds(self) -> str:
        """The bounds it had, as SQL."""
        back = self.retirement
        return back.bounds or f"FOR VALUES FROM ('{back.lower.isoformat()}') TO ('{back.upper.isoformat()}')"


def list_detached(connection: Connection, archive: str | None = None) -> tuple[Detached, ...]:
    """Every table that was detached by us, from this archive or live table or from any, and is still there."""
    found = []
    for row in connection.execute(load("postgres", "partition", "list_detached")):
        retirement = Retirement.parse(row.comment)
        if retirement is not None and archive in (None, retirement.archive):
            found.append(Detached(row.oid, row.schema, row.name, row.bytes, row.comment, retirement, row.rows))
    return tuple(sorted(found, key=lambda one: (one.retirement.lower, one.name)))


def estimate_rows(connection: Connection, oids: Iterable[int]) -> int:
    """About how many rows these partitions have, without reading them."""
    statement = load("postgres", "partition", "estimate_rows")
    rows: int = connection.execute(statement, {"oids": list(oids)}).scalar_one()
    return rows


def retiring_partitions(connection: Connection, archive_oid: int) -> frozenset[int]:
    """The attached partitions, by oid, whose comment says that we were about to detach them."""
    rows = connection.execute(load("postgres", "partition", "list_comments"), {"oid": archive_oid})
    return frozenset(row.oid for row in rows if Retirement.parse(row.comment) is not None)


def foreign_partitions(connection: Connection, archive_oid: int) -> frozenset[int]:
    """The attached partitions, by oid, whose rows are kept by another server."""
    rows = connection.execute(load("postgres", "partition", "list_comments"), {"oid": archive_oid})
    return frozenset(row.oid for row in rows if row.is_foreign)


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a moment without its zone is a guess")
    return moment
