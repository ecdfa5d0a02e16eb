"""Make a virtual environment for each old Celery that the tests let write results, in .cache/celery.

What is in each is pinned here to the last version, so that a release of today changes nothing; Celery's own tables and
payloads are all that is asked of it.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "celery"

# 5.2 has the oldest tables in use, 5.4 dates groups by the start of the process, 5.6.3 was the first to make an index
# on date_done and the last to pickle every result.
CELERIES = {
    "5.2.7": ("billiard==3.6.4.0", "pytz==2026.6"),
    "5.4.0": ("billiard==4.3.2", "python-dateutil==2.9.0.post0", "six==1.17.0", "tzdata==2026.6"),
    "5.6.3": ("billiard==4.3.2", "python-dateutil==2.9.0.post0", "six==1.17.0", "tzdata==2026.6", "tzlocal==5.4.5"),
}
# SQLAlchemy 2.1 came after them and would look for psycopg 3.
FOR_ALL = (
    "amqp==5.4.2",
    "click==8.5.1",
    "click-didyoumean==0.3.1",
    "click-plugins==1.1.1.2",
    "click-repl==0.4.1",
    "greenlet==3.5.6",
    "kombu==5.7.0",
    "packaging==26.3",
    "prompt-toolkit==3.0.53",
    "psycopg2-binary==2.9.13",
    "sqlalchemy==2.0.57",
    "typing-extensions==4.16.0",
    "vine==5.1.0",
    "wcwidth==0.9.4",
)


def python_of(version: str) -> Path:
    """The Python that imports that Celery."""
    return CACHE / version / "bin" / "python"


def is_complete(version: str) -> bool:
    """Is it there, with everything that is pinned now?"""
    stamp = CACHE / version / "complete"
    return stamp.exists() and stamp.read_text(encoding="utf-8") == _stamp(version)


def main() -> int:
    """Make those that are not there; 1 where one could not be made, as the tests then skip and say so."""
    missing = [version for version in CELERIES if not is_complete(version)]
    with ThreadPoolExecutor() as threads:
        failed = [version for version, made in zip(missing, threads.map(make, missing), strict=True) if not made]
    if failed:
        print(f"could not install Celery {', '.join(failed)}: their tests are skipped", file=sys.stderr)
    return 1 if failed else 0


def make(version: str) -> bool:
    """One virtual environment."""
    folder = CACHE / version
    print(f"installing Celery {version} into {folder}\n", end="", flush=True)
    stamp = folder / "complete"
    stamp.unlink(missing_ok=True)
    pip = ["-m", "pip", "--disable-pip-version-check", "--quiet", "--python", python_of(version), "install"]
    # Everything is named: what a package of today would like to have beside it is not asked.
    named = ["--no-deps", "--only-binary=:all:", f"celery=={version}", *CELERIES[version], *FOR_ALL]
    for words in (["-m", "venv", "--clear", "--without-pip", folder], [*pip, *named]):
        ended = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
        if ended.returncode:
            print(f"Celery {version}: {ended.stderr.strip()[-500:]}", file=sys.stderr)
            return False
    stamp.write_text(_stamp(version), encoding="utf-8")
    return True


def _stamp(version: str) -> str:
    return " ".join([sys.version.split()[0], *CELERIES[version], *FOR_ALL])


if __name__ == "__main__":
    sys.exit(main())
