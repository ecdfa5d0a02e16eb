"""What is right in each job alone and wrong between them: results removed before they are archived, and the like."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import combinations
from typing import Final, TypeGuard

from backendops.contracts.backend import Backend
from backendops.contracts.job import Job
from backendops.contracts.units import Duration, Forever, Keep
from backendops.jobs.archive import Archive
from backendops.jobs.expire import Expire
from backendops.jobs.partition import Partition

# celery/states.py
CELERY_STATES: Final = (
    "PENDING",
    "RECEIVED",
    "STARTED",
    "SUCCESS",
    "FAILURE",
    "REVOKED",
    "REJECTED",
    "RETRY",
    "IGNORED",
)
# One slip of the finger in a word of seven letters; custom states differ by more.
_SLIP: Final = 0.85


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault under `keys` of the policy, such as ("jobs", "expire", "keep")."""

    keys: tuple[str, ...]
    message: str


def faults(
    jobs: Mapping[str, Job], backends: Mapping[str, Backend], pairs: Mapping[str, tuple[str, ...]]
) -> Iterator[Fault]:
    """Every fault between the jobs and backends; `pairs` has the backends of each job."""
    for name, job in jobs.items():
        yield from _job_alone(name, job)
    for backend_name in backends:
        here = {name: job for name, job in jobs.items() if backend_name in pairs.get(name, ())}
        yield from _gone_before_archived(backend_name, backends[backend_name], here)
        yield from _two_archives(backend_name, here)


def _job_alone(name: str, job: Job) -> Iterator[Fault]:
    if job.batch_time > job.statement_timeout:
        yield Fault(
            ("jobs", name, "batch_time" if "batch_time" in job.model_fields_set else "statement_timeout"),
            f"job {name!r}: batch_time ({Duration(job.batch_time)}) is longer than statement_timeout "
            f"({Duration(job.statement_timeout)}), so every batch would be cut off: aim well below it",
        )
    if isinstance(job, Expire):
        for state in job.keep_by_state:
            yield from _odd_state(name, state)


def _odd_state(name: str, state: str) -> Iterator[Fault]:
    if state in CELERY_STATES:
        return
    # A state that never occurs would leave its results to the shorter `keep`.
    close = difflib.get_close_matches(state.upper(), CELERY_STATES, n=1, cutoff=_SLIP)
    likely = [known for known in close if abs(len(known) - len(state)) <= 1]
    if likely:
        hint = f"did you mean {likely[0]}?"
    elif state != state.upper():
        hint = f"states are written in capitals, as Celery stores them: {state.upper()}"
    else:
        return
    yield Fault(("jobs", name, "keep_by_state", state), f"job {name!r}: unknown state {state!r}, {hint}")


def _gone_before_archived(backend_name: str, backend: Backend, jobs: Mapping[str, Job]) -> Iterator[Fault]:
    archives = {name: job for name, job in jobs.items() if isinstance(job, Archive)}
    for archive_name, archive in archives.items():
        later = f"before {archive_name!r} archives them ({archive.older_than}): make it longer"
        if _not_longer(backend.result_expires, archive.older_than):
            yield Fault(
                ("backends", backend_name, "result_expires"),
                f"Celery removes results from {backend_name!r} after {backend.result_expires}, {later}",
            )
        for name, job in jobs.items():
            if not isinstance(job, Expire):
                continue
            if _not_longer(job.keep, archive.older_than):
                yield Fault(
                    ("jobs", name, "keep"),
                    f"job {name!r} removes results from {backend_name!r} after {job.keep}, {later}",
                )
            for state, keep in job.keep_by_state.items():
                if _not_longer(keep, archive.older_than):
                    yield Fault(
                        ("jobs", name, "keep_by_state", state),
                        f"job {name!r} removes {state} results from {backend_name!r} after {keep}, {later}",
                    )


def _not_longer(keep: Keep | None, older_than: Duration) -> bool:
    """Could results be gone at the moment they are due for the archive? The shortest calendar month decides."""
    if keep is None or isinstance(keep, Forever):
        return False
    months = keep.months - older_than.months
    return keep.rest - older_than.rest + timedelta(days=months * (28 if months > 0 else 31)) <= timedelta()


def is_kept_here(job: Job) -> TypeGuard[Archive | Partition]:
    """Does it keep an archive in the backend's own database?"""
    return isinstance(job, Partition) or (isinstance(job, Archive) and job.to is None)


def _two_archives(backend_name: str, jobs: Mapping[str, Job]) -> Iterator[Fault]:
    keepers = [(name, job) for name, job in jobs.items() if is_kept_here(job)]
    for (first_name, first), (name, job) in combinations(keepers, 2):
        for key, one, other in (
            ("table", first.table, job.table),
            ("schema", first.table_schema, job.table_schema),
            ("every", first.every, job.every),
        ):
            if one != other:
                yield Fault(
                    ("jobs", name, key),
                    f"jobs {first_name!r} and {name!r} share {backend_name!r} but disagree about its archive: "
                    f"{key} is {one or 'left out'!r} in one and {other or 'left out'!r} in the other",
                )
