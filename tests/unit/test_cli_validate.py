"""validate, schema and matrix as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from backendops.jobs import JOBS
from backendops.policy.schema import policy_schema
from tests.unit.test_policy_load import GOOD, MISTAKES, PROBLEMS

CONFIG = Path(__file__).parents[2] / "config"


def backendops(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "backendops", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nowhere", "BACKENDOPS_POLICY": "", **environment},
        cwd=Path(__file__).parents[2],
    )


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD)
    return path


@pytest.fixture
def bad(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(MISTAKES)
    return path


def test_a_good_policy_is_shown_with_its_next_runs(good):
    done = backendops("validate", "--policy", good)

    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"{good}: 4 jobs on 2 backends, no problems"
    rows = [line.split() for line in lines]
    assert ["results", "postgresql", "postgresql://celery@localhost/celery"] in rows
    nightly = next(row for row in rows if row[:1] == ["nightly"])
    assert nightly[1:7] == ["results", "15", "2", "*", "*", "*"]
    assert nightly[8] in {"00:15:00", "01:15:00"}
    assert next(row for row in rows if row[:1] == ["vacuum"]) == ["vacuum", "results", "-", "when", "asked"]
    assert "open sesame" not in done.stdout


def test_problems_go_to_stderr_one_on_each_line(bad):
    done = backendops("validate", "--policy", bad)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.replace(f"{bad.parent}/", "") == PROBLEMS


def test_json(good):
    document = json.loads(backendops("validate", "--json", "--policy", good).stdout)

    assert document["valid"] is True
    assert document["problems"] == []
    assert document["timezone"] == "Europe/Berlin"
    assert [job["job"] for job in document["jobs"]] == ["expire", "expire", "nightly", "vacuum"] + ["pool-health"] * 2
    assert document["jobs"][2]["kind"] == "archive"
    assert document["jobs"][2]["next_run"].endswith(":15:00+00:00")


def test_json_of_problems(bad):
    done = backendops("validate", "--json", "--policy", bad)

    document = json.loads(done.stdout)
    assert done.returncode == 2
    assert document["valid"] is False
    assert document["problems"][0] == {
        "file": str(bad),
        "line": 2,
        "column": 11,
        "message": "'Europe/Berln' is not a time zone, did you mean 'Europe/Berlin'?",
    }
    assert len(document["problems"]) == 12


def test_no_policy_anywhere(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "backendops", "validate"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "no policy found (--policy and $BACKENDOPS_POLICY are not given" in done.stderr


def test_the_starting_policy_works_as_it_is():
    done = backendops("validate", "--policy", CONFIG / "policy.yaml")
    assert done.returncode == 0, done.stderr
    assert "6 jobs on 2 backends, no problems" in done.stdout


def test_the_schema_is_one_and_fits_the_policies_we_ship():
    done = backendops("schema")
    schema = json.loads(done.stdout)
    assert schema == json.loads(json.dumps(policy_schema()))

    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for name in ("policy.yaml", "policy.reference.yaml"):
        validator.validate(yaml.safe_load((CONFIG / name).read_text()))
    assert set(schema["properties"]["jobs"]["properties"]) == set(JOBS)


@pytest.mark.parametrize(
    ("jobs", "fits"),
    [
        ("{pool-health: }", True),
        ("{pool-health: {schedule: every 1m, batch_size: 5}}", True),
        ("{pool-health: {batch_size: '${ROWS:-5}'}}", True),
        ("{mine: {kind: expire, keep: 3d}}", True),
        ("{archive: {kind: expire, keep: 3d}}", True),
        ("{}", False),
        ("{expire: }", False),
        ("{expire: {}}", False),
        ("{expire: {keep: 3d, kep: 4d}}", False),
        ("{pool-health: {batch_size: many}}", False),
        ("{mine: {keep: 3d}}", False),
        ("{mine: {kind: expire, older_than: 3d}}", False),
        ("{mine: {kind: nothing}}", False),
        ("{partition: {every: year}}", False),
        ("{'a b': {kind: vacuum}}", False),
    ],
)
def test_what_the_schema_says(jobs, fits):
    policy = yaml.safe_load(f"version: 1\nbackends: {{c: {{url: redis://h}}}}\njobs: {jobs}\n")
    assert jsonschema.Draft202012Validator(policy_schema()).is_valid(policy) is fits
