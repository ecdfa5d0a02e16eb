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
_DUE: Final = re.compile(r"((about |at least )?[\d,]+ results are|no result is) due")
_DONE: Final = "nothing that is due is left"
_QUOTED: Final = re.compile(r'"public"\.|"')
# What a run's rows went through. Of a vacuum they are dead rows, of which its clauses tell.
_OF_ROWS: Final = re.compile(r"(moved to|removed from) (\S+)|given an expiry")
# What is done to one table after the other, and the table.
_OF_TABLES: Final = re.compile(r"(made|froze|rewrote|\w+ed) (?:the archive )?(\w*_\w*)")
_PARTITION: Final = re.compile(r"_p\d{4}")


def narrate(lines: Iterable[str]) -> None:
    """Say what each run did, until the daemon closes its log."""
    narrator = Narrator()
    for line in lines:
        for sentence in narrator.sentences(line):
            say(sentence)


def say(sentence: str = "") -> None:
    """One line for the person who watches."""
    sys.stdout.write(sentence + "\n")
    sys.stdout.flush()


class Narrator:
    """Says each run in one line, and below it what it found: a finding when it is new, not every time."""

    def __init__(self) -> None:
        self._told: set[tuple[Any, ...]] = set()
        # By run: the log has findings before the end of their run, people read them after it.
        self._found: dict[Any, list[str]] = {}

    def sentences(self, line: str) -> Iterable[str]:
        """What one log line is worth saying."""
        try:
            event: dict[str, Any] = json.loads(line)
        except ValueError:
            yield line.rstrip()
            return
        match event.get("event"):
            case "run.ended":
                found = self._found.pop(event.get("run"), [])
                yield from self._run(event, aloud=bool(found))
                yield from found
            case "finding.raised":
                self._finding(event)
            case name if event.get("level") in {"warning", "error", "critical"}:
                details = {
                    key: value for key, value in event.items() if key not in {"event", "level", "timestamp", "run"}
                }
                yield f"{_clock(event)}  {name} {' '.join(f'{key}={value}' for key, value in details.items())}"

    def _finding(self, event: dict[str, Any]) -> None:
        which = (event.get("job"), event.get("backend"), event.get("code"))
        if which not in self._told and event.get("severity") in _MARKS:
            self._told.add(which)
            said = f"{'':10}{_MARKS[event['severity']]} {event.get('sentence')}: {event.get('fix')}"
            self._found.setdefault(event.get("run"), []).append(said)

    def _run(self, event: dict[str, Any], aloud: bool) -> Iterable[str]:
        job, backend, rows = event.get("job"), event.get("backend"), event.get("rows", 0)
        what = _QUOTED.sub("", str(event.get("what") or ""))
        if event.get("outcome") != "completed":
            said = ": ".join(str(event[key]) for key in ("outcome", "error", "hint") if event.get(key))
        else:
            said = in_words(rows, what.split("; ")) or (f"{rows:,} rows" if rows else "nothing to do")
        # A probe, or a run that found nothing, is worth one line, not one every five seconds.
        is_quiet = said == "nothing to do" or (job in JOBS and not JOBS[job].changes)
        if is_quiet and event.get("outcome") == "completed":
            if ("quiet", job, backend) in self._told and not aloud:
                return
            self._told.add(("quiet", job, backend))
        yield f"{_clock(event)}  {job:<12} on {backend:<8} {said}  ({1000 * event.get('seconds', 0):,.0f} ms)"


def in_words(rows: int, clauses: Iterable[str]) -> str:
    """What a run did, rows first, tables of one fate in one clause: `130 moved to a and b; made 2 tables, ...`."""
    rest: dict[str, list[str]] = {}
    through: dict[str, list[str]] = {}
    for clause in clauses:
        if counted := _OF_ROWS.fullmatch(clause):
            through.setdefault(counted[1] or clause, []).extend([counted[2]] if counted[2] else [])
        elif clause == _DONE or _DUE.fullmatch(clause) or clause.startswith("it "):
            # Said of the clause before it, as are the rows of what was due.
            continue
        elif clause:
            table = _OF_TABLES.match(clause)
            rest.setdefault(table[1] if table else clause, []).append(clause)
    first = [f"{did} {' and '.join(to)}".rstrip() for did, to in through.items()] if rows else []
    if first:
        first[0] = f"{rows:,} {first[0]}"
    return "; ".join([*first, *(_together(did, alike) for did, alike in rest.items())])


def _together(did: str, alike: list[str]) -> str:
    last = _OF_TABLES.match(alike[-1])
    if len(alike) == 1 or not last:
        return alike[0]
    kind = "partitions" if _PARTITION.search(last[2]) else "tables"
    return f"{did} {len(alike)} {kind}, {last[2]} the last"


def _clock(event: dict[str, Any]) -> str:
    try:
        moment = datetime.fromisoformat(str(event.get("timestamp")))
    except ValueError:
        return f"{'':8}"
    return f"{moment.astimezone():%H:%M:%S}"
