"""What the documents say is so: commands, targets, links, policies and exit codes that a reader may try."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from backendops.cli import cli
from backendops.contracts.run import Outcome
from backendops.policy.load import load_policy
from tests.servers import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("**/*.md"))]
# Written by people in sentences, but read by the shell: a command, and the first word after its options.
_COMMAND = re.compile(r"^(?:\$ )?backendops(?: --[a-z-]+ \S+)* ([a-z-]+)\b", re.MULTILINE)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str = "") -> list[str]:
    """The fenced blocks of a page in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_readme_begins_with_exactly_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line.split("#")[0].strip() for line in blocks(ROOT / "README.md")[0].splitlines()]
    assert lines == ["make run", "make test"]
    introduction = [line for line in text.split("```")[0].splitlines()[1:] if line]
    assert len(introduction) == 3


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_targets_exist(page: Path) -> None:
    text = "\n".join(re.findall(r"```.*?```", page.read_text(encoding="utf-8"), re.DOTALL))
    with cli.make_context("backendops", [], resilient_parsing=True) as context:
        commands = set(cli.list_commands(context))
    assert set(_COMMAND.findall(text)) - commands == set()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)) - targets == set()


def test_every_command_explains_itself() -> None:
    with cli.make_context("backendops", [], resilient_parsing=True) as context:
        commands = cli.list_commands(context)
    assert len(commands) >= 11
    headings = " ".join(
        re.findall(r"^## (.*)", (ROOT / "docs" / "commands.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert set(commands) - set(re.findall(r"[a-z-]+", headings)) == set()
    for command in commands:
        shown = CliRunner().invoke(cli, [command, "--help"])
        assert shown.exit_code == 0, command
        # More than a usage line and the options.
        assert len(shown.output.split("Options:")[0].splitlines()) > 3, command


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_policies_in_the_documents_load(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESULTS_URL", "db+postgresql://user:password@host/database")
    monkeypatch.setenv("CACHE_URL", "redis://host:6379/0")
    for number, block in enumerate(blocks(page, "yaml")):
        if not block.startswith("version: 1"):
            continue
        policy = tmp_path / f"{number}.yaml"
        policy.write_text(block, encoding="utf-8")
        assert load_policy(policy).pairs


def test_the_demo_and_the_starting_policy_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    demo = {
        "DEMO_STATE": str(tmp_path),
        "DEMO_PORT": "9919",
        "DEMO_POSTGRES_URL": "db+postgresql://postgres:secret@127.0.0.1:5432/postgres",
        "DEMO_REDIS_URL": "redis://:secret@127.0.0.1:6379/0",
    }
    for name, value in demo.items():
        monkeypatch.setenv(name, value)
    shown = load_policy(ROOT / "config" / "demo.yaml")
    assert {pair.job.kind_name for pair in shown.pairs} == {
        "expire", "archive", "partition", "vacuum", "redis-memory", "pool-health",
    }  # fmt: skip
    assert load_policy(ROOT / "config" / "policy.yaml").pairs


def test_the_readme_has_every_exit_code() -> None:
    table = re.findall(r"^\| (\d+) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    # 2 is for what is wrong before a run, 4 for several runs of which some failed.
    assert {int(code) for code in table} == {outcome.exit_code for outcome in Outcome} | {2, 4}


def test_the_documents_have_every_finding_of_postgresql_and_of_every_job() -> None:
    code = ROOT / "backendops"
    folders = [code / "backends" / "postgres", code / "jobs", code / "engine", code / "contracts"]
    text = "".join(one.read_text(encoding="utf-8") for folder in folders for one in folder.glob("*.py"))
    # A severity, on one line with it or the next, then the code. What Redis has is in docs/redis.md, by its own names.
    codes = set(re.findall(r'Finding\(\s*Severity\.[^"\']*?"([a-z]+\.[a-z-]+)"', text))
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert len(codes) > 30
    assert sorted(one for one in codes if f"`{one}`" not in pages and not one.startswith("redis.")) == []


def test_make_alone_lists_every_target() -> None:
    shown = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.findall(r"^\.PHONY: ([a-z-]+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.findall(r"^  make ([a-z-]+)", shown, re.MULTILINE) == phony


def test_continuous_integration_runs_what_people_run() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert script.index("make check") < script.index("make test")
    assert "set -euo pipefail" in script
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
