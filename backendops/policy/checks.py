"""What is right in each job alone and wrong between them: results removed before they are archived, and the like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import TypeGuard

from backendops.contracts.backend import Backend
from backendops.contracts.job import Job
from backendops.contracts.units import Duration
from backendops.jobs.archive import Archive
from backendops.jobs.expire import Expire
from backendops.jobs.partition import Partition
from backendops.policy import retention
from backendops.policy.fault import Fault


def faults(
    jobs: Mapping[str, Job], backends: Mapping[str, Backend], pairs: Mapping[str, tuple[str, ...]]
) -> Iterator[Fault]:
    """Every fault between the jobs and backends; `pairs` has the backends of each job."""
    for name, job in jobs.items():
        yield from _job_alone(name, job)
    for backend_name in backends:
        here = {name: job for name, job in jobs.items() if backend_name in pairs.get(name, ())}
        yield from retention.on_one_backend(backend_name, backends[backend_name], here)
        yield from _one_archive_for_two_tables(backend_name, backends[backend_name], here)
        yield from _two_archives(backend_name, here)


def _job_alone(name: str, job: Job) -> Iterator[Fault]:
    if job.batch_time > job.statement_timeout:
        yield Fault(
            ("jobs", name, "batch_time" if "batch_time" in job.model_fields_set else "statement_timeout"),
            f"job {name!r}: batch_time ({Duration(job.batch_time)}) is longer than statement_timeout "
            f"({Duration(job.statement_timeout)}), so every batch would be cut off: aim well below it",
        )
    if isinstance(job, (Expire, Archive)):
        yield from retention.of_one_job(name, job)


def is_kept_here(job: Job) -> TypeGuard[Archive | Partition]:
    """Does it keep an archive in the backend's own database?"""
    return isinstance(job, Partition) or (isinstance(job, Archive) and job.to is None)


def _one_archive_for_two_tables(backend_name: str, backend: Backend, jobs: Mapping[str, Job]) -> Iterator[Fault]:
    tables = backend.table_names()
    for name, job in jobs.items():
        if len(tables) > 1 and is_kept_here(job) and "{table}" not in job.table:
            yield Fault(
                ("jobs", name, "table"),
                f"job {name!r}: {job.table!r} would be the one archive of {' and '.join(tables)} in {backend_name!r}: "
                "write {table} in it, such as '{table}_archive'",
            )


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
