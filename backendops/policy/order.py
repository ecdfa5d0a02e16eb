"""Which results a job leaves alone until the archive jobs of the same backend have taken them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from backendops.contracts.backend import Backend
from backendops.contracts.capabilities import CanExpire
from backendops.contracts.job import Job
from backendops.contracts.order import Behind, settings_of
from backendops.jobs.archive import Archive
from backendops.jobs.expire import Expire
from backendops.jobs.partition import Partition
from backendops.policy.retention import Clause, clauses, deciding, finite


def in_order(name: str, job: Job, backend: Backend, beside: Mapping[str, Job]) -> Job:
    """The job as it runs on this backend, behind the archive jobs beside it there."""
    archives = {other: archive for other, archive in beside.items() if isinstance(archive, Archive)}
    if isinstance(job, Expire) and not job.allow_unarchived and isinstance(backend, CanExpire):
        return _expire(name, job, archives) if backend.removes_at_once else job
    if isinstance(job, Partition) and not job.allow_unarchived:
        return job.behind_these(
            tuple(
                one for other, archive in archives.items() for one in _behind(other, archive, clauses(other, archive))
            )
        )
    return job


def _expire(name: str, expire: Expire, archives: Mapping[str, Archive]) -> Expire:
    found: dict[tuple[str | int, ...], tuple[Behind, ...]] = {}
    earlier: list[Clause] = []
    for clause in clauses(name, expire):
        found[clause.keys[2:]] = tuple(
            one
            for other, archive in archives.items()
            for one in _behind(other, archive, tuple(deciding(clauses(other, archive), clause, earlier)))
        )
        earlier.append(clause)
    return expire.behind_these(found)


def _behind(name: str, archive: Archive, times: Sequence[Clause]) -> Iterator[Behind]:
    for clause in times:
        if (older_than := finite(clause.time)) is not None:
            yield Behind(name, settings_of(archive.keeps()), older_than)
