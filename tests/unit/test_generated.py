"""What a program writes is kept current in the repository."""

from __future__ import annotations

from tests.generated import stale_files, stale_locks


def test_generated_files_are_current() -> None:
    assert stale_files() == []


def test_lock_files_fit_pyproject_and_name_no_host() -> None:
    assert list(stale_locks()) == []
