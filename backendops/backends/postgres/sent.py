"""One statement of a change to a live table: shown to people as it is sent to the server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, TextClause

from backendops.backends.sql_files import load, readable
from backendops.contracts.partitions import PlannedStatement

EXCLUSIVE: Final = "ACCESS EXCLUSIVE"
SHARE_UPDATE: Final = "SHARE UPDATE EXCLUSIVE"
ROW_EXCLUSIVE: Final = "ROW EXCLUSIVE"


@dataclass(frozen=True, slots=True)
class Sent:
    """Where it stands, what is filled in, and what it costs others."""

    job: str
    name: str
    slots: Mapping[str, str]
    values: Mapping[str, Any] = field(default_factory=dict)
    lock: str = EXCLUSIVE
    hold: str = ""

    @property
    def statement(self) -> TextClause:
        """Ready to execute with its values."""
        return load("postgres", self.job, self.name, self.slots)

    def send(self, connection: Connection) -> None:
        """Execute it."""
        connection.execute(self.statement, dict(self.values))

    def planned(self, together: bool = False) -> PlannedStatement:
        """The same for people."""
        lines = [line for line in readable(self.statement, self.values).splitlines() if not line.startswith("--")]
        return PlannedStatement(" ".join(" ".join(lines).split()), self.lock, self.hold, together)


def leaf(name: str, slots: Mapping[str, str], **values: Any) -> Sent:
    """A statement of live_partition.sql."""
    return Sent("live_partition", name, slots, values)


def rendered(connection: Connection, statements: Iterable[Sent]) -> str:
    """All of them as one text with every value in it, so that they cost one round trip."""
    with closing(_cursor(connection)) as cursor:
        texts = []
        for one in statements:
            compiled = one.statement.bindparams(**one.values).compile(dialect=connection.dialect)
            texts.append(cursor.mogrify(str(compiled), compiled.params).decode(_ENCODING))
    return ";\n".join(texts)


def send_rendered(connection: Connection, text: str) -> None:
    """Send it as it is: nothing in it is a parameter any more."""
    with closing(_cursor(connection)) as cursor:
        cursor.execute(text.encode(_ENCODING))


def _cursor(connection: Connection) -> Any:
    return connection.connection.cursor()


# What psycopg2 asks every server for, whatever the database is stored in.
_ENCODING: Final = "utf-8"
