"""redis-memory: what the server's memory is taken by, and whether eviction can hurt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Annotated, ClassVar, Final, Self

from pydantic import Field, model_validator

from backendops.contracts import metrics
from backendops.contracts.capabilities import CanReportMemory, MemoryReport
from backendops.contracts.job import Job
from backendops.contracts.readings import Finding, Reading, Severity
from backendops.contracts.run import Pace, Preview, Step, Steps
from backendops.contracts.units import ByteSize, FixedDuration, format_bytes, format_seconds
from backendops.jobs.keyspace import KEYSPACE_METRICS, keyspace_readings

# Redis' own default writes a snapshot within an hour of any change: this is twenty-four missed.
STALE_SNAPSHOT: Final = timedelta(hours=24)

# Below this the ratio says nothing: a small server's fixed memory makes it look fragmented, or swapped.
SMALL: Final = 100 * 1024 * 1024

# Less resident than used is memory on disk: every access to it waits for the swap.
SWAPPED: Final = 0.9


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

    @model_validator(mode="after")
    def _warns_first(self) -> Self:
        if self.memory_warning > self.memory_critical:
            raise ValueError("memory_warning is above memory_critical: it would never be seen")
        return self

    def preview(self, backend: CanReportMemory, now: datetime) -> Preview:
        report = backend.report_memory(self.sample_time)
        findings = tuple(self.findings(report, now))
        return Preview(_summary(report), readings=_readings(report, findings, now), findings=findings)

    def run(self, backend: CanReportMemory, now: datetime, pace: Pace) -> Steps:
        report = backend.report_memory(self.sample_time)
        findings = tuple(self.findings(report, now))
        yield Step(what=_summary(report), readings=_readings(report, findings, now), findings=findings)

    def findings(self, report: MemoryReport, now: datetime) -> Iterator[Finding]:
        """What is wrong, the most urgent subject first."""
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
        yield from _persistence(report, now)
        yield from _without_ttl(report)

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
                f"raise maxmemory, or keep results for a shorter time (expire.keep, result_expires){_biggest(report)}",
            )
            yield from _refused_writes(report, severity)

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
                f"{report.eviction_policy} may evict any key{when}, and a Celery broker is {_broker_place(report)}: "
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
                _defragment(report.allocator),
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


def _broker_place(report: MemoryReport) -> str:
    if report.broker_keys:
        return f"in this database ({report.broker_keys:,} keys)"
    numbers = ", ".join(map(str, report.broker_databases))
    return f"in database {numbers} of the same server, which shares its memory"


def _refused_writes(report: MemoryReport, severity: Severity) -> Iterator[Finding]:
    """At the limit, results without an expiry are what nothing can evict."""
    keeps = report.eviction_policy == "noeviction"
    if not keeps and not (report.eviction_policy.startswith("volatile") and report.keys_without_ttl):
        return
    why = (
        "noeviction evicts nothing"
        if keeps
        else f"{report.eviction_policy} evicts only keys with an expiry, and {report.keys_without_ttl:,} of "
        f"{report.keys:,} keys have none"
    )
    yield Finding(
        severity,
        "redis.writes-will-fail",
        f"{why}: at the limit every write fails, new results and new tasks too",
        "run the expire job, so that results get an expiry, and set maxmemory-policy volatile-ttl",
    )


def _defragment(allocator: str) -> str:
    if allocator.startswith("jemalloc"):
        return "CONFIG SET activedefrag yes, or MEMORY PURGE at a quiet hour"
    return (
        f"the allocator ({allocator or 'unknown'}) cannot defragment: restart the server at a quiet hour or fail "
        "over to a replica; a build with jemalloc has activedefrag"
    )


def _persistence(report: MemoryReport, now: datetime) -> Iterator[Finding]:
    if not report.rdb_last_ok:
        yield Finding(
            Severity.CRITICAL,
            "redis.snapshot-failed",
            "the last RDB snapshot failed; with stop-writes-on-bgsave-error, the default, every write is refused",
            "the server's log says why (disk full, or no memory to fork: vm.overcommit_memory=1); then BGSAVE",
        )
    if report.aof_enabled and not report.aof_last_ok:
        yield Finding(
            Severity.CRITICAL,
            "redis.aof-failed",
            "the last write or rewrite of the append-only file failed",
            "free space on its disk; the server's log says more",
        )
    if report.rdb_last_save is not None and report.rdb_changes and now - report.rdb_last_save > STALE_SNAPSHOT:
        age = format_seconds((now - report.rdb_last_save).total_seconds())
        yield Finding(
            Severity.WARNING,
            "redis.snapshot-old",
            f"the last RDB snapshot is {age} old and {report.rdb_changes:,} changes are not in it",
            "BGSAVE now, and check the `save` points in redis.conf",
        )


def _without_ttl(report: MemoryReport) -> Iterator[Finding]:
    if report.result_keys_without_ttl:
        about = "about " if report.sampled < 1 else ""
        yield Finding(
            Severity.WARNING,
            "redis.results-without-ttl",
            f"{about}{report.result_keys_without_ttl:,} result keys have no expiry and stay for ever",
            "schedule the expire job for this backend, and set result_expires in the Celery application",
        )


def _biggest(report: MemoryReport) -> str:
    if not report.biggest:
        return ""
    name, size = report.biggest[0]
    return f"; the largest result weighed is {name} ({format_bytes(size)})"


def _summary(report: MemoryReport) -> str:
    limit = f"of {format_bytes(report.limit)}" if report.limit else "without a limit"
    results = sum(report.result_keys.values())
    sampled = f", from {report.sampled:.1%} of the keys" if report.sampled < 1 else ""
    return (
        f"{format_bytes(report.used)} used {limit}; {results:,} result keys take "
        f"{format_bytes(sum(report.result_bytes.values()))}, {report.result_keys_without_ttl:,} without expiry{sampled}"
    )


def _readings(report: MemoryReport, findings: tuple[Finding, ...], now: datetime) -> tuple[Reading, ...]:
    severities = Counter(finding.severity.value for finding in findings)
    saved = report.rdb_last_save
    ages = () if saved is None else (metrics.REDIS_LAST_SAVE_AGE.read(max(0.0, (now - saved).total_seconds())),)
    return (
        *keyspace_readings(report.keyspace),
        metrics.REDIS_MEMORY_USED.read(report.used),
        metrics.REDIS_MEMORY_PEAK.read(report.peak),
        metrics.REDIS_MEMORY_RSS.read(report.rss),
        metrics.REDIS_MEMORY_LIMIT.read(report.limit),
        metrics.REDIS_FRAGMENTATION.read(report.fragmentation),
        metrics.REDIS_EVICTED.read(report.evicted_keys),
        *(metrics.REDIS_RESULT_KEYS.read(report.result_keys.get(kind, 0), kind=kind) for kind in metrics.RESULT_KINDS),
        *(
            metrics.REDIS_RESULT_BYTES.read(report.result_bytes.get(kind, 0), kind=kind)
            for kind in metrics.RESULT_KINDS
        ),
        metrics.REDIS_WITHOUT_TTL.read(report.result_keys_without_ttl),
        *ages,
        *(metrics.FINDINGS.read(severities[severity], severity=severity) for severity in metrics.SEVERITIES),
    )
