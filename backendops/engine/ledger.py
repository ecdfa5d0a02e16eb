"""The ledger: what ran, how it ended, what was measured, who paused what. Losing it costs history, never results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, Row, Table, and_, delete, event, func, insert, select, update
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import IntegrityError

from backendops.contracts.readings import Reading
from backendops.contracts.run import Outcome, Trigger, Watermarks
from backendops.engine import ledger_tables as t
from backendops.engine.ledger_file import first_line, open_directory, open_memory, open_url
from backendops.engine.ledger_rows import Pause, Running, StoredReading, Throttled, Totals, orphan_from, report_from
from backendops.engine.ledger_watermarks import LedgerWatermarks, ReadOnlyWatermarks
from backendops.engine.process import Process
from backendops.engine.report import RunReport
from backendops.policy.model import Pair

# A probe every 30 s makes 20,000 runs a week, which SQLite answers in milliseconds; of a
# daily job the newest thousand are three years.
KEEP_HISTORY: Final = timedelta(days=7)
KEEP_RUNS: Final = 1000
# A day of a job that runs each quarter of an hour: its busiest hour is among them, last month's backlog is not.
LAST_RUNS: Final = 100
# A slot is claimed within its interval; two days cover a host that was down over a night.
KEEP_SLOTS: Final = timedelta(days=2)
# Whether a process of another host still lives cannot be seen: it gets its budget and
# a quarter of an hour for the step in hand.
GRACE: Final = timedelta(minutes=15)


class Ledger:
    """Safe for several threads, processes and (behind a URL) hosts at once."""

    def __init__(self, engine: Engine, directory: Path | None = None) -> None:
        self._engine = engine
        self._reading = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._process = Process.this()
        self.directory = directory
        """The state directory; None where the ledger is behind a URL."""
        self.failure = ""
        """What the last write failed with; empty again after one that did not."""
        event.listen(engine, "commit", self._is_written)
        event.listen(engine, "handle_error", self._has_failed)

    @classmethod
    def open(cls, state: str, create: bool = True) -> Ledger:
        """Open or make it; raises BackendopsError with the way out. Without `create` nothing is ever made."""
        if "://" in state:
            return cls(open_url(state, create))
        directory = Path(state).expanduser()
        return cls(open_directory(directory, create), directory)

    @classmethod
    def in_memory(cls) -> Ledger:
        """One that nobody else sees and that is gone with the process."""
        return cls(open_memory())

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def started(self, pair: Pair, trigger: Trigger, at: datetime) -> int:
        """Take down that a run begins, so that a crash is visible; gives the run's id."""
        me = self._process
        values: dict[str, Any] = {
            "job": pair.job_name, "backend": pair.backend_name, "trigger": trigger.value,
            "host": me.host, "world": me.world, "pid": me.pid, "process_start": me.start,
            "started_at": at, "progressed_at": at, "due_to_end_at": at + pair.job.time_budget,
            "what": "", "error": "", "hint": "", "throttled": {}, "findings": [],
        }  # fmt: skip
        with self._engine.begin() as connection:
            (run_id,) = connection.execute(insert(t.runs).values(values)).inserted_primary_key or (0,)
        return int(run_id)

    def progressed(self, run_id: int, rows: int, at: datetime) -> None:
        """Take down the rows so far."""
        with self._engine.begin() as connection:
            connection.execute(update(t.runs).where(t.runs.c.id == run_id).values(rows=rows, progressed_at=at))

    def ended(self, report: RunReport) -> None:
        """Take down how a run ended, and add it to the totals."""
        with self._engine.begin() as connection:
            _end(connection, report)

    def record(self, job: str, backend: str, readings: Iterable[Reading], at: datetime) -> None:
        """Keep the latest value of each series."""
        with self._engine.begin() as connection:
            for reading in readings:
                key = {
                    "name": reading.metric.name,
                    "job": job if reading.metric.per_job else "",
                    "backend": backend,
                    "labels": json.dumps(dict(reading.labels), sort_keys=True),
                }
                _put(connection, t.readings, key, {"value": reading.value, "at": at})

    def readings(self) -> list[StoredReading]:
        """The latest value of every series."""
        return [
            StoredReading(
                row.name,
                json.loads(row.labels) | {"backend": row.backend} | ({"job": row.job} if row.job else {}),
                row.value,
                row.at,
            )
            for row in self._rows(select(t.readings).order_by(t.readings.c.name))
        ]

    def totals(self) -> list[Totals]:
        """Runs and rows by pair and outcome; they never go down, whatever history is purged."""
        return [
            Totals(row.job, row.backend, Outcome(row.outcome), row.runs, row.rows)
            for row in self._rows(select(t.totals))
        ]

    def throttled(self) -> list[Throttled]:
        """Seconds held back by pair and reason."""
        return [Throttled(row.job, row.backend, row.reason, row.seconds) for row in self._rows(select(t.throttled))]

    def history(self, job: str | None = None, limit: int = 20) -> list[RunReport]:
        """The newest ended runs, newest first."""
        query = select(t.runs).where(t.runs.c.ended_at.is_not(None)).order_by(t.runs.c.id.desc()).limit(limit)
        return [report_from(row) for row in self._rows(query if job is None else query.where(t.runs.c.job == job))]

    def last_runs(self) -> dict[tuple[str, str], RunReport]:
        """The newest ended run of each (job, backend)."""
        newest = (
            select(func.max(t.runs.c.id)).where(t.runs.c.ended_at.is_not(None)).group_by(t.runs.c.job, t.runs.c.backend)
        )
        rows = self._rows(select(t.runs).where(t.runs.c.id.in_(newest)))
        return {(row.job, row.backend): report_from(row) for row in rows}

    def largest_run(self, job: str, backend: str) -> int:
        """The most rows that any of the pair's newest runs has changed; 0 where there is none."""
        mine = and_(t.runs.c.job == job, t.runs.c.backend == backend, t.runs.c.ended_at.is_not(None))
        newest = select(t.runs.c.rows).where(mine).order_by(t.runs.c.id.desc()).limit(LAST_RUNS).subquery()
        rows = self._rows(select(func.max(newest.c.rows)))
        return int(rows[0][0] or 0)

    def last_success(self) -> dict[tuple[str, str], datetime]:
        """When each (job, backend) last completed."""
        query = select(t.totals).where(t.totals.c.outcome == Outcome.COMPLETED.value)
        return {(row.job, row.backend): row.last_ended_at for row in self._rows(query)}

    def running(self) -> list[Running]:
        """Runs that have not ended, oldest first."""
        return [
            Running(
                row.id, row.job, row.backend, Trigger(row.trigger), row.started_at, row.progressed_at,
                row.rows, row.host, row.pid, row.cancel_requested,
            )
            for row in self._rows(select(t.runs).where(t.runs.c.ended_at.is_(None)).order_by(t.runs.c.id))
        ]  # fmt: skip

    def pause(self, job: str, by: str) -> None:
        """Let no scheduled run of the job begin, and the one that runs rest, until `resume`."""
        with self._engine.begin() as connection:
            _put(connection, t.pauses, {"job": job}, {"by": by, "at": datetime.now(UTC)})

    def resume(self, job: str) -> bool:
        """End a pause; was there one?"""
        with self._engine.begin() as connection:
            return connection.execute(delete(t.pauses).where(t.pauses.c.job == job)).rowcount > 0

    def paused(self) -> dict[str, Pause]:
        """The jobs that are paused."""
        return {row.job: Pause(row.by, row.at) for row in self._rows(select(t.pauses))}

    def request_cancel(self, job: str) -> int:
        """Ask the job's runs to end after their step; gives how many were asked."""
        mine = and_(t.runs.c.job == job, t.runs.c.ended_at.is_(None))
        with self._engine.begin() as connection:
            return connection.execute(update(t.runs).where(mine).values(cancel_requested=True)).rowcount

    def cancel_requested(self, run_id: int) -> bool:
        """Has somebody asked this run to end?"""
        rows = self._rows(select(t.runs.c.cancel_requested).where(t.runs.c.id == run_id))
        return bool(rows and rows[0][0])

    def claim_slot(self, job: str, backend: str, slot: datetime) -> bool:
        """Is this slot ours? Yes once per slot, over all daemons that share the ledger."""
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(t.slots).values(job=job, backend=backend, slot=slot))
        except IntegrityError:
            return False
        return True

    def watermarks(self, backend: str) -> Watermarks:
        """What the backend remembers between runs."""
        return LedgerWatermarks(self._engine, backend)

    def remembered(self, backend: str) -> Watermarks:
        """The same for a preview, which knows what the next run will know and leaves no trace."""
        return ReadOnlyWatermarks(self.watermarks(backend))

    def mark_orphans(self) -> int:
        """Record runs whose process is gone as failed; gives how many there were."""
        now = datetime.now(UTC)
        orphans = 0
        for row in self._rows(select(t.runs).where(t.runs.c.ended_at.is_(None))):
            gone = Process(row.host, row.world, row.pid, row.process_start).is_gone()
            if gone is None:
                gone = now > row.due_to_end_at + GRACE
            if gone:
                with self._engine.begin() as connection:
                    orphans += _end(connection, orphan_from(row, now))
        return orphans

    def purge(self, now: datetime) -> None:
        """Forget old history; totals, last successes and each pair's newest runs stay."""
        with self._engine.begin() as connection:
            for job, backend in connection.execute(select(t.totals.c.job, t.totals.c.backend).distinct()).all():
                mine = and_(t.runs.c.job == job, t.runs.c.backend == backend)
                newest = select(t.runs.c.id).where(mine).order_by(t.runs.c.id.desc())
                last_kept = connection.scalar(newest.offset(KEEP_RUNS - 1).limit(1))
                if last_kept is not None:
                    old = and_(t.runs.c.id < last_kept, t.runs.c.ended_at < now - KEEP_HISTORY)
                    connection.execute(delete(t.runs).where(mine, old))
            connection.execute(delete(t.slots).where(t.slots.c.slot < now - KEEP_SLOTS))

    def check(self) -> None:
        """Write something, as a transaction without a write notices no full disk; raises where that cannot be done."""
        with self._engine.begin() as connection:
            _put(connection, t.watermarks, {"backend": "", "key": "checked"}, {"value": str(datetime.now(UTC))})

    def _is_written(self, _: Connection) -> None:
        self.failure = ""

    def _has_failed(self, context: ExceptionContext) -> None:
        error = context.sqlalchemy_exception
        if error is not None and not isinstance(error, IntegrityError):
            self.failure = first_line(error)

    def _rows(self, query: Any) -> list[Row[Any]]:
        with self._reading.connect() as connection:
            return list(connection.execute(query).all())


def _end(connection: Connection, report: RunReport) -> bool:
    """Close the run's row; False where it was closed before (then it is corrected, and not counted twice)."""
    values = {
        "ended_at": report.ended_at, "progressed_at": report.ended_at, "outcome": report.outcome.value,
        "rows": report.rows, "seconds": report.seconds, "what": report.what, "error": report.error,
        "hint": report.hint, "throttled": dict(report.throttled),
        "findings": [
            {"severity": f.severity.value, "code": f.code, "sentence": f.sentence, "fix": f.fix}
            for f in report.findings
        ],
    }  # fmt: skip
    mine = t.runs.c.id == report.run_id
    if not connection.execute(update(t.runs).where(mine, t.runs.c.ended_at.is_(None)).values(values)).rowcount:
        connection.execute(update(t.runs).where(mine).values(values))
        return False
    pair = {"job": report.job, "backend": report.backend}
    _put(
        connection,
        t.totals,
        pair | {"outcome": report.outcome.value},
        {"last_ended_at": report.ended_at},
        plus={"runs": 1, "rows": report.rows},
    )
    for reason, seconds in report.throttled.items():
        _put(connection, t.throttled, pair | {"reason": reason}, {}, plus={"seconds": seconds})
    return True


def _put(
    connection: Connection,
    table: Table,
    key: Mapping[str, Any],
    values: Mapping[str, Any],
    plus: Mapping[str, float] | None = None,
) -> None:
    """Update or insert one row: `values` are set, `plus` is added. In plain SQL, for any database."""
    plus = plus or {}
    matches = and_(*(table.c[name] == value for name, value in key.items()))
    change = (
        update(table).where(matches).values({**values, **{name: table.c[name] + more for name, more in plus.items()}})
    )
    if connection.execute(change).rowcount:
        return
    try:
        with connection.begin_nested():
            connection.execute(insert(table).values({**key, **values, **plus}))
    except IntegrityError:  # another process was first between the two statements
        connection.execute(change)
