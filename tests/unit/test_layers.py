"""Imports point one way, and no file grows past what a person reads in one go."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "backendops"

# What each package may import of ours besides itself; a package or module that is not here may import everything.
LAYERS: dict[str, set[str]] = {
    "contracts": set(),
    "jobs": {"contracts"},
    "backends": {"contracts"},
    "policy": {"contracts", "jobs", "backends"},
    "engine": {"contracts", "policy.model"},
    "diagnosis": {"contracts", "engine"},
    "migration": {"contracts", "engine"},
    "log": {"contracts", "engine"},
}

# What contracts may import of others: everything rests on them, so they rest on nothing that could be missing.
CONTRACTS_IMPORT = {"pydantic", "pydantic_core"}

MOST_LINES = 300
# Files that are longer, each with its reason.
LONGER: dict[str, str] = {
    "embedded.py": "two servers from their binaries to their last process are one story",
}

FILES = sorted(ROOT.rglob("*.py"))


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Every import of a file, wherever it stands, with its line."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import hides its layer"
            # `from backendops.policy import model` names a module, too.
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def is_allowed(name: str, package: str) -> bool:
    inside = name.removeprefix("backendops.")
    return any(inside == layer or inside.startswith(layer + ".") for layer in LAYERS[package] | {package})


@pytest.mark.parametrize("package", LAYERS)
def test_imports_point_one_way(package: str) -> None:
    files = [f for f in FILES if f.relative_to(ROOT).parts[0].removesuffix(".py") == package]
    wrong = [
        f"{file.relative_to(ROOT)}:{line}: {package} must not import {name}"
        for file in files
        for line, name in imports(file)
        if name.startswith("backendops.") and not is_allowed(name, package)
    ]
    assert wrong == []


def test_contracts_rest_on_nothing_else() -> None:
    others = {
        (name.partition(".")[0], str(file.relative_to(ROOT)))
        for file in FILES
        if file.relative_to(ROOT).parts[0] == "contracts"
        for _, name in imports(file)
    }
    known = sys.stdlib_module_names | CONTRACTS_IMPORT | {"backendops"}
    assert {(name, file) for name, file in others if name not in known} == set()


def test_every_layer_is_looked_at() -> None:
    """A typing error in the table would make the tests above pass on nothing."""
    for package in ("contracts", "jobs", "backends", "policy", "engine", "log"):
        assert any(f.relative_to(ROOT).parts[0].removesuffix(".py") == package for f in FILES), package
    assert not is_allowed("backendops.backends.postgres.PostgresBackend", "jobs")
    assert not is_allowed("backendops.policy.load.load_policy", "engine")
    assert is_allowed("backendops.policy.model.Pair", "engine")


def test_no_file_is_longer_than_a_person_reads() -> None:
    lines = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {name: count for name, count in lines.items() if count > MOST_LINES and name not in LONGER} == {}
    assert {name for name in LONGER if lines[name] <= MOST_LINES} == set(), "short enough: take it off the list"


def test_every_file_says_what_it_is_for() -> None:
    assert [f for f in FILES if not ast.get_docstring(ast.parse(f.read_text(encoding="utf-8")))] == []
