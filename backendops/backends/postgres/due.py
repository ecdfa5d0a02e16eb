"""Which rows are due, as SQL: the retention's cutoffs in the zone that naive date_done values are in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from backendops.backends.postgres.tables import LiveTable
from backendops.contracts.retention import Retention, Rule


@dataclass(frozen=True, slots=True)
class Due:
    """A condition on a live table, and the naive moment from which on no row can meet it."""

    sql: str
    """In parentheses, with its values as binds; NULL date_done never meets it."""
    values: dict[str, Any]
    latest: datetime
    cutoff: datetime
    """The same moment, aware."""


def due_in(live: LiveTable, retention: Retention, zone: ZoneInfo) -> Due | None:
    """What is due in `live`; None where everything in it is kept for ever."""
    if live.holds == "group":
        # A group has no state, task or queue: one cutoff decides about all of them.
        cutoff = retention.cutoff_of(None)
        retention = Retention(cutoff)
    latest = retention.latest
    if latest is None:
        return None
    whens, values = [], {}
    for number, rule in enumerate(retention.rules):
        condition, binds = _condition(rule, number, live)
        values.update(binds)
        whens.append(f"WHEN {condition} THEN {_cutoff(rule.cutoff, f'cutoff_{number}', zone, values)}")
    otherwise = _cutoff(retention.cutoff, "cutoff", zone, values)
    limit = f"CASE {' '.join(whens)} ELSE {otherwise} END" if whens else otherwise
    return Due(f"(date_done < {limit})", values, naive(latest, zone), latest)


def naive(cutoff: datetime, zone: ZoneInfo) -> datetime:
    """`cutoff` as a naive time in `zone`, never later than any row of that time may be.

    In the first pass through the hour that clocks repeat, a naive time may be of the second pass: an hour of patience.
    """
    local = cutoff.astimezone(zone)
    first, second = local.replace(fold=0).utcoffset(), local.replace(fold=1).utcoffset()
    repeated = (first or timedelta()) - (second or timedelta())
    if repeated > timedelta() and local.fold == 0:
        local -= repeated
    return local.replace(tzinfo=None, fold=0)


def _cutoff(cutoff: datetime | None, bind: str, zone: ZoneInfo, values: dict[str, Any]) -> str:
    if cutoff is None:
        return "NULL"
    values[bind] = naive(cutoff, zone)
    return f"CAST(:{bind} AS timestamp)"


def _condition(rule: Rule, number: int, live: LiveTable) -> tuple[str, dict[str, str]]:
    conditions, values = [], {}
    if rule.state is not None:
        conditions.append(f"status = :state_{number}")
        values[f"state_{number}"] = rule.state
    for bind, column, pattern in (("task", "name", rule.task), ("queue", "queue", rule.queue)):
        if pattern is None:
            continue
        # A table from before result_extended has no such column: its rows have no name, as in Rule.matches.
        value = f"coalesce({column}, '')" if live.has_column(column) else "''"
        conditions.append(f"{value} ~ :{bind}_{number}")
        values[f"{bind}_{number}"] = as_regular_expression(pattern)
    return " AND ".join(conditions) or "true", values


def as_regular_expression(pattern: str) -> str:
    """A pattern of fnmatch as PostgreSQL's regular expression: `*`, `?` and `[…]`, with case, over line ends."""
    parts, position = [], 0
    while position < len(pattern):
        char = pattern[position]
        end = pattern.find("]", position + 2 + pattern.startswith("!", position + 1)) if char == "[" else -1
        if end > 0:
            inside = pattern[position + 1 : end]
            negated = "^" if inside.startswith("!") else ""
            members = re.sub(r"([\\^\[\]])", r"\\\1", inside.removeprefix("!"))
            parts.append(f"[{negated}{members}]")
            position = end
        else:
            parts.append({"*": ".*", "?": "."}.get(char) or (char if char.isalnum() else f"\\{char}"))
        position += 1
    return f"^(?:{''.join(parts)})$"
