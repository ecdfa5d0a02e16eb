"""What runs before a row is in an archive, and may leave it out: it is gone from the live table by then."""

from __future__ import annotations

from backendops.backends.postgres.archive_table import ArchiveTable
from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.sql_files import load
from backendops.contracts.errors import BackendRefused


def refuse_intercepted(session: PostgresSession, archive: ArchiveTable) -> None:
    """Raise BackendRefused, naming it, where somebody's trigger or rule stands between a move and the archive."""
    with session.transaction(read_only=True) as connection:
        statement = load("postgres", "archive_table", "find_interceptor")
        drop = connection.execute(statement, {"oid": archive.oid}).scalar_one_or_none()
    if drop is not None:
        raise BackendRefused(
            f"a trigger or a rule of the archive {archive.sql_name} runs before each row that is moved to it, and one "
            "that it leaves out would be lost",
            f"{drop} a trigger may be AFTER INSERT",
        )
