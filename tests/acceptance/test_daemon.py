"""The daemon as its users run it: the installed command, real backends, real signals."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import redis

from tests.acceptance.daemon import COMMAND, PATIENCE, daemon, eventually, free_of_tracebacks, write_policy
from tests.servers import Postgres, Servers, missing

JOBS = """
backends:
  results: {{url: "{results}"}}
  cache: {{url: "{cache}"}}
jobs:
  archive: {{backend: results, schedule: every 1s, older_than: 7d}}
  expire: {{backend: [results, cache], schedule: every 2s, keep: 90d}}
  partition: {{backend: results, schedule: every 2s, ahead: 2}}
  vacuum: {{backend: results, schedule: every 2s}}
  redis-memory: {{schedule: every 1s}}
  pool-health: {{schedule: every 1s}}
"""

# Small batches, so that a signal meets the run in the middle.
SLOW_ARCHIVE = """
backends:
  results: {{url: "{results}"}}
jobs:
  archive: {{backend: results, schedule: every 1h, older_than: 7d, batch_size: 20, batch_time: 1ms}}
  pool-health: {{schedule: every 1s}}
"""


def rows(url: str, query: str) -> Any:
    """The first value of a query on a Celery URL."""
    with closing(psycopg2.connect(url.removeprefix("db+"))) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        row = cursor.fetchone()
        return row[0] if row else None


def archived(url: str) -> int:
    if rows(url, "SELECT to_regclass('celery_taskmeta_archive') IS NULL"):
        return 0
    return int(rows(url, "SELECT count(*) FROM celery_taskmeta_archive"))


def kept(url: str) -> int:
    """Rows in live and archive together; none may be in both."""
    live, moved = rows(url, "SELECT count(*) FROM celery_taskmeta"), archived(url)
    if moved:
        twice = "SELECT count(*) FROM celery_taskmeta JOIN celery_taskmeta_archive USING (task_id)"
        assert rows(url, twice) == 0
    return int(live) + moved


def ledger(directory: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(directory / "state" / "ledger.sqlite3")) as connection:
        return connection.execute(query).fetchall()


def test_every_series_is_there_and_true(  # noqa: PLR0915 - one line for each series
    tmp_path: Path, postgres18_url: str, valkey_url: str, fill_celery_table: Callable[..., None],
    celery_results: Callable[..., list[str]],
) -> None:  # fmt: skip
    fill_celery_table(postgres18_url, 400, due=0.5, groups=4)
    celery_results(valkey_url, 10, groups=1, result_expires=None)
    began = time.time()
    with daemon(write_policy(tmp_path, JOBS.format(results=postgres18_url, cache=valkey_url))) as running:
        fresh = running.metrics()
        pairs = {("job", "archive"), ("backend", "results")}
        assert fresh["backendops_job_rows_total"][tuple(sorted(pairs))] >= 0
        on_results, on_cache = {"backend": "results"}, {"backend": "cache"}
        eventually(lambda: running.value("backendops_job_rows_total", job="archive", **on_results) == 202)
        for job, backend in [("expire", "cache"), ("vacuum", "results"), ("partition", "results")]:
            completed = {"job": job, "backend": backend, "outcome": "completed"}
            eventually(lambda labels=completed: running.value("backendops_job_runs_total", **labels) >= 1)
        eventually(lambda: running.value("backendops_results_due", job="archive", **on_results) == 0)
        for labels in (on_results, on_cache):
            eventually(lambda labels=labels: running.value("backendops_backend_up", **labels) == 1)
        before, seen, after = time.time(), running.metrics(), time.time()

        def value(name: str, **labels: str) -> float:
            return seen[f"backendops_{name}"][tuple(sorted(labels.items()))]

        assert len(seen["backendops_build_info"]) == 1
        assert value("policy_valid") == value("ledger_up") == 1
        assert began < value("policy_loaded_timestamp_seconds") <= after
        archive = {"job": "archive", "backend": "results"}
        assert began < value("job_last_success_timestamp_seconds", **archive) <= after
        assert before - 5 < value("job_next_run_timestamp_seconds", **archive) < after + 5
        assert 0 < value("job_last_duration_seconds", **archive) < 30
        assert value("job_running", **archive) in (0, 1)
        assert value("job_interval_seconds", **archive) == 1
        assert value("job_throttled_seconds_total", reason="paused", **archive) == 0
        assert value("backend_up", **on_results) == value("backend_up", **on_cache) == 1
        assert 0 < value("backend_roundtrip_seconds", **on_results) < 5
        assert value("pool_connections", state="active", **on_results) >= 1
        settings = "current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
        assert value("pool_connections_limit", **on_results) == rows(postgres18_url, f"SELECT {settings}")
        assert 0 < value("results_oldest_age_seconds", table="celery_taskmeta", **on_results) < 8 * 86400
        assert value("results_due", job="archive", **on_results) == 0
        assert value("table_bytes", table="celery_taskmeta", **on_results) > 8192
        assert value("table_dead_rows", table="celery_taskmeta", **on_results) >= 0
        assert value("partitions_ahead", **on_results) == 2
        assert 0.99 < value("id_headroom_ratio", **on_results) <= 1
        assert value("redis_memory_used_bytes", **on_cache) > 100_000
        assert value("redis_memory_limit_bytes", **on_cache) == 0
        assert value("redis_fragmentation_ratio", **on_cache) > 0
        assert value("redis_result_keys", kind="task", **on_cache) == 13
        assert value("redis_result_keys", kind="group", **on_cache) == 1
        with closing(redis.Redis.from_url(valkey_url)) as client:
            without = [key for key in client.scan_iter("celery-task*") if client.ttl(key) == -1]
        eventually(lambda: running.value("backendops_redis_keys_without_ttl", **on_cache) == len(without))
        assert len(without) < 14, "expire gave keys their time to live"
        assert kept(postgres18_url) == 400

        status = running.get("/api/status").json()
        assert {job["job"] for job in status["jobs"]} >= {"archive", "expire", "partition", "vacuum", "pool-health"}
        assert [backend["up"] for backend in status["backends"]] == [True, True]
        page = running.get("/").body.decode()
        assert "celery_taskmeta" in page
        assert "archive" in page
        assert running.stop() == 0
        assert free_of_tracebacks(running)


def test_sigterm_lets_the_step_in_hand_end(
    tmp_path: Path, postgres18_url: str, fill_celery_table: Callable[..., None]
) -> None:
    fill_celery_table(postgres18_url, 20_000, due=1.0)
    policy = write_policy(tmp_path, SLOW_ARCHIVE.format(results=postgres18_url).replace("every 1h", "every 1s"))
    with daemon(policy) as running:
        running.logged("run.started", job="archive")
        eventually(lambda: archived(postgres18_url) > 0)
        assert running.value("backendops_job_running", job="archive", backend="results") == 1
        asked_at = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - asked_at < 10
        ended = running.logged("run.ended", job="archive")
        assert ended["outcome"] == "stopped"
        stopping = running.logged("service.stopping")
        assert stopping["reason"] == "SIGTERM"
        assert "archive on results" in stopping["finishing"]
        assert 0 < archived(postgres18_url) == ended["rows"] < 20_000
        assert kept(postgres18_url) == 20_000


def test_killed_in_the_middle_it_goes_on_where_it_was(
    tmp_path: Path, postgres18_url: str, fill_celery_table: Callable[..., None]
) -> None:
    fill_celery_table(postgres18_url, 10_000, due=1.0)
    slow = SLOW_ARCHIVE.format(results=postgres18_url)
    with daemon(write_policy(tmp_path, slow.replace("every 1h", "every 1s"))) as running:
        eventually(lambda: archived(postgres18_url) > 0)
        running.stop(signal.SIGKILL)
    before = archived(postgres18_url)
    assert 0 < before < 10_000
    # A slot that was claimed by the run that was killed: it is made up for at once, and once. Of a whole year, as the
    # next slot must not come while the test looks.
    slow = slow.replace("every 1h", "'@yearly'")
    with daemon(write_policy(tmp_path, slow.replace("batch_size: 20, batch_time: 1ms", "batch_size: 1000"))) as running:
        assert running.logged("runs.orphaned")["runs"] == 1
        ended = running.logged("run.ended", job="archive", outcome="completed")
        assert ended["rows"] == 10_000 - before
        assert running.value("backendops_job_runs_total", job="archive", backend="results", outcome="failed") == 1
        assert kept(postgres18_url) == archived(postgres18_url) == 10_000
    with daemon(running.policy) as running:
        eventually(lambda: running.log("run.ended"))
        assert not running.log("run.started"), "nothing was missed this time"


def test_sighup(tmp_path: Path, postgres18_url: str, fill_celery_table: Callable[..., None]) -> None:
    fill_celery_table(postgres18_url, 500, due=1.0)
    # The operator's pause file holds the run in its middle for as long as the test needs.
    held = tmp_path / "state" / "pause"
    held.parent.mkdir()
    held.touch()
    text = SLOW_ARCHIVE.format(results=postgres18_url).replace("every 1h", "every 1s")
    with daemon(write_policy(tmp_path, text)) as running:
        started = running.logged("run.started", job="archive")

        write_policy(tmp_path, text.replace("older_than", "older_then").replace("every 1s,", "every 0s,"))
        running.reload()
        running.logged("policy.refused")
        problems = [line["problem"] for line in running.log("policy.problem")]
        assert len(problems) >= 2
        assert all(str(tmp_path / "policy.yaml") in problem for problem in problems)
        assert any("did you mean 'older_than'" in problem for problem in problems)
        assert running.value("backendops_policy_valid") == 0
        ready = running.get("/readyz")
        assert ready.status == 503
        assert "older_then" in ready.json()["reasons"]["policy"]
        assert running.get("/livez").status == 200
        assert "older_then" in running.get("/").body.decode()

        write_policy(tmp_path, text + "  vacuum: {backend: results, schedule: every 1s}\n")
        running.reload()
        running.logged("policy.loaded")
        assert running.value("backendops_policy_valid") == 1
        assert running.get("/readyz").status == 200
        assert running.metrics()["backendops_job_rows_total"][("backend", "results"), ("job", "vacuum")] == 0
        assert running.value("backendops_job_running", job="archive", backend="results") == 1, "it still runs"
        held.unlink()
        completed = running.logged("run.ended", run=started["run"])
        assert completed["outcome"] == "completed"
        assert completed["rows"] == 500
        # The lock was taken; the new job waited within its slots and then had its turn.
        running.logged("run.ended", job="vacuum", outcome="completed")


def test_backends_go_and_come_back(tmp_path: Path, servers: Servers, postgres18_server: Postgres) -> None:
    database = postgres18_server.create_database()
    postgres, valkey = postgres18_server.server, servers.redis("valkey")
    policy = write_policy(tmp_path, JOBS.format(results=postgres18_server.celery_url(database), cache=valkey.url()))
    try:
        postgres.stop()
        valkey.stop()
        with daemon(policy) as running:
            up = {"backend": "results"}, {"backend": "cache"}
            eventually(lambda: running.get("/readyz").json()["backends_down"] == ["results", "cache"])
            assert running.get("/readyz").status == 200
            assert [running.value("backendops_backend_up", **labels) for labels in up] == [0, 0]
            running.logged("run.ended", job="archive", outcome="unreachable")

            postgres.start()
            valkey.start()
            for labels in up:
                eventually(lambda labels=labels: running.value("backendops_backend_up", **labels) == 1)
            eventually(lambda: running.value("backendops_job_running", job="archive", backend="results") == 0)

            valkey.kill()
            eventually(lambda: running.value("backendops_backend_up", backend="cache") == 0)
            probes = {"job": "pool-health", "backend": "results", "outcome": "completed"}
            before = running.value("backendops_job_runs_total", **probes)
            eventually(lambda: running.value("backendops_job_runs_total", **probes) > before)
            assert running.value("backendops_backend_up", backend="results") == 1
            valkey.start()
            eventually(lambda: running.value("backendops_backend_up", backend="cache") == 1)
            assert running.stop() == 0
            assert free_of_tracebacks(running)
    finally:
        for server in (postgres, valkey):
            if not server.running:
                server.start()


def test_two_daemons_and_cron_run_each_slot_once(
    tmp_path: Path, postgres18_url: str, fill_celery_table: Callable[..., None]
) -> None:
    fill_celery_table(postgres18_url, 1000, due=0.5)
    text = SLOW_ARCHIVE.format(results=postgres18_url).replace("every 1h", "every 1s")
    policy = write_policy(tmp_path, text)
    with daemon(policy) as one, daemon(policy) as two:
        once = subprocess.run(
            [COMMAND, "--policy", policy, "run-once", "archive"],
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert once.returncode in (0, 75), once.stderr
        eventually(lambda: archived(postgres18_url) == 500)
        slots = "SELECT count(*) FROM backendops_slots WHERE job = 'pool-health'"
        eventually(lambda: ledger(tmp_path, slots)[0][0] >= 4)
        assert one.stop() == 0
        assert two.stop() == 0
    assert kept(postgres18_url) == 1000
    assert ledger(tmp_path, "SELECT sum(rows) FROM backendops_runs WHERE job = 'archive'")[0][0] == 500
    probes = "SELECT count(*) FROM backendops_runs WHERE job = 'pool-health' AND trigger = 'schedule'"
    assert ledger(tmp_path, probes) == ledger(tmp_path, slots)
    by_process = ledger(tmp_path, "SELECT count(DISTINCT pid) FROM backendops_runs WHERE trigger = 'schedule'")
    assert by_process[0][0] in (1, 2)


def test_idle_and_slow_clients_keep_nobody_waiting(tmp_path: Path, sqlite_url: str) -> None:
    text = f"backends: {{results: {{url: '{sqlite_url}'}}}}\njobs: {{pool-health: {{schedule: every 1s}}}}\n"
    with daemon(write_policy(tmp_path, text)) as running:
        port = int(running.url.rstrip("/").rpartition(":")[2])
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
        slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
        try:
            for client in slow:
                client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Never-Ending: ")
            slowest = 0.0
            for path in ("/metrics", "/", "/readyz", "/api/status") * 5:
                asked_at = time.monotonic()
                assert running.get(path).status == 200
                slowest = max(slowest, time.monotonic() - asked_at)
            # One that waited for an idle client would wait for its whole time-out.
            assert slowest < 4
            threads = len(list(Path(f"/proc/{running.process.pid}/task").iterdir()))
            assert threads < 40, "an idle connection has no thread"
            # More than it takes: those that wait longest make room, and a scrape is still answered.
            idle += [socket.create_connection(("127.0.0.1", port)) for _ in range(250)]
            assert running.get("/metrics").status == 200
            idle[0].settimeout(5)
            assert idle[0].recv(1) == b""
        finally:
            for client in idle + slow:
                client.close()
        assert running.stop() == 0


def test_password_and_certificate(tmp_path: Path, sqlite_url: str) -> None:
    def certificate(name: str) -> None:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-keyout", tmp_path / "key.pem", "-out", tmp_path / name, "-days", "2", "-subj", "/CN=localhost",
             "-addext", "subjectAltName=IP:127.0.0.1"],
            check=True, capture_output=True,
        )  # fmt: skip

    if not any(Path(folder, "openssl").exists() for folder in os.get_exec_path()):
        missing("openssl", "install the package openssl")
    certificate("certificate.pem")
    first = (tmp_path / "certificate.pem").read_text()
    more = (
        f", tls_certificate: {tmp_path}/certificate.pem, tls_key: {tmp_path}/key.pem, username: ops, password: s3cr3t"
    )
    text = f"backends: {{results: {{url: '{sqlite_url}'}}}}\njobs: {{pool-health: {{schedule: every 1s}}}}\n"
    policy = write_policy(tmp_path, text, more_http=more)
    with daemon(policy) as running:
        assert running.url.startswith("https://")
        (tmp_path / "first.pem").write_text(first)
        trusted = str(tmp_path / "first.pem")
        refused = running.get("/metrics", verify=trusted)
        assert refused.status == 401
        assert refused.headers["WWW-Authenticate"].startswith("Basic ")
        wrong = {"Authorization": "Basic b3BzOndyb25n"}
        right = {"Authorization": "Basic b3BzOnMzY3IzdA=="}
        assert running.get("/metrics", verify=trusted, **wrong).status == 401
        assert running.get("/nothing", verify=trusted).status == 401
        assert running.get("/metrics", verify=trusted, **right).status == 200
        assert running.get("/livez", verify=trusted).status == 200
        assert running.get("/readyz", verify=trusted).status == 200

        certificate("certificate.pem")
        running.reload()
        running.logged("policy.loaded")
        second = str(tmp_path / "certificate.pem")
        assert running.get("/metrics", verify=second, **right).status == 200

        (tmp_path / "key.pem").write_text("not a key")
        running.reload()
        assert "key.pem" in running.logged("policy.problem")["problem"]
        assert running.get("/metrics", verify=second, **right).status == 200
        assert running.stop() == 0
        assert "s3cr3t" not in running.log_file.read_text()


def test_the_address_is_taken_then_changed(tmp_path: Path, sqlite_url: str) -> None:
    text = f"backends: {{results: {{url: '{sqlite_url}'}}}}\njobs: {{pool-health: {{schedule: every 1s}}}}\n"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with daemon(write_policy(tmp_path, text, f"127.0.0.1:{port}"), wait=False) as running:
            assert running.process.wait(PATIENCE) == 1
            said = running.log_file.read_text()
            assert said.startswith(f"backendops: cannot listen on 127.0.0.1, port {port}: Address already in use")
            assert said.count("\n") == 1
        with daemon(write_policy(tmp_path, text)) as running:
            write_policy(tmp_path, text, f"127.0.0.1:{port}")
            running.reload()
            running.logged("policy.refused")
            assert running.value("backendops_policy_valid") == 0
            taken.close()
            running.reload()
            running.url = running.logged("http.moved")["status_page"]
            assert running.url == f"http://127.0.0.1:{port}/"
            eventually(lambda: running.value("backendops_policy_valid") == 1)


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_systemd_is_told(tmp_path: Path, sqlite_url: str, abstract: bool) -> None:
    address = f"@backendops-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    text = f"backends: {{results: {{url: '{sqlite_url}'}}}}\njobs: {{pool-health: {{schedule: every 1s}}}}\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(address.replace("@", "\0", 1))
        notified.settimeout(20)

        def told(what: str) -> list[str]:
            while what not in (lines := notified.recv(4096).decode().split("\n")):
                pass
            return lines

        policy = write_policy(tmp_path, text)
        with daemon(policy, NOTIFY_SOCKET=address, WATCHDOG_USEC="3000000") as running:
            status = told("READY=1")[1]
            assert status.startswith("STATUS=")
            assert "next pool-health on results at" in status
            told("WATCHDOG=1")
            told("WATCHDOG=1")
            running.reload()
            before = time.monotonic_ns() // 1000
            monotonic = told("RELOADING=1")[1]
            assert abs(int(monotonic.removeprefix("MONOTONIC_USEC=")) - before) < 20_000_000
            told("READY=1")
            assert running.stop(signal.SIGINT) == 0
            assert told("STOPPING=1")[1].startswith("STATUS=stopping")
