"""The cron.d file: each of its lines as cron runs it, and the file under a real cron whose clock is set."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.daemon import COMMAND, eventually
from tests.servers import FETCHED, ROOT, debian_binary, debian_environment, missing

CRON_FILE = ROOT / "deploy" / "cron" / "backendops"
LINE = re.compile(r"^(?P<when>(?:\S+\s+){5})(?P<user>\S+)\s+(?P<command>.*)$")

POLICY = """
version: 1
state: {directory}/state
backends: {{results: {{url: "{url}"}}}}
jobs:
  expire: {{keep: 90d}}
  archive: {{older_than: 7d}}
  vacuum: {{}}
"""

# Everything under these is the machine's, with what the test lays over it; cron sees 02:14:58, so that the job of
# 02:15 comes at once. Its children live in the real time: cron gives them an environment of their own.
BOOT = """
set -e
mount --make-rprivate /
over() {{
  mount -t overlay -o "lowerdir=$2,upperdir=$1,workdir=$1.work" overlay "$2"
}}
mount -t tmpfs tmpfs {layers}.mem
cp -a {layers}/. {layers}.mem/
mkdir {layers}.mem/etc.work {layers}.mem/sbin.work {layers}.mem/bin.work
over {layers}.mem/etc /etc
over {layers}.mem/sbin /usr/sbin
mkdir -p /usr/local/bin
over {layers}.mem/bin /usr/local/bin
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/spool
mkdir -p /var/spool/cron/crontabs
# Where libfaketime leaves its shared clock, named after a PID of in here, when it is killed.
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
export LD_PRELOAD={faketime} FAKETIME='@2026-06-01 02:14:58' TZ=UTC
exec {cron} -f
"""

SENDMAIL = """#!/bin/sh
cat >{mail}/unfinished && mv {mail}/unfinished {mail}/$$
"""


def lines() -> list[re.Match[str]]:
    """The job lines of the file."""
    settings = re.compile(r"#|\s*$|\w+=")
    found = [line for line in CRON_FILE.read_text().splitlines() if not settings.match(line)]
    matches = [LINE.match(line) for line in found]
    assert matches
    assert all(matches), found
    return [match for match in matches if match]


def write_policy(directory: Path, url: str) -> Path:
    policy = directory / "policy.yaml"
    policy.write_text(POLICY.format(directory=directory, url=url))
    return policy


def test_each_line_works_with_what_cron_gives_it(
    tmp_path: Path, sqlite_url: str, fill_celery_table: Callable[..., None]
) -> None:
    fill_celery_table(sqlite_url, 100)
    policy = write_policy(tmp_path, sqlite_url)
    environment = {"HOME": str(tmp_path), "LOGNAME": "backendops", "SHELL": "/bin/sh", "PWD": str(tmp_path)}
    path = re.search(r"^PATH=(.*)$", CRON_FILE.read_text(), re.MULTILINE)
    assert path
    environment["PATH"] = f"{COMMAND.parent}:{path[1]}"
    ran = []
    for line in lines():
        assert line["user"] == "backendops"
        job = line["command"].split()[-1]
        if job == "partition":
            continue  # SQLite has none
        command = line["command"].replace("/etc/backendops/policy.yaml", str(policy))
        done = subprocess.run(
            ["/bin/sh", "-c", command], env=environment, cwd=tmp_path,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        # What cron would mail: nothing.
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        ran.append(job)
    assert ran == ["expire", "archive", "vacuum"]


def test_the_file_is_one_that_cron_reads() -> None:
    """cron passes over a file with a dot in its name, and over a last line without an end."""
    assert "." not in CRON_FILE.name
    assert CRON_FILE.read_text().endswith("\n")
    assert "%" not in CRON_FILE.read_text(), "cron would take it for a new line"


def test_under_a_real_cron(tmp_path: Path, sqlite_url: str, fill_celery_table: Callable[..., None]) -> None:
    cron = debian_binary("cron")
    if os.geteuid() != 0:
        pytest.skip("needs root: cron runs jobs as other users")
    faketime = next(FETCHED.glob("usr/lib/*/faketime/libfaketime.so.1"), None)
    if faketime is None:
        missing("libfaketime", "make servers fetches it where apt is")
    fill_celery_table(sqlite_url, 100)
    policy = write_policy(tmp_path, sqlite_url)
    mail, layers = tmp_path / "mail", tmp_path / "layers"
    for folder in (mail, layers / "etc/cron.d", layers / "sbin", layers / "bin", tmp_path / "layers.mem"):
        folder.mkdir(parents=True)
    text = CRON_FILE.read_text().replace("/etc/backendops/policy.yaml", str(policy))
    # The user that the file's own first lines have an administrator make.
    text = re.sub(r"(?m)^((?:\S+\s+){5})backendops(\s)", r"\1root\2", text)
    text = text.replace("run-once partition", "run-once archive")
    # A second line of the same minute, for a job that is not there: this one has something to say.
    text += f"15 2 * * * root backendops --policy {policy} run-once no-such-job\n"
    (layers / "etc/cron.d/backendops").write_text(text)
    (layers / "bin/backendops").symlink_to(COMMAND)
    (layers / "sbin/sendmail").write_text(SENDMAIL.format(mail=mail))
    (layers / "sbin/sendmail").chmod(0o755)
    script = tmp_path / "boot.sh"
    script.write_text(BOOT.format(layers=layers, faketime=faketime, cron=cron))
    with (tmp_path / "cron.log").open("wb") as log:
        running = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", script],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=debian_environment(),
        )  # fmt: skip

    def ended(job: str) -> str:
        assert running.poll() is None, (tmp_path / "cron.log").read_text()
        done = subprocess.run(
            [COMMAND, "--policy", policy, "history", job, "--json"], capture_output=True, text=True, check=False
        )
        return done.stdout if '"command"' in done.stdout else ""

    try:
        assert "completed" in eventually(lambda: ended("archive"))
        letter = eventually(lambda: next((file.read_text() for file in mail.iterdir() if file.name.isdigit()), ""))
        assert "Subject: Cron <root@" in letter
        said = letter.partition("\n\n")[2].strip().splitlines()
        assert "no-such-job" in said[-1]
        assert len(said) <= 3
        assert len(list(mail.iterdir())) == 1, "the jobs that went well wrote no letter"
    finally:
        # unshare waits for its child and hears no SIGTERM; the child, PID 1 of its namespace, takes all with it.
        running.kill()
        running.wait(10)
