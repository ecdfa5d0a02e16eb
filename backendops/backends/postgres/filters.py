"""The filters by which an archive finds an id, made for what a run has added to it.

An index that every archived row must be put into, at a random place, costs as much as the rest of archiving it, and the
more the larger the archive is. A filter over some pages is made once, after they were filled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from backendops.backends.postgres.archive_table import ArchiveTable
from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.sql_files import load
from backendops.contracts.errors import BackendBusy

# Filters that one statement makes: of 16 MiB of the table, a hundredth of a second from the cache, a tenth from a disk.
AT_ONCE: Final = 64
# Where those before were there already the next ones mostly are: a thousand are looked over in a millisecond. Were they
# missing after all, making them takes a second from a slow disk.
AT_MOST: Final = 512
# Making them excludes VACUUM, which makes them as well. An autovacuum that is waited for longer than this gives up.
LOCK_PATIENCE: Final = timedelta(milliseconds=50)


@dataclass(frozen=True, slots=True)
class _Filters:
    """One such index of one partition."""

    oid: int
    pages_each: int
    count: int
    """How many the partition's whole ranges of pages take."""


def make_filters(session: PostgresSession, archive: ArchiveTable, first: datetime, last: datetime) -> Iterator[None]:
    """Make what is missing in the partitions of these moments, a bounded statement for each item.

    What a run that was ended left missing is made, too. Without them nothing is lost: their pages are searched.
    """
    for partition in archive.partitions:
        if partition.end <= first or partition.start > last:
            continue
        with session.transaction(read_only=True) as connection:
            rows = connection.execute(load("postgres", "filters", "list_filters"), {"oid": partition.oid}).all()
        for row in rows:
            yield from _make(session, _Filters(row.oid, row.pages_each, row.pages // row.pages_each))


def _make(session: PostgresSession, filters: _Filters) -> Iterator[None]:
    start, size = 0, AT_ONCE
    while start < filters.count:
        end = min(start + size, filters.count)
        values = {
            "filter": filters.oid,
            "first": start * filters.pages_each,
            "last": (end - 1) * filters.pages_each,
            "pages_each": filters.pages_each,
        }
        try:
            with session.transaction(lock_timeout=LOCK_PATIENCE) as connection:
                made = connection.execute(load("postgres", "filters", "make_filters"), values).scalar_one()
        except BackendBusy:
            if session.interrupted:
                raise
            # Somebody vacuums the partition, or changes it: a vacuum makes them as well, and the next run looks again.
            return
        start, size = end, AT_ONCE if made else min(size * 2, AT_MOST)
        yield
