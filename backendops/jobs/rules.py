"""Rules of a retention: other times for the results of some tasks, queues or states; the first that matches decides."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from backendops.contracts.retention import Rule
from backendops.contracts.units import Forever, Keep

_SET: Final = re.compile(r"\[!?(\]?[^\]]*)\]")
_RANGE: Final = re.compile(r"(.)-(.)(-.)?", re.DOTALL)


def _is_pattern(text: str) -> str:
    """Refused here is what a server would refuse in the middle of a run, or take for something else."""
    for inside in _SET.findall(text):
        for first, last, more in _RANGE.findall(inside):
            if first > last:
                raise ValueError(f"[{inside}] has no character from {first!r} to {last!r}: write [{last}-{first}]")
            if more:
                raise ValueError(f"[{inside}] has a - just after a range: put it first in the set")
    return text


# The lengths of Celery's own columns (celery/backends/database/models.py).
State = Annotated[str, StringConstraints(min_length=1, max_length=50)]
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=155), AfterValidator(_is_pattern)]


def cutoff(now: datetime, keep: Keep) -> datetime | None:
    """The moment before which results kept for `keep` are due; None for ever."""
    return None if isinstance(keep, Forever) else now - keep


class Matching(BaseModel):
    """Which results a rule is about: all that is given must fit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Pattern | None = Field(None, description="Name of the task: with *, ? and [a-z], case as written.")
    queue: Pattern | None = Field(None, description="Name of the queue, likewise.")
    state: State | None = Field(None, description="The state, such as FAILURE.")

    @model_validator(mode="after")
    def _is_about_something(self) -> Self:
        if self.task is None and self.queue is None and self.state is None:
            raise ValueError("a rule says which results it is about: task, queue or state")
        return self

    def __str__(self) -> str:
        given = {"task": self.task, "queue": self.queue, "state": self.state}
        return ", ".join(f"{key}: {value}" for key, value in given.items() if value is not None)

    def until(self, now: datetime, keep: Keep) -> Rule:
        """The rule of a run that starts at `now`."""
        return Rule(cutoff(now, keep), state=self.state, task=self.task, queue=self.queue)


class KeepRule(Matching):
    """Some results are kept for a time of their own."""

    keep: Keep = Field(description="How long these results stay: 90d, forever.")


class ArchiveRule(Matching):
    """Some results are archived after a time of their own, or never."""

    older_than: Keep = Field(description="These are moved when they finished longer ago than this; forever: never.")


def keep_rules(rules: Iterable[KeepRule | ArchiveRule], now: datetime) -> tuple[Rule, ...]:
    """Every rule, in its order, as a run that starts at `now` needs it."""
    return tuple(rule.until(now, time_of(rule)) for rule in rules)


def time_of(rule: KeepRule | ArchiveRule) -> Keep:
    """The time that a rule gives to its results."""
    return rule.keep if isinstance(rule, KeepRule) else rule.older_than


def keeps_of(rules: Iterable[KeepRule | ArchiveRule]) -> dict[str, Keep]:
    """The times by their rules, in the words of the policy."""
    return {f"the rule {{{rule}}}": time_of(rule) for rule in rules}
