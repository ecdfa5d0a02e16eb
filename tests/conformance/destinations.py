"""Archives outside their source, each with a look at it that does not go through backendops."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import signal
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow.parquet as pq

from backendops.backends.files import FileStore
from backendops.backends.postgres import PostgresBackend
from backendops.contracts.archive import ArchiveStore
from backendops.contracts.capabilities import ArchivePlan
from backendops.contracts.errors import BackendBusy
from backendops.contracts.run import Limits
from tests.conformance.stores import ARCHIVE, GROUP_ARCHIVE, TableStore

COLUMNS = (
    "id", "task_id", "status", "result", "date_done", "traceback", "children", "name", "args", "kwargs", "worker",
    "retries", "queue", "stamps",
)  # fmt: skip
BYTES = {"result", "children", "args", "kwargs", "stamps", "meta"}
SOURCE = "results"


class Destination(ABC):
    """One place that an archive can be kept in."""

    @property
    @abstractmethod
    def store(self) -> ArchiveStore:
        """The archive, not yet opened."""

    @abstractmethod
    def rows(self, table: str = "celery_taskmeta") -> list[dict[str, Any]]:
        """What is archived of that table, by column; unfinished copies too."""

    @property
    @abstractmethod
    def policy(self) -> str:
        """What a policy says under `to:`."""

    @contextmanager
    def opened(self, origin: str = "") -> Iterator[ArchiveStore]:
        """The archive, opened for a run."""
        with self.store.open(SOURCE, Limits(), origin=origin) as store:
            yield store

    def ids(self, table: str = "celery_taskmeta") -> list[int]:
        """The ids of what is archived, sorted."""
        return sorted(row["id"] for row in self.rows(table))


class Files(Destination):
    """Files below a directory."""

    def __init__(self, directory: Path, form: str) -> None:
        self.directory = directory / "archive"
        self.directory.mkdir()
        self.form = form

    @property
    def store(self) -> ArchiveStore:
        return FileStore(self.directory, self.form, "month", ZoneInfo("UTC"))

    @property
    def policy(self) -> str:
        return f"{{files: '{self.directory}', format: {self.form}}}"

    def rows(self, table: str = "celery_taskmeta") -> list[dict[str, Any]]:
        found = []
        for path in self.directory.glob(f"{table}/*/manifest.json"):
            for part in json.loads(path.read_text())["parts"]:
                without = {n for first, last in part["without"] for n in range(first, last + 1)}
                read = self._read(path.parent / part["name"]) if (path.parent / part["name"]).exists() else []
                found += [row for number, row in enumerate(read) if number not in without]
        return found

    def _read(self, path: Path) -> list[dict[str, Any]]:
        if self.form == "parquet":
            return pq.read_table(path).to_pylist()
        rows = []
        for line in gzip.decompress(path.read_bytes()).splitlines():
            row = json.loads(line)
            for name, value in row.items():
                if name in BYTES:
                    row[name] = base64.b64decode(value)
                elif name in ("date_done", "done_at"):
                    row[name] = datetime.fromisoformat(value)
            rows.append(row)
        return rows


class Tables(Destination):
    """Tables in another database."""

    def __init__(self, url: str) -> None:
        self.tables = TableStore(PostgresBackend, url)
        self.plan = ArchivePlan()

    @property
    def store(self) -> ArchiveStore:
        store: ArchiveStore = self.tables.backend().archive_store(self.plan)
        return store

    @property
    def policy(self) -> str:
        return "{backend: elsewhere}"

    def rows(self, table: str = "celery_taskmeta") -> list[dict[str, Any]]:
        archive = {"celery_taskmeta": ARCHIVE, "celery_tasksetmeta": GROUP_ARCHIVE}[table]
        if not self.tables.has_table(archive):
            return []
        return [dict(row._mapping) for row in self.tables.execute(f"SELECT * FROM {archive}")]


def live_rows(source: TableStore, table: str = "celery_taskmeta") -> list[dict[str, Any]]:
    """What is live, by column."""
    return [dict(row._mapping) for row in source.execute(f"SELECT * FROM {table}")]


def checksum(*places: Iterable[dict[str, Any]]) -> str:
    """Of every row's bytes over these places, each row once."""
    rows = {repr([_plain(row.get(name)) for name in COLUMNS]) for place in places for row in place}
    return hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


def is_free(destination: Destination | None) -> bool:
    """Does no run hold the archive?"""
    assert destination is not None
    try:
        with destination.opened():
            return True
    except BackendBusy:
        return False


def die_at(owner: Any, name: str, when: str, doing: Callable[[], object]) -> None:
    """Do it in a process of its own, which SIGKILL ends before or after that method's first call."""
    with warnings.catch_warnings():
        # The child does nothing with the threads that it does not have.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        original = getattr(owner, name)

        def killing(*args: Any, **kwargs: Any) -> None:
            if when == "after":
                original(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, name, killing)
        try:
            doing()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it was over before it was killed"
    assert os.WTERMSIG(status) == signal.SIGKILL
