"""What a reload may meet; the service's signals are tested on the installed daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backendops.daemon import service as service_module
from backendops.daemon.service import MOST_PROBLEMS, Service

POLICY = """
version: 1
state: state
http: {listen: "127.0.0.1:0"}
backends: {results: {url: "db+sqlite:///results.db"}}
jobs: {pool-health: {schedule: every 1h}}
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    (tmp_path / "policy.yaml").write_text(POLICY)
    service = Service(tmp_path / "policy.yaml")
    yield service
    service._http.stop()
    service._ledger.close()


def test_no_reload_ends_the_daemon(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    before = service._view.policy

    def broken(_: object) -> None:
        raise RecursionError("a fault of ours")

    monkeypatch.setattr(service_module, "load_policy", broken)
    service._reload()
    assert service._view.problems == ("unexpected RecursionError: a fault of ours",)
    assert service._view.policy is before


def test_a_file_that_is_no_policy_fills_no_disk(service: Service, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("\n".join(f"k{number}: 1" for number in range(MOST_PROBLEMS * 2)))
    service._reload()
    assert len(service._view.problems) == MOST_PROBLEMS + 1
    assert service._view.problems[-1] == f"and {MOST_PROBLEMS + 3} more: `backendops validate` has them all"
