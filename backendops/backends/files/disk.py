"""Files that are written whole or not at all, and what the operating system says, in an operator's words."""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from backendops.contracts.errors import BackendError, BackendLocked, BackendRefused

# Whatever ends so was being written when a process died: it is of no archive and may go.
UNFINISHED: Final = ".tmp"
LOCK: Final = ".backendops.lock"

_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN: Final = {errno.EACCES, errno.EPERM}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise what the operating system reports about `path` as BackendError with the way out."""
    try:
        yield
    except OSError as error:
        raise translated(error, path) from error


def translated(error: OSError, path: Path) -> BackendError:
    """The error in an operator's words. What was removed from a backend before it is in the archive."""
    where = error.filename or path
    if error.errno in _FULL:
        return BackendError(
            # Another directory would not know of a copy that is unfinished in this one.
            f"there is no space left for {where}",
            "make room on that disk; no result is lost, and the next run goes on from here",
        )
    if error.errno in _FORBIDDEN:
        return BackendRefused(
            f"{where} may not be read or written by {_user()}", "give that user the directory of the archive"
        )
    if error.errno == errno.EROFS:
        return BackendRefused(f"{where} is on a read-only file system", "mount it writable; no result is lost")
    return BackendError(f"{where}: {error.strerror or error}", "see to the disk; the next run goes on where this ended")


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"user {os.geteuid()}"


def is_there(path: Path) -> bool:
    """Is there such a file? Raises BackendError where that cannot be known: a sick disk is not an empty one."""
    with disk_errors(path):
        try:
            path.lstat()
        except FileNotFoundError:
            return False
    return True


def check_directory(path: Path, *, writing: bool) -> None:
    """Raise BackendRefused where the archive's directory is not there or cannot be used."""
    with disk_errors(path):
        if not path.exists():
            # Made by us, it would lie under a mount point whose disk is missing today.
            raise BackendRefused(
                f"there is no directory {path}", f"mount its disk, or make it: install -d -o {_user()} -m 750 {path}"
            )
        if not path.is_dir():
            raise BackendRefused(f"{path} is not a directory", "name the archive's directory under `to: {files: …}`")
        if writing and os.statvfs(path).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        if not os.access(path, (os.W_OK if writing else os.R_OK) | os.X_OK, effective_ids=True):
            raise BackendRefused(
                f"{path} may not be {'written' if writing else 'read'} by {_user()}",
                "give that user the directory of the archive",
            )


class Hold:
    """The archive's directory, held for one run by the lock on a file in it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def require(self) -> None:
        """Raise BackendError where the path leads elsewhere by now: a disk that went, a lock file that was removed."""
        with disk_errors(self._path):
            ours = os.fstat(self._descriptor)
            try:
                there: os.stat_result | None = (self._path / LOCK).stat()
            except FileNotFoundError:
                there = None
        if there is None or (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            raise BackendError(
                f"{self._path / LOCK} is not the file any more that this run holds",
                "was the disk unmounted, or the file removed? No result was removed; the next run goes on from here",
            )


@contextmanager
def held(path: Path) -> Iterator[Hold]:
    """Hold the archive's directory for one run; raises BackendLocked where another run has it."""
    with disk_errors(path):
        descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        with disk_errors(path / LOCK):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BackendLocked(
                    f"another run is using the archive in {path}", "try again when it has ended"
                ) from None
        hold = Hold(path, descriptor)
        hold.require()
        yield hold
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a directory of the archive, and make sure that it outlives a power cut."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's content durable, and forget what is cached of it, so that reading it back reads the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Replace a small file: whoever reads it finds the old content or the new one, also after a power cut."""
    beside = path.with_name(path.name + UNFINISHED)
    try:
        beside.write_bytes(content)
        sync_file(beside)
        beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
