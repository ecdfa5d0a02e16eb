"""Partitions that no row comes to any more: frozen once, and remembered where the server does not say so itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from sqlalchemy import Connection

from backendops.backends.postgres.quarantine import Retirement
from backendops.backends.postgres.table_memory import TableMemory
from backendops.backends.postgres.vacuum_work import Table
from backendops.backends.sql_files import load
from backendops.contracts.run import Watermarks

_KEY: Final = "vacuum.frozen"
# As the server writes a partition's bounds, where they are moments; the transaction's dates are ISO, in UTC.
_UPPER: Final = re.compile(r"FOR VALUES FROM \(.+\) TO \('([^']+)'\)")


def list_retired(connection: Connection) -> frozenset[int]:
    """The tables in quarantine, by oid."""
    rows = connection.execute(load("postgres", "vacuum", "list_commented"))
    parsed = ((row.oid, Retirement.parse(row.comment)) for row in rows)
    return frozenset(oid for oid, retirement in parsed if retirement is not None)


def is_past(table: Table, archives: Iterable[int], now: datetime) -> bool:
    """Is it a partition of an archive whose time is over?"""
    match = _UPPER.fullmatch(table.bounds or "") if table.root in archives else None
    try:
        return match is not None and datetime.fromisoformat(match[1]) <= now
    except (ValueError, TypeError):
        return False  # infinity, or a year that Python's calendar does not have


class Frozen:
    """Which tables are frozen whole. PostgreSQL 18 says so; for older ones it is remembered, by the state it was in.

    Forgetting costs one look at the table's visibility map.
    """

    def __init__(self, watermarks: Watermarks) -> None:
        self._states = TableMemory(watermarks, _KEY)

    def has(self, table: Table) -> bool:
        """Is there nothing left to freeze in it?"""
        if not table.size:
            return True
        if table.all_frozen is not None:
            return table.all_frozen
        return table.all_visible and self._states.of(table) == _state(table)

    def note(self, table: Table) -> None:
        """It has just been frozen: take it down, unless rows were left that somebody may still not see."""
        if table.all_visible:
            self._states.note(table, _state(table))

    def keep(self, tables: Iterable[Table]) -> None:
        """Remember for the next run what still exists."""
        self._states.keep(tables)


def _state(table: Table) -> str:
    return f"{table.file}:{table.changes}"
