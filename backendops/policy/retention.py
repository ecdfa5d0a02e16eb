"""Times of keeping that do not fit together: rules that decide nothing, results gone before they are archived."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from backendops.contracts.backend import Backend
from backendops.contracts.capabilities import CanKeepNewest, CanMoveStuck
from backendops.contracts.job import Job
from backendops.contracts.units import Duration, Forever, Keep
from backendops.jobs.archive import Archive
from backendops.jobs.expire import Expire
from backendops.jobs.partition import Partition
from backendops.jobs.rules import ArchiveRule, KeepRule, Matching, time_of
from backendops.policy.fault import Fault
from backendops.policy.patterns import covers, overlap

# celery/states.py
CELERY_STATES: Final = (
    "PENDING",
    "RECEIVED",
    "STARTED",
    "SUCCESS",
    "FAILURE",
    "REVOKED",
    "REJECTED",
    "RETRY",
    "IGNORED",
)
# One slip of the finger in a word of seven letters; custom states differ by more.
_SLIP: Final = 0.85


@dataclass(frozen=True, slots=True)
class Clause:
    """One entry of a job's times, in the order in which they decide; `about` None is every result."""

    keys: tuple[str | int, ...]
    time: Keep
    about: Matching | None

    @property
    def results(self) -> str:
        """Which results it is about, in words."""
        return f"results of {self.about}" if self.about is not None else "results"

    def covers(self, other: Clause) -> bool:
        """Does it decide about everything that the other is about?"""
        if self.about is None or other.about is None:
            return self.about is None
        return (
            self.about.state in (None, other.about.state)
            and covers(self.about.task, other.about.task)
            and covers(self.about.queue, other.about.queue)
        )

    def overlaps(self, other: Clause) -> bool:
        """Can there be a result that both are about?"""
        if self.about is None or other.about is None:
            return True
        states = {self.about.state, other.about.state} - {None}
        return (
            len(states) < 2  # noqa: PLR2004 - two states are not one
            and overlap(self.about.task, other.about.task)
            and overlap(self.about.queue, other.about.queue)
        )


def clauses(name: str, job: Expire | Archive) -> tuple[Clause, ...]:
    """The times of a job in the order in which they decide."""
    place: tuple[str | int, ...] = ("jobs", name)
    given: Sequence[KeepRule | ArchiveRule] = job.rules
    rules = [Clause((*place, "rules", at), time_of(rule), rule) for at, rule in enumerate(given)]
    if isinstance(job, Archive):
        return (*rules, Clause((*place, "older_than"), job.older_than, None))
    by_state = [
        Clause((*place, "keep_by_state", state), keep, Matching(state=state))
        for state, keep in job.keep_by_state.items()
    ]
    return (*rules, *by_state, Clause((*place, "keep"), job.keep, None))


def of_one_job(name: str, job: Expire | Archive) -> Iterator[Fault]:
    """States that there are not, and entries that an earlier one leaves nothing to decide."""
    for at, rule in enumerate(job.rules):
        if rule.state is not None:
            yield from _odd_state(name, rule.state, ("jobs", name, "rules", at, "state"))
    if isinstance(job, Expire):
        for state in job.keep_by_state:
            yield from _odd_state(name, state, ("jobs", name, "keep_by_state", state))
    before: list[Clause] = []
    for clause in clauses(name, job):
        shadow = next((earlier for earlier in before if earlier.covers(clause)), None)
        if shadow is not None and clause.about is not None:
            yield Fault(
                clause.keys,
                f"job {name!r}: this never decides anything, as {{{shadow.about}}} in rules.{shadow.keys[-1]} comes "
                f"first and matches every result of {{{clause.about}}}: put it before, or remove it",
            )
        before.append(clause)


def _odd_state(name: str, state: str, keys: tuple[str | int, ...]) -> Iterator[Fault]:
    if state in CELERY_STATES:
        return
    # A state that never occurs would leave its results to the shorter `keep`.
    close = difflib.get_close_matches(state.upper(), CELERY_STATES, n=1, cutoff=_SLIP)
    likely = [known for known in close if abs(len(known) - len(state)) <= 1]
    if likely:
        hint = f"did you mean {likely[0]}?"
    elif state != state.upper():
        hint = f"states are written in capitals, as Celery stores them: {state.upper()}"
    else:
        return
    yield Fault(keys, f"job {name!r}: unknown state {state!r}, {hint}")


def on_one_backend(backend_name: str, backend: Backend, jobs: Mapping[str, Job]) -> Iterator[Fault]:
    """What its jobs ask of a backend that it cannot do, and results that are gone before they are archived."""
    for name, job in jobs.items():
        if isinstance(job, Expire) and job.keep_newest is not None and not isinstance(backend, CanKeepNewest):
            yield Fault(
                ("jobs", name, "keep_newest"),
                f"job {name!r}: keep_newest cannot be had on {backend_name!r}: a {backend.kind} store keeps results in "
                "no order of time, and finding the newest would take a look at every key; give it an expire job of "
                "its own",
            )
        if isinstance(job, Archive):
            yield from _stuck(name, job, backend_name, backend)
            yield from _gone_before_archived(name, job, backend_name, backend, jobs)
        if isinstance(job, Partition):
            yield from _gone_with_partition(name, job, backend_name, jobs)


def _stuck(name: str, job: Archive, backend_name: str, backend: Backend) -> Iterator[Fault]:
    if job.stuck_after is None:
        return
    if job.to is not None:
        yield Fault(
            ("jobs", name, "stuck_after"),
            f"job {name!r}: stuck_after is for an archive in the same database: leave `to` out, or have another "
            "archive job for them",
        )
    elif not isinstance(backend, CanMoveStuck):
        yield Fault(
            ("jobs", name, "stuck_after"),
            f"job {name!r}: stuck_after cannot be had on {backend_name!r}: a {backend.kind} store does not say when an "
            "unfinished row was last written; give it an archive job of its own",
        )


def _gone_before_archived(
    archive_name: str, archive: Archive, backend_name: str, backend: Backend, jobs: Mapping[str, Job]
) -> Iterator[Fault]:
    times = clauses(archive_name, archive)
    for late in times:
        if (older_than := finite(late.time)) is not None and not_longer(backend.result_expires, older_than):
            yield Fault(
                ("backends", backend_name, "result_expires"),
                f"Celery removes results from {backend_name!r} after {backend.result_expires}, "
                f"before {archive_name!r} archives {_them(late)} ({late.time}): make it longer",
            )
            break
    for name, job in jobs.items():
        if not isinstance(job, Expire):
            continue
        earlier: list[Clause] = []
        for clause in clauses(name, job):
            if not any(each.covers(clause) for each in earlier):
                for late in deciding(times, clause, earlier):
                    if (older_than := finite(late.time)) is not None and not_longer(clause.time, older_than):
                        yield Fault(
                            (*clause.keys, "keep"),  # of a rule; the others are times themselves
                            f"job {name!r} removes {_said(clause)} from {backend_name!r} after {clause.time}, "
                            f"before {archive_name!r} archives {_them(late)} ({late.time}): make it longer, or say "
                            f"in its rules that they are archived earlier, or never (older_than: forever)",
                        )
                        break
            earlier.append(clause)


def _gone_with_partition(name: str, job: Partition, backend_name: str, jobs: Mapping[str, Job]) -> Iterator[Fault]:
    """A partition goes whole, whatever another job says of some of the results in it."""
    expires = {other: each for other, each in jobs.items() if isinstance(each, Expire)}
    archives = {other: each for other, each in jobs.items() if isinstance(each, Archive)}
    retires = f"job {name!r} retires live partitions of {backend_name!r} after {job.keep_live}, "
    for other, archive in archives.items():
        times = clauses(other, archive)
        for late in times:
            if (older_than := finite(late.time)) is not None and not_longer(job.keep_live, older_than):
                yield Fault(
                    ("jobs", name, "keep_live"),
                    f"{retires}before {other!r} archives {_them(late)} ({late.time}): make it longer",
                )
                break
        # Where results expire by then, it is said how long those that are never archived are kept.
        never = next((late for late in times if isinstance(late.time, Forever)), None)
        if never is not None and finite(job.keep_live) is not None and not expires:
            yield Fault(
                ("jobs", name, "keep_live"),
                f"{retires}with what {other!r} never archives ({{{never.about}}}): leave keep_live out, or archive "
                "them before",
            )
        moved = next((one for one in times if _is_before(job.keep, one.time)), None)
        if archive.to is None and moved is not None:
            yield Fault(
                ("jobs", name, "keep"),
                f"job {name!r} retires partitions of the archive of {backend_name!r} after {job.keep}, no later than "
                f"{other!r} moves {_them(moved)} there ({moved.time}): make it longer",
            )
    if (keep_live := finite(job.keep_live)) is None:
        return
    for other, expire in expires.items():
        if expire.keep_newest is not None:
            yield Fault(
                ("jobs", name, "keep_live"),
                f"{retires}with the {expire.keep_newest:,} newest that {other!r} keeps (keep_newest) where these are "
                "older: leave one of them out",
            )
        earlier: list[Clause] = []
        for clause in clauses(other, expire):
            shadowed = any(each.covers(clause) for each in earlier)
            earlier.append(clause)
            if not shadowed and (isinstance(clause.time, Forever) or _is_shorter(keep_live, clause.time)):
                yield Fault(
                    ("jobs", name, "keep_live"),
                    f"{retires}with {_said(clause)} that {other!r} keeps for {_long(clause.time)}: make it at least "
                    "as long, or leave it out",
                )
                break


def _is_before(keep: Keep, time: Keep) -> bool:
    return (older_than := finite(time)) is not None and not_longer(keep, older_than)


def _long(time: Keep) -> str:
    return "ever" if isinstance(time, Forever) else str(time)


def deciding(times: tuple[Clause, ...], clause: Clause, earlier: list[Clause]) -> Iterator[Clause]:
    """The times of the archive that can be those of results that the clause decides about."""
    for late in times:
        # What an earlier rule of the same job takes is none of this one's.
        if late.overlaps(clause) and not any(each.covers(late) for each in earlier):
            yield late
        if late.covers(clause):
            return


def _said(clause: Clause) -> str:
    if clause.about is None or clause.keys[-2] != "keep_by_state":
        return clause.results
    return f"{clause.about.state} results"


def _them(late: Clause) -> str:
    return "them" if late.about is None else f"{{{late.about}}}"


def finite(time: Keep) -> Duration | None:
    """The time; None for ever."""
    return None if isinstance(time, Forever) else time


def not_longer(keep: Keep | None, older_than: Duration) -> bool:
    """Could results be gone at the moment they are due for the archive? The shortest calendar month decides."""
    return keep is not None and not isinstance(keep, Forever) and _apart(keep, older_than) <= timedelta()


def _is_shorter(keep_live: Duration, keep: Duration) -> bool:
    """Could results be gone that are still to be kept?"""
    return _apart(keep_live, keep) < timedelta()


def _apart(one: Duration, other: Duration) -> timedelta:
    """By how much one is longer than the other, at the least."""
    months = one.months - other.months
    return one.rest - other.rest + timedelta(days=months * (28 if months > 0 else 31))
