"""Saved groups on SQLite: which of them may go, as their members are finished or gone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection

from backendops.backends.group_members import MOST_READ, member_ids
from backendops.backends.sql_files import load
from backendops.backends.sqlite.tables import LiveTable

# Groups that are asked about at once, and bytes of their payloads: a read keeps a writer from committing.
ASKED: Final = 200
READ_BYTES: Final = 2 * 1024**2
# Members looked up at once take some ten milliseconds.
MEMBERS: Final = 5000

_SQL: Final = "groups"


@dataclass(frozen=True, slots=True)
class Members:
    """Looks up the members of the groups of one table; without the table of tasks nothing is known of them."""

    groups: LiveTable
    tasks: LiveTable | None

    def known(self, connection: Connection, ids: Sequence[int]) -> dict[int, bool]:
        """Of the groups whose members can be read: are they all finished or gone?"""
        found: dict[int, bool] = {}
        if self.tasks is None or not self.groups.has("result"):
            return found
        for start in range(0, len(ids), ASKED):
            for part in self._readable(connection, ids[start : start + ASKED]):
                found |= self._looked_up(connection, self.tasks, part)
        return found

    def _readable(self, connection: Connection, ids: Sequence[int]) -> Iterator[list[int]]:
        part: list[int] = []
        size = 0
        for row in self._of(connection, "list_payloads", ids):
            if not row.is_json or row.size > MOST_READ:
                continue
            if part and size + row.size > READ_BYTES:
                yield part
                part, size = [], 0
            part.append(row.id)
            size += row.size
        if part:
            yield part

    def _looked_up(self, connection: Connection, tasks: LiveTable, ids: Sequence[int]) -> dict[int, bool]:
        rows = self._of(connection, "read_payloads", ids)
        read = ((row.id, member_ids(bytes(row.result))) for row in rows if isinstance(row.result, bytes))
        members = {id_: listed for id_, listed in read if listed is not None}
        every = sorted(frozenset().union(*members.values()))
        unfinished: set[str] = set()
        for start in range(0, len(every), MEMBERS):
            statement = load("sqlite", _SQL, "find_unfinished", {"task": tasks.slots()["live"]})
            some = {"ids": json.dumps(every[start : start + MEMBERS])}
            unfinished |= set(connection.execute(statement, some).scalars())
        return {id_: unfinished.isdisjoint(listed) for id_, listed in members.items()}

    def _of(self, connection: Connection, name: str, ids: Sequence[int]) -> Sequence[Any]:
        statement = load("sqlite", _SQL, name, {"live": self.groups.slots()["live"]})
        return connection.execute(statement, {"ids": json.dumps(list(ids))}).all()
