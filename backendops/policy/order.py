"""Which results an expire job leaves alone until the archive jobs of the same backend have taken them."""

from __future__ import annotations

from collections.abc import Mapping

from backendops.contracts.backend import Backend
from backendops.contracts.capabilities import CanExpire
from backendops.contracts.job import Job
from backendops.contracts.order import Behind, settings_of
from backendops.jobs.archive import Archive
from backendops.jobs.expire import Expire
from backendops.policy.retention import Clause, clauses, deciding, finite


def behind_archives(name: str, expire: Expire, backend: Backend, jobs: Mapping[str, Job]) -> Expire:
    """The job as it runs on this backend beside the other jobs there."""
    if expire.allow_unarchived or not (isinstance(backend, CanExpire) and backend.removes_at_once):
        return expire
    archives = {other: job for other, job in jobs.items() if isinstance(job, Archive)}
    found: dict[tuple[str | int, ...], tuple[Behind, ...]] = {}
    earlier: list[Clause] = []
    for clause in clauses(name, expire):
        found[clause.keys[2:]] = tuple(
            Behind(other, settings_of(job.keeps()), older_than)
            for other, job in archives.items()
            for late in deciding(clauses(other, job), clause, earlier)
            if (older_than := finite(late.time)) is not None
        )
        earlier.append(clause)
    return expire.behind_these(found)
