"""redis-memory: what the server's memory is taken by, and whether eviction can hurt."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Annotated, ClassVar, Final, Self

from pydantic import Field, model_validator

from backendops.contracts import metrics
from backendops.contracts.capabilities import CanReportMemory, MemoryReport
from backendops.contracts.job import Job
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.run import Pace, Preview, Step, Steps
from backendops.contracts.units import ByteSize, FixedDuration, format_bytes
from backendops.jobs.keyspace import KEYSPACE_METRICS
from backendops.jobs.redis_figures import readings, summary
from backendops.jobs.redis_nodes import by_node
from backendops.jobs.redis_server import Thresholds, server_findings
from backendops.jobs.redis_trouble import (
    SWAPPED,
    biggest,
    broker_place,
    defragment,
    persistence,
    refused_writes,
    without_ttl,
)

# Below this the ratio says nothing: a small server's fixed memory makes it look fragmented, or swapped.
SMALL: Final = 100 * 1024 * 1024


class RedisMemory(Job):
    """Check memory against its limit, and the eviction policy against what lives in the database."""

    kind_name: ClassVar[str] = "redis-memory"
    needs: ClassVar[type] = CanReportMemory
    changes: ClassVar[bool] = False
    metrics: ClassVar = (
        metrics.REDIS_MEMORY_USED,
        metrics.REDIS_MEMORY_PEAK,
        metrics.REDIS_MEMORY_RSS,
        metrics.REDIS_MEMORY_LIMIT,
        metrics.REDIS_FRAGMENTATION,
        metrics.REDIS_EVICTED,
        metrics.REDIS_RESULT_KEYS,
        metrics.REDIS_RESULT_BYTES,
        metrics.REDIS_WITHOUT_TTL,
        metrics.REDIS_LAST_SAVE_AGE,
        metrics.REDIS_MEMORY_GROWTH,
        metrics.REDIS_CLIENTS_IDLE,
        metrics.REDIS_CLIENTS_OUTPUT,
        metrics.REDIS_RESULT_CHANNELS,
        metrics.REDIS_REPLICA_BEHIND,
        metrics.REDIS_FORK_SECONDS,
        metrics.REDIS_HITS,
        metrics.REDIS_MISSES,
        *KEYSPACE_METRICS,
        metrics.FINDINGS,
    )

    sample_time: FixedDuration = Field(
        timedelta(seconds=5), description="How long the keyspace may be sampled in one run."
    )
    memory_warning: Annotated[float, Field(gt=0, le=1)] = Field(
        0.8, description="Warn where used memory is at least this part of maxmemory."
    )
    memory_critical: Annotated[float, Field(gt=0, le=1)] = Field(
        0.95, description="Critical where used memory is at least this part of maxmemory."
    )
    # jemalloc's ordinary ratio is 1.0 to 1.3; activedefrag itself starts at 10 % and 100 MB.
    fragmentation_warning: Annotated[float, Field(gt=1)] = Field(
        1.5, description="Warn where resident memory is at least this many times the used one."
    )
    fragmentation_bytes: ByteSize = Field(
        SMALL, description="Fragmentation that wastes less than this is not worth a warning."
    )

    full_within: FixedDuration = Field(
        timedelta(days=3),
        description="Warn where memory is expected to reach maxmemory within this time, by its own history.",
    )
    # What MEMORY USAGE tells; a value that large takes milliseconds to read, and others wait.
    big_value: ByteSize = Field(1024 * 1024, description="Warn of a result that takes at least this much memory.")
    # Redis itself cuts off a subscriber at 32 MiB, and an ordinary client never.
    output_buffer_warning: ByteSize = Field(
        32 * 1024 * 1024, description="Warn where answers that clients do not take hold at least this much memory."
    )
    # Celery's pools keep a dozen or so open for each process.
    idle_clients_warning: Annotated[int, Field(ge=1)] = Field(
        100,
        description="Warn where one application has so many connections from one host that said nothing for an hour.",
    )
    channels_warning: Annotated[int, Field(ge=1)] = Field(
        1000, description="Warn where so many channels wait for results of tasks."
    )
    replica_lag_warning: FixedDuration = Field(
        timedelta(seconds=30), description="Warn where a replica has confirmed nothing for so long."
    )
    fork_warning: FixedDuration = Field(
        timedelta(seconds=1), description="Warn where the last fork held the server for so long."
    )

    @property
    def thresholds(self) -> Thresholds:
        """What is worth a word about the server."""
        return Thresholds(
            self.full_within,
            self.output_buffer_warning,
            self.idle_clients_warning,
            self.channels_warning,
            self.replica_lag_warning,
            self.fork_warning,
        )

    @model_validator(mode="after")
    def _warns_first(self) -> Self:
        if self.memory_warning > self.memory_critical:
            raise ValueError("memory_warning is above memory_critical: it would never be seen")
        return self

    def preview(self, backend: CanReportMemory, now: datetime) -> Preview:
        report = backend.report_memory(self.sample_time)
        findings = tuple(self.findings(report, now))
        return Preview(summary(report), readings=readings(report, findings, now), findings=findings)

    def run(self, backend: CanReportMemory, now: datetime, pace: Pace) -> Steps:
        report = backend.report_memory(self.sample_time)
        findings = tuple(self.findings(report, now))
        yield Step(what=summary(report), readings=readings(report, findings, now), findings=findings)

    def findings(self, report: MemoryReport, now: datetime) -> Iterator[Finding]:
        """What is wrong, the most urgent subject first."""
        if report.nodes:
            yield from by_node(
                {node.node: [*self._of_memory(node, now), *self._of_server(node)] for node in report.nodes}
            )
            yield from self._of_results(report)
            return
        yield from self._of_memory(report, now)
        yield from self._of_results(report)
        yield from self._of_server(report)

    def _of_memory(self, report: MemoryReport, now: datetime) -> Iterator[Finding]:
        if report.loading:
            yield Finding(
                Severity.INFO,
                "redis.loading",
                "the server is loading its data: the figures are not the final ones",
                "wait; INFO persistence says how long it takes",
            )
        yield from self._limit(report)
        yield from self._eviction(report)
        yield from self._layout(report)
        yield from persistence(report, now)

    def _of_results(self, report: MemoryReport) -> Iterator[Finding]:
        yield from without_ttl(report)
        yield from self._big_values(report)

    def _of_server(self, report: MemoryReport) -> Iterator[Finding]:
        if report.server is not None:
            yield from server_findings(report, report.server, self.thresholds)

    def _big_values(self, report: MemoryReport) -> Iterator[Finding]:
        big = [size for _, size in report.biggest if size >= self.big_value]
        if big:
            name, size = report.biggest[0]
            more = f", and {len(big) - 1} more that were weighed are as large" if len(big) > 1 else ""
            yield Finding(
                Severity.WARNING,
                "redis.big-values",
                f"the result {name} takes {format_bytes(size)}{more}: reading one holds every other client up",
                "keep large data in files or a database and return its name; result_compression makes text smaller",
            )

    def _limit(self, report: MemoryReport) -> Iterator[Finding]:
        if not report.limit:
            host = f" of the host's {format_bytes(report.total)}" if report.total else ""
            yield Finding(
                Severity.INFO,
                "redis.no-memory-limit",
                f"maxmemory is not set: {format_bytes(report.used)}{host} are used, and nothing stops the growth "
                "before the operating system does",
                "set maxmemory to about three quarters of the host's memory, with CONFIG SET and in redis.conf",
            )
            return
        part = report.used / report.limit
        severity = self._severity(part)
        if severity is not None:
            yield Finding(
                severity,
                "redis.memory-near-limit",
                f"{format_bytes(report.used)} of {format_bytes(report.limit)} are used ({part:.0%})",
                f"raise maxmemory, or keep results for a shorter time (expire.keep, result_expires){biggest(report)}",
            )
            yield from refused_writes(report, severity)

    def _severity(self, part: float) -> Severity | None:
        if part >= self.memory_critical:
            return Severity.CRITICAL
        return Severity.WARNING if part >= self.memory_warning else None

    def _eviction(self, report: MemoryReport) -> Iterator[Finding]:
        everything = report.eviction_policy.startswith("allkeys")
        when = "" if report.limit else " as soon as maxmemory is set"
        if everything and (report.broker_keys or report.broker_databases):
            yield Finding(
                Severity.CRITICAL if report.limit else Severity.WARNING,
                "redis.eviction-can-hit-broker",
                f"{report.eviction_policy} may evict any key{when}, and a Celery broker is {broker_place(report)}: "
                "queues with waiting tasks can vanish",
                "CONFIG SET maxmemory-policy volatile-ttl (and in redis.conf), which evicts only keys with an expiry, "
                "or give the broker a server of its own",
            )
        elif everything and report.limit and sum(report.result_keys.values()):
            yield Finding(
                Severity.WARNING,
                "redis.eviction-can-drop-results",
                f"{report.eviction_policy} may evict results before they are fetched or past their keeping",
                "CONFIG SET maxmemory-policy volatile-ttl evicts first what would expire first",
            )
        if report.evicted_keys:
            yield Finding(
                Severity.WARNING,
                "redis.keys-evicted",
                f"{report.evicted_keys:,} keys were evicted since the server started: results went before their time",
                "raise maxmemory, or keep results for a shorter time",
            )

    def _layout(self, report: MemoryReport) -> Iterator[Finding]:
        wasted = report.rss - report.used
        if report.fragmentation >= self.fragmentation_warning and wasted >= self.fragmentation_bytes:
            yield Finding(
                Severity.WARNING,
                "redis.fragmented",
                f"{format_bytes(report.rss)} are held for {format_bytes(report.used)} in use "
                f"(ratio {report.fragmentation:.2f}, {format_bytes(wasted)} wasted)",
                defragment(report.allocator),
            )
        if report.used >= SMALL and 0 < report.rss < report.used * SWAPPED:
            yield Finding(
                Severity.WARNING,
                "redis.swapped",
                f"only {format_bytes(report.rss)} of the {format_bytes(report.used)} in use are in memory, the rest is "
                "swapped",
                "give the host more memory or the server a lower maxmemory, and turn swap off for it",
            )
        if report.total and report.rss >= report.total * self.memory_critical:
            yield Finding(
                Severity.CRITICAL,
                "redis.host-memory",
                f"{format_bytes(report.rss)} of the host's {format_bytes(report.total)} are held by the server: the "
                "operating system may end it, and a snapshot needs more",
                "move to a larger host, or lower maxmemory",
            )
