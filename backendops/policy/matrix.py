"""What works where: capabilities × backends, and the job that each capability enables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from backendops.backends import BACKENDS
from backendops.contracts.backend import Backend
from backendops.contracts.job import Job
from backendops.jobs import JOBS
from backendops.policy.pairing import can_do

YES: Final = "yes"
NO: Final = "-"
ELSEWHERE: Final = "with-to"
"""Not by itself, but with the key `to`, which names another place."""


_SIGNS: Final = {YES: "✓", NO: "–", ELSEWHERE: "with `to`"}


def headings() -> list[str]:
    """One column for each backend."""
    return ["job", "needs", *(backend.kind for backend in BACKENDS)]


def cells() -> list[list[str]]:
    """One row for each job."""
    return [
        [kind, job.needs.__name__, *(_cell(backend, job) for backend in BACKENDS)]  # one row for each job
        for kind, job in JOBS.items()
    ]


def _cell(backend: type[Backend], job: type[Job]) -> str:
    if can_do(backend, job):
        return YES
    return ELSEWHERE if can_do(backend, job, ("to",)) else NO


def columns() -> Iterator[str]:
    """Which URLs each backend is behind."""
    for backend in BACKENDS:
        yield f"{backend.kind}: {', '.join(f'{scheme}://' for scheme in backend.schemes)}"


def as_markdown() -> str:
    """The table of README.md and docs/backends.md."""
    jobs = [
        [f"`{row[0]}`", f"`{row[1]}`", *(_SIGNS[cell] for cell in row[2:])]  # one row for each job
        for row in cells()
    ]
    rows = [headings(), ["---"] * len(headings()), *jobs]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def document() -> dict[str, Any]:
    """The matrix for scripts."""
    return {
        "jobs": {
            kind: {
                "needs": job.needs.__name__,
                "changes": job.changes,
                "backends": [backend.kind for backend in BACKENDS if can_do(backend, job)],
            }
            for kind, job in JOBS.items()
        },
        "backends": {
            backend.kind: {"class": backend.__name__, "schemes": list(backend.schemes)} for backend in BACKENDS
        },
    }
