"""What systemd is told, read from a real socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from backendops.daemon import sd_notify


@pytest.fixture(params=["path", "abstract"])
def notified(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@backendops-unit-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address.replace("@", "\0", 1))
        listening.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        yield listening


def test_each_state(notified: socket.socket) -> None:
    sd_notify.ready("idle")
    assert notified.recv(999) == b"READY=1\nSTATUS=idle"
    sd_notify.status("running archive\nREADY=0")
    assert notified.recv(999) == b"STATUS=running archive READY=0", "a status must not smuggle in another state"
    sd_notify.reloading()
    state, monotonic = notified.recv(999).decode().split("\n")
    assert state == "RELOADING=1"
    assert int(monotonic.removeprefix("MONOTONIC_USEC=")) > 0
    sd_notify.watchdog()
    assert notified.recv(999) == b"WATCHDOG=1"
    sd_notify.stopping("bye")
    assert notified.recv(999) == b"STOPPING=1\nSTATUS=bye"


@pytest.mark.parametrize("address", [None, "", "relative", "/nowhere/at/all", "@nobody-listens"])
def test_without_systemd_nothing_happens(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not sd_notify.notify("READY=1")


def test_a_full_queue_does_not_block(notified: socket.socket) -> None:
    while sd_notify.notify("WATCHDOG=1"):
        pass
    notified.recv(999)
    assert sd_notify.notify("WATCHDOG=1")
