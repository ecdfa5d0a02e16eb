"""What is written by a program and kept in the repository: the reference policy, tables in the docs, the lock files.

`python -m tests.generated` writes what it can; `--check` only says what is not current.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from backendops.policy.matrix import as_markdown
from backendops.policy.reference import FILE, reference

ROOT = Path(__file__).resolve().parent.parent
LOCKS = {"requirements.lock": ("demo",), "requirements-dev.lock": ("demo", "dev")}
_MATRIX = re.compile(r"(<!-- matrix -->\n).*?(<!-- /matrix -->\n)", re.DOTALL)


def expected() -> dict[Path, str]:
    """Each generated file with the text it should have."""
    files = {ROOT / FILE: reference()}
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        if "<!-- matrix -->" in text:
            files[page] = _MATRIX.sub(lambda place: f"{place[1]}{as_markdown()}{place[2]}", text)
    return files


def stale_files() -> list[str]:
    """The generated files that are not current."""
    return [
        f"{path.relative_to(ROOT)} is not current: make format writes it"
        for path, text in expected().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def stale_locks() -> Iterator[str]:
    """What pyproject.toml asks for and a lock file does not give, without asking any index."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for name, extras in LOCKS.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        pins = {
            canonicalize_name(pin): version for pin, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)
        }
        wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["build"]]
        for extra in extras:
            wanted += project["project"]["optional-dependencies"][extra]
        for requirement in map(Requirement, wanted):
            pinned = pins.get(canonicalize_name(requirement.name))
            if pinned is None or not requirement.specifier.contains(pinned, prereleases=True):
                yield f"{name} has {pinned or 'nothing'} for {requirement}: run make lock"
        if "://" in text:
            yield f"{name} names a host: packages come from wherever the installing machine gets them"
        unhashed = re.findall(r"^([\w.-]+==\S+)(?:[^\\\n]*)$", text, re.MULTILINE)
        if unhashed:
            yield f"{name} has no hash for {', '.join(unhashed)}: run make lock"


def main() -> int:
    """Write, or with --check only report."""
    if "--check" not in sys.argv:
        for path, text in expected().items():
            path.write_text(text, encoding="utf-8")
    problems = [*stale_files(), *stale_locks()]
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
