"""pg_partman beside ours on one PostgreSQL that has it: retention, and the way out of a default partition."""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2

from backendops.embedded import PostgresServer, start_postgres
from bench.goals import Goal
from bench.partitions import (
    FILL,
    OLD_PARTITION,
    SMALL,
    fill_old_partition,
    make_archive,
    must_be_retired,
    partition_job,
)
from bench.postgres import SETTINGS, sql
from bench.reader import reading
from tests.servers import FETCHED, debian_environment, debian_postgres

# A report that reads the archive in one transaction for so long is nothing rare.
HELD = 2.0
# Enough that the time of the rows is what is measured; both are linear.
SPILLED = 500_000
# Over five months, all before those that have a partition.
SPILLED_AT = f"date_trunc('month', now()) - interval '1 month' - n * interval '150 days' / {SPILLED}"

# As its own howto does it; 1 partition ahead, as our policy says. It adds a default partition and the month before.
REGISTER = (
    "CREATE SCHEMA partman",
    "CREATE EXTENSION pg_partman SCHEMA partman",
    "SELECT partman.create_parent('public.celery_taskmeta_archive', 'done_at', 'native', 'monthly', p_premake := 1)",
    "UPDATE partman.part_config SET retention = '12 months'",
    # It looks for the newest row to know how far ahead it is.
    "INSERT INTO celery_taskmeta_archive (id, task_id, done_at) VALUES (0, 'bench', now())",
)
KEEP_TABLE = "UPDATE partman.part_config SET retention_keep_table = {keep}"
MAINTAIN = "SELECT partman.run_maintenance('public.celery_taskmeta_archive')"
# Without its pause of a second between batches.
DRAIN = "CALL partman.partition_data_proc('public.celery_taskmeta_archive', p_wait := 0)"
# An archive of backendops has none, so that it can detach without a lock that readers wait for.
NO_DEFAULT = "DROP TABLE celery_taskmeta_archive_default"


@dataclass(frozen=True, slots=True)
class Measured:
    """One contestant on one copy of the archive."""

    seconds: float
    waited: float
    """The longest statement of a session that reads and writes the archive all the while."""


Contestant = Callable[[str], Measured]


def comparing(rows: int, rounds: int) -> list[Goal]:
    """Ours against pg_partman, told without a limit; one line that says why where it cannot be had."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        found = _binaries(Path(directory))
        if found is None:
            return [Goal("pg_partman 4, with Debian's PostgreSQL: not on this machine, not measured", None, None)]
        binaries, environment = found
        with start_postgres(Path(directory), binaries=binaries, settings=SETTINGS, environment=environment) as postgres:
            return [*_retention(postgres, rows, rounds), *_beside_a_report(postgres, rounds), *_drain(postgres, rounds)]


def _retention(postgres: PostgresServer, rows: int, rounds: int) -> Iterator[Goal]:
    for size in (SMALL, rows):
        _template(postgres)
        fill_old_partition(postgres.superuser_url("template"), size)
        title = f"retire {size:,} rows"
        done = _compare(
            postgres,
            title,
            {
                "backendops, detached": lambda url: _retire(url, drop=False),
                "pg_partman, detached": lambda url: _maintain(url, keep=True),
                "backendops, detached and dropped": lambda url: _retire(url, drop=True),
                "pg_partman, dropped": lambda url: _maintain(url, keep=False),
            },
            rounds,
        )
        for kept, mine, its in (
            ("kept", "backendops, detached", "pg_partman, detached"),
            ("dropped", "backendops, detached and dropped", "pg_partman, dropped"),
        ):
            yield Goal(f"{title}, table {kept}: time against pg_partman", _ratio(done[mine], done[its]), None, "×")


def _beside_a_report(postgres: PostgresServer, rounds: int) -> Iterator[Goal]:
    _template(postgres)
    fill_old_partition(postgres.superuser_url("template"), SMALL)
    title = f"retire beside a transaction of {HELD:g} s that reads the archive"
    done = _compare(
        postgres,
        title,
        {
            "backendops": lambda url: _retire(url, drop=False, held=HELD),
            "pg_partman": lambda url: _maintain(url, keep=True, held=HELD),
        },
        rounds,
    )
    for name, measured in done.items():
        waited = statistics.median(one.waited for one in measured)
        yield Goal(f"{title}: others wait, {name}", waited * 1000, None, "ms")


def _drain(postgres: PostgresServer, rounds: int) -> Iterator[Goal]:
    _template(postgres)
    sql(
        postgres.superuser_url("template"),
        FILL.format(table="celery_taskmeta_archive_default", rows=SPILLED, moment=SPILLED_AT),
        "VACUUM (FREEZE, ANALYZE) celery_taskmeta_archive_default",
    )
    title = f"drain a default partition of {SPILLED:,} rows"
    done = _compare(postgres, title, {"backendops": _drain_ours, "pg_partman": _drain_partman}, rounds)
    ours, theirs = done["backendops"], done["pg_partman"]
    yield Goal(f"{title}: rate against pg_partman", _ratio(theirs, ours), None, "×")
    for name, measured in done.items():
        waited = statistics.median(one.waited for one in measured)
        yield Goal(f"{title}: others wait, {name}", waited * 1000, None, "ms")


def _compare(
    postgres: PostgresServer, title: str, contestants: dict[str, Contestant], rounds: int
) -> dict[str, list[Measured]]:
    """Each in turn on a copy of its own, so that a machine that slows down slows all of them."""
    done: dict[str, list[Measured]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            sql(
                postgres.superuser_url(),
                "DROP DATABASE IF EXISTS run WITH (FORCE)",
                "CREATE DATABASE run TEMPLATE template STRATEGY FILE_COPY",
                "CHECKPOINT",
            )
            done[name].append(contestant(postgres.superuser_url("run")))
    for name, measured in done.items():
        seconds = statistics.median(one.seconds for one in measured)
        waited = statistics.median(one.waited for one in measured)
        sys.stderr.write(f"{title}: {name:33} {seconds * 1000:9,.0f} ms  others wait {waited * 1000:8,.1f} ms\n")
    return done


def _ratio(some: list[Measured], others: list[Measured]) -> float:
    return statistics.median(one.seconds / other.seconds for one, other in zip(some, others, strict=True))


def _template(postgres: PostgresServer) -> None:
    """An archive that the job made and pg_partman was given: each can look after it."""
    sql(postgres.superuser_url(), "DROP DATABASE IF EXISTS template WITH (FORCE)")
    make_archive(postgres, "template")
    sql(postgres.superuser_url("template"), *REGISTER)


def _retire(url: str, *, drop: bool, held: float = 0.0) -> Measured:
    sql(url, NO_DEFAULT)
    with partition_job(url, quarantine="1s") as run:
        with reading(url) as waits, _report(url, held):
            seconds = run()
        longest = waits.longest
        must_be_retired(url)
        if drop:
            time.sleep(1.1)  # the quarantine
            with reading(url) as waits:
                seconds += run()
            longest = max(longest, waits.longest)
            _must_be_dropped(url)
    return Measured(seconds, longest)


def _maintain(url: str, *, keep: bool, held: float = 0.0) -> Measured:
    sql(url, KEEP_TABLE.format(keep=keep))
    with reading(url) as waits, _report(url, held):
        seconds = _timed(url, MAINTAIN)
    must_be_retired(url)
    if not keep:
        _must_be_dropped(url)
    return Measured(seconds, waits.longest)


def _drain_ours(url: str) -> Measured:
    with partition_job(url) as run, reading(url) as waits:
        seconds = run()
    _must_be_drained(url)
    return Measured(seconds, waits.longest)


def _drain_partman(url: str) -> Measured:
    with reading(url) as waits:
        seconds = _timed(url, DRAIN)
    _must_be_drained(url)
    return Measured(seconds, waits.longest)


def _timed(url: str, statement: str) -> float:
    """Seconds of a statement, its connection included, as it is in ours."""
    began = time.monotonic()
    sql(url, statement)
    return time.monotonic() - began


@contextmanager
def _report(url: str, seconds: float) -> Iterator[None]:
    """A transaction that has read the archive and stays open for so long from now."""
    if not seconds:
        yield
        return
    with closing(psycopg2.connect(url)) as connection:
        connection.cursor().execute("SELECT count(*) FROM celery_taskmeta_archive")
        ending = threading.Timer(seconds, connection.commit)
        ending.start()
        yield
        ending.join()


def _must_be_dropped(url: str) -> None:
    if sql(url, f"SELECT to_regclass('{OLD_PARTITION}')")[0][0] is not None:
        raise SystemExit("the retired partition was not dropped: nothing was measured")


def _must_be_drained(url: str) -> None:
    left, moved = sql(
        url,
        "SELECT (SELECT count(*) FROM celery_taskmeta_archive_default), "
        "(SELECT count(*) FROM celery_taskmeta_archive WHERE task_id <> 'bench')",
    )[0]
    if left or moved != SPILLED:
        raise SystemExit(f"{left:,} rows are left in the default partition, {moved:,} are in the archive")


def _binaries(directory: Path) -> tuple[Path, dict[str, str] | None] | None:
    """A PostgreSQL of Debian's with pg_partman: as it is installed, or a copy of it with what `make servers` fetched.

    Before PostgreSQL 18 a server looks for extensions in one place, found from where its own program is.
    """
    for version, binaries in debian_postgres().items():
        root = binaries.parents[4]
        environment = debian_environment() if root == FETCHED else None
        extensions = Path("share/postgresql") / version / "extension"
        if _is_known(root / "usr" / extensions):
            return binaries, environment
        fetched = FETCHED / "usr" / extensions
        if _is_known(fetched):
            # Run as root, the server is somebody else, who has to come this far.
            directory.chmod(0o755)
            copy = directory / "server"
            for part in ("lib", "share"):
                folder = Path(part) / "postgresql" / version
                shutil.copytree(root / "usr" / folder, copy / folder, symlinks=True)
            for file in fetched.glob("pg_partman*"):
                shutil.copy(file, copy / extensions)
            return copy / "lib/postgresql" / version / "bin", environment
    return None


def _is_known(extensions: Path) -> bool:
    """Is it there, and of the version whose functions are called here? Those of 5 take other arguments."""
    control = extensions / "pg_partman.control"
    return control.exists() and "default_version = '4." in control.read_text(encoding="utf-8")
