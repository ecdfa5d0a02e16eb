"""Which results are due: one cutoff for most, other ones by state, task or queue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Final

# A group that Celery stored pickled cannot be asked for its members. A task that is retried over a weekend is done
# within a week of it.
GROUP_MARGIN: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Rule:
    """Results that match are due before `cutoff`; None keeps them for ever.

    `task` and `queue` are patterns with `*` and `?`; a pattern left None matches every result, one that is given
    none whose task or queue is not known.
    """

    cutoff: datetime | None
    state: str | None = None
    task: str | None = None
    queue: str | None = None

    def matches(self, state: str | None, task: str | None, queue: str | None) -> bool:
        """Does this rule decide about such a result?"""
        return (
            (self.state is None or self.state == state)
            and (self.task is None or (task is not None and fnmatchcase(task, self.task)))
            and (self.queue is None or (queue is not None and fnmatchcase(queue, self.queue)))
        )


@dataclass(frozen=True, slots=True)
class KeyRules:
    """What only a store of keys that expire by themselves can do; the others take no notice."""

    shorten: bool = False
    """Is a time to live that reaches past the cutoff made shorter?"""
    chord_cutoff: datetime | None = None
    """The parts of a chord that was last used before this are removed; None: the cutoff of the results."""
    rpc_idle: timedelta | None = None
    """How long a reply list of RPC over Redis may be idle before it is removed; None: it never is."""
    pidbox_idle: timedelta | None = None
    """The same for lists that answer `celery inspect`."""


@dataclass(frozen=True, slots=True)
class Retention:
    """What is due now. The first rule that matches decides; `cutoff` where none does (None: kept for ever)."""

    cutoff: datetime | None
    rules: tuple[Rule, ...] = ()
    keys: KeyRules = KeyRules()
    keep_newest: int = 0
    """So many of a table's newest finished results stay, whatever their age."""
    group_margin: timedelta = GROUP_MARGIN
    """How much longer a group is kept whose members cannot be read."""

    def cutoff_of(self, state: str | None, task: str | None = None, queue: str | None = None) -> datetime | None:
        """The moment before which such a result is due; None where it is kept for ever."""
        for rule in self.rules:
            if rule.matches(state, task, queue):
                return rule.cutoff
        return self.cutoff

    @property
    def by_task(self) -> bool:
        """Does a rule ask for the name of the task?"""
        return any(rule.task is not None for rule in self.rules)

    @property
    def by_queue(self) -> bool:
        """Does a rule ask for the queue?"""
        return any(rule.queue is not None for rule in self.rules)

    def cutoffs(self) -> Iterator[datetime]:
        """Every cutoff there is."""
        yield from (c for c in (self.cutoff, *(rule.cutoff for rule in self.rules)) if c is not None)

    @property
    def latest(self) -> datetime | None:
        """No result that finished at or after this can be due; None where everything is kept for ever."""
        return max(self.cutoffs(), default=None)
