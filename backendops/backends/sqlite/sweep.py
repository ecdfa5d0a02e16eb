"""One run of expire or archive over every live table, and what it says before and after."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from backendops.backends.sql_files import load
from backendops.backends.sqlite.connection import File
from backendops.backends.sqlite.date_done import DateDone
from backendops.backends.sqlite.errors import translated
from backendops.backends.sqlite.removal import Removal
from backendops.contracts import metrics
from backendops.contracts.readings import Finding, Reading, Severity
from backendops.contracts.retention import Retention
from backendops.contracts.run import Pace, Preview, Step, Steps

# A gauge is not worth more of a run than this; a preview, which somebody waits for, counts to the end.
COUNT_TIME: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Count:
    """What is due in the live tables."""

    by_table: dict[str, int]
    oldest: datetime | None
    exact: bool

    @property
    def rows(self) -> int:
        return sum(self.by_table.values())


@dataclass(frozen=True, slots=True)
class Sweep:
    """The removals of one run, a table after the other."""

    file: File
    clock: DateDone
    due: Retention
    removals: tuple[Removal, ...]
    missing: tuple[Finding, ...]

    def run(self, pace: Pace) -> Steps:
        """Make every archive fit before the first row of any table, then take what is due."""
        for removal in self.removals:
            if removal.archive and not removal.archive.fits:
                with translated(self.file.path), self.file.writing():
                    made = removal.archive.prepare(self.file.connection)
                yield Step(what=made)
        count = self._count(COUNT_TIME)
        said = f"{'' if count.exact else 'at least '}{count.rows:,} results are due"
        said = said if count.rows or not count.exact else "no result is due"
        nothing = "; ".join(finding.sentence for finding in self.missing)
        yield Step(
            what=said if self.removals or not nothing else nothing, readings=(metrics.RESULTS_DUE.read(count.rows),)
        )
        for removal in self.removals:
            yield from removal.run(pace)
        yield Step(readings=(metrics.RESULTS_DUE.read(0), *self._ages()), findings=self._findings())

    def preview(self, would: str) -> Preview:
        """What `run` would do, from a read-only connection."""
        count = self._count(None)
        parts = [f"{rows:,} results of {table}" for table, rows in count.by_table.items()]
        nothing = "; ".join(finding.sentence for finding in self.missing)
        summary = f"would {would} {' and '.join(parts)}" if parts else f"nothing to do: {nothing}"
        if self.due.latest is None:
            summary = "nothing to do: every result is kept for ever"
        return Preview(
            summary=summary,
            rows=count.rows,
            oldest=count.oldest,
            cutoff=self.due.latest,
            statements=tuple(sent for removal in self.removals for sent in removal.statements),
            readings=(metrics.RESULTS_DUE.read(count.rows), *self._ages()),
            findings=self._findings(),
        )

    def _count(self, within: timedelta | None) -> Count:
        """Counted in pieces, as a run finds them: one long read would keep Celery from committing."""
        until = time.monotonic() + within.total_seconds() if within else float("inf")
        by_table, oldest, exact = {}, [], True
        for removal in self.removals:
            # A search of its own: the run's begins at the beginning.
            search = replace(removal.search) if within else removal.search
            rows = 0
            with translated(self.file.path):
                for found in search.looks(self.file.connection):
                    rows += len(found)
                    oldest += [min(row.done_at for row in found)] if found else []
                    if time.monotonic() > until:
                        exact = exact and search.finished
                        break
            by_table[search.table.name] = rows
        return Count(by_table, min(oldest, default=None), exact)

    def _ages(self) -> Iterator[Reading]:
        now = datetime.now(UTC)
        for table in (removal.search.table for removal in self.removals):
            statement = "oldest_by_date" if table.date_done_index else "oldest_by_id"
            with translated(self.file.path):
                row = self.file.connection.execute(load("sqlite", "remove", statement, table.slots())).first()
            moment = self.clock.read(*row) if row is not None else None
            age = max((now - moment.likely).total_seconds(), 0.0) if moment else 0.0
            yield metrics.RESULTS_OLDEST_AGE.read(age, table=table.name)

    def _findings(self) -> tuple[Finding, ...]:
        return self.missing + tuple(
            Finding(
                Severity.WARNING,
                "sqlite.unreadable-date-done",
                f"{removal.search.unreadable:,} rows of {removal.search.table.name} have a date_done that is no date; "
                "they were left alone",
                "set it to a date such as 2026-11-20 04:30:19.000000, or to NULL",
            )
            for removal in self.removals
            if removal.search.unreadable
        )
