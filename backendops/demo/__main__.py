"""Start the servers, the Celery workers and the daemon; let time pass quickly; end them all on Ctrl-C."""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import IO, Final

import psycopg2
import redis
from celery import Celery

from backendops import embedded
from backendops.contracts.errors import BackendopsError
from backendops.demo import application, history
from backendops.demo.narrator import narrate, say

# Where the daemon listens unless the policy says otherwise.
PORT: Final = 9919

# One round of tasks each few seconds, so that every run of a job finds something new.
ROUND: Final = 4.0
TASKS: Final = 60
# Copies of the first round's rows: enough for a first archive run of several batches.
COPIES: Final = 100

# The first results of a fresh worker, on a machine that is busy with other things.
PATIENCE: Final = 60.0


def main() -> int:
    """Run the demo; 0 after Ctrl-C."""
    arguments = argparse.ArgumentParser(prog="python -m backendops.demo", description=__doc__)
    arguments.add_argument("--policy", type=Path, default=Path("config/demo.yaml"))
    arguments.add_argument("--directory", type=Path, default=Path(".cache/demo"), help="emptied at the start")
    arguments.add_argument("--port", type=int, default=PORT, help="of /metrics and the status page")
    given = arguments.parse_args()
    for asked in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(asked, _interrupt)
    embedded.die_with_parent(signal.SIGTERM)
    try:
        with ExitStack() as ending:
            _demo(given.policy, given.directory.absolute(), given.port, ending)
    except KeyboardInterrupt:
        say("\nThe demo has ended; nothing of it is left running.")
        return 0
    except BackendopsError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 1


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _demo(policy: Path, directory: Path, port: int, ending: ExitStack) -> None:
    if not policy.exists():
        raise BackendopsError(f"{policy} is not here: run the demo in a checkout of backendops, with make run")
    ending.enter_context(_alone(directory))
    port = _free(port)

    postgres = ending.enter_context(embedded.start_postgres(directory / "postgres"))
    # A limit, and an eviction policy that does not spare the broker's keys: what redis-memory is there to notice.
    valkey = ending.enter_context(
        embedded.start_valkey(directory / "valkey", settings=["maxmemory 64mb", "maxmemory-policy allkeys-lru"])
    )
    say(f"PostgreSQL {postgres.version} and Valkey are running on {embedded.HOST}, private to this demo.")

    stores = {"results": f"db+{postgres.superuser_url()}", "cache": valkey.url()}
    workers = [ending.enter_context(_worker(name, valkey.url(), url, directory)) for name, url in stores.items()]
    daemon = ending.enter_context(
        _daemon(
            policy,
            {
                "DEMO_STATE": str(directory / "state"),
                "DEMO_PORT": str(port),
                "DEMO_POSTGRES_URL": stores["results"],
                "DEMO_REDIS_URL": stores["cache"],
            },
        )
    )
    # All at once: each takes a second or two to finish what it is at, and the stack would ask one after the other.
    ending.callback(_terminate, [daemon, *workers])
    address = f"http://{embedded.HOST}:{port}"
    say(f"The daemon runs {policy}. Status page: {address}/  metrics: {address}/metrics")
    say("Ctrl-C ends it all.\n")

    shop = application.application(valkey.url())
    _visit(shop)
    if _results_come(daemon, postgres.superuser_url(), valkey.url()):
        rows = history.copy_rows(postgres.superuser_url(), COPIES)
        keys = history.age_keys(valkey.url(), settled=timedelta(0))
        say("Two Celery workers run tasks that succeed, fail, are tried again, and form groups and chords.")
        say(
            f"{rows:,} results in PostgreSQL and {keys:,} in Valkey were made to look days to months old; more will be."
        )
    while daemon.poll() is None:
        _visit(shop)
        time.sleep(ROUND)
        history.age_rows(postgres.superuser_url())
        history.age_keys(valkey.url())
    raise BackendopsError(f"the daemon ended with exit code {daemon.returncode}: its last lines above say why")


def _visit(shop: Celery) -> None:
    for queue in ("results", "cache"):
        shop.send_task("shop.visit", args=[TASKS], queue=queue)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """An empty directory that no other demo uses."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackendopsError(
                f"a demo runs in {directory} already: end that one, or give this one another --directory"
            ) from None
        for stale in directory.iterdir():
            if stale.is_dir():
                shutil.rmtree(stale)
        yield


def _free(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((embedded.HOST, port))
        except OSError:
            other = embedded.free_port()
            say(f"Port {port} is taken, perhaps by a backendops of yours: this demo uses {other}.")
            return other
    return port


@contextmanager
def _worker(name: str, broker: str, backend: str, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real Celery worker with two processes."""
    # A worker that is killed leaves its temporary files: here the next demo removes them.
    temporary = directory / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = {
        application.BROKER: broker,
        application.BACKEND: backend,
        application.QUEUE: name,
        "TMPDIR": str(temporary),
    }
    command = [
        *(sys.executable, "-m", "celery", "--app", "backendops.demo.application", "worker"),
        *("--queues", name, "--hostname", f"{name}@demo", "--concurrency", "2", "--loglevel", "warning"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    ]
    with (directory / f"worker-{name}.log").open("wb") as log:
        process = _start(command, environment, log)
    try:
        yield process
    finally:
        _end(process, seconds=3)


@contextmanager
def _daemon(policy: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The daemon as anybody runs it, told in plain words."""
    command = [sys.executable, "-m", "backendops", "--log-format", "json", "--policy", str(policy), "run"]
    process = _start(command, environment, subprocess.PIPE)
    if process.stdout is None:
        raise AssertionError("a pipe was asked for")
    lines = (line.decode("utf-8", errors="replace") for line in process.stdout)
    narrator = threading.Thread(target=narrate, args=(lines,), name="narrator", daemon=True)
    narrator.start()
    try:
        yield process
    finally:
        # SIGTERM lets it finish the step in hand, for which it takes 30 seconds at most.
        _end(process, seconds=30)
        narrator.join(timeout=5)


def _start(command: list[str], environment: Mapping[str, str], output: IO[bytes] | int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*embedded.dying_with_parent("KILL"), *command],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        # Ctrl-C is for this process, which then ends its children in the right order.
        start_new_session=True,
    )


def _terminate(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()


def _end(process: subprocess.Popen[bytes], seconds: float) -> None:
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _results_come(daemon: subprocess.Popen[bytes], postgres_url: str, valkey_url: str) -> bool:
    """Wait until the workers have stored most of their first tasks' results; False where the daemon ends first."""
    deadline = time.monotonic() + PATIENCE
    while daemon.poll() is None:
        if min(_stored_rows(postgres_url), _stored_keys(valkey_url)) >= TASKS // 2:
            return True
        if time.monotonic() > deadline:
            raise BackendopsError(f"no worker stored results within {PATIENCE:.0f} s: see the worker-*.log files")
        time.sleep(0.05)
    return False


def _stored_rows(url: str) -> int:
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM celery_taskmeta WHERE date_done IS NOT NULL")
            found = cursor.fetchone()
            return found[0] if found else 0
    except psycopg2.errors.UndefinedTable:
        return 0
    finally:
        connection.close()


def _stored_keys(url: str) -> int:
    client = redis.Redis.from_url(url)
    try:
        return sum(1 for _ in client.scan_iter(match="celery-task-meta-*", count=1000))
    finally:
        client.close()


if __name__ == "__main__":
    sys.exit(main())
