"""What the demo's terminal says of a run: one plain sentence, however much the run did."""

from __future__ import annotations

import json

import pytest

from backendops.demo.narrator import Narrator, in_words


@pytest.mark.parametrize(
    ("rows", "what", "said"),
    [
        (0, "no result is due", ""),
        (12, "about 12 results are due; removed from t; nothing that is due is left", "12 removed from t"),
        (
            180,
            "given an expiry; left alone: 2 not finished",
            "180 given an expiry; left alone: 2 not finished",
        ),
        (130, "130 results are due; moved to a; moved to b; nothing that is due is left", "130 moved to a and b"),
        (
            4000,
            "4,000 results are due; made the archive a_archive; made the archive b_archive; moved to a_archive; "
            "nothing that is due is left",
            "4,000 moved to a_archive; made 2 tables, b_archive the last",
        ),
        (
            0,
            "made a_p2026_12; detached a_p2026_08; it is kept until 2026-11-20 06:25 UTC, then dropped; "
            "detached a_p2026_09; it is kept until 2026-11-20 06:25 UTC, then dropped; dropped a_p2026_01 (296.0 KiB)",
            "made a_p2026_12; detached 2 partitions, a_p2026_09 the last; dropped a_p2026_01 (296.0 KiB)",
        ),
        (
            761,
            "vacuumed a in 15 ms: dead rows 761 → 0, 1.8 MiB → 1.6 MiB; froze b_1 in 2 ms: 8 → 1 transactions old; "
            "froze b_2 in 2 ms: 8 → 1 transactions old; analyzed b_1 in 4 ms; analyzed b_2 in 2 ms",
            "vacuumed a in 15 ms: dead rows 761 → 0, 1.8 MiB → 1.6 MiB; froze 2 tables, b_2 the last; "
            "analyzed 2 tables, b_2 the last",
        ),
    ],
)
def test_a_run_in_words(rows: int, what: str, said: str) -> None:
    assert in_words(rows, what.split("; ")) == said


def test_a_run_that_found_nothing_is_said_once() -> None:
    line = json.dumps(
        {
            "event": "run.ended",
            "timestamp": "2026-11-20T06:25:22Z",
            "job": "expire",
            "backend": "results",
            "outcome": "completed",
            "rows": 0,
            "seconds": 0.12,
            "what": "no result is due",
        }
    )
    narrator = Narrator()
    (said,) = narrator.sentences(line)
    assert said.endswith("expire       on results  nothing to do  (120 ms)")
    assert list(narrator.sentences(line)) == []


def test_a_finding_stands_below_its_run_and_is_said_once() -> None:
    of_the_run = {"run": 3, "job": "redis-memory", "backend": "cache"}
    found = {"event": "finding.raised", **of_the_run, "severity": "warning", "code": "a", "sentence": "it", "fix": "do"}
    ended = {"event": "run.ended", **of_the_run, "outcome": "completed", "seconds": 0.1, "what": "1 MiB used"}
    other = {**ended, "run": 2, "job": "pool-health", "what": "1 connection"}
    narrator = Narrator()

    def said(*events: dict[str, object]) -> list[str]:
        return [sentence.strip() for event in events for sentence in narrator.sentences(json.dumps(event))]

    assert said(found, other, ended) == [
        "pool-health  on cache    1 connection  (100 ms)",
        "redis-memory on cache    1 MiB used  (100 ms)",
        "! it: do",
    ]
    assert said(found, other, ended) == []
    # The run that finds something new is told, so that it is clear whose finding it is.
    assert said({**found, "code": "b"}, ended) == ["redis-memory on cache    1 MiB used  (100 ms)", "! it: do"]
