"""Which archived results are meant, as SQL; and those of them that are in quarantine, where no restore finds them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from backendops.backends.postgres.archive_table import ArchiveTable
from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.quarantine import list_detached
from backendops.backends.sql_files import load
from backendops.contracts.archive import Quarantined, Selection
from backendops.contracts.errors import BackendBusy


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
    for one in detached:
        back = one.retirement
        if selection.since is not None and back.upper <= selection.since:
            continue
        if selection.until is not None and back.lower >= selection.until:
            continue
        slots = {"archive": one.slot, "meant": meant_by(selection, key), "key": key}
        try:
            with session.transaction(read_only=True) as connection:
                connection.execute(load("postgres", "session", "prefer_indexes"))
                found = connection.execute(
                    load("postgres", "restore", "count_meant", slots), meant_values(selection)
                ).one()
                ids: tuple[str, ...] = ()
                if found.rows and selection.ids:
                    listed = connection.execute(
                        load("postgres", "restore", "list_meant", slots), meant_values(selection)
                    )
                    ids = tuple(listed.scalars())
        except BackendBusy:
            # What was put back is put back: not knowing how many more there are is no reason to fail.
            yield Quarantined(one.name, None, (), back.drop_after)
            continue
        if found.rows:
            yield Quarantined(one.name, found.rows, ids, back.drop_after)
