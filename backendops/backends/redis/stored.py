"""Result keys as neutral rows for an archive, and back: the value itself travels as the bytes that Redis has."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from backendops.backends.group_members import member_ids
from backendops.backends.redis import payload
from backendops.contracts.archive import Column, Row, Shape, Value

# Celery's names for its tables, after which an archive is named; and its columns, as far as a value tells them.
TASKS: Final = Shape(
    "task",
    "celery_taskmeta",
    (
        Column("task_id", "text"),
        Column("status", "text"),
        Column("date_done", "timestamp"),
        Column("name", "text"),
        Column("worker", "text"),
        Column("retries", "integer"),
        Column("queue", "text"),
        Column("meta", "bytes"),
    ),
)
GROUPS: Final = Shape(
    "group",
    "celery_tasksetmeta",
    (Column("taskset_id", "text"), Column("date_done", "timestamp"), Column("meta", "bytes")),
)

# What PostgreSQL's bigint holds; a larger number of retries is nobody's.
_MOST_RETRIES: Final = 2**63 - 1


@dataclass(slots=True)
class Met:
    """What one reading met and did not hand over."""

    other_forms: Counter[str] = field(default_factory=Counter)
    """By what they are: pickle, msgpack, other."""
    unfinished: int = 0
    without_members: int = 0
    too_large: int = 0
    expire_first: int = 0
    """Finished results that expire before they are due."""
    soonest: timedelta | None = None
    """How soon the first of them does."""
    expire_next: int = 0
    """And those that expire between becoming due and the next run."""


def task_row(task_id: bytes, value: bytes, met: Met) -> tuple[Row, payload.Stored] | None:
    """A finished task's row; None for one that is not finished, or not JSON, which `met` counts."""
    meta = payload.read_object(value)
    stored = None if meta is None else payload.stored_in(meta)
    name = text_of(task_id)
    if meta is None or stored is None or name is None or _text(stored.state) is None:
        met.other_forms[form_of(value)] += 1
        return None
    if stored.done_at is None:
        met.unfinished += 1
        return None
    retries = meta.get("retries")
    counted = isinstance(retries, int) and not isinstance(retries, bool) and 0 <= retries <= _MOST_RETRIES
    values: tuple[Value, ...] = (
        name,
        stored.state,
        naive(stored.done_at),
        _text(stored.task),
        _text(meta.get("worker")),
        retries if counted else None,
        _text(stored.queue),
        value,
    )
    return Row(values, stored.done_at), stored


def group_row(group_id: bytes, value: bytes, done_at: datetime) -> Row | None:
    """A group's row; None where its id is no text."""
    name = text_of(group_id)
    return None if name is None else Row((name, naive(done_at), value), done_at)


def members_of(value: bytes) -> frozenset[str] | None:
    """The ids of a saved group's tasks; None where it is not JSON, as Celery writes it."""
    meta = payload.read_object(value)
    # Celery wraps what its SQL backend stores bare (KeyValueStoreBackend._save_group).
    return None if meta is None or "result" not in meta else member_ids(json.dumps(meta["result"]).encode())


def form_of(value: bytes) -> str:
    """What a value is that is not a result in JSON, by how it begins."""
    # A pickle is 0x80 and its protocol; in msgpack 0x81 to 0x8f and 0xde begin a map that is not empty.
    if value[:1] == b"\x80" and value[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}:
        return "pickle"
    if value[:1] == b"\xde" or b"\x81" <= value[:1] <= b"\x8f":
        return "msgpack"
    return "compressed" if value.startswith(payload.COMPRESSED) else "other"


def naive(moment: datetime) -> datetime:
    """As Celery's date_done is kept in a table, in UTC."""
    return moment.astimezone(UTC).replace(tzinfo=None)


def text_of(name: bytes) -> str | None:
    """A key's id as text; None where no database could keep it."""
    try:
        return _text(name.decode())
    except UnicodeDecodeError:
        return None


def _text(value: object) -> str | None:
    # JSON can spell what no database can hold as text.
    if not isinstance(value, str) or any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value):
        return None
    return value
