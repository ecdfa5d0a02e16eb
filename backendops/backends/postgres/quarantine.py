"""What a retired partition says of itself in its COMMENT, for as long as its rows live."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final, Literal, Self

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
    partition: str
    """The name it had there."""
    lower: datetime
    upper: datetime
    detached_at: datetime | None = None
    drop_after: datetime | None = None
    comment_before: str | None = None

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
        return retirement if retirement.state in ("retiring", "quarantined") else None


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a moment without its zone is a guess")
    return moment
