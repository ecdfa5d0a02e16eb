"""Two small tables beside the archives of other backends: whose each archive is, and what is on its way, in or out."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection

from backendops.backends.postgres.periods import fit
from backendops.backends.postgres.tables import quoted
from backendops.backends.sql_files import literal, load
from backendops.contracts.archive import Holds
from backendops.contracts.capabilities import ArchivePlan
from backendops.contracts.errors import BackendRefused

REGISTER: Final = "backendops_archives"
JOURNAL: Final = "backendops_moves"
ANOTHER: Final = "name another archive under `table:` of the job, such as '{backend}_{table}_archive'"


@dataclass(frozen=True, slots=True)
class Entry:
    """One archive here, and of which backend's table it is."""

    source: str
    holds: Holds
    live: str
    archive: str

    def is_named_by(self, plan: ArchivePlan) -> bool:
        """Would a job with this plan keep this table's results in this archive?"""
        return fit(plan.name.replace("{table}", self.live)) == self.archive


def new_batch(origin: str) -> str:
    """A name for a batch that is on its way, which says whose it is, too."""
    return f"{uuid.uuid4().hex}@{origin}" if origin else uuid.uuid4().hex


def origin_of(batch: str) -> str:
    """Which database it came from; empty where its name does not say."""
    return batch.partition("@")[2]


@dataclass(frozen=True, slots=True)
class Register:
    """The register and the journal of one schema."""

    schema: str

    @property
    def slots(self) -> dict[str, str]:
        """Both names, for the statements about them."""
        return {slot: literal(name) for slot, name in self._names.items()}

    @property
    def _names(self) -> dict[str, str]:
        tables = {"register": REGISTER, "journal": JOURNAL}
        return {slot: f"{quoted(self.schema)}.{quoted(table)}" for slot, table in tables.items()}

    def is_there(self, connection: Connection) -> bool:
        """Has any archive of another backend been kept here?"""
        return bool(connection.execute(load("postgres", "store", "find_register"), self._names).scalar_one())

    def make(self, connection: Connection) -> None:
        """Make both tables where they are not there."""
        if not self.is_there(connection):
            for statement in ("make_register", "make_journal"):
                connection.execute(load("postgres", "store", statement, self.slots))

    def entries(self, connection: Connection) -> tuple[Entry, ...]:
        """Every archive of another backend here."""
        if not self.is_there(connection):
            return ()
        rows = connection.execute(load("postgres", "store", "list_archives", self.slots))
        return tuple(Entry(row.source, row.holds, row.live, row.archive) for row in rows)

    def add(self, connection: Connection, entry: Entry) -> None:
        """Take an archive down; one that is there already stays the source's that came first."""
        connection.execute(
            load("postgres", "store", "register", self.slots),
            {"source": entry.source, "holds": entry.holds, "live": entry.live, "archive": entry.archive},
        )

    def refuse_filled(self, connection: Connection, entry: Entry) -> None:
        """Raise BackendRefused where there are results already in an archive that nobody has taken down."""
        name = f"{quoted(self.schema)}.{quoted(entry.archive)}"
        slots = {"partition": literal(name)}
        if connection.execute(load("postgres", "partition", "sample_default", slots)).scalar_one():
            said = (entry.source, entry.holds, entry.live, entry.archive)
            values = ", ".join("'" + value.replace("'", "''") + "'" for value in said)
            raise BackendRefused(
                f"{name} has results already, and is not known as the archive of {entry.source!r}: it may be that of "
                "this database's own",
                f"{ANOTHER}; or, where it is: INSERT INTO {self._names['register']} VALUES ({values});",  # noqa: S608 - for a person to read
            )

    def moves(self, connection: Connection, source: str) -> Sequence[Any]:
        """What a run of this source left on its way when it ended, oldest first."""
        if not self.is_there(connection):
            return ()
        return connection.execute(load("postgres", "store", "list_moves", self.slots), {"source": source}).all()

    def settled_by_hand(self, batch: str) -> str:
        """The SQL by which a batch is no longer on its way."""
        return f"DELETE FROM {self._names['journal']} WHERE batch = '{batch}';"  # noqa: S608 - for a person to read

    def times_on_the_way(self, connection: Connection, archive: str) -> tuple[tuple[datetime, datetime], ...]:
        """From when to when the results finished of each batch that is on its way into, or out of, an archive."""
        rows = connection.execute(load("postgres", "store", "list_times", self.slots), {"archive": archive})
        return tuple((row.first_done_at, row.last_done_at) for row in rows)
