"""How a cache server fares beside its memory: its growth, who is connected, its replicas, its own copies on disk."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Growth:
    """How used memory has gone, as a straight line through its history. `error` is half of the interval that the true
    rate is in, nineteen times of twenty; both in bytes a second."""

    rate: float
    error: float
    points: int
    span: float
    """Seconds from the first point to the last."""

    @property
    def rises(self) -> bool:
        """Is it certain that it rises?"""
        return self.rate - self.error > 0

    def reaches(self, left: float) -> float:
        """Seconds until so many more bytes are used; only where it rises."""
        return max(0.0, left) / self.rate

    def not_before(self, left: float) -> float:
        """Seconds within which that is not to be expected."""
        return max(0.0, left) / (self.rate + self.error)


@dataclass(frozen=True, slots=True)
class Clients:
    """Connections of one name and library from one host. Sizes in bytes."""

    name: str
    library: str
    host: str
    count: int
    idle: int
    """Those that have said nothing for an hour."""
    longest_idle: int
    """Seconds."""
    output: int
    """Answers that they have not taken yet."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica, as its master sees it."""

    name: str
    online: bool
    lag: float
    """Seconds since it last said how far it is."""
    behind: int
    """Bytes of changes that it has not confirmed."""


@dataclass(frozen=True, slots=True)
class Lookups:
    """Keys that were asked for in the last `seconds`, and found or not."""

    hits: int
    misses: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ServerHealth:
    """What INFO, CLIENT LIST and PUBSUB tell; None where the server does not say."""

    growth: Growth | None = None
    clients: tuple[Clients, ...] = ()
    clients_output: int = 0
    """Bytes of all clients' buffers."""
    result_channels: int | None = None
    """Channels on which somebody waits for one task's result."""
    channels_looked_at: int = 0
    channels_of_the_past: int = 0
    """Of those that were looked at: the result is there already."""
    replicas: tuple[Replica, ...] = ()
    backlog: int = 0
    """Bytes of changes that the server keeps for a replica that was away."""
    link_down: float | None = None
    """Of a replica: seconds since it lost its master."""
    fork_seconds: float = 0.0
    snapshot_seconds: float | None = None
    hits: int = 0
    misses: int = 0
    """Since the server started."""
    lookups: Lookups | None = None
    """Of late; None where nobody knows of an earlier look."""
    notes: tuple[str, ...] = ()
    """What could not be read and why."""
