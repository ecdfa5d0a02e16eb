"""TLS with verify-full and a client certificate: every job, and what each mistake is called."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest
from sqlalchemy import make_url

from backendops import embedded
from backendops.contracts.run import Outcome
from tests.conformance.postgres_store import sql
from tests.surroundings.encrypted import ROLE, Encrypted
from tests.surroundings.running import Results, prove_every_job, run, said


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    running = Encrypted(tmp_path_factory.mktemp("tls"))
    try:
        as_superuser = running.url("postgres", database="postgres")
        sql(as_superuser, f"CREATE ROLE {ROLE} LOGIN", f"CREATE DATABASE celery OWNER {ROLE}", "CREATE DATABASE plain")
        yield running
    finally:
        running.postgres.server.stop()


def test_every_job(server: Encrypted) -> None:
    url = server.url()
    prove_every_job(Results(url), lambda kind: run(url, kind))
    used = "SELECT ssl, version, client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    assert sql(url, used) == [(True, "TLSv1.3", f"/CN={ROLE}")]


def broken(server: Encrypted, how: str) -> str:
    """The URL with one mistake in it."""
    folder = server.folder
    if how == "open key":
        shutil.copy(folder / f"{ROLE}.key", folder / "open.key")
        (folder / "open.key").chmod(0o644)
    return {
        "wrong authority": server.url(sslrootcert=f"{folder}/other.crt"),
        "no authority": server.url(sslrootcert=f"{folder}/nowhere.crt"),
        "wrong host": server.url(host="127.0.0.1"),
        "open key": server.url(sslkey=f"{folder}/open.key"),
        "no key": server.url(sslkey=f"{folder}/nowhere.key"),
        "another's key": server.url(sslkey=f"{folder}/postgres.key"),
        "no certificate": server.url(sslcert=f"{folder}/nowhere.crt", sslkey=""),
        "untrusted certificate": server.url(sslcert=f"{folder}/stranger.crt", sslkey=f"{folder}/stranger.key"),
        "another's certificate": server.url(sslcert=f"{folder}/postgres.crt", sslkey=f"{folder}/postgres.key"),
        "channel binding": server.url(channel_binding="require"),
        "no encryption": server.url(sslmode="disable", sslrootcert="", sslcert="", sslkey=""),
    }[how]


@pytest.mark.parametrize(
    ("how", "cause", "way_out"),
    [
        ("wrong authority", "certificate verify failed", "sslrootcert of the URL must name"),
        ("no authority", 'root certificate file "', "sslrootcert of the URL must name"),
        ("wrong host", 'does not match host name "127.0.0.1"', "must name the server as its certificate"),
        ("open key", "has group or world access", "chmod 0600"),
        ("no key", "nowhere.key", "sslcert and sslkey of the URL must be files"),
        ("another's key", "does not match private key|key values mismatch", "that belong to each other"),
        ("no certificate", "certificate", "`sslcert=` and `sslkey=`"),
        ("untrusted certificate", "unknown ca|certificate", "`sslcert=` and `sslkey=`"),
        ("another's certificate", "certificate authentication failed", "`sslcert=` and `sslkey=`"),
        ("channel binding", "without channel binding", "take channel_binding out of the URL"),
        ("no encryption", "no encryption", "`sslmode=verify-full`"),
    ],
)
def test_each_mistake_is_refused_with_its_cause_and_the_way_out(
    server: Encrypted, how: str, cause: str, way_out: str
) -> None:
    report = run(broken(server, how), "expire")
    assert (report.outcome, how) == (Outcome.REFUSED, how), said(report)
    assert any(part in report.error for part in cause.split("|")), report.error
    assert way_out in report.hint


def test_a_server_without_tls_says_so(server: Encrypted, postgres18_url: str) -> None:
    url = server.url().replace(f":{server.postgres.port}/", f":{make_url(postgres18_url[3:]).port}/")
    for kind in ("expire", "pool-health"):
        report = run(url, kind)
        assert report.outcome is Outcome.REFUSED
        assert "server does not support SSL" in report.error
        assert "switch `ssl` on" in report.hint


def test_a_port_where_nobody_listens_is_unreachable_all_the_same(server: Encrypted) -> None:
    report = run(server.url().replace(f":{server.postgres.port}/", f":{embedded.free_port()}/"), "expire")
    assert report.outcome is Outcome.UNREACHABLE


@pytest.mark.parametrize("answer", [b"", b"S"], ids=["at once", "after it has agreed to TLS"])
def test_a_server_that_hangs_up_is_unreachable_and_not_refused(server: Encrypted, answer: bytes) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with closing(client):
                        client.recv(1024)
                        client.sendall(answer)
                        client.recv(1024) if answer else None

        threading.Thread(target=hang_up, daemon=True).start()
        port = listener.getsockname()[1]
        report = run(server.url().replace(f":{server.postgres.port}/", f":{port}/"), "expire")
        assert report.outcome is Outcome.UNREACHABLE, report.error
        listener.shutdown(socket.SHUT_RDWR)


def test_an_encrypted_key_takes_its_password(server: Encrypted) -> None:
    key = server.folder / "encrypted.key"
    words = ["openssl", "ec", "-in", f"{server.folder}/{ROLE}.key", "-aes256", "-passout", "pass:of-the-key", "-out"]
    subprocess.run([*words, str(key)], check=True, capture_output=True)
    key.chmod(0o600)
    assert run(server.url(sslkey=str(key), sslpassword="of-the-key"), "pool-health").findings == ()
    wrong = run(server.url(sslkey=str(key), sslpassword="another-one"), "expire")
    assert (wrong.outcome, "takes sslpassword" in wrong.hint) == (Outcome.REFUSED, True), said(wrong)
    assert "another-one" not in said(wrong)


def test_a_password_of_the_key_is_never_shown(server: Encrypted) -> None:
    report = run(server.url(sslpassword="s3cret-of-the-key", sslrootcert=f"{server.folder}/other.crt"), "expire")
    assert report.outcome is Outcome.REFUSED
    assert "s3cret-of-the-key" not in said(report)
