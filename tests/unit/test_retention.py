"""Rules of a retention: which decides, which never can, and what a saved group's payload says of its members."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path

import pytest

from backendops.backends.group_members import MOST_READ, member_ids
from backendops.contracts.errors import PolicyError
from backendops.contracts.retention import Retention, Rule
from backendops.jobs.archive import Archive
from backendops.jobs.expire import Expire
from backendops.policy.load import load_policy
from backendops.policy.patterns import covers, overlap

NOW = datetime(2026, 11, 20, tzinfo=UTC)
DAY = timedelta(days=1)


def test_the_first_rule_decides_then_the_state_then_keep() -> None:
    job = Expire.model_validate(
        {
            "keep": "30d",
            "keep_by_state": {"FAILURE": "60d"},
            "rules": [
                {"task": "reports.*", "state": "FAILURE", "keep": "forever"},
                {"task": "reports.*", "keep": "90d"},
                {"queue": "bulk", "keep": "1d"},
            ],
        }
    )
    due = job.retention(NOW)
    for result, days in (
        (("FAILURE", "reports.build", "bulk"), None),
        (("SUCCESS", "reports.build", "bulk"), 90),
        (("SUCCESS", "mail.send", "bulk"), 1),
        (("FAILURE", "mail.send", "bulk"), 1),
        (("FAILURE", "mail.send", "celery"), 60),
        (("SUCCESS", "mail.send", None), 30),
        (("FAILURE", None, None), 60),
        ((None, None, None), 30),
    ):
        assert due.cutoff_of(*result) == (None if days is None else NOW - days * DAY), result
    assert list(job.keeps()) == [
        "keep", "keep_by_state.FAILURE", "the rule {task: reports.*, state: FAILURE}", "the rule {task: reports.*}",
        "the rule {queue: bulk}",
    ]  # fmt: skip


def test_rules_of_an_archive_say_when_or_never() -> None:
    job = Archive.model_validate({"older_than": "7d", "rules": [{"queue": "bulk", "older_than": "forever"}]})
    assert job.retention(NOW).cutoff_of("SUCCESS", "mail.send", "bulk") is None
    assert job.retention(NOW).cutoff_of("SUCCESS", "mail.send", "celery") == NOW - 7 * DAY


def test_what_has_no_name_matches_no_pattern() -> None:
    due = Retention(NOW, (Rule(None, task="*"), Rule(None, queue="*")))
    assert due.cutoff_of("SUCCESS", None, None) == NOW
    assert due.cutoff_of("SUCCESS", "", None) is None


def _patterns() -> list[str]:
    chance = random.Random(7)  # noqa: S311 - the same cases on every run
    parts = ["a", "b", "*", "?", "[ab]", "[!a]"]
    return sorted({"".join(chance.choices(parts, k=chance.randint(1, 4))) for _ in range(60)})


def test_patterns_that_meet_and_patterns_within_each_other() -> None:
    """Against every text of up to five letters, which is longer than the shortest that any two of them share."""
    texts = ["".join(letters) for length in range(6) for letters in product("abc", repeat=length)]
    matched = {pattern: {text for text in texts if fnmatchcase(text, pattern)} for pattern in _patterns()}
    met = 0
    for one, other in product(matched, repeat=2):
        both = bool(matched[one] & matched[other])
        assert overlap(one, other) or not both, (one, other)
        if "[" not in one or "[" not in other:
            assert overlap(one, other) == both, (one, other)
        if covers(one, other):
            met += 1
            assert matched[other] <= matched[one], (one, other)
    assert met > len(matched)
    assert covers("reports.*", "reports.daily.*")
    assert covers("reports.*", "reports.a?")
    assert not covers("reports.?", "reports.*")
    assert not covers("*", None)
    assert covers(None, "x")


GOOD = {
    "apart": "expire: {keep: 90d, rules: [{queue: bulk, keep: 1d}]}\n  archive: {older_than: 7d, rules: [{queue: bulk, "
    "older_than: forever}]}",
    "archived earlier": "expire: {keep: 90d, rules: [{task: 'a.b.*', keep: 2d}]}\n  archive: {older_than: 7d, rules: "
    "[{task: 'a.*', older_than: 1d}]}",
    "decided before": "expire: {keep: 9d, rules: [{task: 'a.*', keep: 90d}]}\n  archive: {older_than: 7d, rules: "
    "[{task: a.b, older_than: 20d}]}",
    "other states": "expire: {keep: 9d, rules: [{state: FAILURE, keep: forever}]}\n  archive: {older_than: 7d, rules: "
    "[{state: FAILURE, task: x, older_than: 20d}]}",
    "overlapping rules": "expire: {keep: 9d, rules: [{task: 'a.*', keep: 3d}, {task: '*.b', keep: 2d}, {queue: '*', "
    "keep: 1d}]}",
    "gone before its partition": "expire: {keep: 20d, rules: [{queue: bulk, keep: 1d}]}\n  partition: {keep_live: 20d, "
    "keep: 8d}\n  archive: {older_than: 7d, rules: [{queue: bulk, older_than: forever}]}",
}


@pytest.mark.parametrize("jobs", GOOD.values(), ids=GOOD.keys())
def test_rules_that_fit_together_are_no_problem(jobs: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(f"version: 1\nbackends:\n  results: {{url: db+postgresql://u@localhost/d}}\njobs:\n  {jobs}\n")
    load_policy(path)


def test_a_job_for_every_backend_names_each_that_cannot(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(
        "version: 1\nbackends:\n  results: {url: db+postgresql://u@localhost/d}\n  local: {url: 'db+sqlite:////x'}\n"
        "  cache: {url: redis://localhost}\njobs:\n  expire: {keep: 3d, keep_newest: 10}\n"
    )
    with pytest.raises(PolicyError) as error:
        load_policy(path)
    assert [problem.message for problem in error.value.problems if "'cache'" not in problem.message] == []


# As GroupResult.save() of Celery 5.7 stores them; tests/conformance/test_groups.py has Celery's own.
READABLE = {
    "two": ('[["g", null], [[["a", null], null], [["b", null], null]]]', {"a", "b"}),
    "none": ('[["g", null], []]', set()),
    "a chain": ('[["g", null], [[["b", [["a", null], null]], null]]]', {"a", "b"}),
    "a group in it": ('[["g", null], [[["h", null], [[["a", null], null]]], [["b", null], null]]]', {"a", "b"}),
    "a parent": ('[["g", [["p", null], null]], [[["a", null], null]]]', {"a", "p"}),
    "ids alone": ('[["g", null], [["a", null], ["b", null]]]', {"a", "b"}),
}
UNREADABLE = {
    "pickle": b"\x80\x04\x95", "nothing": b"", "no JSON": b"[[", "an object": b'{"result": []}', "empty": b"[]",
    "a number": b"[[5, null], []]", "three": b'[["g", null], [], 1]', "text": b'[["g", null], "abc"]',
    "a zero byte": b'[["g", null], [[["a\\u0000", null], null]]]',
    "half": b'[["g", null], [[["\\ud800", null], null]]]',
    "not UTF-8": b'[["\xff", null], []]', "deep": b"[" * 100_000, "a member": b'[["g", null], [7]]',
    "NaN": b"[NaN, NaN]",
}  # fmt: skip


@pytest.mark.parametrize(("payload", "ids"), READABLE.values(), ids=READABLE.keys())
def test_members_of_a_group(payload: str, ids: set[str]) -> None:
    assert member_ids(payload.encode()) == ids


@pytest.mark.parametrize("payload", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_is_no_group_in_json_is_not_read_and_never_raises(payload: bytes) -> None:
    assert member_ids(payload) is None


def test_a_chain_of_ten_thousand_and_a_group_of_as_many() -> None:
    wide = [["g", None], [[[f"id-{number}", None], None] for number in range(10_000)]]
    payload = json.dumps(wide).encode()
    assert len(member_ids(payload) or ()) == 10_000
    assert len(payload) * 20 < MOST_READ
