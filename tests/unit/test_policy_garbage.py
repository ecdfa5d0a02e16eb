"""Whatever is written into a policy, what comes out is a policy or problems with places; never a traceback."""

from __future__ import annotations

import itertools
import random

import pytest

from backendops.contracts.errors import PolicyError
from backendops.jobs import JOBS
from backendops.policy.load import load_policy
from tests.unit.test_policy_load import GOOD, MISTAKES

# Pieces of YAML that are odd somewhere.
ODD = [
    r"[]",
    r"{}",
    r"~",
    r"5",
    r"-1",
    r"1.5",
    r".nan",
    r"-.inf",
    r"true",
    r"yes",
    r"010",
    r"0o17",
    r"0x1F",
    r"0b1",
    r"1:30",
    r"2020-01-01",
    r"[[a]]",
    r"'x'",
    r'"\0"',
    r'"\ud800"',
    r"*a",
    r"&a",
    r"!!int",
    r"99999999999999999999",
    r"1e400",
    r"1e3",
    r"${X}",
    r"${",
    r"$$",
    r"${file:/proc/self/mem}",
    r"${file:}",
    r"${a-b}",
    r"${A:-${B:-c}}",
    r"redis://",
    r"redis://h:99999999",
    r"redis://[::1",
    r"db+sqlite:///",
    r"db+sqlite://h:x/d",
    r"db+postgresql://h:x/d",
    r"db+postgresql://[h/d",
    r"sentinel://a;b",
    r"://",
    r"every",
    r"forever",
    r"30d",
    r"?",
    r"-",
    r":",
    r"%",
    r"@",
    r"`",
    r"{{",
    r"}}",
    r">",
    r"<<:",
    r"---",
    r"...",
    r"#",
    r"|",
    r'"',
    r"'",
    r"[::]:1",
    r"http://h",
    r"@daily",
    r"1_0",
]
ODD += ["", " ", "\t", "\x00", "\x85", "\u2028", "\ufeff", "é", "😀", "{a: {b: [c]}}", "every 1s", "* * * * *"]
ODD += ["9" * 900 + "d", "x" * 5000, "[" * 200, "{a: " * 200]

KEYS = sorted(
    {"version", "timezone", "state", "http", "backends", "jobs", "listen", "username", "password", "tls_key", "url"}
    | {"tables", "schemas", "sentinel_kwargs", "result_expires", "date_done_timezone", "full", "start"}
    | {field.alias or name for job in JOBS.values() for name, field in job.model_fields.items()}
)


def survives(path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_policy(path)
    except PolicyError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.line >= 1
            assert problem.column >= 1
            assert "\n" not in problem.message
            assert len(problem.message) < 1000
            for jargon in ("Input should", "validation error", "Traceback", "NoneType", "<class", "SecretStr"):
                assert jargon not in problem.message


@pytest.mark.parametrize("key", KEYS)
def test_odd_values_of_every_key(tmp_path, key):
    path = tmp_path / "policy.yaml"
    for number, odd in enumerate(ODD):
        # In turn: each piece meets each place under one key or another.
        survives(path, [top, nested, entries][(number + KEYS.index(key)) % 3](key, odd))


def top(key: str, odd: str) -> str:
    return f"version: 1\n{key}: {odd}\n"


def nested(key: str, odd: str) -> str:
    return f"version: 1\nhttp: {{{key}: {odd}}}\nbackends: {{a: {{url: redis://h, {key}: {odd}}}}}\n"


def entries(key: str, odd: str) -> str:
    backend = f"  a:\n    url: db+postgresql://h/d\n    {key}: {odd}\n"
    return f"backends:\n{backend}jobs:\n  vacuum:\n    {key}: {odd}\n  expire:\n    keep: 3d\n    {key}: {odd}\n"


@pytest.mark.parametrize("text", [GOOD, MISTAKES], ids=["good", "bad"])
def test_a_policy_cut_short_anywhere(tmp_path, text):
    for end in range(0, len(text), 5):
        survives(tmp_path / "policy.yaml", text[:end])


@pytest.mark.parametrize("seed", range(4))
def test_a_policy_with_odd_pieces_in_it(tmp_path, seed):
    # Seeded, so that a failure comes back.
    chance = random.Random(seed)  # noqa: S311 - odd text, not a secret
    for _ in range(100):
        lines = chance.choice([GOOD, MISTAKES]).split("\n")
        for _ in range(chance.randint(1, 3)):
            number = chance.randrange(len(lines))
            start = chance.randrange(len(lines[number]) + 1)
            rest = lines[number][start + chance.randint(0, 5) :]
            lines[number] = lines[number][:start] + chance.choice(ODD) + rest
        survives(tmp_path / "policy.yaml", "\n".join(lines))


def test_every_kind_of_thing_in_every_place(tmp_path):
    things = ["", "5", "x", "true", "[]", "[x]", "{}", "{x: 1}", "[{x: [y]}]", "{x: {y: {z: 1}}}", "{? [x] : y}"]
    path = tmp_path / "policy.yaml"
    for first, second in itertools.product(things, things):
        survives(path, f"version: {first}\nhttp: {second}\nbackends: {first}\njobs: {second}\n")
        survives(path, f"backends: {{a: {first}, b: {{url: {second}}}}}\njobs: {{expire: {second}}}\n")
        jobs = f"{{x: {{kind: {first}}}, expire: {{backend: {second}, keep: 3d}}}}"
        survives(path, f"backends: {{a: {{url: redis://h}}}}\njobs: {jobs}\n")
