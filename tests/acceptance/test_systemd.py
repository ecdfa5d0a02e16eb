"""The units: checked by systemd's own tools, and run by a real systemd that boots in namespaces of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from tests.acceptance.daemon import COMMAND, eventually
from tests.servers import ROOT, missing

DEPLOY = ROOT / "deploy" / "systemd"
UNITS = sorted(DEPLOY.iterdir())

# "OK" begins at 4.0; a fresh service without any hardening has 9.6.
MOST_EXPOSURE = 1.5

POLICY = """
version: 1
backends:
  cache: {url: "redis://:${file:/run/credentials/backendops.service/results-password}@127.0.0.1:1/0"}
jobs:
  pool-health: {schedule: every 1s}
"""

# The same daemon from this test's own interpreter and packages, at places where a user of the unit may read them.
WRAPPER = """#!/bin/sh
PYTHONPATH=/opt/packages:/opt/source LD_LIBRARY_PATH=/opt/python/lib exec /opt/python/bin/{python} -m backendops "$@"
"""


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        missing("systemd-analyze", "install the package systemd")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units with a command that is there."""
    for unit in UNITS:
        text = unit.read_text().replace("/usr/local/bin/backendops", str(COMMAND))
        # An instance, as `verify` looks at no template.
        (tmp_path / unit.name.replace("@.", "@archive.")).write_text(text)
    return tmp_path


def test_only_a_wrong_policy_keeps_the_daemon_down() -> None:
    """A shared ledger's server that is down for a minute at boot must not need a person at night."""
    unit = (DEPLOY / "backendops.service").read_text()
    assert "\nRestart=on-failure\n" in unit
    assert "\nStartLimitIntervalSec=0\n" in unit
    assert "\nRestartPreventExitStatus=2\n" in unit


@pytest.mark.parametrize("name", [unit.name.replace("@.", "@archive.") for unit in UNITS])
def test_systemd_has_nothing_to_say_about_a_unit(units: Path, name: str) -> None:
    done = analyze("verify", "--man=no", units / name)
    # It exits with 0 even where it does not know a key.
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["backendops.service", "backendops-run-once@archive.service"])
def test_a_unit_may_do_little(units: Path, name: str) -> None:
    done = analyze("security", "--offline=yes", "--no-pager", units / name)
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert exposure, done.stdout + done.stderr
    assert float(exposure[1]) <= MOST_EXPOSURE


def test_both_services_are_hardened_alike() -> None:
    def settings(name: str) -> list[str]:
        text = (DEPLOY / name).read_text()
        return text[text.index("# What it may do") :].partition("\n[Install]")[0].rstrip().splitlines()

    assert settings("backendops.service") == settings("backendops-run-once@.service")


class Systemd:
    """A booted systemd."""

    def __init__(self, init: str) -> None:
        self.init = init

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside."""
        return subprocess.run(
            ["nsenter", "-t", self.init, "-a", *command], capture_output=True, text=True, timeout=60, check=False
        )

    def ctl(self, *command: str) -> None:
        done = self.run("systemctl", *command)
        assert done.returncode == 0, done.stdout + done.stderr + self.journal()

    def show(self, unit: str = "backendops") -> dict[str, str]:
        lines = self.run("systemctl", "show", unit).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def journal(self) -> str:
        return self.run("journalctl", "--no-pager", "-o", "cat").stdout

    def get(self, path: str) -> Any:
        fetch = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=5).read().decode())"
        url = f"http://127.0.0.1:9919{path}"
        # Only the network is inside: the interpreter is the machine's.
        inside = ["nsenter", "-t", self.init, "-n", sys.executable, "-c", fetch, url]
        done = subprocess.run(inside, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            raise ConnectionError(done.stderr.strip().splitlines()[-1])
        return json.loads(done.stdout)


def why_not() -> str:
    """Why no systemd can be booted here; empty where one can."""
    if os.geteuid() != 0:
        return "needs root: run the tests as root to boot a systemd of their own"
    if not Path("/lib/systemd/systemd").exists():
        return "systemd is not on this machine: install the package systemd"
    if not re.search(r" cgroup2 ", Path("/proc/mounts").read_text()):
        return "there is no cgroup v2 here"
    probe = "unshare --mount --pid --fork --cgroup sh -c 'mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w /mnt/r && "
    probe += "mount -t overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w overlay /mnt/r'"
    done = subprocess.run(["sh", "-c", probe], capture_output=True, text=True, check=False)
    return f"this root may not mount: {done.stderr.strip()} (CAP_SYS_ADMIN and overlayfs)" if done.returncode else ""


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    """A booted systemd with our units and their files in place."""
    if reason := why_not():
        # As an ordinary user there is no way; a root that may not mount is a container that CI can be given more in.
        if os.environ.get("CI") == "true" and os.geteuid() == 0:
            pytest.fail(reason)
        pytest.skip(reason)
    layer = tmp_path / "layer"
    system = layer / "etc/systemd/system"
    system.mkdir(parents=True)
    for unit in UNITS:
        shutil.copy(unit, system)
    change = system / "backendops.service.d"
    change.mkdir()
    (change / "test.conf").write_text(
        "[Service]\nLoadCredential=results-password:/etc/backendops/results-password\nWatchdogSec=3s\nRestartSec=100ms\n"
    )
    once = system / "backendops-run-once@.service.d"
    once.mkdir()
    (once / "test.conf").write_text(
        "[Service]\nLoadCredential=results-password:/etc/backendops/results-password\n"
        "Environment=BACKENDOPS_POLICY=/etc/backendops/once.yaml\n"
        "ExecStart=\nExecStart=/usr/local/bin/backendops --policy /etc/backendops/once.yaml run-once %i\n"
    )
    settings = layer / "etc/backendops"
    settings.mkdir()
    (settings / "policy.yaml").write_text(POLICY)
    (settings / "once.yaml").write_text(POLICY.replace("backendops.service", "backendops-run-once@pool-health.service"))
    (settings / "results-password").write_text("s3cr3t")
    (settings / "results-password").chmod(0o600)
    command = layer / "usr/local/bin/backendops"
    command.parent.mkdir(parents=True)
    command.write_text(WRAPPER.format(python=f"python{sys.version_info.major}.{sys.version_info.minor}"))
    command.chmod(0o755)
    packages = Path(click.__file__).parent.parent
    places = [
        f"{sys.base_prefix}=/opt/python",
        f"{packages}=/opt/packages",
        f"{ROOT}/backendops=/opt/source/backendops",
    ]
    with (tmp_path / "console.log").open("wb") as console:
        boot = subprocess.Popen(
            ["bash", ROOT / "tests/systemd/boot.sh", layer, *places],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=console, text=True,
        )  # fmt: skip
    assert boot.stdout
    init = boot.stdout.readline().strip()
    try:
        assert init.isdigit(), (tmp_path / "console.log").read_text()
        yield Systemd(init)
    finally:
        if init.isdigit():
            os.kill(int(init), 9)
        boot.wait(20)
        boot.stdout.close()


def test_under_a_real_systemd(systemd: Systemd) -> None:
    began = time.monotonic()
    systemd.ctl("start", "backendops")
    unit = systemd.show()
    assert (unit["ActiveState"], unit["SubState"]) == ("active", "running")
    assert "pool-health on cache" in unit["StatusText"]
    assert systemd.get("/readyz")["checks"] == {"policy": True, "scheduler": True, "ledger": True}
    assert Path(f"/proc/{systemd.init}/root/var/lib/private/backendops/ledger.sqlite3").exists()
    # LoadCredential: the policy could be loaded; and nobody else may read it.
    said = systemd.run("su", "-s", "/bin/sh", "nobody", "-c", "cat /run/credentials/backendops.service/*").stderr
    assert "Permission denied" in said
    status = eventually(lambda: systemd.get("/api/status")["recent_runs"])
    assert "s3cr3t" not in json.dumps(status) + systemd.journal()

    systemd.ctl("reload", "backendops")
    eventually(lambda: "policy.loaded" in systemd.journal())
    assert systemd.show()["ActiveState"] == "active"

    # Beside the daemon, as a user of the same name: one ledger.
    systemd.ctl("start", "backendops-run-once@pool-health")
    assert systemd.show("backendops-run-once@pool-health")["Result"] == "success"
    runs = systemd.get("/api/status")["recent_runs"]
    assert "command" in {run["trigger"] for run in runs}

    # A loop that hangs does not ping: killed and started again.
    systemd.ctl("kill", "--signal=SIGSTOP", "backendops")
    eventually(lambda: systemd.show()["NRestarts"] == "1")
    eventually(lambda: systemd.show()["SubState"] == "running")
    assert "Watchdog timeout" in systemd.journal()
    assert systemd.get("/livez")["ok"]

    systemd.ctl("stop", "backendops")
    unit = systemd.show()
    assert (unit["ActiveState"], unit["Result"], unit["ExecMainStatus"]) == ("inactive", "success", "0")
    assert "service.stopped" in systemd.journal()
    assert time.monotonic() - began < 60


def test_a_wrong_policy_is_not_tried_again_and_again(systemd: Systemd) -> None:
    Path(f"/proc/{systemd.init}/root/etc/backendops/policy.yaml").write_text(POLICY.replace("every 1s", "every 0s"))
    assert systemd.run("systemctl", "start", "backendops").returncode != 0
    unit = systemd.show()
    assert (unit["ActiveState"], unit["ExecMainStatus"], unit["NRestarts"]) == ("failed", "2", "0")
    assert "/etc/backendops/policy.yaml:" in systemd.journal()
