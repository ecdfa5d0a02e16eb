"""A private PgBouncer before a test's PostgreSQL: Debian's, from the machine or as `make servers` fetched it."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import IO, ClassVar

import psycopg2
from sqlalchemy import make_url

from backendops import embedded
from tests.servers import Postgres, debian_binary, debian_environment

PASSWORD = "pooled"  # noqa: S105 - of a server that lives as long as a test


class PgBouncer(embedded.Server):
    """In transaction mode, with one server connection for each database; `stats` may ask its console."""

    name: ClassVar[str] = "pgbouncer"
    _clean_stop: ClassVar[signal.Signals] = signal.SIGINT

    def __init__(self, directory: Path, behind: Postgres, pool_size: int = 1) -> None:
        super().__init__(directory, None, debian_environment())
        self._binary = debian_binary("pgbouncer")
        self._pool_size = pool_size
        server = make_url(behind.superuser_url())
        self._server = f"host={server.host} port={server.port} user={server.username} password={server.password}"

    def url(self, database: str) -> str:
        """A Celery result_backend URL through the pooler."""
        return f"db+postgresql://app:{PASSWORD}@{self.host}:{self.port}/{database}"

    def console(self, user: str = "stats", password: str = PASSWORD) -> str:
        """What a policy's pgbouncer_url is."""
        return f"postgresql://{user}:{password}@{self.host}:{self.port}/pgbouncer"

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        users, settings = self.directory / "users", self.directory / "pgbouncer.ini"
        users.write_text("".join(f'"{name}" "{PASSWORD}"\n' for name in ("app", "stats")), encoding="utf-8")
        settings.write_text(
            f"[databases]\n* = {self._server}\n"
            f"[pgbouncer]\nlisten_addr = {self.host}\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = scram-sha-256\nauth_file = {users}\nstats_users = stats\n"
            f"pool_mode = transaction\ndefault_pool_size = {self._pool_size}\n",
            encoding="utf-8",
        )
        prefix, _, _ = embedded._unprivileged(self._binary.parent, self.directory)
        command = [*prefix, *embedded.dying_with_parent("INT"), str(self._binary), str(settings)]
        return subprocess.Popen(command, stdout=log, stderr=log, env=self._environment)

    def _answers(self) -> bool:
        try:
            psycopg2.connect(self.console(), connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True
