"""Partitions by hand: listed, taken back out of quarantine, dropped before or after their time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import Connection

from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.ddl import with_ddl
from backendops.backends.postgres.errors import CHECK_VIOLATION, UNIQUE_VIOLATION, code_of
from backendops.backends.postgres.live_leaves import beside_default
from backendops.backends.postgres.live_table import LiveState, parse_bounds, read_live
from backendops.backends.postgres.partition import drop_detached
from backendops.backends.postgres.partition_drain import all_formers, former_comment
from backendops.backends.postgres.quarantine import Detached, list_detached
from backendops.backends.postgres.sent import Sent, leaf
from backendops.backends.postgres.tables import LiveTable, find_tables, list_columns, quoted
from backendops.backends.sql_files import literal, load
from backendops.contracts.errors import BackendError, BackendRefused
from backendops.contracts.partitions import CanShowPartitions, PartitionShown
from backendops.contracts.run import Step, Steps

OVERLAPS: Final = "42P17"
_COLUMNS: Final = "compare the columns of both with \\d in psql, and make the partition's like the table's"
CANNOT_ATTACH: Final = {
    OVERLAPS: "what is in its place now? `backendops partitions list` shows every partition's bounds",
    CHECK_VIOLATION: "rows of it are not within its bounds, or rows within them are in the default partition",
    "42804": _COLUMNS,
    "42P16": _COLUMNS,
    "23502": "a column of the table takes no NULL by now: ADD it to the partition by hand, and fill it",
    UNIQUE_VIOLATION: "the table got a unique index that rows of the partition do not fit: delete one of each two",
}
"""Why the server does not take it, and the way out."""


class PartitionsByHandOnPostgres(PostgresSession, CanShowPartitions):
    """Can show its partitions and take quarantined ones back or away."""

    def show_partitions(self) -> Sequence[PartitionShown]:
        with self.transaction(read_only=True) as connection:
            oids = list(connection.execute(load("postgres", "partition", "list_archives")).scalars())
            lives = find_tables(self, connection).tables
            oids += [one.oid for one in lives if read_live(connection, one).state == "partitioned"]
            attached = connection.execute(load("postgres", "partition", "list_attached"), {"oids": oids}).all()
            detached = list_detached(connection)
            formers = list(all_formers(connection))
        shown = [
            PartitionShown(
                row.parent_name, row.name, row.schema, _state(row.bounds, row.detach_pending), row.bounds, row.rows,
                row.bytes,
            )
            for row in attached
        ]  # fmt: skip
        for one in detached:
            back = one.retirement
            shown.append(
                PartitionShown(
                    back.archive, one.name, one.schema, back.state, one.bounds, one.rows, one.bytes,
                    back.detached_at, back.drop_after,
                )
            )  # fmt: skip
        for former in formers:
            shown.append(
                PartitionShown(former.archive, former.name, former.schema, "emptying", "", former.rows, former.bytes)
            )
        return shown

    def reattach(self, name: str) -> Steps:
        with self.transaction() as connection:
            one = _named(connection, name)
            parent = connection.execute(
                load("postgres", "partition", "find_parent"), {"name": one.retirement.archive}
            ).one_or_none()
            if parent is None or parent.kind != "p":
                raise _no_parent(one, gone=parent is None)
            live = next((table for table in find_tables(self, connection).tables if table.oid == parent.oid), None)
            state = read_live(connection, live) if live else None
            if state and state.default:
                _look_at_default(connection, one, state.default.slot)
        slots = {"live": literal(one.retirement.archive), "leaf": one.slot, "bounds": literal(one.bounds)}
        statements = [leaf("attach_as_it_was", slots), Sent("partition", "forget", {"partition": one.slot})]
        try:
            yield from self._fitted(one, parent.oid)
            self._attach(live, state, one, statements)
        except BackendError as error:
            code = code_of(error)
            if code == OVERLAPS and live is None:
                # Results of that time came back, or a late one came, and got a partition made.
                comment = former_comment(one.retirement.archive)
                with_ddl(self, Sent("partition", "note", {"partition": one.slot}, {"comment": comment}).send)
                yield Step(
                    what=f"{one.retirement.archive} has another partition of the time of {one.sql_name} by now: the "
                    "next run of the `partition` job moves its rows there"
                )
                return
            if code not in CANNOT_ATTACH:
                raise
            raise BackendRefused(
                f"{one.sql_name} cannot go back to {one.retirement.archive}: {error}", CANNOT_ATTACH[code]
            ) from error
        yield Step(what=f"{one.sql_name} is a partition of {one.retirement.archive} again")

    def _fitted(self, one: Detached, parent: int) -> Steps:
        """What its table got meanwhile, given to it before anybody has to wait: columns, then indexes."""
        with self.transaction() as connection:
            definitions = load("postgres", "partition", "list_definitions")
            have = {row.name for row in connection.execute(definitions, {"oid": one.oid})}
            missing = [row for row in connection.execute(definitions, {"oid": parent}) if row.name not in have]
        for column in missing:
            add = Sent("archive_table", "add_column", {"archive": one.slot, "column": literal(column.definition)})
            with_ddl(self, add.send)
            yield Step(what=f"added {quoted(column.name)} to {one.sql_name}")
        with self.transaction() as connection:
            statement = load("postgres", "partition", "list_missing_indexes")
            indexes = connection.execute(statement, {"oid": one.oid, "parent": parent}).all()
        for index in indexes:
            unique = "UNIQUE" if index.is_unique else ""
            build = {"partition": one.slot, "rest": literal(index.rest), "unique": unique}
            with self.transaction(statement_timeout=self.limits.budget) as connection:
                Sent("partition", "build_index", build).send(connection)
            yield Step(what=f"built an index of {one.sql_name}{index.rest}")

    def drop_quarantined(self, name: str, now: datetime, before_its_time: bool) -> Steps:
        with self.transaction() as connection:
            one = _named(connection, name)
        until = one.retirement.drop_after
        if not before_its_time and (until is None or now < until):
            when = f"until {until:%Y-%m-%d %H:%M} UTC" if until else "and its time has not begun"
            raise BackendRefused(
                f"{one.sql_name} is in quarantine {when}",
                "wait, take it back with `backendops partitions reattach`, or drop it all the same with --now",
            )
        yield drop_detached(self, one)

    def _attach(self, live: LiveTable | None, state: LiveState | None, one: Detached, statements: list[Sent]) -> None:
        _, lower, upper = parse_bounds(one.bounds)
        if live and state and state.default and isinstance(lower, datetime) and isinstance(upper, datetime):
            bounds = {"lower": lower, "upper": upper}
            unbound = leaf("drop_bound", {"leaf": one.slot})
            with self.transaction(statement_timeout=self.limits.budget) as connection:
                # A run that was killed may have left it.
                unbound.send(connection)
                leaf("bound_within", {"leaf": one.slot}, **bounds).send(connection)
            beside_default(self, live, state, bounds, [*statements, unbound])
            return

        def attach(connection: Connection) -> None:
            # Its rows are read once, to see that they are within the bounds; nobody else waits for it.
            self.bound(connection, statement_timeout=self.limits.budget)
            for statement in statements:
                statement.send(connection)

        with_ddl(self, attach)


def _look_at_default(connection: Connection, one: Detached, default: str) -> None:
    """Raise BackendRefused where results of its time have come to the default partition meanwhile."""
    _, lower, upper = parse_bounds(one.bounds)
    if not (isinstance(lower, datetime) and isinstance(upper, datetime)):
        return
    statement = load("postgres", "live_partition", "has_dates", {"leaf": default})
    if connection.execute(statement, {"lower": lower, "upper": upper}).scalar_one():
        columns = literal(", ".join(quoted(column.name) for column in list_columns(connection, one.oid)))
        slots = {"default": default, "leaf": one.slot, "columns": columns}
        raise BackendRefused(
            f"{one.sql_name} cannot go back to {one.retirement.archive}: the default partition has results of its time",
            f"move them first: {leaf('move_out_of_default', slots, lower=lower, upper=upper).planned().sql};",
        )


def _named(connection: Connection, name: str) -> Detached:
    detached = list_detached(connection)
    found = [one for one in detached if name in _names(one)]
    if len(found) == 1:
        return found[0]
    if found:
        raise BackendRefused(
            f"{name} is in quarantine in several schemas", f"name one: {', '.join(one.sql_name for one in found)}"
        )
    there = ", ".join(one.sql_name for one in detached) or "nothing"
    raise BackendRefused(f"no table {name} is in quarantine", f"in quarantine: {there}")


def _names(one: Detached) -> Iterator[str]:
    yield from (one.name, f"{one.schema}.{one.name}", one.sql_name)


def _no_parent(one: Detached, gone: bool) -> BackendRefused:
    table = one.retirement.archive
    why = "is not there any more" if gone else "is not partitioned any more"
    return BackendRefused(
        f"{one.sql_name} cannot go back: {table} {why}",
        f"its rows can be copied from there into {table} by hand, column by column",
    )


def _state(bounds: str, detach_pending: bool) -> str:
    if detach_pending:
        return "detaching"
    kind = parse_bounds(bounds)[0]
    return kind if kind in ("default", "tail") else "attached"
