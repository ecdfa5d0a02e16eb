"""The daemon and a Redis that hangs: it says so, goes on with the rest, and comes back by itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from backendops import embedded
from tests.acceptance.daemon import daemon, eventually, free_of_tracebacks, write_policy

JOBS = """
backends:
  cache: {{url: "{cache}"}}
  healthy: {{url: "{healthy}"}}
jobs:
  expire: {{schedule: every 1s, keep: 30d, statement_timeout: 1s}}
  archive: {{backend: cache, schedule: every 1s, older_than: 1h, statement_timeout: 1s, to: {{files: {files}}}}}
  redis-memory: {{schedule: every 1s, statement_timeout: 1s}}
  pool-health: {{schedule: every 1s}}
"""


@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")
def test_a_redis_that_is_stopped_and_goes_on(
    tmp_path: Path, valkey_url: str, fill_celery_keys: Callable[..., None]
) -> None:
    files = tmp_path / "archive"
    files.mkdir()
    server = embedded.start_valkey(tmp_path / "server", password="")
    try:
        fill_celery_keys(server.url(), 50, 1.0)
        policy = write_policy(tmp_path, JOBS.format(cache=server.url(), healthy=valkey_url, files=files))
        with daemon(policy) as running:

            def runs(job: str, backend: str, outcome: str) -> float:
                return running.value("backendops_job_runs_total", job=job, backend=backend, outcome=outcome)

            eventually(lambda: running.value("backendops_job_rows_total", job="archive", backend="cache") == 50)
            eventually(lambda: running.value("backendops_job_rows_total", job="expire", backend="cache") == 50)
            os.kill(server.pid, signal.SIGSTOP)
            try:
                eventually(lambda: running.value("backendops_backend_up", backend="cache") == 0)
                for job in ("expire", "redis-memory"):
                    eventually(lambda job=job: runs(job, "cache", "unreachable") >= 1)
                # The other Redis is looked after all the while, and the daemon answers.
                before = runs("expire", "healthy", "completed")
                eventually(lambda: runs("expire", "healthy", "completed") >= before + 2)
                assert running.value("backendops_backend_up", backend="healthy") == 1
                assert running.get("/livez").status == 200
            finally:
                os.kill(server.pid, signal.SIGCONT)
            eventually(lambda: running.value("backendops_backend_up", backend="cache") == 1)
            with redis.Redis(port=server.port) as client:
                # The lease of a lock that could not be given back ends after a minute; here it ends now.
                client.delete("backendops:lock:0")
            fill_celery_keys(server.url(), 7, 1.0)
            eventually(lambda: running.value("backendops_job_rows_total", job="expire", backend="cache") == 57)
            before = runs("archive", "cache", "completed")
            eventually(lambda: runs("archive", "cache", "completed") > before)
            assert running.stop() == 0
            assert free_of_tracebacks(running)
    finally:
        server.stop()
