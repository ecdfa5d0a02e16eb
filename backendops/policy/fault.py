"""A fault that shows only when the whole policy is bound."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault under `keys` of the policy, such as ("jobs", "expire", "keep") or ("jobs", "expire", "rules", 0)."""

    keys: tuple[str | int, ...]
    message: str
