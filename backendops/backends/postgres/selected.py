"""Which archived results are meant, as SQL; and those of them that were taken out, where no restore finds them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from backendops.backends.postgres.archive_table import ArchiveTable
from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.partition_drain import former_defaults
from backendops.backends.postgres.partition_work import EVER
from backendops.backends.postgres.quarantine import list_detached
from backendops.backends.sql_files import load
from backendops.contracts.archive import Quarantined, Selection
from backendops.contracts.errors import BackendBusy

# Each id is looked for by itself in every filter of an archive: with 100,000,000 results that is a tenth of a second.
IDS_AT_ONCE: Final = 50


def meant_by(selection: Selection, key: str) -> str:
    """The condition on an archive that a selection is, for a slot."""
    conditions = []
    if selection.ids:
        conditions.append(f"{key} = ANY (CAST(:ids AS text[]))")
    if selection.since is not None:
        conditions.append("done_at >= :since")
    if selection.until is not None:
        conditions.append("done_at < :until")
    return f"({' AND '.join([f'{key} IS NOT NULL', *conditions])})"


def meant_values(selection: Selection) -> dict[str, Any]:
    """The values of that condition."""
    return {"ids": list(selection.ids), "since": selection.since, "until": selection.until}


def find_quarantined(
    session: PostgresSession, archive: ArchiveTable, key: str, selection: Selection
) -> Iterator[Quarantined]:
    """What is meant in partitions that were taken out of the archive and are not dropped yet, each table by itself."""
    with session.transaction(read_only=True) as connection:
        detached = list_detached(connection, archive.sql_name)
        formers = former_defaults(connection, archive.sql_name)
    found = [_Out(one.name, one.slot, one.retirement.lower, one.retirement.upper, one.retirement.drop_after)
             for one in detached]  # fmt: skip
    # Of a detach that was cut short the archive does not show the rows any more.
    found += [_Out(one.name, one.slot, one.start, one.end, detaching=True)
              for one in archive.others if one.detach_pending]  # fmt: skip
    # Of any time, and still to be moved back into the archive.
    found += [_Out(one.name, one.slot, *EVER, returning=True) for one in formers]
    for out in found:
        if selection.since is not None and out.upper <= selection.since:
            continue
        if selection.until is not None and out.lower >= selection.until:
            continue
        counted = _count(session, out, key, selection)
        if counted is None:
            yield Quarantined(out.name, None, (), out.drop_after, out.detaching, out.returning)
        elif counted.rows:
            yield counted


@dataclass(frozen=True, slots=True)
class _Out:
    """A table that was a partition of the archive, and the time of its results."""

    name: str
    slot: str
    lower: datetime
    upper: datetime
    drop_after: datetime | None = None
    detaching: bool = False
    returning: bool = False


def _count(session: PostgresSession, out: _Out, key: str, selection: Selection) -> Quarantined | None:
    """What is meant of it; None where counting takes too long."""
    slots = {"archive": out.slot, "meant": meant_by(selection, key), "key": key}
    rows, ids = 0, list[str]()
    try:
        for some in selection.in_groups(IDS_AT_ONCE):
            values = meant_values(some)
            with session.transaction(read_only=True, prefer_indexes=True) as connection:
                found = connection.execute(load("postgres", "restore", "count_meant", slots), values).one().rows
                rows += found
                if found and some.ids:
                    ids += connection.execute(load("postgres", "restore", "list_meant", slots), values).scalars()
    except BackendBusy:
        # What was put back is put back: not knowing how many more there are is no reason to fail.
        return None
    return Quarantined(out.name, rows, tuple(ids), out.drop_after, out.detaching, out.returning)
