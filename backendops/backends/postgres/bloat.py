"""How much of a table or an index holds nothing: measured where pgstattuple may be used, else estimated, and which."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final, Literal

from sqlalchemy import Connection, TextClause

from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.errors import STATEMENT_TIMEOUT, code_of
from backendops.backends.postgres.tables import quoted
from backendops.backends.postgres.vacuum_work import Table
from backendops.backends.sql_files import literal, load
from backendops.contracts.errors import BackendBusy
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.units import format_bytes

How = Literal["pgstattuple", "estimate", "unknown"]

# What is smaller is not worth a rewrite, nor a warning: the next week's results fill it again.
WORTH_BYTES: Final = 16 * 1024**2
# A measurement reads what a vacuum would read; where that takes longer, the estimate will do.
MEASURE_TIME: Final = timedelta(seconds=5)
PAGE: Final = 8192
PAGE_HEADER: Final = 24
# Of so many pages' values the size is asked: about 10,000 rows of Celery's, some 2 MiB.
SAMPLE_PAGES: Final = 300
# TOAST cuts a value into chunks of 1,996 bytes, four of which fill a page (TOAST_MAX_CHUNK_SIZE); what is left of a
# value has a header, a line pointer and an id of its own, some 40 bytes.
TOAST_PER_BYTE: Final = PAGE / (4 * 1996)
TOAST_PER_ROW: Final = 40
# A btree's leaf: 24 bytes of header and 16 of special space; an entry has 8 of header and a pointer of 4; built up to
# 90 % full.
LEAF_USABLE: Final = PAGE - 24 - 16
LEAF_FILL: Final = 0.9


@dataclass(frozen=True, slots=True)
class Bloat:
    """Room that holds nothing, in bytes; `dead` of it are dead rows, where they were measured."""

    wasted: int
    size: int
    how: How
    dead: int = 0

    @property
    def ratio(self) -> float:
        """The part of the whole, 0 to 1."""
        return self.wasted / self.size if self.size else 0.0

    def reaches(self, ratio: float) -> bool:
        """Is it at least this part, and worth doing something about?"""
        return self.wasted >= WORTH_BYTES and self.ratio >= ratio

    def less(self, solid: int) -> Bloat:
        """Without what is known not to be empty."""
        return replace(self, wasted=max(0, self.wasted - solid))

    def __str__(self) -> str:
        how = "measured by pgstattuple" if self.how == "pgstattuple" else "estimated"
        return f"{self.ratio:.0%} of {format_bytes(self.size)} empty, {how}"


UNKNOWN: Final = Bloat(0, 0, "unknown")


@dataclass(frozen=True, slots=True)
class Meter:
    """Measures on one backend, for one run."""

    session: PostgresSession
    schema: str | None
    """Where pgstattuple's functions are, quoted; None where they may not be used."""
    findings: tuple[Finding, ...] = ()

    @classmethod
    def of(cls, session: PostgresSession, connection: Connection) -> Meter:
        """With pgstattuple where it is installed and permitted."""
        row = connection.execute(load("postgres", "bloat", "find_extension")).one_or_none()
        if row is None or row.permitted:
            return cls(session, None if row is None else str(row.schema))
        return cls(session, None, (_NOT_PERMITTED,))

    def table(self, table: Table) -> Bloat:
        """Of a table with its TOAST."""
        if table.is_parent or not table.size:
            return Bloat(0, 0, "estimate")
        if self.schema is not None:
            try:
                return self._measured(table)
            except BackendBusy as error:
                if code_of(error) != STATEMENT_TIMEOUT:
                    raise
        with self._bounded() as connection:
            return _estimated(connection, table)

    def index(self, oid: int, size: int, rows: float, key_bytes: float | None, *, measure: bool) -> Bloat:
        """Of a btree; an estimate costs nothing, a measurement reads it all."""
        if measure and self.schema is not None:
            try:
                with self._bounded() as connection:
                    row = connection.execute(self._call("measure_index", "pgstatindex"), {"oid": oid}).one()
                return Bloat(max(0, row.bytes - round(row.contents / LEAF_FILL)), row.bytes, "pgstattuple")
            except BackendBusy as error:
                if code_of(error) != STATEMENT_TIMEOUT:
                    raise
        if key_bytes is None:
            return UNKNOWN
        entry = 8 + 4 + _aligned(key_bytes)
        # The root and the pages above the leaves are less than a hundredth; the first page describes the index.
        needed = PAGE + rows * entry / (LEAF_USABLE * LEAF_FILL) * PAGE
        return Bloat(max(0, size - round(needed)), size, "estimate")

    def _measured(self, table: Table) -> Bloat:
        dead = free = 0
        with self._bounded() as connection:
            for oid in filter(None, (table.oid, table.toast)):
                row = connection.execute(self._call("measure_table", "pgstattuple_approx"), {"oid": oid}).one()
                dead, free = dead + row.dead, free + row.free
        return Bloat(dead + free, table.size, "pgstattuple", dead)

    def _bounded(self) -> AbstractContextManager[Connection]:
        return self.session.transaction(statement_timeout=MEASURE_TIME, read_only=True)

    def _call(self, statement: str, function: str) -> TextClause:
        return load("postgres", "bloat", statement, {"function": literal(f"{self.schema}.{function}")})


def _estimated(connection: Connection, table: Table) -> Bloat:
    row = connection.execute(load("postgres", "bloat", "describe_rows"), {"oid": table.oid}).one()
    # The counters know of rows removed a moment ago, the planner's figure survives a crash.
    rows = table.live if table.live + table.dead else table.planned_rows
    if row.row_bytes is None:
        return UNKNOWN
    needed = rows * row.row_bytes * PAGE / (PAGE - PAGE_HEADER)
    wasted = max(0, table.heap_bytes - round(needed))
    if table.toast_bytes and row.readable:
        wasted += _toast_wasted(connection, table, rows, tuple(row.varying), row.varying_bytes)
    return Bloat(wasted, table.size, "estimate")


def _toast_wasted(connection: Connection, table: Table, rows: float, varying: tuple[str, ...], in_heap: float) -> int:
    """What the values of varying length take, less what of them the heap has, is in TOAST."""
    sizes = " + ".join(f"coalesce(pg_column_size({quoted(name)}), 0)" for name in varying)
    percent = min(100.0, 100.0 * SAMPLE_PAGES * PAGE / max(1, table.heap_bytes))
    sampled = connection.execute(
        load("postgres", "bloat", "sample_values", {"sizes": literal(f"({sizes})"), "table": literal(table.sql_name)}),
        {"percent": percent},
    ).one()
    if not sampled.rows:
        return table.toast_bytes if not rows else 0
    outside = max(0.0, sampled.bytes / sampled.rows - in_heap)
    needed = rows * (outside * TOAST_PER_BYTE + TOAST_PER_ROW)
    return max(0, table.toast_bytes - int(needed))


def _aligned(size: float) -> int:
    return -(-round(size) // 8) * 8


_NOT_PERMITTED: Final = Finding(
    Severity.INFO,
    "bloat.not-permitted",
    "pgstattuple is installed, but backendops' role may not use it: bloat is estimated",
    "GRANT pg_stat_scan_tables TO backendops' role",
)
