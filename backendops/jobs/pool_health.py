"""pool-health: is the backend up, how quick is it, and how near its connection limit."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar

from pydantic import Field

from backendops.contracts.capabilities import CanReportPool
from backendops.contracts.job import Job
from backendops.contracts.run import Pace, Preview, Step, Steps


class PoolHealth(Job):
    """Probe the backend on a fresh connection; a dead backend is a result, not a crash."""

    kind_name: ClassVar[str] = "pool-health"
    needs: ClassVar[type] = CanReportPool
    changes: ClassVar[bool] = False
    metrics: ClassVar = ()

    connections_warning: Annotated[float, Field(gt=0, le=1)] = Field(
        0.8, description="Warn where connections are at least this part of the limit."
    )

    def preview(self, backend: CanReportPool, now: datetime) -> Preview:
        raise NotImplementedError

    def run(self, backend: CanReportPool, now: datetime, pace: Pace) -> Steps:
        yield Step()
