"""A live table that `backendops partition convert` made a partitioned one: what it says of itself, and its leaves."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, Self
from zoneinfo import ZoneInfo

from sqlalchemy import Connection

from backendops.backends.postgres.periods import fit
from backendops.backends.postgres.tables import LiveTable, quoted
from backendops.backends.sql_files import literal, load
from backendops.contracts.capabilities import Every
from backendops.contracts.partitions import ConvertBy

if TYPE_CHECKING:
    from backendops.backends.postgres.connection import PostgresSession

_MARK: Final = "live"
BOUND: Final = "backendops_bound"
"""The CHECK that spares a moment's exclusive lock the reading of a table; it lives for the length of one change."""
SEQUENCES: Final = {"task": "task_id_sequence", "group": "taskset_id_sequence"}
"""Celery's own names, in the table's schema (celery/backends/database/models.py)."""

Kind = Literal["first", "default", "leaf", "tail"]
State = Literal["plain", "bounded", "partitioned", "undoing", "foreign"]


@dataclass(frozen=True, slots=True)
class Marker:
    """What a converted table says in its COMMENT, for as long as it lives."""

    by: ConvertBy
    first: str
    """The name of the leaf that was the table."""
    rows: int | None = None
    """Ids of one partition; None where it follows the rate, or where it is partitioned by date."""
    every: Every | None = None
    renamed: dict[str, str] = field(default_factory=dict)
    """Names of the first leaf's indexes and constraints: what they are, and what they were."""
    comment: str | None = None
    """The comment that the table had before."""

    def __str__(self) -> str:
        """The comment's text: JSON that begins with our name."""
        fields = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps({"backendops": _MARK, **fields}, ensure_ascii=False)

    @classmethod
    def parse(cls, comment: str | None) -> Self | None:
        """Read a comment; None where it is not ours, or was edited so that it cannot be trusted."""
        try:
            fields = json.loads(comment or "")
            if not isinstance(fields, dict) or fields.pop("backendops", None) != _MARK:
                return None
            marker = cls(**fields)
        except (ValueError, TypeError):
            return None
        whole = (
            isinstance(marker.first, str)
            and isinstance(marker.renamed, dict)
            and (marker.rows is None or isinstance(marker.rows, int))
            and (marker.by == "id" or (marker.by == "date_done" and marker.every in ("month", "week", "day")))
        )
        return marker if whole else None


@dataclass(frozen=True, slots=True)
class Leaf:
    """One partition of a live table. By id its bounds are numbers, by date naive moments; None where it has no end."""

    oid: int
    schema: str
    name: str
    kind: Kind
    bounds: str
    lower: int | datetime | None
    upper: int | datetime | None
    rows: int
    bytes: int
    detach_pending: bool
    has_bound: bool
    key_is_unique: bool
    comment: str | None

    @property
    def sql_name(self) -> str:
        """Schema and name as SQL."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    @property
    def slot(self) -> str:
        """Schema and name as the text of a slot."""
        return literal(self.sql_name)

    def is_after(self, position: int | datetime) -> bool:
        """Does it lie wholly beyond this id or moment?"""
        return self.kind == "leaf" and self.lower is not None and self.lower > position  # type: ignore[operator] # both by one key


@dataclass(frozen=True, slots=True)
class LiveState:
    """How far a table is on its way between plain and partitioned, from the catalog alone."""

    state: State
    marker: Marker | None
    leaves: tuple[Leaf, ...]
    """By lower bound; the default one first."""
    bound: str | None
    """The CHECK of a conversion that has not come to its end, as the server writes it."""
    bound_validated: bool
    owner: str
    pending: tuple[Leaf, ...] = ()
    """Those that somebody began to detach concurrently: the table shows them no more."""
    storage: str | None = None
    """The storage parameters of the leaf that new ones are made like."""
    unmarked: Marker | None = None
    """What the comment would say, had nobody replaced it: of a table that has our shape, and no comment of ours."""

    @property
    def default(self) -> Leaf | None:
        """The leaf for what no other one takes."""
        return next((leaf for leaf in self.leaves if leaf.kind == "default"), None)

    @property
    def first(self) -> Leaf | None:
        """The leaf that was the table; None where it was retired and dropped."""
        name = self.marker.first if self.marker else None
        return next((leaf for leaf in self.leaves if leaf.name == name), None)

    @property
    def newest(self) -> Leaf:
        """The leaf that new ones are made like: the one with the highest bounds."""
        return self.leaves[-1]


def read_live(connection: Connection, live: LiveTable) -> LiveState:
    """What there is of a conversion."""
    row = connection.execute(load("postgres", "live_partition", "read_live"), {"oid": live.oid}).one()
    marker = Marker.parse(row.comment)
    found = _leaves(connection, live)
    leaves = tuple(one for one in found if not one.detach_pending)
    pending = tuple(one for one in found if one.detach_pending)
    state: State
    if row.kind == "p":
        state = "partitioned" if marker else "foreign"
    elif leaves:
        state = "undoing" if marker else "foreign"
    elif marker:
        # Every row is back, and only the comment is left to be put right.
        state = "undoing"
    else:
        state = "bounded" if row.bound else "plain"
    known = marker if state in ("partitioned", "undoing") else None
    unmarked = _shape(live, row.kind, row.partition_key, leaves) if state == "foreign" else None
    storage = read_storage(connection, leaves[-1].oid) if leaves else None
    return LiveState(state, known, leaves, row.bound, bool(row.bound_validated), row.owner, pending, storage, unmarked)


def read_storage(connection: Connection, oid: int) -> str | None:
    """A table's storage parameters as SQL; None where it has none."""
    found: str | None = connection.execute(
        load("postgres", "live_partition", "read_storage"), {"oid": oid}
    ).scalar_one()
    return found


def _shape(live: LiveTable, kind: str, partition_key: str | None, leaves: tuple[Leaf, ...]) -> Marker | None:
    """By key and names: is it one of ours whose comment was replaced, or left out of a dump?"""
    names = {leaf.name.removeprefix(live.name): leaf for leaf in leaves if leaf.name.startswith(live.name)}
    by_id = any(re.fullmatch(r"_(first|tail|i\d+)(_\d)?", name) for name in names)
    # Others name partitions of a time likewise, and a default one; they hardly have the task id unique in each.
    by_date = any(re.fullmatch(r"_default(_\d)?", name) for name in names) and all(one.key_is_unique for one in leaves)
    if kind == "p":
        by_id, by_date = by_id and partition_key == "RANGE (id)", by_date and partition_key == "RANGE (date_done)"
    if by_id:
        first = next((leaf.name for leaf in leaves if leaf.kind == "first"), fit(live.name, "_first"))
        return Marker("id", first)
    if by_date:
        first = next((leaf.name for leaf in leaves if leaf.kind == "default"), fit(live.name, "_default"))
        return Marker("date_done", first, every=_every(leaves))
    return None


def _every(leaves: tuple[Leaf, ...]) -> Every:
    for leaf in reversed(leaves):
        if isinstance(leaf.lower, datetime) and isinstance(leaf.upper, datetime):
            days = (leaf.upper - leaf.lower).days
            return "month" if days >= 28 else "week" if days >= 7 else "day"  # noqa: PLR2004 - of the calendar
    return "month"


def _leaves(connection: Connection, live: LiveTable) -> list[Leaf]:
    found = []
    for row in connection.execute(
        load("postgres", "live_partition", "list_leaves"), {"oid": live.oid, "key": live.key_column}
    ):
        kind, lower, upper = parse_bounds(row.bounds or "")
        found.append(
            Leaf(
                row.oid, row.schema, row.name, kind, row.bounds or "", lower, upper, row.rows, row.bytes,
                bool(row.detach_pending), row.has_bound, row.key_is_unique, row.comment,
            )
        )  # fmt: skip
    return sorted(found, key=lambda leaf: (leaf.lower is not None, leaf.lower or 0, leaf.name))


def parse_bounds(text: str) -> tuple[Kind, int | datetime | None, int | datetime | None]:
    """What the server's text of a partition's bounds says."""
    if text == "DEFAULT":
        return "default", None, None
    match = re.fullmatch(r"FOR VALUES FROM \('?(.+?)'?\) TO \('?(.+?)'?\)", text)
    if match is None:
        return "leaf", None, None
    lower, upper = _key(match[1]), _key(match[2])
    return ("first" if lower is None else "tail" if upper is None else "leaf"), lower, upper


def _key(text: str) -> int | datetime | None:
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # MINVALUE, MAXVALUE, or what Python's calendar does not have
        return None


def newest_id(connection: Connection, live: LiveTable) -> int:
    """The highest id that may be in use: of Celery's sequence, or of the rows where that cannot be read."""
    values = {"schema": live.schema, "sequence": SEQUENCES[live.holds]}
    last = connection.execute(load("postgres", "live_partition", "read_sequence"), values).scalar_one_or_none()
    stored = connection.execute(load("postgres", "live_partition", "read_newest_id", {"live": live.slot})).scalar_one()
    return max(last or 0, stored or 0)


def ids_per_week(
    session: PostgresSession, connection: Connection, live: LiveTable, newest: int, now: datetime
) -> float:
    """How many ids a week takes, by the busier of the recent and the longer past; 0 where nothing tells."""
    rates = []
    # The last tenth, hundred-thousandth and half of the ids: a busy day and a busy year alike.
    for back in (newest // 10, 100_000, newest // 2):
        if not 0 < back < newest:
            continue
        row = connection.execute(
            load("postgres", "live_partition", "read_result_before", {"live": live.slot}),
            {"id": newest - back, "zone": session.date_done_timezone},
        ).one_or_none()
        if row is not None:
            # A burst of a minute is no rate of a week.
            hours = max((now - row.done).total_seconds() / 3600, 1.0)
            rates.append((newest - row.id) / hours * 24 * 7)
    if not rates and (oldest := oldest_result(session, connection, live)) is not None:
        hours = max((now - oldest.done).total_seconds() / 3600, 1.0)
        rates.append((newest - oldest.id) / hours * 24 * 7)
    return max(rates, default=0.0)


def oldest_result(session: PostgresSession, connection: Connection, live: LiveTable) -> Any:
    """The finished result of the lowest id, and when it was `done`; None where there is none."""
    statement = load("postgres", "live_partition", "read_oldest_result", {"live": live.slot})
    return connection.execute(statement, {"zone": session.date_done_timezone}).one_or_none()


def naive_in(moment: datetime, zone: ZoneInfo) -> datetime:
    """A boundary as naive date_done values have it."""
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)
