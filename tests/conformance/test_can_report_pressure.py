"""CanReportPressure on PostgreSQL: a changing run makes way, and goes on afterwards."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from psycopg2 import errors

from backendops.backends.postgres import PostgresBackend, pressure, watch
from backendops.contracts.capabilities import CanReportPressure, Pressure
from backendops.contracts.errors import BackendRefused
from backendops.contracts.job import Job
from backendops.contracts.run import Outcome, Trigger
from backendops.engine import drive
from backendops.engine.ledger import Ledger
from backendops.engine.report import Run, RunListener, RunReport
from backendops.engine.runner import Runner
from backendops.jobs.archive import Archive
from backendops.jobs.expire import Expire
from backendops.jobs.partition import Partition
from backendops.jobs.vacuum import Vacuum
from backendops.policy.model import Pair
from tests.acceptance.installed import Installed
from tests.celery_rows import fill_celery_table
from tests.conformance.postgres_store import connect, in_transaction, opened, other_role, sql, until
from tests.pgbouncer import PgBouncer
from tests.servers import Postgres, Replica, Servers

CAPABILITY = CanReportPressure

DUE = 60


def is_well(found: Pressure) -> bool:
    """Nothing to wait for, to end for, or to tell; whether others use the server is another question."""
    return found == Pressure(in_use=found.in_use)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test has no second to wait."""
    monkeypatch.setattr(watch, "EVERY", 0.02)
    monkeypatch.setattr(drive, "ASK_EVERY", 0.02)


class Waits(RunListener):
    """Says for which reasons the run has waited so far."""

    def __init__(self) -> None:
        self.reasons: set[str] = set()
        self.began = threading.Event()

    def throttled(self, run: Run, reason: str, seconds: float) -> None:
        self.reasons.add(reason)
        self.began.set()


class Running:
    """One run of a job on a thread of its own."""

    def __init__(self, url: str, job: Job | None = None, **fields: Any) -> None:
        job = job or Expire(keep="7d", batch_size=10, batch_time="100ms")
        self.waits = Waits()
        self.report: RunReport | None = None
        self._pair = Pair("job", job, "results", PostgresBackend(url=url, **fields), None)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.report = Runner(Ledger.in_memory(), [self.waits]).run(self._pair, Trigger.COMMAND)

    @property
    def is_going_on(self) -> bool:
        return self._thread.is_alive()

    def ended(self) -> RunReport:
        self._thread.join(20)
        assert self.report is not None
        return self.report


def left(url: str) -> int:
    return int(sql(url, "SELECT count(*) FROM celery_taskmeta")[0][0])


@pytest.fixture
def results(postgres_url: str) -> str:
    """Sixty results, all of them due."""
    fill_celery_table(postgres_url, DUE, due=1)
    return postgres_url


@pytest.fixture
def slow(results: str) -> str:
    """The same; removing a batch of them takes a tenth of a second."""
    return slowed(results)


@pytest.fixture
def slow18(postgres18_url: str) -> str:
    """The same on one server only, for what is no matter of the server's version."""
    fill_celery_table(postgres18_url, DUE, due=1)
    return slowed(postgres18_url)


def slowed(url: str) -> str:
    sql(
        url,
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.1); RETURN NULL; END'",
        "CREATE TRIGGER slow AFTER DELETE ON celery_taskmeta FOR EACH STATEMENT EXECUTE FUNCTION slow()",
    )
    return url


@contextmanager
def waiting(url: str, statement: str) -> Iterator[None]:
    """A session that waits for a lock."""
    with closing(connect(url)) as session:

        def run() -> None:
            with suppress(errors.QueryCanceled), session.cursor() as cursor:
                cursor.execute(f"BEGIN; {statement}; COMMIT")

        thread = threading.Thread(target=run)
        thread.start()
        waits = f"SELECT 1 FROM pg_locks WHERE pid = {session.info.backend_pid} AND NOT granted"
        try:
            until(lambda: sql(url, waits) == [(1,)], "it waits for the lock")
            yield
        finally:
            session.cancel()
            thread.join(10)


def test_all_is_well(postgres_url: str) -> None:
    """Before Celery has made its tables, and then with them; asked on the run's connection, then beside it."""
    for _ in range(2):
        with opened(postgres_url) as backend:
            assert all(is_well(backend.pressure()) for _ in range(3))
        fill_celery_table(postgres_url, 10)


def in_the_way(url: str, running: Running) -> None:
    """A session that needs the table for itself waits for the batch in hand, again and again, until the run waits."""
    until(lambda: left(url) < DUE, "the first batch is done")
    with closing(connect(url)) as session, session.cursor() as cursor:

        def makes_way() -> bool:
            cursor.execute("BEGIN; LOCK TABLE celery_taskmeta IN ACCESS EXCLUSIVE MODE; COMMIT")
            return running.waits.began.is_set()

        until(makes_way, "the run makes way")
    assert running.waits.reasons == {"lock-waits"}


def test_a_session_that_waits_for_our_batch_goes_first(slow: str) -> None:
    running = Running(slow)
    in_the_way(slow, running)
    report = running.ended()
    assert (report.outcome, report.rows, left(slow)) == (Outcome.COMPLETED, DUE, 0)
    assert report.throttled["lock-waits"] > 0


def test_who_waits_for_somebody_else_on_our_tables_is_left_in_peace(results: str) -> None:
    row = "UPDATE celery_taskmeta SET status = status WHERE id = 1"
    with in_transaction(results, row), waiting(results, row), opened(results) as backend:
        for _ in range(2):
            found = backend.pressure()
            assert found.wait == "lock-waits"
            assert found.why == "1 sessions wait for a lock on Celery's tables, or for this run"
    with opened(results) as backend:
        assert is_well(backend.pressure())


def test_waiting_on_other_tables_is_no_business_of_ours(results: str) -> None:
    sql(results, "CREATE TABLE theirs (id int)")
    lock = "LOCK TABLE theirs IN ACCESS EXCLUSIVE MODE"
    with in_transaction(results, lock), waiting(results, lock), opened(results) as backend:
        assert all(is_well(backend.pressure()) for _ in range(3))


def is_used(url: str) -> bool:
    with opened(url) as backend:
        return backend.pressure().in_use


def test_the_server_is_used_while_somebody_asks_something(postgres18_url: str) -> None:
    with opened(postgres18_url) as other, closing(connect(postgres18_url)) as session, session.cursor() as cursor:
        with other.transaction():
            pass

        def is_used_by_who_asked() -> bool:
            cursor.execute("SELECT 1")
            return is_used(postgres18_url)

        # Looking may take a busy machine more than the two seconds.
        until(is_used_by_who_asked, "it is used")
        # Our own are not counted, and a session that rests does not use it.
        until(lambda: not is_used(postgres18_url), "nobody has asked anything for two seconds")
        until(is_used_by_who_asked, "it is used again")


def test_who_may_not_see_what_others_do_takes_the_server_for_used(postgres18_url: str) -> None:
    blind = other_role(postgres18_url, "blind")
    with closing(connect(postgres18_url)):
        until(lambda: not is_used(postgres18_url), "nobody has asked anything for two seconds")
        assert is_used(blind)
        sql(postgres18_url, "GRANT pg_read_all_stats TO blind")
        until(lambda: not is_used(blind), "nobody has asked anything for two seconds")


@contextmanager
def application(url: str) -> Iterator[None]:
    """A session of somebody else's that asks something all the while."""
    over = threading.Event()

    def ask() -> None:
        with closing(connect(url)) as session, session.cursor() as cursor:
            while not over.wait(0.1):
                cursor.execute("SELECT 1")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        until(lambda: is_used(url), "it is used")
        yield
    finally:
        over.set()
        thread.join()


def test_a_run_beside_an_application_goes_gently_and_says_so(postgres18_url: str) -> None:
    fill_celery_table(postgres18_url, 3000, due=1)
    job = {"keep": "7d"}
    with application(postgres18_url):
        report = Running(postgres18_url, Expire(**job)).ended()
    assert (report.outcome, report.rows) == (Outcome.COMPLETED, 3000)
    assert 0 < report.throttled["gentle"] < report.seconds
    fill_celery_table(postgres18_url, 3000, due=1)
    with application(postgres18_url):
        report = Running(postgres18_url, Expire(**job, pace="full")).ended()
    assert (report.rows, report.throttled) == (3000, {})


def test_tables_of_another_name_and_their_partitions_are_watched(postgres_url: str) -> None:
    sql(
        postgres_url,
        'CREATE SCHEMA "a:b"',
        'CREATE TABLE "a:b"."it\'s" (id int) PARTITION BY LIST (id)',
        'CREATE TABLE leaf PARTITION OF "a:b"."it\'s" FOR VALUES IN (1)',
    )
    lock, names = "LOCK TABLE leaf IN ACCESS EXCLUSIVE MODE", {"tables": {"task": "it's"}, "schemas": {"task": "a:b"}}
    with in_transaction(postgres_url, lock), waiting(postgres_url, lock):
        with opened(postgres_url) as backend:
            assert is_well(backend.pressure())
        with opened(postgres_url, **names) as backend:
            assert backend.pressure().wait == "lock-waits"


def test_a_wait_between_two_readings_is_not_missed() -> None:
    answers = [Pressure(), Pressure("lock-waits"), *[Pressure()] * 1000]
    watched = watch.Watch(_Silent, lambda _: answers.pop(0), lambda error: Pressure("no-answer"))
    try:
        until(lambda: len(answers) < 990, "it was asked ten times")
        assert watched.latest().wait == "lock-waits"
        assert is_well(watched.latest())
    finally:
        watched.close()


class _Silent:
    """Stands for a connection where only the thread is tested: a pair of sockets, as there must be one to shut."""

    def __enter__(self) -> Any:
        self.ends = socket.socketpair()
        connection = SimpleNamespace(connection=SimpleNamespace(dbapi_connection=self.ends[0]))
        connection.execution_options = lambda **_: connection
        return connection

    def __exit__(self, *_: object) -> None:
        for end in self.ends:
            end.close()


@pytest.mark.parametrize("question", ["pause_when", "stop_when"])
def test_the_policys_own_question(slow18: str, question: str) -> None:
    sql(slow18, "CREATE TABLE flags (raised text)")
    running = Running(slow18, **{question: "SELECT raised, 1 FROM flags -- by hand"})
    until(lambda: left(slow18) < DUE, "the first batch is done")
    sql(slow18, "INSERT INTO flags VALUES ('100%: too much')")
    if question == "pause_when":
        assert running.waits.began.wait(5)
        still = left(slow18)
        assert 0 < still < DUE
        sql(slow18, "TRUNCATE flags")
        report = running.ended()
        assert (report.outcome, report.rows) == (Outcome.COMPLETED, DUE)
        assert report.throttled["pause-when"] > 0
    else:
        report = running.ended()
        assert (report.outcome, report.error) == (
            Outcome.STOPPED,
            'stop_when of the backend says so: "100%: too much"',
        )
        assert 0 < report.rows == DUE - left(slow18) < DUE


def test_a_question_that_becomes_wrong_ends_the_run_with_its_name(slow18: str) -> None:
    sql(slow18, "CREATE TABLE flags (raised bool)")
    running = Running(slow18, pause_when="SELECT raised FROM flags", stop_when="SELECT false")
    until(lambda: left(slow18) < DUE, "the first batch is done")
    sql(slow18, "DROP TABLE flags")
    report = running.ended()
    assert report.outcome is Outcome.REFUSED
    assert report.error.startswith('pause_when of the backend cannot be answered: relation "flags" does not exist')
    assert "correct pause_when" in report.hint


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT setval('task_id_sequence', 7)", "read-only transaction"),
        ("SELECT nonsense", 'column "nonsense" does not exist'),
        ("SELECT 1 FROM pg_authid", None),
    ],
)
def test_a_question_changes_nothing_and_its_fault_is_named(results: str, query: str, said: str | None) -> None:
    role = other_role(results, "asks", "GRANT SELECT ON celery_taskmeta TO asks")
    with opened(role if said is None else results, stop_when=query) as backend:
        with pytest.raises(BackendRefused, match=said or "permission denied") as refused:
            backend.pressure()
        assert str(refused.value).startswith("stop_when of the backend cannot be answered: ")
        with pytest.raises(BackendRefused):
            backend.pressure()  # and again, from the connection beside it


def test_a_question_without_an_answer_is_waited_for(results: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pressure, "ASK_TIMEOUT", timedelta(milliseconds=50))
    with opened(results, pause_when="SELECT pg_sleep(5)") as backend:
        assert [backend.pressure().wait for _ in range(2)] == ["no-answer"] * 2
        # A session's timeout would have ended this too.
        with backend.transaction() as connection:
            connection.exec_driver_sql("SELECT pg_sleep(0.1)")


@pytest.mark.parametrize(
    ("answer", "waits"),
    [
        ("true", True), ("false", False), ("NULL", False), ("0", False), ("0.0", False), ("-1", True), ("''", False),
        ("'no'", True),
        ("0 AS a, 1 AS a", False), ("1 WHERE false", False), ("'a:b %s ;'", True), ("'{}'::jsonb", False),
    ],
)  # fmt: skip
def test_what_is_a_yes(postgres18_url: str, answer: str, waits: bool) -> None:
    with opened(postgres18_url, pause_when=f"SELECT {answer};") as backend:
        assert (backend.pressure().wait == "pause-when") == waits


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("", "is no query"),
        ("DELETE FROM celery_taskmeta", "is no query"),
        ("SELECT 1; DROP TABLE celery_taskmeta", "more than one statement"),
        ("SELECT 1) AS answer; SELECT (1", "more than one statement"),
        ("SELECT (1", "parenthesis"),
    ],
)
def test_what_is_no_query_is_a_problem_of_the_policy(query: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        PostgresBackend(url="db+postgresql://localhost/x", pause_when=query)


@pytest.mark.parametrize(
    "query", ["SELECT ';)'", 'SELECT 1 AS "a;("', "WITH a AS (SELECT 1) TABLE a;", "SELECT $x$;($x$ -- ;)", "values(1)"]
)
def test_what_only_looks_odd_is_taken(query: str, postgres18_url: str) -> None:
    with opened(postgres18_url, pause_when=query) as backend:
        assert backend.pressure().wait == "pause-when"


def test_a_role_with_too_few_connections_runs_unwatched_and_says_so(slow18: str) -> None:
    grants = "GRANT SELECT, UPDATE, DELETE ON celery_taskmeta, celery_tasksetmeta TO narrow"
    role = other_role(slow18, "narrow", "ALTER ROLE narrow CONNECTION LIMIT 2", grants)
    report = Running(role).ended()
    assert (report.outcome, report.rows) == (Outcome.COMPLETED, DUE)
    assert [finding.code for finding in report.findings] == ["postgres.unwatched"]
    assert "too many connections" in report.findings[0].sentence


def test_a_question_that_cannot_be_asked_lets_no_run_go_on(slow18: str) -> None:
    grants = "GRANT SELECT, UPDATE, DELETE ON celery_taskmeta, celery_tasksetmeta TO narrow"
    role = other_role(slow18, "narrow", "ALTER ROLE narrow CONNECTION LIMIT 2", grants)
    running = Running(role, pause_when="SELECT false")
    assert running.waits.began.wait(5)
    sql(slow18, "ALTER ROLE narrow CONNECTION LIMIT 3")
    report = running.ended()
    assert (report.outcome, report.rows, set(report.throttled)) == (Outcome.COMPLETED, DUE, {"no-answer"})


def test_through_pgbouncer(slow18: str, postgres18_server: Postgres, tmp_path: Path) -> None:
    """Who waits for us is seen there too, by our application_name, and nothing is left on a session of the pool."""
    with PgBouncer(tmp_path, postgres18_server, pool_size=3).start() as pooler:
        url = pooler.url(slow18.rpartition("/")[2])
        running = Running(url, pause_when="SELECT false")
        in_the_way(slow18, running)
        report = running.ended()
        assert (report.outcome, report.rows) == (Outcome.COMPLETED, DUE)
        assert report.throttled["lock-waits"] > 0
        shown = "SELECT current_setting('transaction_read_only'), current_setting('statement_timeout')"
        assert {tuple(sql(url, shown)[0]) for _ in range(6)} == {("off", "0")}


@pytest.fixture(scope="module")
def pair_of_servers(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Postgres, Postgres]]:
    """A PostgreSQL 18 and a streaming replica of it."""
    primary = servers.postgres("18")
    replica = Replica(tmp_path_factory.mktemp("replica") / "18", primary)
    replica.initialize()
    with replica.start():
        yield primary, Postgres(replica, primary.version)


@pytest.fixture
def replicated(pair_of_servers: tuple[Postgres, Postgres]) -> Iterator[tuple[str, str]]:
    """One database by its URL on the primary, with sixty due results, and on the replica."""
    primary, replica = pair_of_servers
    name = primary.create_database()
    fill_celery_table(primary.celery_url(name), DUE, due=1)
    position = primary.execute("SELECT pg_current_wal_lsn()")[0][0]
    has_it = f"SELECT pg_last_wal_replay_lsn() >= '{position}'"
    until(lambda: replica.execute(has_it) == [(True,)], "the replica has the rows")
    yield primary.celery_url(name), replica.celery_url(name)
    replica.execute("SELECT pg_wal_replay_resume()")
    primary.drop_database(name)


@pytest.mark.parametrize(
    "job", [Expire(keep="7d"), Archive(older_than="7d"), Partition(), Vacuum()], ids=lambda job: job.kind_name
)
def test_a_replica_is_left_alone(replicated: tuple[str, str], job: Job) -> None:
    report = Running(replicated[1], job).ended()
    assert (report.outcome, report.outcome.exit_code, report.rows) == (Outcome.COMPLETED, 0, 0)
    assert report.what == "changed nothing: the server is a standby that replays another one's changes"
    pair = Pair("job", job, "results", PostgresBackend(url=replicated[1]), None)
    runner = Runner(Ledger.in_memory())
    assert runner.foresee(pair, runner.preview(pair)).idle.startswith("the server is a standby")


def test_one_policy_serves_a_pair_of_servers(replicated: tuple[str, str], tmp_path: Path) -> None:
    """The command on the replica: nothing fails, nothing changes, and the reason is said where somebody asks."""
    command = Installed.with_policy(
        tmp_path,
        f"backends: {{results: {{url: '{replicated[1]}'}}}}\njobs:\n  expire: {{keep: 7d}}\n"
        "  archive: {older_than: 2d}\n  partition: {keep: 1 month}\n  vacuum: {}\n  pool-health: {}\n",
    )
    ended = command.run("run-once", "expire", "archive", "partition", "vacuum", "pool-health")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    runs = {run["job"]: run for run in json.loads(command.run("history", "--json").stdout)}
    assert {run["outcome"] for run in runs.values()} == {"completed"}
    changing = [run["what"] for job, run in runs.items() if job != "pool-health"]
    assert len(changing) == 4
    assert all("the server is a standby" in what for what in changing)
    assert "would change nothing: the server is a standby" in command.run("plan", "expire").stdout
    assert left(replicated[0]) == left(replicated[1]) == DUE


def asked(url: str, **fields: Any) -> Pressure:
    with opened(url, **fields) as backend:
        return backend.pressure()


def test_a_replica_that_falls_behind_is_waited_for(replicated: tuple[str, str]) -> None:
    url, replica = replicated
    sql(replica, "SELECT pg_wal_replay_pause()")
    sql(url, "CREATE TABLE more AS SELECT 1")
    until(lambda: asked(url, max_replica_lag="1ms").wait == "replica-lag", "the lag is seen")
    running = Running(url, max_replica_lag="1ms")
    assert running.waits.began.wait(10)
    assert running.waits.reasons == {"replica-lag"}
    assert running.is_going_on
    sql(replica, "SELECT pg_wal_replay_resume()")
    report = running.ended()
    assert (report.outcome, report.rows) == (Outcome.COMPLETED, DUE)
    assert report.throttled["replica-lag"] > 0


def test_whose_lag_counts(replicated: tuple[str, str]) -> None:
    url, replica = replicated
    sql(replica, "SELECT pg_wal_replay_pause()")
    sql(url, "CREATE TABLE more AS SELECT 1")
    until(lambda: asked(url, max_replica_lag="1ms").wait == "replica-lag", "the lag is seen")
    assert asked(url, max_replica_lag="1ms").why.startswith("replica replica is ")
    assert is_well(asked(url)), "it is not yet 30 s"
    assert is_well(asked(url, max_replica_lag="forever"))
    assert is_well(asked(url, max_replica_lag="1ms", ignore_replicas=["other", "replica"]))

    hidden = asked(other_role(url, "small"), max_replica_lag="1ms")
    assert hidden.wait is None
    assert [finding.code for finding in hidden.findings] == ["postgres.replica-lag-hidden"]
    assert "GRANT pg_read_all_stats" in hidden.findings[0].fix
    ignoring = asked(other_role(url, "small"), max_replica_lag="1ms", ignore_replicas=["replica"])
    assert is_well(ignoring)
    shown = asked(other_role(url, "sees", "GRANT pg_read_all_stats TO sees"), max_replica_lag="1ms")
    assert shown.wait == "replica-lag"
