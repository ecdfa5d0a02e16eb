"""Turns the daemon's log, JSON lines made for machines, into one plain sentence for each run."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from backendops.jobs import JOBS

_MARKS: Final = {"warning": "!", "critical": "!!"}

# A run says first how much was due; what it then did says how much that was.
_DUE: Final = re.compile(r"[\d,]+ results? (is|are) due")
# More than fits a line or two: the status page and the log have the rest.
_CLAUSES: Final = 2
_QUOTED: Final = re.compile(r'"public"\.|"')


def narrate(lines: Iterable[str]) -> None:
    """Say what each run did, until the daemon closes its log. A finding is said when it is new, not every time."""
    told: set[tuple[Any, ...]] = set()
    for line in lines:
        for sentence in sentences(line, told):
            say(sentence)


def say(sentence: str = "") -> None:
    """One line for the person who watches."""
    sys.stdout.write(sentence + "\n")
    sys.stdout.flush()


def sentences(line: str, told: set[tuple[Any, ...]]) -> Iterable[str]:
    """What one log line is worth saying; `told` keeps what need not be said again."""
    try:
        event: dict[str, Any] = json.loads(line)
    except ValueError:
        yield line.rstrip()
        return
    match event.get("event"):
        case "run.ended":
            yield from _run(event, told)
        case "finding.raised":
            found = (event.get("job"), event.get("backend"), event.get("code"))
            if found not in told and event.get("severity") in _MARKS:
                told.add(found)
                yield f"{'':10}{_MARKS[event['severity']]} {event.get('sentence')}: {event.get('fix')}"
        case name if event.get("level") in {"warning", "error", "critical"}:
            details = {key: value for key, value in event.items() if key not in {"event", "level", "timestamp", "run"}}
            yield f"{_clock(event)}  {name} {' '.join(f'{key}={value}' for key, value in details.items())}"


def _run(event: dict[str, Any], told: set[tuple[Any, ...]]) -> Iterable[str]:
    job, backend, rows = event.get("job"), event.get("backend"), event.get("rows", 0)
    what = _QUOTED.sub("", str(event.get("what") or ""))
    clauses = [clause for clause in what.split("; ") if clause and not _DUE.fullmatch(clause)]
    if event.get("outcome") != "completed":
        said = ": ".join(str(event[key]) for key in ("outcome", "error", "hint") if event.get(key))
    elif clauses:
        said = "; ".join(_shorter(clauses))
        if rows:
            said = f"{rows:,} {said}"
    else:
        said = f"{rows:,} rows" if rows else "nothing to do"
    # A probe, or a run that found nothing, is worth one line, not one every five seconds.
    is_quiet = said == "nothing to do" or (job in JOBS and not JOBS[job].changes)
    if is_quiet and event.get("outcome") == "completed":
        if ("quiet", job, backend) in told:
            return
        told.add(("quiet", job, backend))
    yield f"{_clock(event)}  {job:<12} on {backend:<8} {said}  ({1000 * event.get('seconds', 0):,.0f} ms)"


def _shorter(clauses: list[str]) -> list[str]:
    """`made a; made b; made c; detached d` reads `made 3, the last of them c; detached d`."""
    if len(clauses) <= _CLAUSES:
        return clauses
    groups: dict[str, list[str]] = {}
    for clause in clauses:
        if clause.startswith("it "):
            # Said of the clause before it.
            continue
        groups.setdefault(clause.split()[0], []).append(clause)
    return [
        alike[0] if len(alike) == 1 else f"{verb} {len(alike)}, the last of them {' '.join(alike[-1].split()[1:])}"
        for verb, alike in groups.items()
    ]


def _clock(event: dict[str, Any]) -> str:
    try:
        moment = datetime.fromisoformat(str(event.get("timestamp")))
    except ValueError:
        return f"{'':8}"
    return f"{moment.astimezone():%H:%M:%S}"
