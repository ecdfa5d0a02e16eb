"""pool-health on PostgreSQL: its sessions, their waits, its replicas, the ids left, and PgBouncer before it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import timedelta
from time import monotonic
from typing import Final

import psycopg2
from pydantic import Field, SecretStr, field_validator
from sqlalchemy import Connection, make_url
from sqlalchemy.exc import ArgumentError

from backendops.backends.postgres.connection import APPLICATION_NAME, PostgresSession
from backendops.backends.postgres.deadline import answers_within
from backendops.backends.postgres.errors import driver_errors
from backendops.backends.postgres.pgbouncer import PoolerFigures, read_pools
from backendops.backends.postgres.tables import Holds, LiveTable, find_table, quoted
from backendops.backends.sql_files import load
from backendops.contracts.capabilities import CanReportPool, PoolReport
from backendops.contracts.errors import BackendBusy, BackendRefused, BackendUnreachable

# A dead backend is answered within 5 s: 4 for connecting (Limits.connect_timeout), or, once connected, these.
ANSWER_SECONDS: Final = 4.0
TABLE_LOCK: Final = timedelta(milliseconds=500)
# The pooler is asked last, when the server has answered: both together stay below 5 s on a healthy network.
POOLER_SECONDS: Final = 2.0

ID_RANGE: Final = {"smallint": 2**15 - 1, "integer": 2**31 - 1, "bigint": 2**63 - 1}
# The names in celery/backends/database/models.py; they do not follow database_table_names.
SEQUENCES: Final[dict[Holds, str]] = {"task": "task_id_sequence", "group": "taskset_id_sequence"}


@dataclass(slots=True)
class _Sessions:
    """pg_stat_activity, counted."""

    by_state: Counter[str] = field(default_factory=Counter)
    by_application: Counter[str] = field(default_factory=Counter)
    oldest_transaction: float = 0.0
    hidden: int = 0


class PoolOnPostgres(PostgresSession, CanReportPool):
    """Can say how its connections stand."""

    pgbouncer_url: SecretStr | None = Field(
        None,
        description="PgBouncer's admin console, such as postgresql://stats@localhost:6432/pgbouncer; the user must be "
        "in its stats_users or admin_users. Left out: there is none to ask.",
    )

    @field_validator("pgbouncer_url")
    @classmethod
    def _is_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                drivername = make_url(value.get_secret_value()).drivername
            except (ArgumentError, ValueError):
                drivername = ""
            if not drivername.startswith("postgres"):
                raise ValueError("pgbouncer_url must read like postgresql://stats@localhost:6432/pgbouncer")
        return value

    def report_pool(self) -> PoolReport:
        started = monotonic()
        with self.connect() as connection:
            connected = monotonic()
            raw = connection.connection.dbapi_connection
            assert raw is not None  # noqa: S101 - a connection that was just made
            with answers_within(raw.fileno(), ANSWER_SECONDS) as expired:
                try:
                    report = self._ask_server(connection, connected - started)
                except Exception as error:
                    if expired.is_set():
                        raise BackendUnreachable(
                            f"{self.display_url} took the connection, then gave no answer in {ANSWER_SECONDS:.0f} s",
                            "the server hangs, or the pooler before it has no server: look at both logs",
                        ) from error
                    raise
        pooler, pooler_error = self._ask_pooler()
        return replace(
            report,
            pooler_waiting_clients=pooler.waiting_clients if pooler else None,
            pooler_longest_wait_seconds=pooler.longest_wait_seconds if pooler else None,
            pooler_error=pooler_error,
        )

    def _ask_server(self, connection: Connection, connect_seconds: float) -> PoolReport:
        notes: list[str] = []
        with connection.begin():
            self.bound(connection)
            asked = monotonic()
            connection.execute(load("postgres", "pool", "answer"))
            roundtrip = monotonic() - asked
            sessions = _count_sessions(connection)
            limit = connection.execute(load("postgres", "pool", "read_limits")).scalar_one()
            waiting = connection.execute(load("postgres", "pool", "count_waiting")).scalar_one()
            lag = _replication_lag(connection, notes)
        headroom = self._id_headroom(connection, notes)
        if sessions.hidden:
            notes.append(
                f"the state of {sessions.hidden} sessions is hidden from this role, and so may be the oldest "
                "transaction: GRANT pg_read_all_stats to it"
            )
        return PoolReport(
            connect_seconds=connect_seconds,
            roundtrip_seconds=roundtrip,
            connections=dict(sessions.by_state),
            connections_limit=limit,
            by_application=dict(sessions.by_application),
            oldest_transaction_seconds=sessions.oldest_transaction,
            waiting_for_locks=waiting,
            replication_lag_seconds=lag,
            id_headroom=headroom,
            notes=tuple(notes),
        )

    def _id_headroom(self, connection: Connection, notes: list[str]) -> float | None:
        """The tightest of the id columns; None where Celery has not made its tables yet."""
        found: list[float] = []
        names: tuple[tuple[Holds, str, str | None], ...] = (
            ("task", self.tables.task, self.schemas.task),
            ("group", self.tables.group, self.schemas.group),
        )
        for holds, name, schema in names:
            # Somebody's ALTER TABLE must not cost the other figures, nor the probe its five seconds.
            try:
                with driver_errors(self.display_url), connection.begin():
                    self.bound(connection, lock_timeout=TABLE_LOCK)
                    table = find_table(connection, holds, name, schema)
                    free = None if table is None else _free_ids(connection, table, notes)
            except (BackendBusy, BackendRefused) as error:
                notes.append(f"ids left in {name}: {error}; {error.hint}")
                continue
            found += [] if free is None else [free]
        return min(found, default=None)

    def _ask_pooler(self) -> tuple[PoolerFigures | None, str]:
        if self.pgbouncer_url is None:
            return None, ""
        try:
            return read_pools(self.pgbouncer_url.get_secret_value(), POOLER_SECONDS), ""
        except psycopg2.Error as error:
            # The driver's first line names host and port, never the password.
            said = str(error).strip().splitlines()
            return None, said[0] if said else type(error).__name__


def _count_sessions(connection: Connection) -> _Sessions:
    sessions = _Sessions()
    for row in connection.execute(load("postgres", "pool", "count_sessions"), {"ours": APPLICATION_NAME}):
        if row.state == "hidden":
            sessions.hidden += row.sessions
        sessions.by_state["other" if row.state == "hidden" else row.state] += row.sessions
        sessions.by_application[row.application] += row.sessions
        sessions.oldest_transaction = max(sessions.oldest_transaction, float(row.oldest_transaction or 0))
    return sessions


def _replication_lag(connection: Connection, notes: list[str]) -> float | None:
    row = connection.execute(load("postgres", "pool", "read_replication")).one()
    if row.hidden_replicas:
        notes.append(
            f"the lag of {row.hidden_replicas} replicas is hidden from this role: GRANT pg_read_all_stats to it"
        )
    return None if row.lag is None else float(row.lag)


def _free_ids(connection: Connection, table: LiveTable, notes: list[str]) -> float | None:
    row = connection.execute(
        load("postgres", "pool", "find_id"), {"table": table.sql_name, "sequence": SEQUENCES[table.holds]}
    ).one()
    if row.id_type not in ID_RANGE:
        notes.append(f"ids left in {table.sql_name}: its id is {row.id_type}, which has no end to measure against")
        return None
    if not row.may_read:
        notes.append(f"ids left in {table.sql_name}: GRANT SELECT ON {table.sql_name} TO {quoted(table.role)}")
        return None
    if row.sequence is not None and not row.may_read_sequence:
        notes.append(
            f"ids left in {table.sql_name} are counted by its rows alone: "
            f"GRANT SELECT ON SEQUENCE {row.sequence_name} TO {quoted(table.role)}"
        )
    newest = connection.execute(load("postgres", "pool", "read_newest_id", {"live": table.slot})).scalar_one()
    return max(0.0, 1 - max(newest or 0, row.last_value or 0) / ID_RANGE[row.id_type])
