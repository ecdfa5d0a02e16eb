"""The lock of changing jobs: a flock beside the database file, released by the kernel when its holder dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backendops.backends.sqlite.errors import user_name
from backendops.contracts.backend import Lock
from backendops.contracts.errors import BackendRefused


class FileLock(Lock):
    """Held while the lock file at the path is the one that was locked."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path

    def still_held(self) -> bool:
        # Somebody who removes the file lets the next run lock a new one, unseen by this one.
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except OSError:
            return False


@contextmanager
def file_lock(database: Path) -> Iterator[FileLock | None]:
    """The lock, or None where another run has it; the lock file stays, as removing it would be a race."""
    path = database.with_name(database.name + ".backendops.lock")
    try:
        # Reading is enough to lock a file, so that a lock file made by root does not shut out the daemon's user.
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
    except OSError as error:
        raise BackendRefused(
            f"{path}: {error.strerror} for {user_name()}", "let that user write the directory of the database"
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield FileLock(descriptor, path)
    finally:
        os.close(descriptor)
