"""Which rows are due, as SQL: the retention's cutoffs in the zone that naive date_done values are in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from backendops.backends.postgres.tables import LiveTable
from backendops.contracts.retention import Retention, Rule


@dataclass(frozen=True, slots=True)
class Due:
    """A condition on a live table, and the naive moment from which on no row can meet it."""

    sql: str
    """In parentheses, with its values as binds; NULL date_done never meets it. For groups it has one more: `settled`,
    the ids of those whose members are known to be finished."""
    dated: str
    """The same by dates alone, also met by groups of whose members nothing is known yet."""
    values: dict[str, Any]
    latest: datetime


# A group that is not JSON is never read. Only its first byte is looked at: 0x5b is [.
_IS_JSON: Final = "coalesce(substring(result FROM 1 FOR 1) = decode('5b', 'hex'), false)"


def due_in(live: LiveTable, retention: Retention, zone: ZoneInfo, newest: datetime | None = None) -> Due | None:
    """What is due in `live`; None where everything in it is kept for ever.

    `newest` is the naive moment from which on results are among those that are kept whatever their age.
    """
    values: dict[str, Any] = {}
    # A group has no state, task or queue: one cutoff decides about all of them.
    due = Retention(retention.cutoff) if live.holds == "group" else retention
    if due.latest is None:
        return None
    latest = naive(due.latest, zone)
    # A date without an end says nothing about an age: such a row stays, and the survey says so. By comparison, as the
    # index answers that: a function would take every row apart, a sixth of what removing it costs.
    date = f"date_done > '-infinity' AND date_done < {_limit(due, live, zone, values)}"
    if newest is not None:
        latest, values["newest"] = min(latest, newest), newest
        date = f"{date} AND date_done < CAST(:newest AS timestamp)"
    if live.holds == "task":
        return Due(f"({date})", f"({date})", values, latest)
    values["margin"] = naive(due.latest - retention.group_margin, zone)
    is_json = _IS_JSON if live.has_column("result") else "false"
    past_margin = f"NOT {is_json} AND date_done < CAST(:margin AS timestamp)"
    return Due(
        f"({date} AND (id = ANY (CAST(:settled AS bigint[])) OR {past_margin}))",
        f"({date} AND ({is_json} OR {past_margin}))",
        values,
        latest,
    )


def _limit(due: Retention, live: LiveTable, zone: ZoneInfo, values: dict[str, Any]) -> str:
    whens = []
    for number, rule in enumerate(due.rules):
        condition, binds = _condition(rule, number, live)
        values.update(binds)
        whens.append(f"WHEN {condition} THEN {_cutoff(rule.cutoff, f'cutoff_{number}', zone, values)}")
    otherwise = _cutoff(due.cutoff, "cutoff", zone, values)
    return f"CASE {' '.join(whens)} ELSE {otherwise} END" if whens else otherwise


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
        # Without result_extended a row has no name, and a table from before it no such column: no pattern matches.
        value = column if live.has_column(column) else "CAST(NULL AS text)"
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
