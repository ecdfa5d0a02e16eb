"""Who keeps a vacuum from helping, in words, with the way out; nobody is ever ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from backendops.backends.postgres.tables import quoted
from backendops.backends.postgres.vacuum_work import Table, as_owner
from backendops.backends.sql_files import load
from backendops.contracts.readings import Finding, Severity


@dataclass(frozen=True, slots=True)
class Holder:
    """One whose snapshot still needs rows that are dead to everybody else."""

    kind: str
    name: str
    pid: int | None
    since: datetime | None
    state: str
    age: int
    """How many transactions ago its snapshot was taken."""

    def __str__(self) -> str:
        pid = f" (pid {self.pid})" if self.pid else ""
        state = f", {self.state}" if self.state else ""
        since = f", since {self.since:%Y-%m-%d %H:%M:%S} UTC" if self.since else ""
        return f"{self.kind} {self.name}{pid}{state}{since}"

    @property
    def way_out(self) -> str:
        """What an operator may do about it."""
        name = self.name.replace("'", "''")
        if self.kind == "prepared transaction":
            return f"COMMIT PREPARED '{name}'; or ROLLBACK PREPARED '{name}'; in its database"
        if self.kind == "replication slot" and self.state != "active":
            return f"where nothing will read it any more: SELECT pg_drop_replication_slot('{name}');"
        if self.kind in ("replication slot", "replica"):
            return "a query on that replica (hot_standby_feedback is on there): end it there"
        if self.kind == "autovacuum":
            return "let it end: it analyzes a table, and ends by itself"
        return (
            f"let it end; or, if it is forgotten, SELECT pg_terminate_backend({self.pid}); "
            "idle_in_transaction_session_timeout ends such sessions by itself"
        )


@dataclass(frozen=True, slots=True)
class Holders:
    """All of them, the oldest first; and whether the server showed other roles' sessions."""

    found: tuple[Holder, ...]
    sees_all: bool

    @property
    def oldest(self) -> Holder | None:
        """The one that has to go first."""
        return self.found[0] if self.found else None

    def __str__(self) -> str:
        if not self.found:
            return ""
        more = len(self.found) - 1
        return f"{self.found[0]}{f' and {more} that began later' if more else ''}"

    @property
    def way_out(self) -> str:
        """What an operator may do now."""
        ways = [self.found[0].way_out] if self.found else []
        if not self.sees_all:
            ways.append("GRANT pg_read_all_stats TO backendops' role: other roles' sessions are hidden from it")
        if not ways:
            ways.append("nobody is seen to hold them any more: the next run removes them")
        return "; ".join([*ways, "backendops ends nobody's session"])


def next_transaction(connection: Connection) -> str:
    """All that is removed by now was removed by a transaction older than this one."""
    return str(connection.execute(load("postgres", "holdback", "next_transaction")).scalar_one())


def list_holders(connection: Connection, before: str | None = None) -> Holders:
    """Who holds back dead rows of this database's tables; of rows that were removed before that transaction, or now."""
    values = {"before": before or next_transaction(connection)}
    rows = connection.execute(load("postgres", "holdback", "list_holders"), values).mappings()
    found = tuple(Holder(**row) for row in rows)
    return Holders(found, bool(connection.execute(load("postgres", "holdback", "sees_all")).scalar_one()))


def held_back(sql_name: str, dead: int, holders: Holders) -> Finding:
    """Dead rows that a vacuum had to leave."""
    return Finding(
        Severity.WARNING,
        "vacuum.held-back",
        f"{dead:,} dead rows of {sql_name} could not be removed: "
        f"{str(holders) or 'somebody who is not seen, or has ended meanwhile,'} may still need them",
        holders.way_out,
    )


def not_frozen(sql_name: str, age: int, freeze_age: int, holders: Holders) -> Finding:
    """A table that stays old although it was frozen as far as it may be."""
    return Finding(
        Severity.WARNING,
        "vacuum.not-frozen",
        f"{sql_name} is {age:,} transactions old after a VACUUM (FREEZE), freeze_age is {freeze_age:,}: "
        f"{str(holders) or 'somebody who is not seen'} holds it back",
        holders.way_out,
    )


def not_permitted(tables: Sequence[Table]) -> Iterator[Finding]:
    """Tables that this role may not vacuum."""
    for one in tables:
        role = quoted(one.role)
        granted = as_owner(one.sql_name, one.owner, one.owner_is_super, role)
        yield Finding(
            Severity.WARNING,
            "vacuum.not-permitted",
            f"the role {one.role} may not vacuum {one.sql_name}: it belongs to {one.owner}",
            f"on PostgreSQL 17 and newer GRANT MAINTAIN ON {one.sql_name} TO {role}; or {granted}",
        )
