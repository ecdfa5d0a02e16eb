"""How the server stands before a changing run: its clock, its newest result, whether it takes changes at all."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from sqlalchemy import Connection

from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.tables import LiveTable, find_tables
from backendops.backends.sql_files import load
from backendops.contracts.backend import Standing


def read_standing(session: PostgresSession) -> Standing:
    """The facts behind the safety limits, in one short read-only transaction."""
    with session.transaction(read_only=True) as connection:
        clock = connection.execute(load("postgres", "standing", "read_clock")).one()
        newest = [
            _newest(session, connection, table)
            for table in find_tables(session, connection).tables
            if table.holds == "task" and table.can_read
        ]
    reason = ""
    if clock.standby:
        reason = "the server is a standby that replays another one's changes"
    elif clock.read_only == "on":
        reason = "default_transaction_read_only is on for this role, database or server"
    return Standing(clock.now, max((moment for moment in newest if moment is not None), default=None), reason)


def _newest(session: PostgresSession, connection: Connection, table: LiveTable) -> datetime | None:
    statement = "newest_by_date" if table.date_indexed else "newest_by_id"
    newest: datetime | None = connection.execute(
        load("postgres", "standing", statement, {"live": table.slot})
    ).scalar_one()
    return None if newest is None else min(_in_utc(newest.replace(fold=fold), session.zone) for fold in (0, 1))


def _in_utc(naive: datetime, zone: ZoneInfo) -> datetime:
    """Of an hour that clocks repeat the caller asks for both passes: what may be of now is not of the future."""
    try:
        return naive.replace(tzinfo=zone).astimezone(UTC)
    except OverflowError:  # on the last day that there is
        return naive.replace(tzinfo=UTC)
