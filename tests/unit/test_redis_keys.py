"""Which keys are results: Celery's own names, and nobody else's."""

from __future__ import annotations

from typing import Any

import pytest

from backendops.backends.redis.keys import ResultKeys, is_broker_key
from tests.celery_rows import celery_app


@pytest.mark.parametrize("prefix", ["", "app", "app:", "app_", "app-", "app.", "a*b[c]\\d?", "naïve"])
def test_the_names_are_celerys(prefix: str) -> None:
    app = celery_app("redis://", result_backend_transport_options={"global_keyprefix": prefix} if prefix else {})
    celery: Any = app.backend
    keys = ResultKeys(prefix)

    assert keys.kind(celery.get_key_for_task("1")) == "task"
    assert keys.kind(celery.get_key_for_group("1")) == "group"
    for part in (".s", ".j", ".d", ".t", ".c"):
        assert keys.kind(celery.get_key_for_group("1", part)) == "chord"


@pytest.mark.parametrize(
    "key",
    [
        "celery-task-meta-", "celery-taskset-meta-", "celery-task-meta", "xcelery-task-meta-1",
        "app_celery-task-meta-1",
        "celery-tasks-meta-1", "Celery-task-meta-1", "chord-unlock-1", "celery", "unacked", "", "backendops:lock:0",
    ],
)  # fmt: skip
def test_other_names_are_not(key: str) -> None:
    assert ResultKeys().kind(key.encode()) is None


def test_a_prefix_is_matched_as_written() -> None:
    assert ResultKeys("a*[b]").pattern == r"a\*\[b\]_celery-task*-meta-*"


@pytest.mark.parametrize(
    ("key", "redis_type", "ours"),
    [
        ("celery-task-meta-1", "string", True),
        ("celery-task-meta-1", "list", False),
        ("celery-taskset-meta-1", "string", True),
        ("celery-taskset-meta-1", "hash", False),
        ("celery-taskset-meta-1.j", "zset", True),
        ("celery-taskset-meta-1.j", "list", True),
        ("celery-taskset-meta-1.j", "string", False),
        ("celery-taskset-meta-1.d", "set", True),
        ("celery-taskset-meta-1.s", "stream", False),
    ],
)
def test_a_key_of_another_type_is_somebody_elses(key: str, redis_type: str, ours: bool) -> None:
    keys = ResultKeys()
    kind = keys.kind(key.encode())
    assert kind is not None
    assert keys.has_its_type(key.encode(), kind, redis_type) is ours


@pytest.mark.parametrize(
    ("key", "broker"),
    [
        ("_kombu.binding.celery", True),
        ("_kombu.binding_permanent.celery", True),
        ("_kombu.binding_deadlines", True),
        ("myapp_kombu.binding.celery", True),
        ("myapp:_kombu.binding.celery", True),
        ("unacked", True),
        ("myapp:unacked_index", True),
        ("0d1c.reply.celery.pidbox", True),
        ("celery@host.celery.pidbox", True),
        ("celeryev.0d1c", True),
        ("unacked_notes", False),
        ("celery", False),
        ("cache:celery", False),
    ],
)
def test_kombus_own_names_are_known(key: str, broker: bool) -> None:
    assert is_broker_key(key.encode()) is broker
