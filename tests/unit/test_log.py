"""Log lines: the run's id on each, secrets on none, whoever writes them."""

from __future__ import annotations

import json
import logging
import warnings
from typing import Any
from urllib.parse import quote

import pytest
import structlog
from pydantic import BaseModel, SecretStr

from backendops import log
from backendops.contracts.masking import mask, secrets_of
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.run import Outcome, Step, Trigger
from backendops.engine.report import Run, RunReport
from tests.unit.toys import START, ToyProbe, toy_pair

# What JSON escapes, and what is no ASCII: masking must come before rendering.
SECRET = 'hunter"22\\é'  # noqa: S105 - nobody's password


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def fail() -> None:
    raise ValueError(SECRET) from KeyError(SECRET)


def write_everything() -> None:
    """A secret in every place a log line has."""
    ours = structlog.get_logger("backendops.test")
    ours.info("thing.done", password=SECRET, nested={"list": [SECRET, 1, None]}, error=ValueError(SECRET))
    ours.warning(f"bad url redis://me:{SECRET}@host/0")
    theirs = logging.getLogger("apscheduler.executors")
    theirs.error("job failed with %s", SECRET)
    warnings.warn(f"do not use {SECRET}", stacklevel=1)
    try:
        fail()
    except ValueError:
        ours.exception("thing.failed")
        theirs.exception("failed")


@pytest.mark.filterwarnings("default")
def test_json_masks_secrets_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("json")
    log.keep_secret([SECRET])
    write_everything()
    said = lines(capsys)
    assert len(said) == 6
    assert SECRET not in json.dumps(said, ensure_ascii=False)
    assert "hunter" not in json.dumps(said)
    assert said[0]["nested"] == {"list": ["***", 1, None]}
    assert list(said[0])[:3] == ["timestamp", "level", "event"]
    assert said[0]["timestamp"].endswith("Z")
    assert said[2]["event"] == "job failed with ***"
    assert "ValueError: ***" in said[4]["exception"]


@pytest.mark.filterwarnings("default")
def test_console_masks_secrets_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("console")
    log.keep_secret([SECRET])
    write_everything()
    said = capsys.readouterr().err
    assert "thing.done" in said
    assert "ValueError: ***" in said
    assert "hunter" not in said


def test_without_a_terminal_it_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    structlog.get_logger("x").info("thing.done")
    assert lines(capsys)[0]["event"] == "thing.done"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:p@ss/w:rd@host/db", "postgresql://me:***@host/db"),
        ("redis://:secret@host:6379/0, broken", "redis://:***@host:6379/0, broken"),
        ("sentinel://:a@h1:1;sentinel://:b@h2:2", "sentinel://:***@h2:2"),
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("http://127.0.0.1:9919/metrics", "http://127.0.0.1:9919/metrics"),
        ("host=db password=secret user=me", "host=db password=*** user=me"),
        ("rediss://h/0?ssl_keyfile_password=x&password=secret", "rediss://h/0?ssl_keyfile_password=x&password=***"),
        ("the passage of time = 5", "the passage of time = 5"),
    ],
)
def test_passwords_are_known_by_their_place(text: str, shown: str) -> None:
    assert mask(text) == shown


def test_longer_secrets_go_first_and_tiny_ones_are_left_to_their_place() -> None:
    assert mask("abcdefgh abcd ab", {"abcd", "abcdefgh", "ab"}) == "*** *** ab"


def test_a_secret_is_known_however_it_is_written() -> None:
    secret = 'gr"ün @1'  # noqa: S105 - nobody's password
    for written in (secret, repr(secret), json.dumps(secret), json.dumps(secret, ensure_ascii=False), quote(secret)):
        assert "1" not in mask(f"it said {written}", {secret})


def test_secrets_of_a_part_of_the_policy() -> None:
    class Inner(BaseModel):
        key: SecretStr = SecretStr("the key")

    class Outer(BaseModel):
        url: SecretStr = SecretStr("redis://me:p%40ss@host/0")
        inner: Inner = Inner()
        name: str = "not secret"

    assert set(secrets_of(Outer())) == {"p%40ss", "p@ss", "the key"}


def hear(listener: log.LogListener, pair_is_probe: bool = False) -> RunReport:
    run = Run(7, toy_pair(ToyProbe() if pair_is_probe else None), Trigger.SCHEDULE, START)
    listener.started(run)
    for _ in range(3):
        listener.stepped(run, Step(rows=100, what="moved"))
    listener.throttled(run, "replica-lag", 1.0)
    listener.throttled(run, "replica-lag", 1.0)
    finding = Finding(Severity.CRITICAL, "a.code", "it is full", "empty it")
    report = RunReport(
        7, "toy", "place", Trigger.SCHEDULE, Outcome.FAILED, START, START, rows=300, error="broke", findings=(finding,)
    )
    listener.ended(run, report)
    return report


def test_a_run_in_log_lines(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = iter([0.0, 3.0, 9.0, 12.0, 13.0, 14.0])
    log.configure("json")
    hear(log.LogListener(lambda: next(seconds)))
    structlog.get_logger("x").info("after.all")
    *of_the_run, after = lines(capsys)
    assert [line["event"] for line in of_the_run] == [
        "run.started",
        "run.progressed",  # once in ten seconds, of three steps
        "run.throttled",  # once for each reason, then with the progress
        "finding.raised",
        "run.ended",
    ]
    assert {(line["run"], line["job"], line["backend"]) for line in of_the_run} == {(7, "toy", "place")}
    assert of_the_run[1]["rows"] == 300
    assert [line["level"] for line in of_the_run] == ["info", "info", "info", "error", "error"]
    assert of_the_run[-1]["outcome"] == "failed"
    assert "hint" not in of_the_run[-1]
    assert "run" not in after


def test_a_probe_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("json")
    hear(log.LogListener(lambda: 0.0), pair_is_probe=True)
    assert [line["event"] for line in lines(capsys)] == ["run.throttled", "finding.raised", "run.ended"]
