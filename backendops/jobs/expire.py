"""expire: remove results past keeping; on Redis, give an expiry to those that have none."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from backendops.contracts import metrics
from backendops.contracts.capabilities import CanExpire
from backendops.contracts.job import Job
from backendops.contracts.retention import GROUP_MARGIN, KeyRules, Retention, Rule
from backendops.contracts.run import Pace, Preview, Steps
from backendops.contracts.units import FixedDuration, Keep
from backendops.jobs.rules import KeepRule, State, cutoff, keep_rules, keeps_of


class RedisRules(BaseModel):
    """What expire does on Redis beyond giving an expiry to results that have none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shorten: bool = Field(
        False, description="Make an expiry that reaches past `keep` shorter; left out: one that is there stays."
    )
    chord_keep: FixedDuration | None = Field(
        None,
        description="How long the parts of a chord stay after the last use of any of them; left out: as `keep` says.",
        examples=["7d"],
    )
    rpc_lists: FixedDuration | None = Field(
        None,
        description="Remove reply lists of RPC over Redis that were idle for so long; left out: none is touched.",
        examples=["7d"],
    )
    pidbox_lists: FixedDuration | None = Field(
        None,
        description="Remove answers to `celery inspect` that were idle for so long; left out: none is touched.",
        examples=["7d"],
    )

    def at(self, now: datetime) -> KeyRules:
        """As a run that starts at `now` needs them."""
        chord_cutoff = None if self.chord_keep is None else now - self.chord_keep
        return KeyRules(self.shorten, chord_cutoff, self.rpc_lists, self.pidbox_lists)


class Expire(Job):
    """Remove results past `keep`, in batches the application does not notice."""

    kind_name: ClassVar[str] = "expire"
    needs: ClassVar[type] = CanExpire
    changes: ClassVar[bool] = True
    metrics: ClassVar = (metrics.RESULTS_DUE, metrics.RESULTS_OLDEST_AGE)

    keep: Keep = Field(description="How long a finished result stays: 30d, 13 months, forever.")
    keep_by_state: dict[State, Keep] = Field(
        default_factory=dict,
        description="Other times for some states, such as {FAILURE: 90d}.",
    )
    rules: list[KeepRule] = Field(
        default_factory=list,
        description="Other times by task, queue and state, such as {task: reports.*, keep: 90d} or {queue: bulk, "
        "keep: 1d}: the first that matches decides, before keep_by_state and keep.",
    )
    keep_newest: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        None,
        description="So many of the newest finished results of each table stay, whatever their age; not on Redis.",
        examples=[1000],
    )
    group_margin: FixedDuration = Field(
        GROUP_MARGIN,
        description="How much longer than `keep` a saved group stays whose members cannot be read (it is pickled).",
    )
    redis: RedisRules = Field(RedisRules(), description="What is done on Redis only.")

    def keeps(self) -> Mapping[str, Keep]:
        by_state = {f"keep_by_state.{state}": keep for state, keep in self.keep_by_state.items()}
        return {"keep": self.keep, **by_state, **keeps_of(self.rules)}

    def retention(self, now: datetime) -> Retention:
        """The cutoffs of a run that starts at `now`."""
        by_state = (Rule(cutoff(now, keep), state=state) for state, keep in self.keep_by_state.items())
        return Retention(
            cutoff(now, self.keep),
            (*keep_rules(self.rules, now), *by_state),
            keys=self.redis.at(now),
            keep_newest=self.keep_newest or 0,
            group_margin=self.group_margin,
        )

    def preview(self, backend: CanExpire, now: datetime) -> Preview:
        return backend.preview_expire(self.retention(now))

    def run(self, backend: CanExpire, now: datetime, pace: Pace) -> Steps:
        yield from backend.expire(self.retention(now), pace)
