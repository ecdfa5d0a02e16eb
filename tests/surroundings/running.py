"""Every job on one PostgreSQL, run by the engine, with what it must have done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from backendops.backends.files import FileStore
from backendops.backends.postgres import PostgresBackend
from backendops.contracts.archive import Selection
from backendops.contracts.job import Job
from backendops.contracts.partitions import ConvertBy
from backendops.contracts.readings import Finding
from backendops.contracts.run import Outcome, Preview, Trigger
from backendops.engine.ledger import Ledger
from backendops.engine.report import RunReport
from backendops.engine.runner import Runner
from backendops.jobs import JOBS
from backendops.jobs.archive import Archive
from backendops.jobs.partitions_by_hand import Convert, Reattach, Undo
from backendops.jobs.restore import Restore
from backendops.policy.model import Pair
from tests.celery_rows import celery_results
from tests.conformance.postgres_store import sql, until

# Each finds something to do after the other, on the rows that Results.stored() makes.
JOB_KEYS: Mapping[str, dict[str, Any]] = {
    "expire": {"keep": "30d"},
    "archive": {"older_than": "7d"},
    "partition": {"keep": "3 months", "ahead": 1, "quarantine": "1d"},
    "vacuum": {"dead_rows": 1, "dead_ratio": 0},
    "pool-health": {},
}

RunJob = Callable[[str], RunReport]


def quoted(name: str) -> str:
    """As SQL; written here again, so that a test does not quote as wrongly as the code might."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL."""
    return "'" + text.replace("'", "''") + "'"


@dataclass(frozen=True)
class Results:
    """Celery's two tables and their archives in one database, seen by its superuser."""

    url: str
    task: str = "celery_taskmeta"
    group: str = "celery_tasksetmeta"
    schema: str = "public"
    archive_schema: str = "public"
    celery: Mapping[str, object] = field(default_factory=dict)
    """Settings of the application that writes."""

    @property
    def live(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.task)}"

    @property
    def groups(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.group)}"

    @property
    def archive(self) -> str:
        """The tasks' archive as it is found, whatever its name was cut to."""
        return self._archive_of("task_id")

    @property
    def backend(self) -> dict[str, Any]:
        """The backend's keys in a policy."""
        return {
            "tables": {"task": self.task, "group": self.group},
            "schemas": {"task": self.schema, "group": self.schema},
        }

    def _archive_of(self, key: str) -> str:
        ((name,),) = sql(
            self.url,
            f"""SELECT format('%I.%I', n.nspname, c.relname)
                FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = '{key}'
                WHERE c.relkind = 'p' AND n.nspname = {literal(self.archive_schema)}""",
        )
        return str(name)

    def stored(self) -> None:
        """Twelve finished results, one unfinished and a group, by Celery; six of them are past keeping."""
        celery_results(self.url, 9, started=1, groups=1, **self.celery)
        self.date(timedelta(days=40), "id % 2 = 0")

    def date(self, age: timedelta, which: str) -> None:
        """Let those results have finished so long ago."""
        done = f"{datetime.now(UTC) - age:%Y-%m-%d %H:%M:%S}"
        sql(self.url, f"UPDATE {self.live} SET date_done = '{done}' WHERE date_done IS NOT NULL AND {which}")

    def count(self, table: str) -> int:
        return int(sql(self.url, f"SELECT count(*) FROM {table}")[0][0])


def run(url: str, kind: str, backend: Mapping[str, Any] | None = None, **keys: Any) -> RunReport:
    """Run one job, as the daemon would."""
    return Runner(Ledger.in_memory()).run(_pair(url, kind, backend, keys), Trigger.COMMAND)


def by_hand(url: str, job: Job) -> RunReport:
    """Run what only a command asks for."""
    pair = Pair(job.kind_name, job, "results", PostgresBackend.model_validate({"url": url}), None)
    return Runner(Ledger.in_memory()).run(pair, Trigger.COMMAND)


def archive_far(url: str, destination: str | Path, **keys: Any) -> RunReport:
    """Archive into another database, or into files below a directory."""
    pair = _pair(url, "archive", None, keys)
    assert isinstance(pair.job, Archive)
    if isinstance(destination, Path):
        job = pair.job.sent_to(FileStore(destination, "jsonl.gz", "month", ZoneInfo("UTC")), "results")
    else:
        keeper = PostgresBackend.model_validate({"url": destination})
        job = pair.job.sent_to(keeper.archive_store(pair.job.plan), "results")
    return Runner(Ledger.in_memory()).run(Pair("archive", job, "results", pair.backend, None), Trigger.COMMAND)


def restore(url: str, backend: Mapping[str, Any] | None = None, **keys: Any) -> RunReport:
    """Put back all that an archive job has moved since the beginning."""
    archive = _pair(url, "archive", backend, keys)
    assert isinstance(archive.job, Archive)
    job = Restore.of(archive.job, Selection(since=datetime(2000, 1, 1, tzinfo=UTC)))
    return Runner(Ledger.in_memory()).run(Pair("restore", job, "results", archive.backend, None), Trigger.COMMAND)


def preview(url: str, kind: str, backend: Mapping[str, Any] | None = None, **keys: Any) -> Preview:
    """What `backendops plan` tells of one job."""
    return Runner(Ledger.in_memory()).preview(_pair(url, kind, backend, keys))


def _pair(url: str, kind: str, backend: Mapping[str, Any] | None, keys: Mapping[str, Any]) -> Pair:
    job = JOBS[kind].model_validate({**JOB_KEYS[kind], **keys})
    return Pair(kind, job, "results", PostgresBackend.model_validate({"url": url, **(backend or {})}), None)


def prove_every_job(results: Results, run_job: RunJob) -> dict[str, RunReport]:
    """Run them all, each with work to do, and hold what is left against what must be."""
    results.stored()
    assert results.count(results.live) == 13
    reports = {"expire": _completed(run_job("expire"))}
    kept = results.count(results.live)
    assert reports["expire"].rows == 13 - kept == 6
    # One of long ago, so that its partition is retired at once; the others of last week.
    results.date(timedelta(days=10), "true")
    results.date(timedelta(days=400), "id = 1")
    reports["archive"] = _completed(run_job("archive"))
    assert reports["archive"].rows == 6
    assert (results.count(results.live), results.count(results.archive)) == (1, 6), "the unfinished one stays"
    reports["partition"] = _completed(run_job("partition"))
    assert results.count(results.archive) == 5
    assert _quarantined(results) == [1], "detached, and its row with it"
    # Sessions tell of what they did a moment later.
    dead = f"SELECT n_dead_tup > 0 FROM pg_stat_all_tables WHERE relid = {literal(results.live)}::regclass"
    until(lambda: sql(results.url, dead) == [(True,)], "the dead rows are known")
    reports["vacuum"] = _completed(run_job("vacuum"))
    assert reports["vacuum"].rows > 0
    reports["pool-health"] = _completed(run_job("pool-health"))
    return reports


def prove_conversion(results: Results, url: str, by: ConvertBy) -> None:
    """Convert, write, make and retire partitions, take one back and undo by `url`: every row is what it was."""
    _completed(by_hand(url, Convert(by=by)))
    assert _kind(results) == "p"
    celery_results(results.url, 3, **results.celery)
    if by == "id":
        # Far beyond the first leaf, which is past keeping by then.
        results.date(timedelta(days=40), "true")
        sql(results.url, f"DELETE FROM {results.live} WHERE date_done IS NULL")
        sql(results.url, "SELECT setval('task_id_sequence', 30000000)")
        celery_results(results.url, 3, **results.celery)
    rows = _content(results)
    _completed(run(url, "partition", keep_live="30d"))
    if by == "id":
        assert results.count(results.live) < rows[0]
        _completed(by_hand(url, Reattach(name=f"{results.task}_first")))
    assert _content(results) == rows
    _completed(by_hand(url, Undo()))
    assert (_kind(results), _content(results)) == ("r", rows)
    celery_results(results.url, 1, **results.celery)


def _kind(results: Results) -> str:
    return str(sql(results.url, f"SELECT relkind FROM pg_class WHERE oid = {literal(results.live)}::regclass")[0][0])


def _content(results: Results) -> tuple[int, str]:
    """How many rows there are, and a checksum of every byte of them."""
    rows = sql(results.url, f"SELECT count(*), md5(string_agg(t::text, '|' ORDER BY id)) FROM {results.live} AS t")
    return rows[0][0], rows[0][1]


def _completed(report: RunReport) -> RunReport:
    assert report.outcome is Outcome.COMPLETED, str(report)
    return report


def _quarantined(results: Results) -> list[int]:
    names = sql(
        results.url,
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE obj_description(c.oid, 'pg_class') LIKE '{\"backendops\"%quarantined%'",
    )
    return [results.count(str(name)) for (name,) in names]


def said(report: RunReport) -> str:
    """All that it tells an operator."""
    return "\n".join([report.error, report.hint, *told(report.findings)])


def told(findings: Iterable[Finding]) -> list[str]:
    """Findings as run-once prints them."""
    return [f"{finding.sentence}; {finding.fix}" for finding in findings]
