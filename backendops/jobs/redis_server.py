"""What redis-memory says about growth, clients, channels, replicas, forks and lookups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from backendops.contracts.capabilities import MemoryReport
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.server_health import Clients, ServerHealth
from backendops.contracts.units import format_bytes, format_seconds

# So near, nobody has time to plan.
NO_TIME: Final = timedelta(hours=6)

# A replica that was away is given what it missed as long as that fits into the backlog: half full is a warning.
BACKLOG_PART: Final = 0.5

# Of so many lookups the rate says something; below the rate, most ask for what is not there.
LOOKUPS: Final = 10_000
LOW_RATE: Final = 0.2

# Of the results that were looked at: fewer are people who have just not read on.
PAST_PART: Final = 0.5


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The policy's own."""

    full_within: timedelta
    output: int
    idle: int
    channels: int
    lag: timedelta
    fork: timedelta


def server_findings(report: MemoryReport, server: ServerHealth, limits: Thresholds) -> Iterator[Finding]:
    """What is wrong, the most urgent subject first."""
    yield from _forecast(report, server, limits)
    yield from _clients(server, limits)
    yield from _channels(server, limits)
    yield from _replicas(server, limits)
    if server.fork_seconds >= limits.fork.total_seconds():
        yield Finding(
            Severity.WARNING,
            "redis.fork-slow",
            f"the last fork, for a snapshot or a rewrite, held the server for {format_seconds(server.fork_seconds)}",
            "turn transparent huge pages off on the host, or take snapshots on a replica; less memory forks faster",
        )
    recent = server.lookups
    hits, misses = (server.hits, server.misses) if recent is None else (recent.hits, recent.misses)
    if hits + misses >= LOOKUPS and hits < (hits + misses) * LOW_RATE:
        since = "since the server started" if recent is None else f"in the last {format_seconds(recent.seconds)}"
        yield Finding(
            Severity.INFO,
            "redis.hit-rate-low",
            f"only {hits / (hits + misses):.0%} of {hits + misses:,} lookups {since} found their key",
            "clients may poll for results that are not there yet, or are gone: wait with get(), keep results "
            "for longer, or set ignore_result where nobody reads them",
        )
    for note in server.notes:
        yield Finding(Severity.INFO, "redis.not-read", note, "without it the other checks work as well")


def _forecast(report: MemoryReport, server: ServerHealth, limits: Thresholds) -> Iterator[Finding]:
    growth = server.growth
    if growth is None or not growth.rises or not report.limit or report.used >= report.limit:
        return
    left = report.limit - report.used
    seconds = growth.reaches(left)
    if seconds <= limits.full_within.total_seconds():
        yield Finding(
            Severity.CRITICAL if seconds <= NO_TIME.total_seconds() else Severity.WARNING,
            "redis.memory-full-soon",
            f"memory rises by {format_bytes(growth.rate * 3600)} an hour (± {format_bytes(growth.error * 3600)}, over "
            f"the last {format_seconds(growth.span)}) and reaches maxmemory in about {format_seconds(seconds)}, not "
            f"before {format_seconds(growth.not_before(left))}",
            "raise maxmemory, or keep results for a shorter time (result_expires); `backendops redis survey` says what "
            "takes the memory",
        )


def _clients(server: ServerHealth, limits: Thresholds) -> Iterator[Finding]:
    fat = max(server.clients, key=lambda group: group.output, default=None)
    if fat is not None and fat.output >= limits.output:
        yield Finding(
            Severity.WARNING,
            "redis.output-buffers",
            f"{format_bytes(fat.output)} of answers wait for {_named(fat)} to take them",
            "it asks for more than it reads, or hangs: CLIENT LIST shows it (omem), CLIENT KILL ends it; "
            "client-output-buffer-limit bounds it",
        )
    for group in server.clients:
        if group.idle >= limits.idle:
            yield Finding(
                Severity.WARNING,
                "redis.clients-idle",
                f"{group.idle:,} of {group.count:,} connections of {_named(group)} have said nothing for an hour, the "
                f"longest for {format_seconds(group.longest_idle)}",
                "a pool that is made anew for each task or request leaves its connections behind: share one "
                "(redis_max_connections bounds Celery's); `timeout` in redis.conf ends idle ones",
            )


def _named(group: Clients) -> str:
    return " ".join(filter(None, (group.name, f"({group.library})" if group.library else "", f"on {group.host}")))


def _channels(server: ServerHealth, limits: Thresholds) -> Iterator[Finding]:
    if server.result_channels is None or server.result_channels < limits.channels:
        return
    past, looked_at = server.channels_of_the_past, server.channels_looked_at
    left = f"; of {looked_at:,} that were looked at, {past:,} wait for a result that is there" if looked_at else ""
    yield Finding(
        Severity.WARNING if looked_at and past >= looked_at * PAST_PART else Severity.INFO,
        "redis.channels-left",
        f"{server.result_channels:,} channels wait for results of tasks{left}",
        "a process that keeps every AsyncResult keeps its channel: call get() or forget() on each, or set "
        "ignore_result where nobody reads them",
    )


def _replicas(server: ServerHealth, limits: Thresholds) -> Iterator[Finding]:
    if server.link_down is not None:
        yield Finding(
            Severity.CRITICAL,
            "redis.master-lost",
            f"this replica lost its master {format_seconds(server.link_down)} ago",
            "look at the master and the network between; masterauth must be the master's password",
        )
    for replica in server.replicas:
        if not replica.online or replica.lag >= limits.lag.total_seconds():
            state = f"has confirmed nothing for {format_seconds(replica.lag)}" if replica.online else "is not in sync"
            yield Finding(
                Severity.WARNING,
                "redis.replica-late",
                f"the replica {replica.name} {state} and is {format_bytes(replica.behind)} behind",
                "a failover to it would lose what it has not; look at its log, its disk and the network",
            )
        elif server.backlog and replica.behind >= server.backlog * BACKLOG_PART:
            yield Finding(
                Severity.WARNING,
                "redis.replica-backlog",
                f"the replica {replica.name} is {format_bytes(replica.behind)} behind, and the backlog holds "
                f"{format_bytes(server.backlog)}: if its connection breaks it must copy everything anew",
                "CONFIG SET repl-backlog-size to what is written in a minute or more",
            )
