"""Names for what a change to a live table makes: Celery's own wherever they are free, and never another table's."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection

from backendops.backends.postgres.archive_table import NAME_TRIES
from backendops.backends.postgres.periods import fit
from backendops.backends.postgres.tables import quoted
from backendops.backends.sql_files import load
from backendops.contracts.errors import BackendRefused


class FreeNames:
    """The names of one change, no two alike; `own` are those that are given up before the new ones are taken.

    An older table of Celery's that somebody renamed keeps its indexes' names, and with them the ones that are wanted.
    """

    def __init__(self, connection: Connection, schema: str, own: Iterable[str] = ()) -> None:
        self._connection = connection
        self._schema = schema
        self._own = frozenset(own)
        self._given: set[str] = set()

    def take(self, wanted: str) -> str:
        """`wanted`, or with a number where it is taken; raises BackendRefused where nine of them are."""
        for number in range(1, NAME_TRIES + 1):
            name = wanted if number == 1 else fit(wanted, f"_{number}")
            if name not in self._given and (name in self._own or not self._is_taken(name)):
                self._given.add(name)
                return name
        raise BackendRefused(
            f"every name from {quoted(wanted)} to {quoted(fit(wanted, f'_{NAME_TRIES}'))} is taken in schema "
            f"{quoted(self._schema)}",
            "drop or rename what is left of older tables",
        )

    def _is_taken(self, name: str) -> bool:
        taken: bool = self._connection.execute(
            load("postgres", "archive_table", "is_taken"), {"schema": self._schema, "name": name}
        ).scalar_one()
        return taken
