"""vacuum: how much of the file is free pages, and giving them back."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from backendops.backends.sql_files import fill, load, statements
from backendops.backends.sqlite.connection import File
from backendops.backends.sqlite.errors import translated
from backendops.backends.sqlite.removal import FREE_FOR
from backendops.backends.sqlite.tables import quoted
from backendops.contracts import metrics
from backendops.contracts.capabilities import VacuumPlan
from backendops.contracts.errors import BackendBusy, BackendError
from backendops.contracts.readings import Finding, Reading, Severity
from backendops.contracts.run import Pace, Step, Steps, Watermarks
from backendops.contracts.units import format_bytes

# The value of PRAGMA auto_vacuum where pages are given back when asked.
INCREMENTAL: Final = 2
# The copy goes where temporary files go, what is overwritten into a journal beside the file: the file's size each.
COPIES: Final = 2
# Where SQLite looks for a place for temporary files, in its order (os_unix.c, azTempDirs).
TEMPORARY: Final = (os.environ.get("SQLITE_TMPDIR"), os.environ.get("TMPDIR"), "/var/tmp", "/usr/tmp", "/tmp")  # noqa: S108 - their order is the point
# dbstat reads a whole table; who commits without a write-ahead log waits for it.
MEASURE_TIME: Final = timedelta(milliseconds=500)
ANALYZED: Final = "sqlite.analyzed_at"


@dataclass(frozen=True, slots=True)
class Space:
    page_size: int
    pages: int
    free_pages: int
    auto_vacuum: int
    journal_mode: str

    @property
    def size(self) -> int:
        return self.page_size * self.pages

    @property
    def free(self) -> int:
        return self.page_size * self.free_pages

    @property
    def free_ratio(self) -> float:
        return self.free_pages / self.pages if self.pages else 0.0

    def __str__(self) -> str:
        return f"{format_bytes(self.free)} of {format_bytes(self.size)} free ({self.free_ratio:.0%})"


def space_of(connection: Connection) -> Space:
    """What the file's pages are taken by."""
    return Space(*connection.execute(load("sqlite", "vacuum", "space")).one())


@dataclass(frozen=True, slots=True)
class Vacuuming:
    """What one run of vacuum does with a file."""

    file: File
    plan: VacuumPlan
    tables: tuple[str, ...]
    budget: timedelta
    watermarks: Watermarks

    @property
    def statements(self) -> tuple[str, ...]:
        """What a run would send now."""
        space = space_of(self.file.connection)
        names = []
        if self._worthwhile(space):
            if space.auto_vacuum == INCREMENTAL:
                names.append("incremental")
            elif self.plan.full and not self._no_room(space):
                names.append("full")
        sent = [statements("sqlite", "vacuum")[name] for name in names]
        if self._analyze_due():
            sent += [fill(statements("sqlite", "vacuum")["analyze"], {"live": quoted(t)}) for t in self.tables]
        if space.journal_mode == "wal":
            sent += [statements("sqlite", "vacuum")[name] for name in ("checkpoint", "truncate_log")]
        return tuple(sent)

    def run(self, pace: Pace) -> Steps:
        """Give free pages back where the file lets us, refresh the statistics, and cut the write-ahead log."""
        with translated(self.file.path):
            before = space_of(self.file.connection)
            if self._worthwhile(before):
                if before.auto_vacuum == INCREMENTAL:
                    yield from self._incremental(before.free_pages, pace)
                elif self.plan.full and not self._no_room(before):
                    yield self._full(before)
            if self._analyze_due():
                yield self._analyze()
            if before.journal_mode == "wal":
                yield self._checkpoint()
            after = space_of(self.file.connection)
            yield Step(
                what=f"{after} in {self.file.path.name}",
                readings=tuple(self.readings()),
                findings=self.findings(after),
            )

    def _worthwhile(self, space: Space) -> bool:
        return space.free_pages > 0 and space.free_ratio >= self.plan.dead_ratio

    def _incremental(self, left: int, pace: Pace) -> Steps:
        while left:
            began = time.monotonic()
            statement = fill(statements("sqlite", "vacuum")["incremental"], {"pages": str(pace.size)})
            try:
                with translated(self.file.path):
                    self.file.run_to_end(statement)
            except BackendBusy:
                pace.timed_out()
                raise
            now_left = space_of(self.file.connection).free_pages
            pace.measured(left - now_left, time.monotonic() - began)
            if now_left >= left:
                return
            yield Step(what="gave free pages back to the file system")
            left = now_left
            time.sleep(FREE_FOR)

    def _full(self, before: Space) -> Step:
        with self.file.clock.limited(self.budget):
            self._run("full")
        after = space_of(self.file.connection)
        return Step(
            what=f"rewrote {self.file.path.name}, {format_bytes(before.size)} before, {format_bytes(after.size)} after"
        )

    def _analyze_due(self) -> bool:
        analyzed = self.watermarks.recall(ANALYZED)
        try:
            return analyzed is None or datetime.fromisoformat(analyzed) < self.plan.now - self.plan.analyze_after
        except (ValueError, TypeError):
            return True

    def _analyze(self) -> Step:
        self._run("bound_analyze")
        for table in self.tables:
            self._run("analyze", {"live": quoted(table)})
        self.watermarks.remember(ANALYZED, self.plan.now.isoformat())
        return Step(what=f"analyzed {', '.join(self.tables)}")

    def _checkpoint(self) -> Step:
        self._run("checkpoint")
        # Busy says that a reader still needs the log: it shrinks another time.
        busy = self._run("truncate_log")[0][0]
        return Step(what="checkpointed the write-ahead log" + (", which readers still need" if busy else ""))

    def _run(self, name: str, slots: dict[str, str] | None = None) -> list[tuple[int, ...]]:
        with translated(self.file.path):
            result = self.file.connection.execute(load("sqlite", "vacuum", name, slots))
            return [tuple(row) for row in result] if result.returns_rows else []

    def readings(self) -> Iterator[Reading]:
        """The size of each table; none for one that takes too long to measure, or where SQLite has no dbstat."""
        for table in self.tables:
            # A DELETE takes the row out of its page: what is left are free pages, not dead rows.
            yield metrics.TABLE_DEAD_ROWS.read(0, table=table)
            try:
                with self.file.clock.limited(MEASURE_TIME), translated(self.file.path):
                    statement = load("sqlite", "vacuum", "table_bytes")
                    size = self.file.connection.execute(statement, {"table": table}).scalar_one()
            except BackendError:
                continue
            yield metrics.TABLE_BYTES.read(size, table=table)

    def findings(self, space: Space) -> tuple[Finding, ...]:
        """Why the file stays as large as it is, and the way to make it smaller."""
        if not self._worthwhile(space) or space.auto_vacuum == INCREMENTAL:
            return ()
        path = self.file.path
        if self.plan.full and (reason := self._no_room(space)):
            return (
                Finding(
                    Severity.WARNING, "sqlite.no-room-to-rewrite", f"{path.name} was not rewritten: {reason}",
                    f"make room there, or point SQLITE_TMPDIR elsewhere; {format_bytes(space.free)} would be freed",
                ),
            )  # fmt: skip
        return (
            Finding(
                Severity.INFO, "sqlite.free-pages",
                f"{path.name} could shrink by {format_bytes(space.free)} ({space.free_ratio:.0%}): "
                "SQLite reuses free pages, and with auto_vacuum off never gives them back",
                f"give the vacuum job a `full:` window, or once, with Celery stopped, run "
                f"`sqlite3 '{path}' 'PRAGMA auto_vacuum = INCREMENTAL; VACUUM'`: from then on each vacuum shrinks it",
            ),
        )  # fmt: skip

    def _no_room(self, space: Space) -> str:
        """Why the rewriting would run out of disk; nothing where it fits."""
        content = space.size - space.free
        beside = self.file.path.parent
        temporary = next((Path(d) for d in TEMPORARY if d and os.access(d, os.W_OK)), beside)
        needs = {beside: space.size * COPIES, temporary: content}
        for place, need in needs.items():
            free = shutil.disk_usage(place).free
            if free < need:
                return f"{place} has {format_bytes(free)} free and {format_bytes(need)} may be needed"
        return ""
