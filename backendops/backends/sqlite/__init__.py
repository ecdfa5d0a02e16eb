"""SQLite as a result store: one file, no server, one writer at a time."""

from backendops.backends.sqlite.backend import SqliteBackend

__all__ = ["SqliteBackend"]
