"""PgBouncer's own figures, from its admin console."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg2
from sqlalchemy import make_url

from backendops.backends.postgres.deadline import answers_within


@dataclass(frozen=True, slots=True)
class PoolerFigures:
    """Clients that wait for a server connection, over every pool but the console's own."""

    waiting_clients: int
    longest_wait_seconds: float


def read_pools(url: str, seconds: float) -> PoolerFigures:
    """Ask SHOW POOLS; raises psycopg2.Error where PgBouncer does not answer within `seconds` or refuses."""
    # The console is a database of this name and knows neither transactions nor prepared statements.
    address = make_url(url).set(drivername="postgresql")
    if not address.database:
        address = address.set(database="pgbouncer")
    dsn = address.render_as_string(hide_password=False)
    # libpq counts whole seconds and takes 1 for 2.
    connection = psycopg2.connect(dsn, connect_timeout=max(2, int(seconds)), application_name="backendops")
    try:
        connection.autocommit = True
        with answers_within(connection.fileno(), seconds), connection.cursor() as cursor:
            cursor.execute("SHOW POOLS")
            names = [column.name for column in cursor.description or ()]
            return _figures([dict(zip(names, row, strict=True)) for row in cursor.fetchall()])
    finally:
        connection.close()


def _figures(pools: list[dict[str, Any]]) -> PoolerFigures:
    # By name: every release of PgBouncer adds columns in the middle.
    waited = [
        float(pool.get("maxwait") or 0) + float(pool.get("maxwait_us") or 0) / 1e6
        for pool in pools
        if pool["database"] != "pgbouncer"
    ]
    waiting = sum(int(pool["cl_waiting"]) for pool in pools if pool["database"] != "pgbouncer")
    return PoolerFigures(waiting, max(waited, default=0.0))
