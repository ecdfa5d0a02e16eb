"""Reading a stored result: JSON only, bounded, and never a wrong date."""

from __future__ import annotations

import json
import zlib
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from backendops.backends.redis import payload
from backendops.backends.redis.payload import Stored, read, read_ends

DONE = datetime(2026, 11, 20, 5, 0, 0, 123456, UTC)


def value(**changes: Any) -> bytes:
    meta = {
        "status": "SUCCESS", "result": 1, "traceback": None, "children": [], "date_done": DONE.isoformat(),
        "task_id": "1",
    }  # fmt: skip
    return json.dumps({**meta, **changes}).encode()


def ends(text: bytes, size: int = 400) -> Stored | None:
    return read_ends(text[:256], text[-size:], b"1")


@pytest.mark.parametrize(
    "written",
    [
        "2026-11-20T05:00:00.123456",
        "2026-11-20T05:00:00.123456+00:00",
        "2026-11-20T05:00:00.123456Z",
        DONE.astimezone(timezone(timedelta(hours=9))).isoformat(),
    ],
)
def test_each_spelling_is_the_same_moment(written: str) -> None:
    assert read(value(date_done=written)) == Stored("SUCCESS", DONE)


def test_what_rules_ask_for_is_read() -> None:
    assert read(value(status="FAILURE", name="mail.send", queue="fast")) == Stored("FAILURE", DONE, "mail.send", "fast")
    assert read(value(name=7, queue=["x"])) == Stored("SUCCESS", DONE)
    assert read(value(status="STARTED", date_done=None)) == Stored("STARTED", None)


def test_what_unpacks_to_too_much_is_not_read() -> None:
    def packed(size: int) -> bytes:
        return payload.COMPRESSED + b"application/x-gzip\x00" + zlib.compress(value(result="x" * size))

    assert read(packed(payload.MOST_UNPACKED // 2)) == Stored("SUCCESS", DONE)
    assert read(packed(payload.MOST_UNPACKED)) is None


@pytest.mark.parametrize("result", ["x" * 5000, {"date_done": "2001-01-01", "task_id": "1", "x": "y" * 5000}])
def test_a_long_value_is_read_by_its_ends(result: object) -> None:
    assert ends(value(result=result)) == Stored("SUCCESS", DONE)


@pytest.mark.parametrize(
    "nested",
    [
        {"date_done": "2001-01-01T00:00:00", "task_id": "1"},
        '"date_done": "2001-01-01T00:00:00", "task_id": "1"}',
        [{"date_done": "2001-01-01T00:00:00", "task_id": "1"}],
    ],
)
def test_a_date_inside_a_result_or_an_argument_is_never_taken(nested: object) -> None:
    long = "x" * 5000
    assert ends(value(result=[long, nested])) == Stored("SUCCESS", DONE)
    assert ends(value(result=long, kwargs={"nested": nested})) == Stored("SUCCESS", DONE)
    # The right date is not in the tail: then none is.
    assert ends(value(result=nested, kwargs={"long": long, "nested": nested}), 200) is None
    assert ends(value(result=nested, kwargs={"long": long, "nested": [[nested]]}), 200) is None


def test_ends_that_are_not_certain_are_not_taken() -> None:
    text = value(result="x" * 5000)
    assert read_ends(b'{"result": ', text[-400:], b"1") is None
    assert read_ends(text[:256], text[-400:], b"another id") is None
    assert read_ends(text[:256], text[-400:-1], b"1") is None
