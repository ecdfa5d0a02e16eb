"""Column drift: what the live table has and its archive lacks, and what the archive could not take unchanged."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from backendops.backends.postgres.tables import Column, LiveTable, quoted
from backendops.contracts.errors import BackendRefused

if TYPE_CHECKING:
    from backendops.backends.postgres.archive_table import ArchiveTable

DONE_AT: Final = "done_at"
ARCHIVED_AT: Final = "archived_at"
STUCK: Final = "stuck"
OURS: Final = frozenset({DONE_AT, ARCHIVED_AT, STUCK})
"""The columns that the archive has beside Celery's."""
NEEDED: Final = OURS - {STUCK}
"""Those that it has had from the first; the mark of stuck results is added where it comes to be needed."""


def refuse_own_columns(live: LiveTable) -> None:
    """Raise BackendRefused where the live table has a column that the archive needs for itself."""
    for column in live.columns:
        if column.name in OURS:
            raise BackendRefused(
                f"{live.sql_name} has a column {column.name} of its own, which the archive needs for itself",
                f"ALTER TABLE {live.sql_name} RENAME COLUMN {quoted(column.name)} TO …",
            )


def columns_to_add(live: LiveTable, archive: ArchiveTable) -> tuple[Column, ...]:
    """The live columns that the archive lacks; raises BackendRefused where one that it has cannot take their values."""
    refuse_own_columns(live)
    have = {column.name: column for column in archive.columns if column.name not in OURS}
    for column in live.columns:
        theirs = have.get(column.name)
        if theirs is not None and not takes(column.type, theirs.type):
            raise BackendRefused(
                f"column {column.name} is {column.type} in {live.sql_name}, but {theirs.type} in {archive.sql_name}",
                f"ALTER TABLE {archive.sql_name} ALTER COLUMN {quoted(column.name)} TYPE {column.type} "
                f"USING {quoted(column.name)}::{column.type};",
            )
        if theirs is not None and theirs.not_null and not column.not_null:
            raise BackendRefused(
                f"column {column.name} may be empty in {live.sql_name}, but not in {archive.sql_name}",
                f"ALTER TABLE {archive.sql_name} ALTER COLUMN {quoted(column.name)} DROP NOT NULL;",
            )
    known = {column.name for column in live.columns}
    for column in have.values():
        if column.name not in known and column.not_null and not column.has_default:
            raise BackendRefused(
                f"{archive.sql_name} wants a value for {column.name}, which {live.sql_name} does not have",
                f"ALTER TABLE {archive.sql_name} ALTER COLUMN {quoted(column.name)} DROP NOT NULL;",
            )
    return tuple(column for column in live.columns if column.name not in have)


def takes(value: str, column: str) -> bool:
    """Can a column of this type hold every value of that type unchanged?"""
    if value == column:
        return True
    integers = ("smallint", "integer", "bigint")
    if value in integers and column in integers:
        return integers.index(value) <= integers.index(column)
    texts = [re.fullmatch(r"(?:character varying|text)(?:\((\d+)\))?", name) for name in (value, column)]
    if texts[0] and texts[1]:
        from_length, to_length = texts[0][1], texts[1][1]
        return to_length is None or (from_length is not None and int(from_length) <= int(to_length))
    return False
