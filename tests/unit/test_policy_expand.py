"""`${...}` in a policy, and which of what it brings is a secret."""

from __future__ import annotations

import pytest

from backendops.contracts.errors import PolicyError
from backendops.policy.document import Place, Problems, Value
from backendops.policy.expand import expand
from backendops.policy.load import load_policy
from backendops.policy.secrets import passwords_of


@pytest.fixture
def expanded(tmp_path):
    (tmp_path / "secret").write_text("from a file\n")
    (tmp_path / "windows").write_bytes(b"from windows\r\n")

    def expanded_text(text, **environment):
        problems = Problems(str(tmp_path / "policy.yaml"))
        value = expand(Value(Place(3, 4), text), problems, environment)
        assert bool(len(problems)) == value.broken
        return [str(problem).partition(": ")[2] for problem in problems] or value.data

    return expanded_text


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("plain", "plain"),
        ("${A}", "1"),
        ("x${A}y${A}z", "x1y1z"),
        ("${A:-2}", "1"),
        ("${EMPTY:-2}", "2"),
        ("${EMPTY}", ""),
        ("${NONE:-}", ""),
        ("${NONE:-redis://h:1/0}", "redis://h:1/0"),
        ("${NONE:-${A}}", "1"),
        ("${NONE:-${NONE:-3}}", "3"),
        ("${NONE:-{}", "{"),
        ("$${A}", "${A}"),
        ("$$$${A}", "$${A}"),
        ("5$ and $A", "5$ and $A"),
        ("$", "$"),
        ("${WITH}", "${A}"),
        ("${file:secret}", "from a file"),
        ("${file:windows}", "from windows"),
        ("${file:${FOLDER}/secret}", "from a file"),
        ("<${file:./secret}>", "<from a file>"),
    ],
)
def test_expands(expanded, tmp_path, text, result):
    assert expanded(text, A="1", EMPTY="", WITH="${A}", FOLDER=str(tmp_path)) == result


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${NONE}", "the environment variable NONE is not set: set it, or write ${NONE:-default}"),
        ("${NONE:-${OTHER}}", "the environment variable OTHER is not set"),
        ("${A", "${ is never closed: write ${NAME}"),
        ("${}", "${...} is not a form backendops knows"),
        ("${A-1}", "${A...} is not a form backendops knows"),
        ("${A:?hunter2}", "${A...} is not a form backendops knows"),
        ("${1A}", "is not a form backendops knows"),
        ("${file:}", "${file:} names no file"),
        ("${file:nothing}", "cannot be read: No such file or directory"),
        ("${file:.}", "is not a file: ${file:...} reads one secret from one file"),
        ("${file:/dev/zero}", "is not a file"),
        ("${file:" + "x" * 5000 + "}", "cannot be read: File name too long"),
        ("${file:large}", "is over 64 KiB"),
        ("${file:binary}", "is not UTF-8 text"),
        ("${BROKEN}", "the environment variable BROKEN is not UTF-8 text"),
        ("${A:-" * 12 + "}" * 12, None),
        ("${N:-" * 12 + "}" * 12, "${ is nested too deeply"),
    ],
)
def test_cannot_expand(expanded, tmp_path, text, message):
    (tmp_path / "large").write_text("x" * 70_000)
    (tmp_path / "binary").write_bytes(b"\xff\x00")
    result = expanded(text, A="1", BROKEN="\udcff")
    if message is None:
        assert result == "1"
        return
    (problem,) = result
    assert message in problem
    assert "hunter2" not in problem


def test_everywhere_in_a_policy(tmp_path, monkeypatch):
    monkeypatch.setenv("ROWS", "500")
    monkeypatch.setenv("BACKENDS", "cache")
    path = tmp_path / "policy.yaml"
    path.write_text(
        "version: 1\nbackends: {cache: {url: '${NOT_SET:-redis://h}'}}\n"
        "jobs: {pool-health: {backend: ['${BACKENDS}'], batch_size: '${ROWS}', schedule: '${WHEN:-every 5m}'}}\n"
    )
    policy = load_policy(path)
    assert policy.jobs["pool-health"].batch_size == 500
    assert str(policy.pairs[0].schedule) == "every 5m"


@pytest.mark.parametrize(
    ("url", "passwords"),
    [
        ("redis://localhost:6379/0", set()),
        ("db+postgresql://user@host/db", set()),
        ("redis://:hunter22@host", {"hunter22"}),
        ("db+postgresql://user:p%40ss@host/db", {"p%40ss", "p@ss"}),
        ("sentinel://:one11@h1:1;sentinel://:two22@h2:2/0", {"one11", "two22"}),
        ("redis://host?password=hunter22&db=1", {"hunter22"}),
        ("db+postgresql://user:sl/ash@host/db", {"sl/ash"}),
        ("not a url: hunter22@host", set()),
    ],
)
def test_passwords_of_a_url(url, passwords):
    assert set(passwords_of(url)) == passwords


def test_secrets_of_a_policy(tmp_path, monkeypatch):
    for name, value in {
        "WHOLE": "db+postgresql://celery:wholepw@db.example/celery",
        "PASSWORD": "variablepw",
        "HOST": "db.example",
        "USER_NAME": "celery",
        "NAME": "celery_results",
        "PORT": "5432",
        "OPEN": "redis://cache.example/0",
    }.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "pw").write_text("filepw\n")
    path = tmp_path / "policy.yaml"
    path.write_text(
        """\
version: 1
http: {username: prometheus, password: '${PASSWORD}'}
backends:
  whole: {url: '${WHOLE}'}
  parts: {url: 'db+postgresql://${USER_NAME}:${file:pw}@${HOST}:${PORT}/${NAME}'}
  open: {url: '${OPEN}'}
jobs:
  pool-health:
"""
    )
    assert load_policy(path).secrets == {
        "variablepw",
        "wholepw",
        "db+postgresql://celery:wholepw@db.example/celery",
        "filepw",
    }


def test_no_problem_shows_a_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("PASSWORD", "hunter22")
    path = tmp_path / "policy.yaml"
    for line in (
        "a: {url: 'db+postgresql://u:${PASSWORD}@h:port/d'}",
        "a: {url: 'db+postgresql://u:hunter22@h:99999/d'}",
        "a: {url: 'redis://:hunter22@h:port'}",
        "a: {url: 'redis://:hunter22@h/notadb'}",
        "a: {url: 'ftp://u:hunter22@h'}",
        "a: {url: ':hunter22'}",
        "a: {url: [hunter22]}",
        "a: {url: *hunter22}",
        "a: {url: &hunter22 x}",
        "a: {url: !hunter22 x}",
        "a: {url: 'redis://h', password: hunter22}",
        "a: {url: 'sentinel://:hunter22@h', sentinel_kwargs: {password: [hunter22]}}",
    ):
        path.write_text(f"version: 1\nbackends:\n  {line}\njobs:\n  pool-health:\n")
        with pytest.raises(PolicyError) as error:
            load_policy(path)
        assert "hunter22" not in str(error.value), line
