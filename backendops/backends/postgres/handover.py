"""Handing due results over to an archive outside this database: read in key order, removed by id and version."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from time import monotonic
from typing import Any

from sqlalchemy import Connection

from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.live_bounds import take_bounds_away
from backendops.backends.postgres.records import READ_BYTES, byte_count, read_list, row_from, shape_of
from backendops.backends.postgres.survey import RUN_BUDGET, Target, count_due, oldest_ages, survey
from backendops.backends.postgres.sweep import preview_sweep
from backendops.backends.postgres.tables import LiveTable, find_tables
from backendops.backends.postgres.tries import Tries
from backendops.backends.postgres.walk import Deed, walked_column
from backendops.backends.sql_files import load
from backendops.contracts.archive import Batch, CanHandOver, DueFound, Row, Shape, Value, fingerprint
from backendops.contracts.errors import BackendBusy, BackendRefused
from backendops.contracts.readings import Reading
from backendops.contracts.retention import Retention
from backendops.contracts.run import Pace, Preview


class HandOverOnPostgres(PostgresSession, CanHandOver):
    """Can have its due results read, kept elsewhere and then removed."""

    @property
    def origin(self) -> str:
        with self.transaction(read_only=True) as connection:
            if not connection.execute(load("postgres", "handover", "may_identify")).scalar_one():
                return ""
            return str(connection.execute(load("postgres", "handover", "identify")).scalar_one())

    def preview_hand_over(self, due: Retention, where: str) -> Preview:
        def planned(target: Target) -> Deed:
            slots = {"columns": read_list(target.live.columns)}
            return Deed("handover", ("read_due",), "read_due", slots, {"zone": self.date_done_timezone}, "")

        preview = preview_sweep(self, due, planned, "archive")
        return replace(preview, summary=f"{preview.summary}, to {where}") if preview.statements else preview

    def find_due(self, due: Retention) -> DueFound:
        targets, findings = survey(self, due)
        for target in targets:
            target.live.require_delete()
        findings += take_bounds_away(self)
        counts = [count_due(self, target, RUN_BUDGET) for target in targets]
        return DueFound(sum(count.rows for count in counts), all(count.exact for count in counts), findings)

    def shapes_due(self, due: Retention) -> tuple[Shape, ...]:
        return tuple(shape_of(target.live) for target in survey(self, due)[0])

    def oldest_ages(self) -> tuple[Reading, ...]:
        with self.transaction(read_only=True) as connection:
            tables = find_tables(self, connection).tables
        return oldest_ages(self, dict.fromkeys(tables))

    def read_due(self, due: Retention, pace: Pace) -> Iterator[Batch]:
        for target in survey(self, due)[0]:
            yield from _Reading(self, target, pace).batches()

    def remove(self, batch: Batch) -> frozenset[int]:
        live = live_table(self, batch.shape)
        shape, positions = batch.shape, range(len(batch.rows))
        ids = [shape.value(row, "id") for row in batch.rows]
        with self.transaction() as connection:
            # Settled in the archive next: rows that came back after a crash of this server would be in both.
            connection.execute(load("postgres", "session", "be_durable"))
            connection.execute(load("postgres", "session", "prefer_indexes"))
            versions = [row.mark for row in batch.rows]
            if not all(versions):
                now = _marks(self, connection, live, ids)
                versions = [now.get(fingerprint(shape, row), "") for row in batch.rows]
            same = [at for at in positions if versions[at]]
            meant = {"ids": [ids[at] for at in same], "versions": [versions[at] for at in same]}
            answer = connection.execute(load("postgres", "handover", "remove_same", {"live": live.slot}), meant)
            removed = {(row.id, row.version) for row in answer}
            gone = {at for at in same if (ids[at], versions[at]) in removed}
            rest = [at for at in positions if at not in gone]
            slots = {"live": live.slot, "key": live.key_column}
            present = load("postgres", "handover", "find_present", slots)
            found = connection.execute(present, {"ids": [ids[at] for at in rest]})
            still_here = {(row.id, row.key) for row in found}
        keys = [shape.value(row, shape.key) for row in batch.rows]
        return frozenset(gone | {at for at in rest if (ids[at], keys[at]) not in still_here})


def _marks(session: PostgresSession, connection: Connection, live: LiveTable, ids: list[Value]) -> dict[bytes, str]:
    """The versions that the rows of these ids have now, by their content."""
    shape = shape_of(live)
    slots = {"live": live.slot, "columns": read_list(live.columns)}
    values = {"ids": ids, "zone": session.date_done_timezone}
    found = connection.execute(load("postgres", "handover", "read_again", slots), values)
    rows = (row_from(each, len(live.columns)) for each in found)
    return {fingerprint(shape, row): row.mark for row in rows}


def live_table(session: PostgresSession, shape: Shape) -> LiveTable:
    """The live table that rows of this shape are of; raises BackendRefused where it is not there."""
    with session.transaction(read_only=True) as connection:
        found = find_tables(session, connection).tables
    for live in found:
        if live.holds == shape.holds:
            return live
    raise BackendRefused(
        f"there is no {shape.holds} table {session.tables.task if shape.holds == 'task' else session.tables.group}",
        "let a Celery worker make it, or name Celery's own under `tables:` of the backend",
    )


class _Reading:
    """One pass over what is due in one live table."""

    def __init__(self, session: PostgresSession, target: Target, pace: Pace) -> None:
        self._session = session
        self._live = target.live
        self._shape = shape_of(target.live)
        self._pace = pace
        self._by = walked_column(target.live)
        self._due = target.due
        self._members = target.members
        self._slots = {
            "live": target.live.slot,
            "by": self._by,
            "due": target.due.sql,
            "columns": read_list(target.live.columns),
            "bytes": byte_count(self._shape.columns),
        }

    def batches(self) -> Iterator[Batch]:
        """BackendBusy where one read fails thrice and cannot be smaller."""
        place = self._start()
        tries = Tries(self._session, self._pace)
        while place is not None:
            began, size = monotonic(), self._pace.size
            try:
                rows, place, walked = self._read(place, size)
            except BackendBusy as busy:
                tries.failed(busy, size)
                yield Batch(self._shape, ())
                continue
            tries.passed()
            self._pace.measured(walked, monotonic() - began)
            yield Batch(self._shape, rows)

    def _start(self) -> dict[str, Any] | None:
        if self._by == "date_done":
            return {"low": datetime.min, "after": 0, "end": self._due.latest}  # noqa: DTZ901 - naive as date_done
        with self._session.transaction() as connection:
            last = connection.execute(load("postgres", "handover", "find_last", self._slots)).scalar_one()
        return None if last is None else {"low": -(2**63), "after": -(2**63), "end": last + 1}

    def _read(self, place: dict[str, Any], size: int) -> tuple[tuple[Row, ...], dict[str, Any] | None, int]:
        """What is due of the next rows, where to go on, and how many these were, due or not."""
        with self._session.transaction(prefer_indexes=True) as connection:
            end = connection.execute(
                load("postgres", "handover", "find_end", self._slots), {**place, "size": size, "most": READ_BYTES}
            ).one_or_none()
        if end is None:
            return (), None, 0
        values = {**self._due.values, **place, "high": end.by, "last": end.id}
        if self._members is not None:
            within = f"(({self._by}, id) > (:low, :after) AND ({self._by}, id) <= (:high, :last))"
            values["settled"] = self._members.settled(within, {**place, "high": end.by, "last": end.id})
        with self._session.transaction(prefer_indexes=True) as connection:
            found = connection.execute(
                load("postgres", "handover", "read_due", self._slots),
                {**values, "zone": self._session.date_done_timezone},
            )
            rows = tuple(row_from(row, len(self._shape.columns)) for row in found)
        return rows, {**place, "low": end.by, "after": end.id}, end.rows
