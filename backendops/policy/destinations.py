"""Archives outside their backend: the store of each archive job for each of its backends, and what is wrong there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from backendops.backends.files import FORMATS, FileStore
from backendops.contracts.archive import ArchiveStore, CanHandOver, CanKeepArchive
from backendops.contracts.backend import Backend
from backendops.contracts.capabilities import ArchivePlan, KeptFor
from backendops.contracts.job import Job
from backendops.jobs.archive import Archive
from backendops.jobs.destination import Destination
from backendops.jobs.partition import Partition
from backendops.policy.bind import suggestion
from backendops.policy.document import Problems, Value
from backendops.policy.retention import clauses, finite, not_longer

FORMAT = "jsonl.gz"
# What has no tables is archived under Celery's own names for them.
_NAMED_AFTER: Final = ("celery_taskmeta", "celery_tasksetmeta")


def with_destinations(  # noqa: PLR0913, PLR0917 - all that loading knows by then
    jobs: Mapping[str, Job],
    classes: Mapping[str, type[Backend] | None],
    backends: Mapping[str, Backend],
    on: Mapping[str, tuple[str, ...]],
    document: Value,
    problems: Problems,
) -> dict[tuple[str, str], Job]:
    """Each archive job, for each of its backends, with the store it goes to; a store that cannot be is a problem."""
    sent: dict[tuple[str, str], Job] = {}
    taken: dict[str, tuple[str, str]] = {}
    kept: dict[str, list[KeptFor]] = defaultdict(list)
    senders: dict[str, dict[str, Archive]] = defaultdict(dict)
    for name, job in jobs.items():
        if not isinstance(job, Archive) or job.to is None:
            continue
        finding = _Finding(name, job, job.to, classes, backends, document, problems)
        for source in on.get(name, ()):
            if source not in backends or (found := finding.store(source)) is None:
                continue
            store, place = found
            if place in taken and taken[place][1] != source:
                finding.blame(
                    f"the archives of {taken[place][1]!r} and {source!r} would be one: write {{backend}} in "
                    f"{'`files`' if job.to.files else '`table`'}, or give each a job of its own"
                )
            taken[place] = (name, source)
            sent[name, source] = job.sent_to(store, source)
            if job.to.backend is not None:
                senders[job.to.backend][name] = job
                kept[job.to.backend].append(KeptFor(source, finding.plan(source)))
                finding.blame_own(source, {own: jobs[own] for own in jobs if job.to.backend in on.get(own, ())})
    for name, job in jobs.items():
        for backend in on.get(name, ()):
            if isinstance(job, Partition) and backend in kept:
                sent[name, backend] = job.looking_after(_each_once(kept[backend]))
                _blame_haste(name, job, backend, senders[backend], document, problems)
    return sent


def _blame_haste(  # noqa: PLR0913, PLR0917 - the job, what it meets, and where to say so
    name: str,
    job: Partition,
    backend: str,
    senders: Mapping[str, Archive],
    document: Value,
    problems: Problems,
) -> None:
    """A problem where what is sent to a backend would be retired there as soon as it comes."""
    written = document.at("jobs", name, "keep")
    for sender, archive in senders.items():
        times = (finite(clause.time) for clause in clauses(sender, archive))
        late = [older_than for older_than in times if older_than is not None and not_longer(job.keep, older_than)]
        if late and written is not None:
            problems.add(
                written.place,
                f"job {name!r} retires what {sender!r} sends to {backend!r} after {job.keep}, no later than it comes "
                f"there ({late[0]}): make it longer, or give {backend!r} a partition job of its own",
            )


def _each_once(kept: Iterable[KeptFor]) -> tuple[KeptFor, ...]:
    """Two jobs may send from one backend to one archive: its partitions are as the first of them says."""
    by_place: dict[tuple[str, str, str | None], KeptFor] = {}
    for each in kept:
        by_place.setdefault((each.source, each.plan.name, each.plan.schema), each)
    return tuple(by_place.values())


@dataclass(frozen=True, slots=True)
class _Finding:
    """One archive job's destination."""

    name: str
    job: Archive
    to: Destination
    classes: Mapping[str, type[Backend] | None]
    backends: Mapping[str, Backend]
    document: Value
    problems: Problems

    def blame(self, message: str) -> None:
        """A problem, at the place of the destination."""
        for keys in (("to", "backend"), ("to", "format"), ("to", "files"), ("to",)):
            value = self.document.at("jobs", self.name, *keys)
            if value is not None and value.data is not None:
                self.problems.add(value.place, f"job {self.name!r}: {message}")
                return

    def plan(self, source: str) -> ArchivePlan:
        """What the archive of `source` is called."""
        plan = self.job.plan
        return replace(plan, name=plan.name.replace("{backend}", source))

    def blame_own(self, source: str, there: Mapping[str, Job]) -> None:
        """A problem where the destination archives its own results under the same name; `there` has its jobs."""
        target = self.to.backend or ""
        if source not in self.backends or target not in self.backends:
            return
        plan, tables = self.plan(source), self.backends[source].table_names() or _NAMED_AFTER
        names = {plan.name.replace("{table}", table) for table in tables}
        for name, job in there.items():
            if isinstance(job, Archive) and job.to is None and job.table_schema == plan.schema:
                own = {job.table.replace("{table}", table) for table in self.backends[target].table_names()}
                if both := sorted(names & own):
                    self.blame(
                        f"{both[0]} would be the archive of {source!r} and, by job {name!r}, of {target!r} itself: "
                        "write {backend} in `table`, such as '{backend}_{table}_archive'"
                    )

    def store(self, source: str) -> tuple[ArchiveStore, str] | None:
        """The store for what comes from `source`, and what tells it from others; None where there is a problem."""
        return self._in_files(source) if self.to.files is not None else self._in_backend(source)

    def _in_files(self, source: str) -> tuple[ArchiveStore, str] | None:
        form = FORMATS[self.to.format or FORMAT]
        if extra := form.is_missing():
            self.blame(f"what writes {form.suffix} is not installed: pip install 'backendops[{extra}]'")
            return None
        backend = self.backends[source]
        assert isinstance(backend, CanHandOver)  # noqa: S101 - paired by it
        try:
            written = Path((self.to.files or "").replace("{backend}", source)).expanduser()
        except RuntimeError as error:
            self.blame(f"{self.to.files!r}: {error}: write the whole path")
            return None
        path = Path(self.problems.file).parent.absolute() / written
        return FileStore(path, form.suffix, self.job.every, backend.zone), str(path)

    def _in_backend(self, source: str) -> tuple[ArchiveStore, str] | None:
        target = self.to.backend or ""
        if target not in self.classes:
            self.blame(f"unknown backend {target!r}{suggestion(target, self.classes)}")
            return None
        kind = self.classes[target]
        if target == source:
            self.blame(f"{source!r} cannot be archived to itself: leave `to` out for a table in the same database")
            return None
        if kind is not None and not issubclass(kind, CanKeepArchive):
            able = sorted(name for name, each in self.classes.items() if each and issubclass(each, CanKeepArchive))
            there_is = f"; {', '.join(map(repr, able))} can" if able else ""
            self.blame(f"{target!r} cannot keep an archive: {kind.__name__} has no place for it{there_is}")
            return None
        keeper = self.backends.get(target)
        if keeper is None:
            return None
        assert isinstance(keeper, CanKeepArchive)  # noqa: S101 - seen above
        plan = self.plan(source)
        return keeper.archive_store(plan), f"{target} {plan.schema or ''}.{plan.name}"
