"""pool-health: is the backend up, how quick is it, and how near its connection limit."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from backendops.contracts import metrics
from backendops.contracts.capabilities import CanReportPool, PoolReport
from backendops.contracts.errors import BackendUnreachable
from backendops.contracts.job import Job
from backendops.contracts.readings import Finding, Reading, Severity
from backendops.contracts.run import Pace, Preview, Step, Steps
from backendops.contracts.units import FixedDuration, format_seconds

Part = Annotated[float, Field(gt=0, le=1)]


class PoolHealth(Job):
    """Probe the backend on a fresh connection; a dead backend is a result, not a crash."""

    kind_name: ClassVar[str] = "pool-health"
    needs: ClassVar[type] = CanReportPool
    changes: ClassVar[bool] = False
    metrics: ClassVar = (
        metrics.BACKEND_UP,
        metrics.BACKEND_ROUNDTRIP,
        metrics.BACKEND_CONNECT,
        metrics.POOL_CONNECTIONS,
        metrics.POOL_LIMIT,
        metrics.POOL_OLDEST_TRANSACTION,
        metrics.POOL_WAITING_LOCKS,
        metrics.POOL_REPLICATION_LAG,
        metrics.POOL_REJECTED,
        metrics.POOLER_WAITING,
        metrics.POOLER_LONGEST_WAIT,
        metrics.ID_HEADROOM,
        metrics.FINDINGS,
    )

    connections_warning: Part = Field(0.8, description="Warn where connections are at least this part of the limit.")
    # The last five in a hundred go in seconds when an application restarts.
    connections_critical: Part = Field(
        0.95, description="Critical where connections are at least this part of the limit."
    )
    # A healthy round trip is below a millisecond in a data centre and below 100 ms between continents.
    roundtrip_warning: FixedDuration = Field(
        timedelta(milliseconds=500), description="Warn where a round trip takes at least this long."
    )
    # Celery's own transactions take milliseconds; a quarter of an hour is a forgotten session or a report.
    transaction_warning: FixedDuration = Field(
        timedelta(minutes=15), description="Warn where a transaction has been open at least this long."
    )
    # One or two sessions wait for a moment on any busy server; five at once stand behind somebody.
    locks_warning: Annotated[int, Field(ge=1)] = Field(
        5, description="Warn where at least this many sessions wait for a lock."
    )
    lag_warning: FixedDuration = Field(
        timedelta(minutes=1), description="Warn where a replica is at least this far behind."
    )
    # A pool that suffices hands out a connection in milliseconds; five seconds is a queue that does not drain.
    pooler_wait_warning: FixedDuration = Field(
        timedelta(seconds=5), description="Warn where a client of the pooler has waited at least this long."
    )
    # 85 and 95 per cent used, as monitoring of sequences usually has it: weeks, then days, to act.
    id_headroom_warning: Part = Field(0.15, description="Warn where less of the id column's range than this is free.")
    id_headroom_critical: Part = Field(
        0.05, description="Critical where less of the id column's range than this is free."
    )

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> Self:
        if self.connections_critical < self.connections_warning:
            raise ValueError("connections_critical is below connections_warning: the warning would never be seen")
        if self.id_headroom_critical > self.id_headroom_warning:
            raise ValueError("id_headroom_critical is above id_headroom_warning: the warning would never be seen")
        return self

    def preview(self, backend: CanReportPool, now: datetime) -> Preview:
        step = self._conclude(backend.report_pool())
        return Preview(f"up now: {step.what}", readings=step.readings, findings=step.findings)

    def run(self, backend: CanReportPool, now: datetime, pace: Pace) -> Steps:
        yield self._conclude(backend.report_pool())

    def when_unreachable(self, error: BackendUnreachable) -> Step:
        """The backend is down: that is what this job is there to say."""
        fix = error.hint or "start the server, or correct the backend's url in the policy"
        finding = Finding(Severity.CRITICAL, "pool.unreachable", str(error), fix)
        return Step(
            what=f"down: {error}",
            readings=(metrics.BACKEND_UP.read(0), *metrics.findings_by_severity((finding,))),
            findings=(finding,),
        )

    def _conclude(self, report: PoolReport) -> Step:
        findings = tuple(self._findings(report))
        return Step(
            what=_in_words(report),
            readings=(*_readings(report), *metrics.findings_by_severity(findings)),
            findings=findings,
        )

    def _findings(self, report: PoolReport) -> Iterator[Finding]:
        yield from self._connection_findings(report)
        yield from self._waiting_findings(report)
        yield from self._pooler_findings(report)
        yield from self._id_findings(report)
        for note in report.notes:
            yield Finding(Severity.INFO, "pool.partly-read", note, "grant it, or ignore this where it is not wanted")

    def _connection_findings(self, report: PoolReport) -> Iterator[Finding]:
        used, limit = sum(report.connections.values()), report.connections_limit
        if limit and used >= self.connections_warning * limit:
            severe = used >= self.connections_critical * limit
            yield Finding(
                Severity.CRITICAL if severe else Severity.WARNING,
                "pool.connections-near-limit",
                f"{used} of {limit} connections are taken{_most_by(report)}",
                "lower the worker concurrency or the pool size, put a pooler in between, or raise the server's limit",
            )
        if report.roundtrip_seconds >= self.roundtrip_warning.total_seconds():
            yield Finding(
                Severity.WARNING,
                "pool.slow-roundtrip",
                f"a round trip takes {format_seconds(report.roundtrip_seconds)}",
                "look at the server's load and at the network between; every stored result waits this long",
            )

    def _waiting_findings(self, report: PoolReport) -> Iterator[Finding]:
        oldest = report.oldest_transaction_seconds
        if oldest is not None and oldest >= self.transaction_warning.total_seconds():
            yield Finding(
                Severity.WARNING,
                "pool.old-transaction",
                f"a transaction has been open for {format_seconds(oldest)}: vacuum cannot remove what died since",
                "find it in pg_stat_activity by xact_start and end it, or set idle_in_transaction_session_timeout",
            )
        waiting = report.waiting_for_locks
        if waiting is not None and waiting >= self.locks_warning:
            yield Finding(
                Severity.WARNING,
                "pool.waiting-for-locks",
                f"{waiting} sessions wait for a lock",
                "select pid, pg_blocking_pids(pid), query from pg_stat_activity where wait_event_type = 'Lock'",
            )
        lag = report.replication_lag_seconds
        if lag is not None and lag >= self.lag_warning.total_seconds():
            yield Finding(
                Severity.WARNING,
                "pool.replica-lag",
                f"the slowest replica is {format_seconds(lag)} behind",
                "look at the replica's load and its network; see pg_stat_replication",
            )

    def _pooler_findings(self, report: PoolReport) -> Iterator[Finding]:
        if report.pooler_error:
            yield Finding(
                Severity.WARNING,
                "pool.pooler-unreachable",
                f"the pooler could not be asked: {report.pooler_error}",
                "check pgbouncer_url; its user must be in PgBouncer's stats_users or admin_users",
            )
        longest = report.pooler_longest_wait_seconds
        if longest is not None and longest >= self.pooler_wait_warning.total_seconds():
            yield Finding(
                Severity.WARNING,
                "pool.pooler-clients-wait",
                f"{report.pooler_waiting_clients or 0} clients wait in PgBouncer, the first for "
                f"{format_seconds(longest)}",
                "raise default_pool_size, or find what holds the server connections (SHOW SERVERS)",
            )

    def _id_findings(self, report: PoolReport) -> Iterator[Finding]:
        free = report.id_headroom
        if free is not None and free < self.id_headroom_warning:
            yield Finding(
                Severity.CRITICAL if free < self.id_headroom_critical else Severity.WARNING,
                "pool.ids-run-out",
                f"{free:.1%} of the id column's range is left; at the end of it no result can be stored",
                "ALTER TABLE ... ALTER COLUMN id TYPE bigint rewrites the table under an exclusive lock: "
                "archive first, then choose a quiet hour",
            )


def _readings(report: PoolReport) -> Iterator[Reading]:
    yield metrics.BACKEND_UP.read(1)
    yield metrics.BACKEND_ROUNDTRIP.read(report.roundtrip_seconds)
    yield metrics.BACKEND_CONNECT.read(report.connect_seconds)
    if report.connections:
        for state in metrics.CONNECTION_STATES:
            yield metrics.POOL_CONNECTIONS.read(report.connections.get(state, 0), state=state)
    for metric, value in (
        (metrics.POOL_LIMIT, report.connections_limit),
        (metrics.POOL_OLDEST_TRANSACTION, report.oldest_transaction_seconds),
        (metrics.POOL_WAITING_LOCKS, report.waiting_for_locks),
        (metrics.POOL_REPLICATION_LAG, report.replication_lag_seconds),
        (metrics.POOL_REJECTED, report.rejected_connections),
        (metrics.POOLER_WAITING, report.pooler_waiting_clients),
        (metrics.POOLER_LONGEST_WAIT, report.pooler_longest_wait_seconds),
        (metrics.ID_HEADROOM, report.id_headroom),
    ):
        if value is not None:
            yield metric.read(value)


def _in_words(report: PoolReport) -> str:
    round_trip = f"round trip {report.roundtrip_seconds * 1000:.1f} ms"
    if not report.connections:
        return round_trip
    limit = f" of {report.connections_limit}" if report.connections_limit else ""
    states = ", ".join(f"{n} {state.replace('_', ' ')}" for state, n in report.connections.items() if n)
    return f"{sum(report.connections.values())}{limit} connections ({states or 'none'}){_most_by(report)}, {round_trip}"


def _most_by(report: PoolReport) -> str:
    if not report.by_application:
        return ""
    name, count = max(report.by_application.items(), key=lambda item: item[1])
    return f", most by {name or 'an unnamed application'} ({count})"
