"""What redis-memory says about eviction, writes that fail and copies on disk."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from backendops.contracts.capabilities import MemoryReport
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.units import format_bytes, format_seconds

# Redis' own default writes a snapshot within an hour of any change: this is twenty-four missed.
STALE_SNAPSHOT: Final = timedelta(hours=24)

# Less resident than used is memory on disk: every access to it waits for the swap.
SWAPPED: Final = 0.9


def broker_place(report: MemoryReport) -> str:
    if report.broker_keys:
        return f"in this database ({report.broker_keys:,} keys)"
    numbers = ", ".join(map(str, report.broker_databases))
    return f"in database {numbers} of the same server, which shares its memory"


def refused_writes(report: MemoryReport, severity: Severity) -> Iterator[Finding]:
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


def defragment(allocator: str) -> str:
    if allocator.startswith("jemalloc"):
        return "CONFIG SET activedefrag yes, or MEMORY PURGE at a quiet hour"
    return (
        f"the allocator ({allocator or 'unknown'}) cannot defragment: restart the server at a quiet hour or fail "
        "over to a replica; a build with jemalloc has activedefrag"
    )


def persistence(report: MemoryReport, now: datetime) -> Iterator[Finding]:
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


def without_ttl(report: MemoryReport) -> Iterator[Finding]:
    if report.result_keys_without_ttl:
        about = "about " if report.sampled < 1 else ""
        yield Finding(
            Severity.WARNING,
            "redis.results-without-ttl",
            f"{about}{report.result_keys_without_ttl:,} result keys have no expiry and stay for ever",
            "an expire job on this backend gives an expiry to those that have finished; result_expires in the Celery "
            "application gives one to new results",
        )


def biggest(report: MemoryReport) -> str:
    if not report.biggest:
        return ""
    name, size = report.biggest[0]
    return f"; the largest result weighed is {name} ({format_bytes(size)})"
