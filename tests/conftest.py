"""Fixtures: real servers, a fresh database for each test, and results written by Celery itself."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from tests import celery_rows
from tests.servers import Postgres, Servers, postgres_versions

# A shell lets what it starts in the background ignore Ctrl-C, and so every program that a test starts and asks to end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Every server of this test process; each starts when first asked for."""
    running = Servers(tmp_path_factory.mktemp("servers"))
    yield running
    running.stop()


# Not of session scope, although the servers are: pytest would end a session fixture each time its parameter changes.
@pytest.fixture(params=postgres_versions(), ids=lambda version: f"postgres{version}")
def postgres_server(request: pytest.FixtureRequest, servers: Servers) -> Postgres:
    """Each PostgreSQL there is, one after the other."""
    return servers.postgres(request.param)


@pytest.fixture
def postgres_url(postgres_server: Postgres) -> Iterator[str]:
    """A Celery result_backend URL of a fresh database, on each PostgreSQL there is."""
    yield from _database(postgres_server)


@pytest.fixture
def postgres18_server(servers: Servers) -> Postgres:
    """The wheel's PostgreSQL."""
    return servers.postgres("18")


@pytest.fixture
def postgres18_url(postgres18_server: Postgres) -> Iterator[str]:
    """A Celery result_backend URL of a fresh database on the wheel's PostgreSQL."""
    yield from _database(postgres18_server)


def _database(server: Postgres) -> Iterator[str]:
    name = server.create_database()
    yield server.celery_url(name)
    server.drop_database(name)


@pytest.fixture
def valkey_url(servers: Servers) -> str:
    """An empty Valkey."""
    return _emptied(servers, "valkey")


@pytest.fixture
def redis8_url(servers: Servers) -> str:
    """An empty Redis 8."""
    return _emptied(servers, "redis8")


@pytest.fixture(params=["valkey", "redis8"])
def redis_url(request: pytest.FixtureRequest, servers: Servers) -> str:
    """An empty Valkey, then an empty Redis 8."""
    return _emptied(servers, request.param)


def _emptied(servers: Servers, which: str) -> str:
    url = servers.redis(which).url()
    client = redis.Redis.from_url(url)
    try:
        client.flushall()
        client.config_resetstat()
    finally:
        client.close()
    return url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A Celery result_backend URL of a SQLite file that does not exist yet."""
    return f"db+sqlite:///{tmp_path / 'results.db'}"


@pytest.fixture
def celery_results() -> Callable[..., list[str]]:
    """Results stored by Celery's own backend; see celery_rows.celery_results."""
    return celery_rows.celery_results


@pytest.fixture
def fill_celery_table() -> Callable[..., None]:
    """Many results in one statement; see celery_rows.fill_celery_table."""
    return celery_rows.fill_celery_table


@pytest.fixture
def fill_celery_keys() -> Callable[..., None]:
    """Many result keys; see celery_rows.fill_celery_keys."""
    return celery_rows.fill_celery_keys


@pytest.fixture
def back_date() -> Callable[..., None]:
    """Let results have finished long ago; see celery_rows.back_date."""
    return celery_rows.back_date
