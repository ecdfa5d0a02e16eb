"""What a stored task result says of itself, read without ever running it: JSON only, sizes bounded."""

from __future__ import annotations

import bz2
import json
import lzma
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

# celery.backends.base.COMPRESSED_PAYLOAD_MAGIC, then the content type, a zero byte and the body.
COMPRESSED: Final = b"\x00celery-compressed\x00"

# A result that unpacks to more is not worth the memory for one date; compressed JSON rarely passes ten to one.
MOST_UNPACKED: Final = 8 * 1024 * 1024

# The first two keys are in this order in every Celery since 4.0 (BaseKeyValueStoreBackend, _get_result_meta).
_HEAD: Final = re.compile(rb'\{"status": "([^"\\]{1,50})", "result": ')
_DATE: Final = b'"date_done": '


@dataclass(frozen=True, slots=True)
class Stored:
    """What is known of a task result. `done_at` is None while the task has not finished."""

    state: str
    done_at: datetime | None
    task: str | None = None
    queue: str | None = None


class _Decompressor(Protocol):
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


# kombu's registered names (kombu/compression.py); its "gzip" is a zlib stream.
_DECOMPRESSORS: Final[dict[bytes, Callable[[], _Decompressor]]] = {
    b"application/x-gzip": zlib.decompressobj,
    b"application/x-bz2": bz2.BZ2Decompressor,
    b"application/x-lzma": lzma.LZMADecompressor,
}


def read(value: bytes) -> Stored | None:
    """Read a whole value; None where it is not a task result in JSON."""
    meta = read_object(value)
    return None if meta is None else stored_in(meta)


def read_object(value: bytes) -> dict[str, Any] | None:
    """The JSON object that a value is; None where it is something else."""
    text = _unpacked(value)
    meta = None if text is None else _json(text)
    return meta if isinstance(meta, dict) else None


def read_ends(head: bytes, tail: bytes, task_id: bytes) -> Stored | None:
    """Read a long value by its two ends; None where that is not certain.

    `date_done` follows `result`, so a long result leaves it in the tail. From the right `date_done` on, the value is
    the rest of one JSON object with the task's own id; a `date_done` inside a result or an argument leaves text
    over, or another id.
    """
    state = _HEAD.match(head)
    if state is None:
        return None
    position = tail.find(_DATE)
    while position >= 0:
        rest = _json(b"{" + tail[position:])
        if isinstance(rest, dict) and rest.get("task_id") == task_id.decode(errors="replace"):
            return stored_in({"status": state[1].decode(errors="replace"), **rest})
        position = tail.find(_DATE, position + 1)
    return None


def _unpacked(value: bytes) -> bytes | None:
    if not value.startswith(COMPRESSED):
        return value
    content_type, _, body = value[len(COMPRESSED) :].partition(b"\x00")
    start = _DECOMPRESSORS.get(content_type)
    if start is None:
        return None
    try:
        text = start().decompress(body, MOST_UNPACKED + 1)
    except (zlib.error, OSError, lzma.LZMAError, EOFError, ValueError):
        return None
    return text if len(text) <= MOST_UNPACKED else None


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def stored_in(meta: dict[str, Any]) -> Stored | None:
    """What an object that was read says as a task result; None where it is none."""
    if not isinstance(meta.get("status"), str) or "date_done" not in meta:
        return None
    written = meta["date_done"]
    done_at = None if written is None else _moment(written)
    if written is not None and done_at is None:
        return None
    return Stored(meta["status"], done_at, _text(meta.get("name")), _text(meta.get("queue")))


def _moment(written: object) -> datetime | None:
    """Both of Celery's spellings: naive UTC up to 5.3, with an offset since."""
    if not isinstance(written, str):
        return None
    try:
        moment = datetime.fromisoformat(written)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
