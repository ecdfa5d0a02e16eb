"""What a backend can do. A backend's class header lists these; a job needs one of them.

ABCs, not Protocols: a Protocol's forgotten method would quietly return None. Every changing method yields a Step
for each piece that is already committed, so that stopping between two of them is always safe; every preview
method runs on a read-only connection and changes nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import ClassVar, Literal

from backendops.contracts.keyspace import Keyspace
from backendops.contracts.readings import Finding
from backendops.contracts.retention import Retention
from backendops.contracts.run import Pace, Preview, Steps
from backendops.contracts.server_health import ServerHealth
from backendops.contracts.units import Duration

Every = Literal["month", "week", "day"]


class CanExpire(ABC):
    """Can old results be removed (or, where the server expires by itself, be given their expiry)?"""

    removes_at_once: ClassVar[bool] = True
    """Is what is past keeping gone with the run, or only marked for the server to expire?"""

    @abstractmethod
    def preview_expire(self, due: Retention) -> Preview: ...

    @abstractmethod
    def expire(self, due: Retention, pace: Pace) -> Steps: ...


class CanKeepNewest(ABC):  # noqa: B024 - a mark beside CanExpire, whose methods do it
    """Does it know the order in which results finished, so that `Retention.keep_newest` can be kept?"""


@dataclass(frozen=True, slots=True)
class ArchivePlan:
    """Where archived results go. Names are templates: `{table}` stands for the live table's name."""

    name: str = "{table}_archive"
    schema: str | None = None
    every: Every = "month"


class CanArchive(ABC):
    """Can old results be moved out of the live tables, none lost and none twice?"""

    @abstractmethod
    def preview_archive(self, due: Retention, plan: ArchivePlan) -> Preview: ...

    @abstractmethod
    def archive(self, due: Retention, plan: ArchivePlan, pace: Pace) -> Steps: ...


class CanMoveStuck(ABC):
    """Can it prove that an unfinished result was not written for a long time, and archive it with a mark?"""

    @abstractmethod
    def preview_stuck(self, stuck_after: timedelta, plan: ArchivePlan) -> Preview: ...

    @abstractmethod
    def move_stuck(self, stuck_after: timedelta, plan: ArchivePlan, pace: Pace) -> Steps: ...


@dataclass(frozen=True, slots=True)
class KeptFor:
    """What an archive job sends from another backend to this one, to be kept in tables here."""

    source: str
    """The other backend's name in the policy."""
    plan: ArchivePlan


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """Which partitions the archive should have: from its oldest to `ahead` of now, none past `cutoff`."""

    now: datetime
    archive: ArchivePlan
    ahead: int
    cutoff: datetime | None
    quarantine: Duration
    kept_for: tuple[KeptFor, ...] = ()
    """The archives of other backends here, which are looked after alike."""
    live_cutoff: datetime | None = None
    """The same for the partitions of a live table that was converted; None keeps them for ever."""


class CanPartition(ABC):
    """Can the archive's partitions be made ahead of time and retired when they are past keeping?"""

    @abstractmethod
    def preview_partitions(self, plan: PartitionPlan) -> Preview: ...

    @abstractmethod
    def maintain_partitions(self, plan: PartitionPlan, pace: Pace) -> Steps: ...


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """What may be done about indexes; what may not is told as a finding instead."""

    create_missing: bool = False
    drop_invalid: bool = False
    reindex_bloated: float | None = None
    """Rebuild where at least this part (0 to 1) of an index is empty; None never does."""
    rebuild_until: datetime | None = None
    """The end of the window in which an index may be rebuilt; None outside of it."""


@dataclass(frozen=True, slots=True)
class VacuumPlan:
    """Which tables are worth a vacuum, and whether this is the hour for a full one.

    A table is due by `dead_rows` together with `dead_ratio` (0 to 1), by `bloat_ratio` (0 to 1), by `freeze_age`
    (transactions or multixacts), or by statistics older than `analyze_after`.
    """

    now: datetime
    dead_rows: int
    dead_ratio: float
    analyze_after: timedelta
    full: bool = False
    """Is this inside the policy's `full:` window?"""
    full_until: datetime | None = None
    """The end of that window, for what can be ended."""
    bloat_ratio: float = 0.3
    freeze_age: int = 150_000_000
    freeze_past: bool = True
    """Freeze the partitions that no row comes to any more, once."""
    indexes: IndexPlan = field(default_factory=IndexPlan)


class CanVacuum(ABC):
    """Can space be made reusable and statistics current?"""

    @abstractmethod
    def preview_vacuum(self, plan: VacuumPlan) -> Preview: ...

    @abstractmethod
    def vacuum(self, plan: VacuumPlan, pace: Pace) -> Steps: ...


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """A cache server's memory and what of it results take. Sizes in bytes; None where the server does not say."""

    used: int
    peak: int
    rss: int
    limit: int
    """0 where the server has no limit."""
    total: int
    """The host's memory, as the server sees it."""
    fragmentation: float
    eviction_policy: str
    evicted_keys: int
    loading: bool
    rdb_last_save: datetime | None
    """None where snapshots are off, or where the server does not say whether they are."""
    rdb_last_ok: bool
    rdb_changes: int
    aof_enabled: bool
    aof_last_ok: bool
    keys: int
    keys_without_ttl: int
    """Of the whole database: every kind of key, in one cheap figure."""
    result_keys: Mapping[str, int]
    """By kind: task, group, chord."""
    result_bytes: Mapping[str, int]
    result_keys_without_ttl: int
    broker_keys: int
    """Keys of a Celery broker in the same database: what eviction must never reach."""
    sampled: float
    """The part of the keyspace the figures by kind were read from, 0 to 1; they are scaled up to the whole."""
    biggest: tuple[tuple[str, int], ...] = ()
    """Name and bytes of the largest result keys that were weighed."""
    broker_databases: tuple[int, ...] = ()
    """Other databases of the server that have a broker in them: eviction takes from all of them alike."""
    allocator: str = ""
    """The memory allocator, which decides what helps against fragmentation."""
    keyspace: Keyspace | None = None
    """What its keys are, of every kind."""
    server: ServerHealth | None = None
    """How it fares beside its memory."""
    node: str = ""
    """Of a cluster's node: its address."""
    nodes: tuple[MemoryReport, ...] = ()
    """Of a cluster: each master by itself; the figures above are their sum, or the worst of them."""


class CanReportMemory(ABC):
    """Can its memory be read without blocking it?"""

    @abstractmethod
    def report_memory(self, time_limit: timedelta) -> MemoryReport: ...


@dataclass(frozen=True, slots=True)
class PoolReport:
    """How a backend's connections stand. Times in seconds; None where the kind of backend has no such thing."""

    connect_seconds: float
    roundtrip_seconds: float
    connections: Mapping[str, int] = field(default_factory=dict)
    """By state: active, idle, idle_in_transaction, blocked, other; none where there is no server to count them."""
    connections_limit: int | None = None
    by_application: Mapping[str, int] = field(default_factory=dict)
    oldest_transaction_seconds: float | None = None
    waiting_for_locks: int | None = None
    replication_lag_seconds: float | None = None
    id_headroom: float | None = None
    """The part of the id column's range that is still free, 0 to 1, the tightest table's."""
    rejected_connections: int | None = None
    pooler_waiting_clients: int | None = None
    pooler_longest_wait_seconds: float | None = None
    pooler_error: str = ""
    """Why the pooler could not be asked, where the policy names one."""
    notes: tuple[str, ...] = ()
    """What could not be read and why, such as a privilege that is missing."""


class CanReportPool(ABC):
    """Can the state of its connections be read?"""

    @abstractmethod
    def report_pool(self) -> PoolReport:
        """Measure on a fresh connection; raises BackendUnreachable within five seconds where it is dead."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """Why a changing run should wait, or end; neither where all is well.

    `wait` is a word that becomes a metric's label, such as `replica-lag`, and `why` says it in full; `end` is the
    whole sentence of why the run is to end. `findings` are told once for each run. `in_use`: do others use the server,
    as far as one can see, so that a run should go gently?
    """

    wait: str | None = None
    why: str = ""
    end: str | None = None
    findings: tuple[Finding, ...] = ()
    in_use: bool = False


class CanReportPressure(ABC):
    """Can it say that it is under pressure, so that a changing run should wait?"""

    @abstractmethod
    def pressure(self) -> Pressure:
        """How the server fares, on an opened copy; raises BackendRefused where the policy's own question is wrong.

        Asked about once a second, between the steps of a run: it must cost no more than a round trip.
        """
