"""The findings of a cluster: each once, of the node where it is worst, with the names of the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from backendops.contracts.readings import Finding, Severity

# Names in one sentence.
MOST_NAMED: Final = 5

_RANK: Final = (Severity.CRITICAL, Severity.WARNING, Severity.INFO)


def by_node(found: Mapping[str, Sequence[Finding]]) -> Iterator[Finding]:
    """The findings of each code, of the worst node; of nodes that are alike the first is taken."""
    codes = dict.fromkeys(finding.code for findings in found.values() for finding in findings)
    for code in codes:
        having = {
            node: its for node, findings in found.items() if (its := [one for one in findings if one.code == code])
        }
        worst = min(having, key=lambda node: min(_RANK.index(one.severity) for one in having[node]))
        others = [node for node in having if node != worst]
        for finding in having[worst]:
            yield replace(finding, sentence=f"{worst}: {finding.sentence}{_as_well(others)}")


def _as_well(nodes: Sequence[str]) -> str:
    if not nodes:
        return ""
    named = ", ".join(nodes[:MOST_NAMED])
    more = f" and {len(nodes) - MOST_NAMED} more" if len(nodes) > MOST_NAMED else ""
    return f"; the same is found on {named}{more}"
