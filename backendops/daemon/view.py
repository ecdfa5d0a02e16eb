"""What the daemon itself knows and the ledger does not: the policy in force and what comes next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from backendops.engine.ledger import Ledger
from backendops.policy.model import Policy

Key = tuple[str, str]
"""The names of a job and of its backend."""


@dataclass(slots=True)
class View:
    """Read by /metrics, the status page and the probes; a reload replaces its parts one by one."""

    policy: Policy
    ledger: Ledger
    loaded_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    problems: tuple[str, ...] = ()
    """Why the last reload was refused, line by line; none while the policy in force is the one in the file."""
    next_runs: Callable[[], Mapping[Key, datetime]] = dict
    scheduler_alive: Callable[[], bool] = lambda: True
