"""The status page: one document without scripts and without anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from string import Template
from typing import Any, Final

from backendops.contracts.units import format_bytes, format_seconds

_TEMPLATE: Final = Template((files(__package__) / "page.html").read_text(encoding="utf-8"))
_STYLE: Final = (files(__package__) / "page.css").read_text(encoding="utf-8")
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
# Quick enough to watch a run, slow enough to read a line.
REFRESH_SECONDS: Final = 10

# The browser takes this one style sheet and nothing else: what a job or a backend is called can never run.
CONTENT_SECURITY_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_MARKS: Final = {
    "completed": "good",
    "out-of-time": "warn",
    "stopped": "warn",
    "cancelled": "warn",
    "locked": "warn",
    "lost-lock": "bad",
    "busy": "bad",
    "refused": "bad",
    "unreachable": "bad",
    "failed": "bad",
}
_SEVERITIES: Final = {"critical": "bad", "warning": "warn", "info": "busy"}


def render(status: Mapping[str, Any]) -> bytes:
    """The page for a snapshot (see daemon.status)."""
    now = datetime.fromisoformat(status["now"])
    mark, said = _overall(status)
    policy = status["policy"]
    about = (
        f"{escape(status['version'])} · up {_span(status['started_at'], now)} · "
        f"policy <code>{escape(policy['file'])}</code>, loaded {_moment(policy['loaded_at'], now)}"
    )
    return _TEMPLATE.substitute(
        refresh=REFRESH_SECONDS,
        title=escape(f"backendops: {said}"),
        style=_STYLE,
        state=mark,
        state_text=escape(said),
        about=about,
        problems=_problems(policy["problems"]) + _ledger(status["ledger"]["failure"]),
        findings="".join(_finding(finding, now) for finding in status["findings"]),
        jobs=_table(
            ["Job", "Backend", "Schedule", "Last run", "Next run"],
            [_job(job, now) for job in status["jobs"]],
            "no jobs",
        ),
        backends="\n".join(_backend(backend, now) for backend in status["backends"]),
        runs=_table(
            ["Run", "Job", "Ended", "Outcome", "Rows", "Took"],
            [_past_run(run, now) for run in status["recent_runs"]],
            "no run has ended yet",
        ),
        now=escape(status["now"]),
    ).encode()


def _overall(status: Mapping[str, Any]) -> tuple[str, str]:
    down = sum(backend["up"] is False for backend in status["backends"])
    failing = sum(bool(job["last_run"] and job["last_run"]["failure"]) for job in status["jobs"])
    critical = sum(finding["severity"] == "critical" for finding in status["findings"])
    if not status["policy"]["valid"]:
        return "bad", "policy refused"
    if status["ledger"]["failure"]:
        return "bad", "ledger failing"
    if down or failing or critical:
        parts = [(down, "down"), (failing, "failing"), (critical, "critical")]
        return "bad", ", ".join(f"{count} {word}" for count, word in parts if count)
    running = sum(job["running"] is not None for job in status["jobs"])
    return ("busy", f"{running} running") if running else ("good", "all well")


def _problems(problems: Sequence[str]) -> str:
    if not problems:
        return ""
    lines = "".join(f"<li><code>{escape(problem)}</code></li>" for problem in problems)
    return (
        '<div class="notice problem"><strong>The policy in the file was refused; '
        "the one loaded before stays in force.</strong>"
        f"<ul>{lines}</ul></div>"
    )


def _ledger(failure: str | None) -> str:
    if not failure:
        return ""
    return (
        '<div class="notice problem"><strong>The ledger could not be written: '
        "jobs run, and what is below is old.</strong>"
        f"<p><code>{escape(failure)}</code></p></div>"
    )


def _finding(finding: Mapping[str, Any], now: datetime) -> str:
    severity = str(finding["severity"])
    return (
        f'<div class="notice {escape(severity)}">{_mark(_SEVERITIES.get(severity, ""), severity)} '
        f"<strong>{escape(finding['backend'])}</strong>: {escape(finding['sentence'])}"
        f'<p class="note">{escape(finding["fix"])}</p>'
        f'<p class="note soft"><code>{escape(finding["code"])}</code>, found by {escape(finding["job"])} '
        f"{_moment(finding['found_at'], now)}</p></div>\n"
    )


def _job(job: Mapping[str, Any], now: datetime) -> str:
    name = escape(job["job"])
    if job["kind"] != job["job"]:
        name += f' <span class="soft">({escape(job["kind"])})</span>'
    if job["running"]:
        running = job["running"]
        last = f"{_mark('busy', 'running')} {running['rows']:,} rows in {_span(running['since'], now)}"
    elif job["last_run"]:
        last = _outcome(job["last_run"], now)
    else:
        last = '<span class="soft">no run yet</span>'
    if job["paused"]:
        due = _mark("warn", "paused")
    else:
        due = _moment(job["next_run"], now) if job["next_run"] else '<span class="soft">only when asked</span>'
    brief = [("Backend", escape(job["backend"])), ("Schedule", escape(job["schedule"] or ""))]
    cells = _cells(brief, "brief") + _cells([("Last run", last)], "long") + _cells([("Next run", due)], "brief")
    return f'<tr><th scope="row">{name}</th>{cells}</tr>'


def _outcome(run: Mapping[str, Any], now: datetime) -> str:
    mark, ended = _mark(_MARKS.get(run["outcome"], ""), run["outcome"]), _moment(run["ended_at"], now)
    return f'<div>{mark} <span class="when">{ended}</span>{_explanation(run)}</div>'


def _explanation(run: Mapping[str, Any]) -> str:
    if run["error"]:
        hint = f"<br>{escape(run['hint'])}" if run["hint"] else ""
        return f'<div class="note {"fault" if run["failure"] else "soft"}">{escape(run["error"])}{hint}</div>'
    return f'<div class="note soft">{escape(run["what"])}</div>' if run["what"] else ""


def _past_run(run: Mapping[str, Any], now: datetime) -> str:
    job = f"{escape(run['job'])} on {escape(run['backend'])} <span class='soft'>({escape(run['trigger'])})</span>"
    outcome = f"<div>{_mark(_MARKS.get(run['outcome'], ''), run['outcome'])}{_explanation(run)}</div>"
    numbers = [("Rows", f"{run['rows']:,}"), ("Took", format_seconds(run["seconds"]))]
    return (
        f'<tr><th scope="row">{run["run"]}</th>{_cells([("Job", job)])}'
        f"{_cells([('Ended', _moment(run['ended_at'], now))], 'brief')}"
        f"{_cells([('Outcome', outcome)], 'long')}{_cells(numbers, 'number')}</tr>"
    )


def _backend(backend: Mapping[str, Any], now: datetime) -> str:
    mark = {True: _mark("good", "up"), False: _mark("bad", "down"), None: _mark("", "not tried yet")}[backend["up"]]
    checked = f", tried {_moment(backend['checked_at'], now)}" if backend["checked_at"] else ""
    readings = "".join(
        f"<div><dt>{escape(_words(name))}</dt><dd>{escape(_value(name, value))}</dd></div>"
        for name, value in backend["readings"].items()
        if not name.startswith(("backend_up", "findings")) and not (name.startswith("pool_connections ") and not value)
    )
    return (
        f'<article class="card"><div class="top"><h3>{escape(backend["backend"])}</h3>{mark}</div>'
        f'<p class="note soft"><code>{escape(backend["url"])}</code></p>'
        f'<p class="note soft">{escape(backend["kind"])}{checked}</p><dl>{readings}</dl></article>'
    )


def _words(name: str) -> str:
    """`table_bytes celery_taskmeta` reads `table, celery_taskmeta`: the unit is told by the value."""
    noun, *labels = name.split(" ")
    for unit in ("_seconds", "_bytes", "_ratio"):
        noun = noun.removesuffix(unit)
    return ", ".join(
        [noun.replace("_", " "), *(label.replace("_", " ") if noun.startswith("pool") else label for label in labels)]
    )


def _value(name: str, value: float) -> str:
    noun = name.partition(" ")[0]
    if noun.endswith("_bytes"):
        return format_bytes(value) if value or "limit" not in noun else "no limit"
    if noun.endswith("_seconds"):
        return format_seconds(value)
    if noun == "id_headroom_ratio":
        return f"{value:.1%} free"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"


def _table(heads: Iterable[str], rows: Sequence[str], nothing: str) -> str:
    if not rows:
        return f'<p class="soft">{escape(nothing)}</p>'
    numbers = {"Rows", "Took"}
    head = "".join(f'<th scope="col"{" class=number" if name in numbers else ""}>{escape(name)}</th>' for name in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{chr(10).join(rows)}\n</tbody></table>"


def _cells(cells: Iterable[tuple[str, str]], kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return "".join(
        f'<td{attribute} data-label="{label}">{inner}</td>' if inner else "<td></td>" for label, inner in cells
    )


def _mark(kind: str, text: str) -> str:
    return f'<span class="mark {kind}">{escape(text)}</span>'


def _moment(moment: str, now: datetime) -> str:
    """`3m 20s ago` or `in 5 s`, with the exact time behind it."""
    seconds = (datetime.fromisoformat(moment) - now).total_seconds()
    words = f"in {_rounded(seconds)}" if seconds > 0 else f"{_rounded(-seconds)} ago"
    if abs(seconds) < 1:
        words = "now"
    return f'<time datetime="{escape(moment)}" title="{escape(moment)}">{words}</time>'


def _span(since: str, now: datetime) -> str:
    return _rounded(max((now - datetime.fromisoformat(since)).total_seconds(), 0))


def _rounded(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else format_seconds(seconds)  # noqa: PLR2004 - what a minute is
