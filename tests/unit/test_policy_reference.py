"""config/policy.reference.yaml: current, complete, and a policy that loads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from backendops.backends import BACKENDS
from backendops.jobs import JOBS
from backendops.policy import reference
from backendops.policy.load import load_policy

ROOT = Path(__file__).parents[2]


@pytest.fixture
def lines(monkeypatch):
    for name in ("RESULTS_URL", "CACHE_URL", "LOCAL_URL"):
        monkeypatch.delenv(name, raising=False)
    return (ROOT / reference.FILE).read_text(encoding="utf-8").splitlines()


def test_it_is_current(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(ROOT)
    assert reference.main(["--check"]) == 0, "run `python -m backendops.policy.reference`"
    monkeypatch.chdir(tmp_path)
    assert reference.main(["--check"]) == 1
    assert "is not current" in capsys.readouterr().err
    (tmp_path / "config").mkdir()
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0
    assert reference.main(["--what"]) == 2


def test_it_is_a_policy_with_the_defaults(lines):
    policy = load_policy(ROOT / reference.FILE)
    assert set(policy.jobs) == set(JOBS)
    assert {type(backend) for backend in policy.backends.values()} == set(BACKENDS)
    for job in policy.jobs.values():
        for name, field in type(job).model_fields.items():
            if not field.is_required():
                assert getattr(job, name) == field.get_default(call_default_factory=True), f"{job.kind_name}.{name}"


@pytest.mark.parametrize("kind", JOBS)
def test_it_has_every_key_of_every_job(lines, kind):
    start = lines.index(f"  {kind}:")
    section = list(dict.fromkeys(lines[start + 1 :]))
    end = next((n for n, line in enumerate(section) if re.match(r" {2}\S.*:$", line)), len(section))
    for name, field in JOBS[kind].model_fields.items():
        key = field.alias or name
        assert any(re.match(rf"    (# )?{key}:( |$)", line) for line in section[:end]), f"{kind}.{key}"


def test_every_key_says_what_it_is_for():
    for model in (*JOBS.values(), *BACKENDS):
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name} has no description"
            assert field.description[-1] in ".:", f"{model.__name__}.{name}: {field.description!r} is no sentence"


def test_every_example_is_right(lines, tmp_path):
    """With every comment that is a key taken into the file, it still loads: the examples are values that fit."""
    path = tmp_path / "policy.yaml"
    text = "\n".join(lines)
    for kind in JOBS:
        text = text.replace(f"    # kind: {kind}\n", f"    kind: {kind}\n")
    for key in ("schedule", "max_rows", "full", "schema", "backend"):
        text = text.replace(f"    # {key}: ", f"    {key}: ")
    path.write_text(text)
    policy = load_policy(path)
    assert all(pair.schedule is not None and pair.job.max_rows == 1_000_000 for pair in policy.pairs)
