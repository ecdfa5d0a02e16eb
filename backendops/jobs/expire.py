"""expire: remove results past keeping; on Redis, give an expiry to those that have none."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from backendops.contracts import metrics
from backendops.contracts.capabilities import CanExpire
from backendops.contracts.job import Job
from backendops.contracts.order import Behind, ComesBehind, is_far_behind, reached, unarchived
from backendops.contracts.readings import Finding
from backendops.contracts.retention import GROUP_MARGIN, KeyRules, Retention, Rule
from backendops.contracts.run import Pace, Preview, Step, Steps
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


class Expire(Job, ComesBehind):
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
    allow_unarchived: bool = Field(
        False,
        description="Remove results although an archive job of the same backend has still to take them; otherwise they "
        "stay until a run of it has completed.",
    )
    redis: RedisRules = Field(RedisRules(), description="What is done on Redis only.")

    _behind: Mapping[tuple[str | int, ...], tuple[Behind, ...]] = PrivateAttr(default_factory=dict)
    _completed: Mapping[str, datetime] = PrivateAttr(default_factory=dict)

    def behind_these(self, behind: Mapping[tuple[str | int, ...], tuple[Behind, ...]]) -> Self:
        """The same job where archive jobs take what each of its times is about first, by the keys of that time."""
        job = self.model_copy()
        job._behind = behind
        return job

    @property
    def behind(self) -> Collection[Behind]:
        return {one for waits in self._behind.values() for one in waits}

    def knowing(self, completed: Mapping[str, datetime]) -> Self:
        job = self.model_copy()
        job._completed = completed
        return job

    def held_back(self, now: datetime) -> Collection[str]:
        dues = ((name, keys, cutoff(now, keep)) for name, keys, keep in self._times())
        return {name for name, keys, due in dues if is_far_behind(due, self._taken(due, *keys))}

    def keeps(self) -> Mapping[str, Keep]:
        return {name: keep for name, _, keep in self._times()}

    def _times(self) -> Iterator[tuple[str, tuple[str | int, ...], Keep]]:
        """Each time in the words of the policy, by its keys."""
        yield "keep", ("keep",), self.keep
        for state, keep in self.keep_by_state.items():
            yield f"keep_by_state.{state}", ("keep_by_state", state), keep
        for at, rule in enumerate(self.rules):
            for name, keep in keeps_of([rule]).items():
                yield name, ("rules", at), keep

    def retention(self, now: datetime) -> Retention:
        """The cutoffs of a run that starts at `now`."""
        rules = (
            replace(rule, cutoff=self._taken(rule.cutoff, "rules", at))
            for at, rule in enumerate(keep_rules(self.rules, now))
        )
        by_state = (
            Rule(self._taken(cutoff(now, keep), "keep_by_state", state), state=state)
            for state, keep in self.keep_by_state.items()
        )
        return Retention(
            self._taken(cutoff(now, self.keep), "keep"),
            (*rules, *by_state),
            keys=self.redis.at(now),
            keep_newest=self.keep_newest or 0,
            group_margin=self.group_margin,
        )

    def _taken(self, due: datetime | None, *keys: str | int) -> datetime | None:
        return reached(due, self._behind.get(keys, ()), self._completed)

    def _waiting(self, now: datetime) -> tuple[Finding, ...]:
        """What is past keeping and stays, as an archive job has still to take it."""
        if self.retention(now) == self.behind_these({}).retention(now):
            return ()
        return (unarchived("expire.unarchived", "results", self.behind, self._completed),)

    def preview(self, backend: CanExpire, now: datetime) -> Preview:
        preview = backend.preview_expire(self.retention(now))
        return replace(preview, findings=(*preview.findings, *self._waiting(now)))

    def run(self, backend: CanExpire, now: datetime, pace: Pace) -> Steps:
        if findings := self._waiting(now):
            yield Step(findings=findings)
        yield from backend.expire(self.retention(now), pace)
