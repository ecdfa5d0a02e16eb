"""redis-memory: what the server's memory is taken by, and whether eviction can hurt."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, ClassVar

from pydantic import Field

from backendops.contracts.capabilities import CanReportMemory
from backendops.contracts.job import Job
from backendops.contracts.run import Pace, Preview, Step, Steps
from backendops.contracts.units import FixedDuration


class RedisMemory(Job):
    """Check memory against its limit, and the eviction policy against what lives in the database."""

    kind_name: ClassVar[str] = "redis-memory"
    needs: ClassVar[type] = CanReportMemory
    changes: ClassVar[bool] = False
    metrics: ClassVar = ()

    sample_time: FixedDuration = Field(
        timedelta(seconds=5), description="How long the keyspace may be sampled in one run."
    )
    memory_warning: Annotated[float, Field(gt=0, le=1)] = Field(
        0.8, description="Warn where used memory is at least this part of maxmemory."
    )
    memory_critical: Annotated[float, Field(gt=0, le=1)] = Field(
        0.95, description="Critical where used memory is at least this part of maxmemory."
    )

    def preview(self, backend: CanReportMemory, now: datetime) -> Preview:
        raise NotImplementedError

    def run(self, backend: CanReportMemory, now: datetime, pace: Pace) -> Steps:
        yield Step()
