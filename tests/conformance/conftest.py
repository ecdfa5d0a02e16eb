"""Each conformance test runs on every backend that claims the capability its file is about (`CAPABILITY`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backendops.backends.postgres import PostgresBackend
from backendops.backends.sql import SqlBackend
from tests.conformance.stores import ENTRIES, Entry, Store, TableStore
from tests.servers import Servers

# Which backends a fixture stands for, beside claiming the capability.
FIXTURES: dict[str, type] = {"store": object, "tables": SqlBackend, "postgres": PostgresBackend}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    capability = getattr(metafunc.module, "CAPABILITY", object)
    for fixture, kind in FIXTURES.items():
        if fixture in metafunc.fixturenames:
            entries = [
                entry for entry in ENTRIES if issubclass(entry.kind, capability) and issubclass(entry.kind, kind)
            ]
            metafunc.parametrize(fixture, entries, ids=[entry.name for entry in entries], indirect=True)


@pytest.fixture
def store(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Iterator[Store]:
    """A fresh store of each backend that can."""
    entry: Entry = request.param
    with entry.store(servers, tmp_path) as fresh:
        yield fresh


@pytest.fixture
def tables(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Iterator[TableStore]:
    """A fresh store of each backend that can, and that keeps results in tables."""
    entry: Entry = request.param
    with entry.store(servers, tmp_path) as fresh:
        assert isinstance(fresh, TableStore)
        yield fresh


@pytest.fixture
def postgres(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Iterator[TableStore]:
    """A fresh database on each PostgreSQL there is: for what only PostgreSQL has."""
    entry: Entry = request.param
    with entry.store(servers, tmp_path) as fresh:
        assert isinstance(fresh, TableStore)
        yield fresh
