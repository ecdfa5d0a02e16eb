"""Which keys are Celery's results, and which are a broker's: names only, nothing is read."""

from __future__ import annotations

import re
from typing import Final

# The chord parts of celery.backends.redis: size, joined results, dedup set, added tasks, callback claim.
CHORD_PARTS: Final = (b".s", b".j", b".d", b".t", b".c")

# The type each kind of result key has; a key of another type is somebody else's.
CHORD_TYPES: Final = {
    b".s": frozenset({"string"}),
    b".j": frozenset({"zset", "list"}),  # a list where result_chord_ordered is off
    b".d": frozenset({"set"}),
    b".t": frozenset({"string"}),
    b".c": frozenset({"string"}),
}

# kombu.transport.redis' own keys, after whatever global_keyprefix the broker has: it is put before them as it is.
# Queue lists have free names: they are found through the bindings.
_BROKER: Final = re.compile(
    rb".*_kombu\.binding.*|(?:.*[:_.\-])?(?:unacked|unacked_index|unacked_mutex|celeryev\..*|.*\.celery\.pidbox)",
    re.DOTALL,
)
# celery.backends.rpc names its reply queue by a bare UUID; kombu.pidbox adds its own words to one.
_REPLY_LIST: Final = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_GLOB: Final = re.compile(r"([*?\[\]\\])")


def with_separator(global_keyprefix: str) -> str:
    """Celery puts `_` after a global_keyprefix that does not end in one of `:_-.`."""
    if not global_keyprefix or global_keyprefix[-1] in ":_-.":
        return global_keyprefix
    return f"{global_keyprefix}_"


def is_broker_key(key: bytes) -> bool:
    """Is this one of kombu's own keys?"""
    return _BROKER.fullmatch(key) is not None


def is_reply_list(key: bytes) -> bool:
    """Is this named as the reply queue of RPC over Redis is? Only a list is one."""
    return _REPLY_LIST.fullmatch(key) is not None


def is_pidbox_reply(key: bytes) -> bool:
    """Is this named as the queue that answers to `celery inspect` come to?"""
    return key.endswith(b".reply.celery.pidbox")


class ResultKeys:
    """The names of one application's result keys."""

    def __init__(self, global_keyprefix: str = "") -> None:
        prefix = with_separator(global_keyprefix)
        self.prefix = prefix
        self.task = f"{prefix}celery-task-meta-".encode()
        self.group = f"{prefix}celery-taskset-meta-".encode()
        self.pattern = _GLOB.sub(r"\\\1", prefix) + "celery-task*-meta-*"

    def pattern_of(self, stem: bytes) -> str:
        """What SCAN is to match for the keys that begin with `task` or with `group`."""
        return _GLOB.sub(r"\\\1", stem.decode()) + "*"

    def kind(self, key: bytes) -> str | None:
        """`task`, `group` or `chord`; None for every key that is not a result's."""
        if key.startswith(self.task):
            return "task" if len(key) > len(self.task) else None
        if key.startswith(self.group) and len(key) > len(self.group):
            return "chord" if key[-2:] in CHORD_PARTS else "group"
        return None

    def has_its_type(self, key: bytes, kind: str, redis_type: str) -> bool:
        """Is the key of the type that Celery gives such a key?"""
        return redis_type in CHORD_TYPES[key[-2:]] if kind == "chord" else redis_type == "string"
