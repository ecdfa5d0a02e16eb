"""Which tasks a saved group is made of, read from its JSON without ever running anything."""

from __future__ import annotations

import json
from typing import Any, Final

# What JSON of a group begins with: result.as_tuple() is a list (celery/result.py). A pickle begins with 0x80.
JSON_BEGINS: Final = b"["
# A payload of this size lists some 200,000 members; a longer one is not worth the memory, and counts as unreadable.
MOST_READ: Final = 16 * 1024**2


def member_ids(payload: bytes) -> frozenset[str] | None:
    """The ids of every task in the group, those of inner groups and of the chains before a member included.

    None where it is not what GroupResult.save() stores as JSON: [[group, parent], [[[task, parent], null], ...]].
    """
    if not payload.startswith(JSON_BEGINS):
        return None
    try:
        waiting: list[Any] = [json.loads(payload)]
    except (ValueError, RecursionError):
        return None
    ids: set[str] = set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, list) or len(node) != 2:  # noqa: PLR2004 - what a pair is
            return None
        head, members = node
        # An old result without a parent is its id alone (celery.result.result_from_tuple).
        named, parent = head if isinstance(head, list) and len(head) == 2 else (head, None)  # noqa: PLR2004 - a pair
        if not isinstance(named, str) or not _is_storable(named):
            return None
        if parent is not None:
            waiting.append(parent)
        if isinstance(members, list):
            waiting += members
        elif members is None:
            ids.add(named)
        else:
            return None
    return frozenset(ids)


def _is_storable(text: str) -> bool:
    # JSON can spell what no database can hold as text.
    return not any(char == "\0" or "\ud800" <= char <= "\udfff" for char in text)
