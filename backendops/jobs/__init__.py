"""The rows of the matrix. Adding a job is one file and one line here."""

from __future__ import annotations

from typing import Final

from backendops.contracts.job import Job
from backendops.jobs.archive import Archive
from backendops.jobs.expire import Expire
from backendops.jobs.partition import Partition
from backendops.jobs.pool_health import PoolHealth
from backendops.jobs.redis_memory import RedisMemory
from backendops.jobs.vacuum import Vacuum

JOBS: Final[dict[str, type[Job]]] = {
    "expire": Expire,
    "archive": Archive,
    "partition": Partition,
    "vacuum": Vacuum,
    "redis-memory": RedisMemory,
    "pool-health": PoolHealth,
}
