"""pool-health on Redis, and what the connection does in bad weather: each has a clear word and a way out."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from backendops import embedded
from backendops.backends.redis import RedisBackend
from backendops.backends.redis.errors import acl_line
from backendops.contracts.errors import BackendBusy, BackendError, BackendRefused, BackendUnreachable
from backendops.contracts.run import Limits, NoWatermarks
from backendops.jobs.expire import Expire
from tests.conformance.redis_store import FixedPace, client_of, configured, opened
from tests.redis_fleets import SentinelServer
from tests.servers import Servers

WORD = "s3cret/with:signs"
ESCAPED = "s3cret%2Fwith%3Asigns"


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the server under test."""
    with client_of(redis_url) as connected:
        yield connected


def error_of(url: str, limits: Limits | None = None, **policy: Any) -> BackendError:
    """What opening this URL ends with; never with the password in it."""
    with pytest.raises(BackendError) as raised, opened(url, limits=limits, **policy):
        pass
    assert "s3cret" not in f"{raised.value} {raised.value.hint}"
    return raised.value


def test_times_and_clients_are_measured(redis_url: str, client: redis.Redis) -> None:
    client.ping()
    with client_of(f"{redis_url}?client_name=app") as waiting, opened(redis_url) as backend:
        waiting.ping()
        backend.client.ping()
        found = backend.report_pool()

    assert 0 < found.connect_seconds < 1
    assert 0 < found.roundtrip_seconds < 1
    assert sum(found.connections.values()) == sum(found.by_application.values()) >= 4
    assert found.by_application["app"] == 1
    assert found.by_application["backendops"] == 2
    assert found.connections_limit == int(cast(dict[str, str], client.config_get("maxclients"))["maxclients"])
    assert found.rejected_connections == 0
    assert found.replication_lag_seconds is None
    assert found.notes == ()


def test_clients_are_told_apart_by_what_they_do(redis_url: str, client: redis.Redis) -> None:
    with client_of(redis_url) as blocked, client_of(redis_url) as multi, client_of(redis_url) as reader:
        holding = blocked.connection_pool.get_connection()
        holding.send_command("BLPOP", "nothing", 0)
        inside = multi.connection_pool.get_connection()
        inside.send_command("MULTI")
        inside.read_response()
        subscribed = reader.pubsub()
        subscribed.subscribe("channel")
        subscribed.get_message(timeout=1)
        _until(lambda: cast(dict[str, Any], client.info("clients"))["blocked_clients"] == 1)
        with opened(redis_url) as backend:
            states = backend.report_pool().connections
        subscribed.close()
        for connection in (holding, inside):
            connection.disconnect()

    assert (states["blocked"], states["idle_in_transaction"], states["other"]) == (1, 1, 1)


def test_rejected_connections_are_told(redis_url: str, client: redis.Redis) -> None:
    # Room for this test's own connection and the backend's two, and for no more.
    with opened(redis_url) as backend:
        backend.client.ping()
        with configured(client, maxclients=cast(dict[str, Any], client.info("clients"))["connected_clients"]):
            with pytest.raises(BackendBusy, match="maxclients is reached") as busy:
                backend.report_pool()
            assert "CLIENT LIST" in busy.value.hint
        assert (backend.report_pool().rejected_connections or 0) >= 1


def test_a_dead_port_is_answered_at_once() -> None:
    error = error_of(f"redis://:{ESCAPED}@127.0.0.1:{embedded.free_port()}/0")
    assert isinstance(error, BackendUnreachable)
    assert "cannot be reached" in str(error)
    assert "is the server running" in error.hint


@pytest.mark.parametrize("url", ["redis://127.0.0.1:{}/0", "rediss://127.0.0.1:{}/0", "sentinel://127.0.0.1:{}/0"])
def test_a_server_that_accepts_and_never_answers_is_given_up(url: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        policy = {"master_name": "m"} if url.startswith("sentinel") else {}
        error = error_of(
            url.format(silent.getsockname()[1]), Limits(connect_timeout=timedelta(milliseconds=400)), **policy
        )
    assert isinstance(error, BackendUnreachable), error
    assert time.monotonic() - started < 3


def test_a_server_that_stops_answering_is_unreachable_within_five_seconds(valkey_url: str, servers: Servers) -> None:
    """As it is with the job's own limits: report_pool on a server that is held."""
    pid = servers.redis("valkey").pid
    with opened(valkey_url) as backend:
        os.kill(pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(BackendUnreachable, match="did not answer in time"):
                backend.report_pool()
            assert time.monotonic() - started < 5
        finally:
            os.kill(pid, signal.SIGCONT)
        assert backend.report_pool().roundtrip_seconds < 1


def test_a_host_that_no_resolver_knows() -> None:
    error = error_of("redis://no-such-host.invalid:6379/0", Limits(connect_timeout=timedelta(seconds=2)))
    assert isinstance(error, BackendUnreachable)


def test_a_password_that_is_wrong_missing_or_not_needed(redis_url: str, client: redis.Redis) -> None:
    with_password = redis_url.replace("://", f"://:{ESCAPED}@")
    error = error_of(with_password)
    assert isinstance(error, BackendRefused)
    assert "has no password, and the URL gives one" in str(error)

    client.config_set("requirepass", WORD)
    try:
        wrong, missing = error_of(redis_url.replace("://", "://:s3cret-wrong@")), error_of(redis_url)
        with opened(with_password) as backend:
            assert backend.report_pool().connections
    finally:
        client.config_set("requirepass", "")
    for error in (wrong, missing):
        assert isinstance(error, BackendRefused)
        assert "refused the login" in str(error)
        assert "${PASSWORD}" in error.hint


def test_the_acl_line_of_the_hint_allows_everything_and_is_needed(redis_url: str, client: redis.Redis) -> None:
    url = redis_url.replace("://", "://keeper:pw@")
    client.execute_command("ACL", "SETUSER", "keeper", "on", ">pw", "nocommands", "+ping", "resetkeys")
    job = Expire.model_validate({"keep": "30d"})
    now = datetime.now(UTC)
    try:
        client.set("celery-task-meta-1", '{"status": "SUCCESS", "result": 1, "date_done": "2020-01-01T00:00:00"}')
        with opened(url) as backend:
            with pytest.raises(BackendRefused, match="does not permit") as refused:
                backend.standing()
            assert refused.value.hint.startswith(f"allow it: {acl_line('keeper', '')} (Redis 7.0 does not know")

        client.execute_command(*acl_line("keeper", "").split())
        with opened(url) as backend:
            assert backend.standing().read_only_because == ""
            assert job.preview(backend, now).rows == 1
            with backend.lock() as held:
                assert held is not None
                assert held.still_held()
                assert sum(step.rows for step in job.run(backend, now, FixedPace())) == 1
            assert client.exists(backend.lock_name) == 0, "given back, not left to its lease"
            assert backend.report_memory(timedelta(seconds=1)).result_keys["task"] == 1
            assert backend.report_pool().notes == ()

        client.execute_command("ACL", "SETUSER", "keeper", "-pexpire")
        client.persist("celery-task-meta-1")
        with opened(url) as backend, pytest.raises(BackendRefused, match="does not permit"):
            list(job.run(backend, now, FixedPace()))
        client.execute_command("ACL", "SETUSER", "keeper", "-client|list", "-info")
        with opened(url) as backend:
            found = backend.report_pool()
        assert [note.split(" is not permitted")[0] for note in found.notes] == ["INFO", "CLIENT LIST"]
        assert (found.connections, found.rejected_connections) == ({}, None)
        assert found.connections_limit > 0, "CONFIG GET tells it"
    finally:
        client.acl_deluser("keeper")


def test_a_database_that_does_not_exist(redis_url: str) -> None:
    error = error_of(redis_url.removesuffix("/0") + "/4711")
    assert isinstance(error, BackendRefused)
    assert "no such database" in str(error)


def test_a_server_that_is_loading_is_busy(redis_url: str, client: redis.Redis) -> None:
    for number in range(20):
        client.set(f"celery-task-meta-{number}", os.urandom(2000))
    with configured(client, key_load_delay=25_000, loading_process_events_interval_bytes=1024):
        loading = client.connection_pool.get_connection()
        loading.send_command("DEBUG", "RELOAD")
        _until(lambda: _is_loading(redis_url))
        error = error_of(redis_url)
        loading.read_response()
        client.connection_pool.release(loading)
    assert isinstance(error, BackendBusy)
    assert "is loading its data" in str(error)


def _is_loading(url: str) -> bool:
    with client_of(url) as other:
        try:
            other.ping()
        except redis.exceptions.BusyLoadingError:
            return True
        return False


def test_each_database_is_its_own(redis_url: str) -> None:
    other = redis_url.removesuffix("/0") + "/3"
    with client_of(other) as client:
        client.set("celery-task-meta-1", '{"status": "SUCCESS", "result": 1, "date_done": "2020-01-01T00:00:00"}')
    with opened(redis_url) as first, opened(other) as third:
        assert first.report_memory(timedelta(seconds=1)).result_keys["task"] == 0
        found = third.report_memory(timedelta(seconds=1))
        assert (found.keys, found.result_keys["task"]) == (1, 1)
        assert third.lock_name.endswith(":3")


def test_a_socket_file_and_its_password(tmp_path: Path) -> None:
    # A socket's path has at most 107 characters: it is made where the server runs, and named from there.
    server = embedded.start_valkey(tmp_path / "server", settings=["unixsocket s"], password="pw/1")  # noqa: S106 - a test's own server
    try:
        url = f"redis+socket://:pw%2F1@{tmp_path / 'server' / 's'}?virtual_host=2"
        with opened(url) as backend:
            backend.client.set("celery-task-meta-1", "x")
            assert backend.report_memory(timedelta(seconds=1)).result_keys["task"] == 1
            assert backend.display_url == f"redis+socket://:***@{tmp_path / 'server' / 's'}?virtual_host=2"
            assert backend.report_pool().connect_seconds < 1
    finally:
        server.stop()
    assert isinstance(error_of(url), BackendUnreachable)


@pytest.fixture
def sentinel(valkey_url: str, tmp_path: Path) -> Iterator[str]:
    """A real sentinel that watches the Valkey; its host and port."""
    master = valkey_url.removeprefix("redis://127.0.0.1:").removesuffix("/0")
    with SentinelServer(tmp_path, password="", settings=[f"sentinel monitor results 127.0.0.1 {master} 1"]) as running:
        running.start()
        yield f"127.0.0.1:{running.port}"


def test_the_master_is_found_through_the_sentinels(sentinel: str, valkey_url: str) -> None:
    url = f"sentinel://127.0.0.1:{embedded.free_port()}/2;sentinel://{sentinel}/2"
    with client_of(valkey_url.removesuffix("/0") + "/2") as client, opened(url, master_name="results") as backend:
        client.set("celery-task-meta-1", "x")
        assert backend.standing().read_only_because == ""
        assert backend.report_memory(timedelta(seconds=1)).result_keys["task"] == 1
        with backend.lock() as held:
            assert held is not None
    error = error_of(url, master_name="other")
    assert isinstance(error, BackendUnreachable)
    assert "other" in str(error)


def test_a_backend_is_used_only_when_opened(valkey_url: str) -> None:
    backend = RedisBackend(url=cast(Any, valkey_url))
    with pytest.raises(RuntimeError, match="open the backend first"):
        backend.standing()
    with backend.open(Limits(), NoWatermarks()) as connected:
        connected.standing()


def _until(condition: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)
