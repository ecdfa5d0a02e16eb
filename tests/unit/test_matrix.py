"""What works where is read from the classes, and the documentation says the same."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from backendops.backends import BACKENDS
from backendops.cli.matrix import command
from backendops.jobs import JOBS
from backendops.policy.matrix import as_markdown

ROOT = Path(__file__).parents[2]
TABLE = re.compile(r"<!-- matrix -->\n+(.*?)\n+<!-- /matrix -->", re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/backends.md"])
def test_the_documentation_has_the_table(page):
    tables = TABLE.findall((ROOT / page).read_text(encoding="utf-8"))
    assert tables, f"{page} has no table between <!-- matrix --> and <!-- /matrix -->"
    assert set(tables) == {as_markdown().strip()}, f"{page}: paste the output of `backendops matrix --markdown`"


def test_the_matrix_is_what_the_classes_say():
    document = json.loads(CliRunner().invoke(command, ["--json"]).stdout)
    assert set(document["jobs"]) == set(JOBS)
    for backend in BACKENDS:
        for kind, job in JOBS.items():
            assert (backend.kind in document["jobs"][kind]["backends"]) is issubclass(backend, job.needs)
    assert document["jobs"]["redis-memory"] == {"needs": "CanReportMemory", "changes": False, "backends": ["redis"]}
    assert "db+postgresql" in document["backends"]["postgresql"]["schemes"]


def test_the_matrix_as_a_user_sees_it():
    done = subprocess.run([sys.executable, "-m", "backendops", "matrix"], capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0][:2] == ["job", "needs"]
    assert len(lines[1:]) == len(JOBS) + len(BACKENDS)
    partition = dict(zip(lines[0], next(line for line in lines if line[0] == "partition"), strict=True))
    assert (partition["postgresql"], partition["redis"]) == ("yes", "-")


def test_one_form_at_a_time():
    result = CliRunner().invoke(command, ["--json", "--markdown"])
    assert result.exit_code == 2
    assert "take one" in result.output
