"""The ledger's tables, the same on SQLite as on any other SQLAlchemy URL."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.types import TypeDecorator

# Rises when a table changes its shape. An older ledger is brought up to date when it opens, a newer one is refused.
VERSION: Final = 1

# MySQL allows 3,072 bytes of key: two names of 190 characters and a label text of 255 stay below.
_NAME: Final = 190
_LABELS: Final = 255


class Moment(TypeDecorator[datetime]):
    """A moment in UTC as text of fixed width: it sorts as time does, on every database, and a person can read it."""

    impl = String(32)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's shape
        return None if value is None else value.astimezone(UTC).isoformat(timespec="microseconds")

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's shape
        return None if value is None else datetime.fromisoformat(value)


metadata: Final = MetaData()

version: Final = Table("backendops_ledger", metadata, Column("version", Integer, primary_key=True, autoincrement=False))

runs: Final = Table(
    "backendops_runs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("job", String(_NAME), nullable=False),
    Column("backend", String(_NAME), nullable=False),
    Column("trigger", String(16), nullable=False),
    Column("host", String(255), nullable=False),
    Column("world", String(120), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("process_start", String(32), nullable=False),
    Column("started_at", Moment, nullable=False),
    Column("due_to_end_at", Moment, nullable=False),
    Column("progressed_at", Moment, nullable=False),
    Column("cancel_requested", Boolean, nullable=False, default=False),
    Column("ended_at", Moment),
    Column("outcome", String(16)),
    Column("rows", BigInteger, nullable=False, default=0),
    Column("seconds", Float, nullable=False, default=0.0),
    Column("what", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("hint", Text, nullable=False),
    Column("throttled", JSON, nullable=False),
    Column("findings", JSON, nullable=False),
    Index("backendops_runs_by_pair", "job", "backend", "ended_at"),
    Index("backendops_runs_open", "ended_at"),
)

totals: Final = Table(
    "backendops_totals",
    metadata,
    Column("job", String(_NAME), primary_key=True),
    Column("backend", String(_NAME), primary_key=True),
    Column("outcome", String(16), primary_key=True),
    Column("runs", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("last_ended_at", Moment, nullable=False),
)

throttled: Final = Table(
    "backendops_throttled",
    metadata,
    Column("job", String(_NAME), primary_key=True),
    Column("backend", String(_NAME), primary_key=True),
    Column("reason", String(64), primary_key=True),
    Column("seconds", Float, nullable=False),
)

readings: Final = Table(
    "backendops_readings",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("job", String(_NAME), primary_key=True),
    Column("backend", String(100), primary_key=True),
    Column("labels", String(_LABELS), primary_key=True),
    Column("value", Float(53), nullable=False),
    Column("at", Moment, nullable=False),
)

pauses: Final = Table(
    "backendops_pauses",
    metadata,
    Column("job", String(_NAME), primary_key=True),
    Column("by", String(255), nullable=False),
    Column("at", Moment, nullable=False),
)

slots: Final = Table(
    "backendops_slots",
    metadata,
    Column("job", String(_NAME), primary_key=True),
    Column("backend", String(_NAME), primary_key=True),
    Column("slot", Moment, primary_key=True),
)

watermarks: Final = Table(
    "backendops_watermarks",
    metadata,
    Column("backend", String(_NAME), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("value", Text, nullable=False),
)
