"""Verifying an archive table: every partition is read, counted and held against its bounds."""

from __future__ import annotations

from collections.abc import Iterator

from backendops.backends.postgres.archive_table import ArchiveTable, Partition
from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.tables import LiveTable
from backendops.backends.sql_files import load
from backendops.contracts.archive import Checked
from backendops.contracts.errors import BackendBusy, BackendError, BackendUnreachable


def check_archive(session: PostgresSession, archive: ArchiveTable, live: LiveTable | None) -> Iterator[Checked]:
    """Each partition, then what is wrong with the archive as a whole. `live` is its table, where that is here."""
    for partition in (*archive.partitions, *archive.others):
        yield _check_partition(session, partition, live)
    with session.transaction(read_only=True) as connection:
        invalid = connection.execute(
            load("postgres", "archive_check", "find_invalid_indexes"), {"oid": archive.oid}
        ).scalars()
        wrong = [f"its index {name} is invalid: DROP INDEX and create it again" for name in invalid]
    if wrong or not (archive.partitions or archive.others):
        yield Checked(archive.name, 0, tuple(wrong))


def _check_partition(session: PostgresSession, partition: Partition, live: LiveTable | None) -> Checked:
    wrong = []
    # Another backend's date_done may be in another zone than ours.
    zone = session.date_done_timezone if live is not None else None
    try:
        # Read as a whole, it may take as long as the run may.
        with session.transaction(read_only=True, statement_timeout=session.limits.budget) as connection:
            found = connection.execute(
                load("postgres", "archive_check", "count_partition", {"partition": partition.slot}), {"zone": zone}
            ).one()
            doubles = 0
            if live is not None:
                slots = {"partition": partition.slot, "live": live.slot, "key": live.key_column}
                doubles = connection.execute(load("postgres", "archive_check", "count_doubles", slots)).scalar_one()
    except (BackendUnreachable, BackendBusy):
        raise
    except BackendError as error:
        return Checked(partition.name, 0, (f"it cannot be read: {error}",))
    if found[0] and not partition.is_default and not (partition.start <= found.first and found.last < partition.end):
        wrong.append("it has rows outside its bounds")
    if found[0] and partition.is_default:
        wrong.append(f"{found[0]:,} rows are in the default partition: no partition of their period can be made")
    if found.misdated:
        wrong.append(f"{found.misdated:,} rows have a done_at that is not their date_done in {zone}")
    if doubles:
        wrong.append(f"{doubles:,} of its results are live as well, with the same id and date")
    return Checked(partition.name, found[0], tuple(wrong))
