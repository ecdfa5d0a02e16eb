"""What redis-memory exports, and its one line for the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime

from backendops.contracts import metrics
from backendops.contracts.capabilities import MemoryReport
from backendops.contracts.readings import Finding, Reading
from backendops.contracts.units import format_bytes, format_seconds
from backendops.jobs.keyspace import keyspace_readings


def summary(report: MemoryReport) -> str:
    limit = f"of {format_bytes(report.limit)}" if report.limit else "without a limit"
    results = sum(report.result_keys.values())
    sampled = f", from {report.sampled:.1%} of the keys" if report.sampled < 1 else ""
    nodes = f" on {len(report.nodes)} nodes" if report.nodes else ""
    return (
        f"{format_bytes(report.used)} used {limit}{nodes}{_growth(report)}; {results:,} result keys take "
        f"{format_bytes(sum(report.result_bytes.values()))}, {report.result_keys_without_ttl:,} without expiry{sampled}"
    )


def readings(report: MemoryReport, findings: tuple[Finding, ...], now: datetime) -> tuple[Reading, ...]:
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
        *_server_readings(report),
        metrics.REDIS_WITHOUT_TTL.read(report.result_keys_without_ttl),
        *ages,
        *(metrics.FINDINGS.read(severities[severity], severity=severity) for severity in metrics.SEVERITIES),
    )


def _growth(report: MemoryReport) -> str:
    growth = report.server.growth if report.server is not None else None
    if growth is None:
        return ""
    if not growth.rises:
        return ", not rising"
    text = f", rising by {format_bytes(growth.rate * 3600)} an hour"
    if not report.limit:
        return text
    left = report.limit - report.used
    soonest = format_seconds(growth.not_before(left))
    return f"{text}, full in about {format_seconds(growth.reaches(left))} and not before {soonest}"


def _server_readings(report: MemoryReport) -> Iterator[Reading]:
    server = report.server
    if server is None:
        return
    rises = server.growth is not None and server.growth.rises
    yield metrics.REDIS_MEMORY_GROWTH.read(server.growth.rate if server.growth is not None and rises else 0)
    yield metrics.REDIS_CLIENTS_IDLE.read(sum(group.idle for group in server.clients))
    yield metrics.REDIS_CLIENTS_OUTPUT.read(server.clients_output)
    if server.result_channels is not None:
        yield metrics.REDIS_RESULT_CHANNELS.read(server.result_channels)
    yield metrics.REDIS_REPLICA_BEHIND.read(max((replica.behind for replica in server.replicas), default=0))
    yield metrics.REDIS_FORK_SECONDS.read(server.fork_seconds)
    yield metrics.REDIS_HITS.read(server.hits)
    yield metrics.REDIS_MISSES.read(server.misses)
