"""The installed command on a policy of the test's own, as cron or a person would call it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.acceptance.warm import warm

COMMAND = Path(sys.executable).with_name("backendops")

# A person would give up sooner; a command that hangs must not hang the suite.
PATIENCE = 60


@dataclass(frozen=True)
class Installed:
    """`backendops --policy FILE ...`, with a state directory beside the file."""

    policy: Path

    @classmethod
    def with_policy(cls, directory: Path, text: str) -> Installed:
        policy = directory / "policy.yaml"
        policy.write_text(f"version: 1\nstate: {directory / 'state'}\n{text}")
        return cls(policy)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start it; the test waits for it, or ends it."""
        return subprocess.Popen(
            [COMMAND, *arguments, "--policy", str(self.policy)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end, in a process that need not import it first."""
        return warm().run([*arguments, "--policy", str(self.policy)], PATIENCE)
