"""rediss:// on a real server of Debian's: verified both ways, and the same work done through it on Redis 7.0."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis

from backendops.contracts.errors import BackendUnreachable
from backendops.jobs.expire import Expire
from tests.conformance.redis_store import FixedPace, about, opened
from tests.servers import debian_binary, debian_environment, missing, quiet_port


@dataclass(frozen=True)
class Encrypted:
    """A server that speaks TLS only and asks clients for a certificate."""

    port: int
    folder: Path

    def url(self, query: str) -> str:
        return f"rediss://127.0.0.1:{self.port}/1?{query}"

    @property
    def client_certificate(self) -> str:
        return f"ssl_certfile={self.folder}/client.crt&ssl_keyfile={self.folder}/client.key"


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    """Debian's Redis 7.0, with certificates made for this run."""
    binary, folder, port = debian_binary("redis-server"), tmp_path_factory.mktemp("tls"), quiet_port()
    if shutil.which("openssl") is None:
        missing("openssl", "it makes the certificates of this test; every Linux has a package of that name")
    _certificates(folder)
    (folder / "redis.conf").write_text(
        f'bind 127.0.0.1\nport 0\ntls-port {port}\nsave ""\ndir {folder}\n'
        f"tls-cert-file {folder}/server.crt\ntls-key-file {folder}/server.key\ntls-ca-cert-file {folder}/ca.crt\n"
    )
    process = subprocess.Popen(
        [binary, folder / "redis.conf"], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, env=debian_environment()
    )
    server = Encrypted(port, folder)
    try:
        _until_it_answers(server)
        yield server
    finally:
        process.terminate()
        process.wait(10)


def test_results_are_kept_over_tls(encrypted: Encrypted) -> None:
    url = encrypted.url(f"ssl_cert_reqs=required&ssl_ca_certs={encrypted.folder}/ca.crt&{encrypted.client_certificate}")
    job = Expire.model_validate({"keep": "30d"})
    with opened(url) as backend:
        done = (datetime.now(UTC) - timedelta(days=10)).isoformat()
        backend.client.set("celery-task-meta-1", f'{{"status": "SUCCESS", "result": 1, "date_done": "{done}"}}')
        backend.client.sadd("celery-taskset-meta-1.d", "1:0")
        assert job.preview(backend, datetime.now(UTC)).rows == 1
        with backend.lock() as held:
            assert held is not None
            assert held.still_held()
            assert sum(step.rows for step in job.run(backend, datetime.now(UTC), FixedPace())) == 1
        assert about(int(backend.client.ttl("celery-task-meta-1")), timedelta(days=20))
        assert backend.client.ttl("celery-taskset-meta-1.d") == -1, "its chord may still be running"
        assert backend.report_memory(timedelta(seconds=1)).result_keys == {"task": 1, "group": 0, "chord": 1}
        assert backend.report_pool().notes == ()
        assert backend.display_url == f"rediss://127.0.0.1:{encrypted.port}/1"


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("ssl_cert_reqs=required", "certificate verify failed"),
        # How the server hangs up differs from run to run.
        ("ssl_cert_reqs=required&ssl_ca_certs={folder}/ca.crt", "cannot be reached"),
        ("ssl_cert_reqs=required&ssl_ca_certs={folder}/none.crt", "No such file"),
    ],
    ids=["unknown-authority", "no-client-certificate", "no-such-file"],
)
def test_what_cannot_be_verified_is_not_used(encrypted: Encrypted, query: str, words: str) -> None:
    url = encrypted.url(query.format(folder=encrypted.folder))
    with pytest.raises(BackendUnreachable, match=words) as raised, opened(url):
        pass
    assert "ssl_ca_certs" in raised.value.hint
    assert "ssl_certfile" in raised.value.hint


def test_plain_redis_to_a_tls_port_says_which_scheme(encrypted: Encrypted) -> None:
    with pytest.raises(BackendUnreachable) as raised, opened(f"redis://127.0.0.1:{encrypted.port}/1"):
        pass
    assert "rediss://" in raised.value.hint


@pytest.fixture(scope="module")
def watched(encrypted: Encrypted) -> Iterator[int]:
    """A sentinel that speaks TLS only, and watches the server over it; its port."""
    port, folder = quiet_port(), encrypted.folder
    (folder / "sentinel.conf").write_text(
        f"bind 127.0.0.1\nport 0\ntls-port {port}\ntls-replication yes\ndir {folder}\n"
        f"tls-cert-file {folder}/server.crt\ntls-key-file {folder}/server.key\ntls-ca-cert-file {folder}/ca.crt\n"
        f"tls-client-cert-file {folder}/client.crt\ntls-client-key-file {folder}/client.key\n"
        f"sentinel monitor results 127.0.0.1 {encrypted.port} 1\n"
    )
    process = subprocess.Popen(
        [debian_binary("redis-server"), folder / "sentinel.conf", "--sentinel"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        env=debian_environment(),
    )
    try:
        _until_it_answers(Encrypted(port, folder))
        yield port
    finally:
        process.terminate()
        process.wait(10)


def test_sentinels_and_their_master_are_asked_over_tls(encrypted: Encrypted, watched: int) -> None:
    folder = encrypted.folder
    ours = {"ssl_certfile": f"{folder}/client.crt", "ssl_keyfile": f"{folder}/client.key"}
    login = {"ssl": True, "ssl_ca_certs": f"{folder}/ca.crt", **ours}
    url = f"sentinel://127.0.0.1:{watched}/2?ssl_ca_certs={folder}/ca.crt&{encrypted.client_certificate}"
    with opened(url, master_name="results", sentinel_kwargs=login) as backend:
        assert backend.client.set("celery-task-meta-1", "not JSON")
        assert backend.survey_keys().kinds["task"].keys == 1
        assert backend.standing().read_only_because == ""
        assert "1 not readable" in list(Expire(keep="1d").run(backend, datetime.now(UTC), FixedPace()))[-1].what
    with pytest.raises(BackendUnreachable), opened(url, master_name="results"):
        pass


def _certificates(folder: Path) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    # An elliptic key is made in milliseconds.
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    # Python 3.13 asks of certificates what RFC 5280 does: what an authority's key may do, and who signed the others.
    authority = ("-subj", "/CN=test authority", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", *authority)
    for name, extra in (("server", "subjectAltName=IP:127.0.0.1"), ("client", "extendedKeyUsage=clientAuth")):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / f"{name}.ext").write_text(f"{extra}\nauthorityKeyIdentifier=keyid\n")
        signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signed)


def _until_it_answers(server: Encrypted) -> None:
    deadline = time.monotonic() + 10
    while True:
        client = redis.Redis(
            host="127.0.0.1",
            port=server.port,
            ssl=True,
            ssl_ca_certs=f"{server.folder}/ca.crt",
            ssl_certfile=f"{server.folder}/client.crt",
            ssl_keyfile=f"{server.folder}/client.key",
        )
        try:
            client.ping()
        except redis.ConnectionError:
            assert time.monotonic() < deadline, "it did not start in time"
            time.sleep(0.02)
        else:
            return
        finally:
            client.close()
