"""A job is a kind of work and its settings. It is a pydantic model: its fields are its policy keys."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from backendops.contracts.errors import BackendUnreachable
from backendops.contracts.readings import Metric
from backendops.contracts.run import Pace, Preview, Step, Steps
from backendops.contracts.units import FixedDuration, Keep


class Job(BaseModel, ABC):
    """One named entry of the policy's jobs; it knows what to do and asks the backend to do it."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    kind_name: ClassVar[str]
    needs: ClassVar[type]
    """The one capability a backend must have."""
    changes: ClassVar[bool]
    """Does it change the backend? Changing jobs on one backend exclude each other."""
    takes_first: ClassVar[bool] = False
    """Do others leave alone what it has still to take?"""
    minds_the_clock: ClassVar[bool] = True
    """Does it decide by the age of results? Then it is refused where a clock is wrong."""
    metrics: ClassVar[tuple[Metric, ...]] = ()
    """What its steps may read: each series is there, at zero, from the moment the policy loads."""

    kind: str | None = Field(None, description="The kind of job, where the entry's name is another word.")
    backend: str | list[str] | None = Field(
        None, description="A backend, or a list of them; left out: every backend that can."
    )
    schedule: str | None = Field(
        None,
        description="`every 90s`, a five-field cron line or @daily; left out: it runs only when asked.",
    )
    time_budget: FixedDuration = Field(
        timedelta(hours=1),
        description="How long one run may take; what is left waits for the next run.",
    )
    statement_timeout: FixedDuration = Field(
        timedelta(seconds=30),
        description="How long one statement may take; batches aim far below it.",
    )
    batch_time: FixedDuration = Field(
        timedelta(milliseconds=250),
        description="What one batch may take at full speed, so that no writer waits longer behind it.",
    )
    batch_size: Annotated[int, Field(ge=1, le=100_000)] = Field(
        1000,
        description="Rows of the first batch; the following ones follow batch_time.",
    )
    pace: Literal["auto", "gentle", "full"] = Field(
        "auto",
        description="gentle: small batches with long rests between them, which an application does not notice; full: "
        "as fast as batch_time lets it; auto: gentle while others use the server, where the backend can tell.",
    )
    max_rows: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Refuse to start when more rows than this are due (exit 5); left out: no such limit.",
    )

    allow_short_keep: bool = Field(
        False,
        description="Let results go that finished less than an hour ago; otherwise a shorter time is refused (exit 5), "
        "as most of them are a slip of the unit.",
    )

    def keeps(self) -> Mapping[str, Keep]:
        """How long results stay, by the key that says so, the one for most of them first; none where none ever goes."""
        return {}

    @classmethod
    def ability(cls, keys: Collection[str]) -> type:  # noqa: ARG003 - for those that override it
        """The capability that an entry with these policy keys needs: `needs`, unless the kind says otherwise."""
        return cls.needs

    @abstractmethod
    def preview(self, backend: Any, now: datetime) -> Preview:
        """What a run would do; the connection is read-only and `run` is never reached."""

    @abstractmethod
    def run(self, backend: Any, now: datetime, pace: Pace) -> Steps:
        """Do it; every `yield` is a place where stopping is safe."""

    def when_unreachable(self, error: BackendUnreachable) -> Step | None:  # noqa: ARG002 - for those that override it
        """What to record where the backend is dead; None where that is no result of this kind of job.

        The engine records the step, and the run counts as completed: it found out what it is there to find out.
        """
        return None
