"""What jobs measure (readings, exported as metrics) and what they conclude (findings)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Metric:
    """One gauge of /metrics. Every series has the label `backend`, and `job` where `per_job`.

    `labels` are the further ones with every value they can take, so that each series is there, at zero,
    from the moment the policy loads; the values of `table` are the backend's own `table_names()`.
    """

    name: str
    help: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    per_job: bool = False

    def read(self, value: float, **labels: str) -> Reading:
        """A reading of this metric; raises ValueError where a label is missing or unknown."""
        if set(labels) != set(self.labels):
            raise ValueError(f"{self.name} takes the labels {sorted(self.labels)}, got {sorted(labels)}")
        return Reading(self, float(value), tuple(sorted(labels.items())))


@dataclass(frozen=True, slots=True)
class Reading:
    """A value measured during a run; it is kept in the ledger and shown by /metrics until the next one."""

    metric: Metric
    value: float
    labels: tuple[tuple[str, str], ...] = ()


class Severity(StrEnum):
    """How soon somebody has to act."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class Finding:
    """A diagnosis with its fix. `code` is stable, such as `redis.eviction-can-hit-broker`."""

    severity: Severity
    code: str
    sentence: str
    fix: str
