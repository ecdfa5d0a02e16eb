"""The command line in this process: what is wrong with a call, and what --help says."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import click
import pytest

from backendops.cli import _COMMANDS, cli, main
from backendops.cli.console import exit_code, print_json
from backendops.contracts.run import Outcome
from backendops.log import keep_secret

POLICY = """
version: 1
state: {state}
backends:
  results: {{url: 'db+postgresql://me:hunter22@127.0.0.1:1/nothing'}}
  dead: {{url: 'db+postgresql://me:hunter22@127.0.0.1:1/nothing'}}
jobs:
  archive: {{backend: results, older_than: 7d}}
"""


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of a call."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    captured = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, captured.out, captured.err


@pytest.fixture
def policy(tmp_path: Path) -> str:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY.format(state=tmp_path / "state"))
    return str(file)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run-once", "archve"], "backendops: the policy has no job 'archve', did you mean 'archive'?"),
        (["run-once", "archive", "--backend", "cache"], "has no backend 'cache'; it has results, dead"),
        (["run-once", "archive", "--backend", "dead"], "archive does not run on 'dead'; it runs on results"),
        (["run-once"], "Missing argument 'JOB...'"),
        (["run-once", "archive", "--textfile", "/nowhere/x.prom"], "there is no directory /nowhere"),
        (["pause", "vaccum"], "the policy has no job 'vaccum'"),
        (["run-one", "archive"], "there is no command 'run-one', did you mean 'run-once'?"),
        (["run-once", "archive", "--policy", "/nowhere/policy.yaml"], "/nowhere/policy.yaml:"),
    ],
)
def test_usage_is_2(policy: str, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str) -> None:
    # The policy that a case names itself comes last and wins.
    code, out, err = call(capsys, "--policy", policy, *arguments)
    assert (code, out) == (2, "")
    assert sentence in err
    assert "Traceback" not in err


def test_what_help_says_of_a_command_is_what_the_command_says() -> None:
    context = click.Context(cli)
    for name, _, _, text in _COMMANDS:
        if name in cli.list_commands(context):
            found = cli.get_command(context, name)
            assert found is not None, name
            assert found.name == name
            assert found.help, name
            assert text


def test_answers_of_pause_resume_and_cancel(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, answer in (
        (["pause", "archive"], "archive is paused"),
        (["resume", "archive"], "archive runs again as scheduled"),
        (["resume", "archive"], "archive was not paused"),
        (["cancel", "archive"], "nothing of archive runs now"),
    ):
        code, out, err = call(capsys, *arguments, "--policy", policy)
        assert (code, err) == (0, "")
        assert out.startswith(answer)


@pytest.mark.parametrize("error", [KeyError("getpwuid(): uid not found: 12345"), OSError("No username set")])
def test_a_user_without_a_name_may_pause(
    policy: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def nameless() -> str:
        raise error

    monkeypatch.setattr("getpass.getuser", nameless)
    assert call(capsys, "pause", "archive", "--policy", policy)[0] == 0
    assert f"paused by uid {os.getuid()}@" in call(capsys, "status", "--policy", policy)[1]


def test_json_is_masked_text_by_text(capsys: pytest.CaptureFixture[str]) -> None:
    """A password that is a number or a key of the document takes no document apart."""
    keep_secret(["1000", "rows", 'gr"ün'])
    print_json({"rows": 21000, "what": 'moved 1000 rows by gr"ün', "list": (None, True, 1.5)})
    assert json.loads(capsys.readouterr().out) == {
        "rows": 21000,
        "what": "moved *** *** by ***",
        "list": [None, True, 1.5],
    }


def test_a_ledger_that_breaks_is_a_sentence(policy: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert call(capsys, "pause", "archive", "--policy", policy)[0] == 0
    with closing(sqlite3.connect(tmp_path / "state" / "ledger.sqlite3")) as ledger:
        ledger.execute("DROP TABLE backendops_runs")
    code, out, err = call(capsys, "status", "--policy", policy)
    assert (code, out) == (1, "")
    assert err.startswith(
        "backendops: the ledger cannot be used: no such table: backendops_runs; `state:` of the policy"
    )


def test_looking_makes_no_ledger(policy: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert call(capsys, "status", "--policy", policy)[0] == 0
    assert call(capsys, "history", "--policy", policy)[1] == "no run yet\n"
    assert call(capsys, "plan", "--policy", policy)[0] == 3
    assert not (tmp_path / "state").exists()


def test_a_textfile_that_cannot_be_written_is_1(
    policy: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / ("x" * 300)
    code, out, err = call(capsys, "run-once", "archive", "--policy", policy, "--textfile", str(file))
    assert (code, out) == (1, "")
    assert f"cannot write {file}: File name too long; the runs themselves are done" in err


def test_an_internal_error_is_a_sentence(
    policy: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("hunter22 by zero")

    monkeypatch.setattr("backendops.engine.ledger.Ledger.open", broken)
    code, out, err = call(capsys, "status", "--policy", policy)
    assert (code, out) == (1, "")
    assert err == (
        "backendops: internal error: ZeroDivisionError: *** by zero\n"
        "backendops: run it again with -v for the traceback\n"
    )
    assert "Traceback" in call(capsys, "-v", "status", "--policy", policy)[2]


@pytest.mark.parametrize(
    ("codes", "code"),
    [([], 0), ([0, 0], 0), ([3], 3), ([75, 75], 75), ([0, 75], 75), ([0, 1, 75], 4), ([1, 3], 4), ([0, 5, 0], 4)],
)
def test_one_exit_code_for_many_runs(codes: list[int], code: int) -> None:
    assert exit_code(codes) == code


def test_the_documentation_has_every_command_and_every_outcome() -> None:
    text = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")
    headings = {line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")}
    assert {name for name, *_ in _COMMANDS} <= headings
    outcomes = dict(re.findall(r"^\| ([a-z-]+) \| (\d+) \|", text, re.MULTILINE))
    assert outcomes == {outcome.value: str(outcome.exit_code) for outcome in Outcome}
