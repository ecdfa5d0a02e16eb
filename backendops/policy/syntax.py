"""YAML's own complaints, in an operator's words and with the way out."""

from __future__ import annotations

import re
from typing import Any, Final

import yaml

_QUOTES: Final = "put the value in quotes"

# Looked for in PyYAML's `problem`, first match; the second is what an operator reads.
_WORDS: Final = (
    (r"character '\\t'", "a tab cannot indent YAML: use spaces"),
    (r"character '(.)' that cannot start", r"a value cannot start with \1 in YAML: " + _QUOTES),
    (r"mapping values are not allowed", f"a second ': ' is not allowed here: {_QUOTES}, or check the indentation"),
    (r"could not find expected ':'", "this line has no ': ' after its key"),
    (r"unexpected end of stream", "a quote that was opened is never closed"),
    (r"unknown escape character", "a backslash in double quotes begins an escape: use single quotes"),
    (
        r"expected ',' or '[\]}]'",
        "a bracket is not closed, a comma is missing, or a value such as ${VAR} inside brackets needs quotes",
    ),
    (r"expected <block end>, but found '<scalar>'", "a value ends and another begins: put the whole value in quotes"),
    (r"expected chomping", "a value that starts with | or > begins a block of lines: " + _QUOTES),
    (r"expected <block end>", "the indentation does not fit the lines above"),
    (r"(sequence|block) entries are not allowed", "a list cannot begin here: put its first '- ' on a line of its own"),
    (r"expected the node content, but found '<stream end>'", "the file ends in the middle of a value"),
)
_INDICATORS: Final = {
    "alias": "a value that starts with * is a reference in YAML: " + _QUOTES,
    "anchor": "a value that starts with & is an anchor in YAML, which backendops does not use: " + _QUOTES,
    "tag": "a value that starts with ! is a tag in YAML, which backendops does not use: " + _QUOTES,
}


# Of these, where it began says more than where YAML noticed.
_NOTICED_LATE: Final = re.compile(r"could not find expected ':'|unexpected end of stream")


def mark_of(error: yaml.MarkedYAMLError) -> Any:
    """Where the fault is: a mark, or None where YAML does not know."""
    late = error.context_mark if _NOTICED_LATE.search(error.problem or "") else None
    return late or error.problem_mark or error.context_mark


def in_words(error: yaml.MarkedYAMLError) -> str:
    """What is wrong and what to do; it never quotes the file, which may hold a secret."""
    context = error.context or ""
    for what, words in _INDICATORS.items():
        if f"scanning an {what}" in context or f"scanning a {what}" in context:
            return words
    for pattern, words in _WORDS:
        if match := re.search(pattern, error.problem or ""):
            return match.expand(words)
    return f"this is not YAML: {error.problem or 'it cannot be read'}"
