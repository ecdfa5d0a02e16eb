"""The columns of the matrix. Adding a backend is one folder or file and one line here."""

from __future__ import annotations

from typing import Final

from backendops.backends.postgres import PostgresBackend
from backendops.backends.redis import RedisBackend
from backendops.backends.sqlite import SqliteBackend
from backendops.contracts.backend import Backend

BACKENDS: Final[tuple[type[Backend], ...]] = (PostgresBackend, RedisBackend, SqliteBackend)
