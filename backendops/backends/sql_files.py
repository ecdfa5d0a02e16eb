"""Named statements in .sql files that run in psql as they are.

A file holds statements headed `-- name: move_batch`, the comment lines under it saying why. Values are `:cutoff`,
which is SQLAlchemy's bind and psql's variable alike. What the policy names stands behind a slot comment, with an
example that keeps the file runnable: `/* live */ celery_taskmeta` (one name), `/* due */ (date_done < :cutoff)` (a
parenthesis) or `/* columns */ id, task_id /* end */` (a list). Loading swaps the example for the real thing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib.resources import files
from typing import Final

from sqlalchemy import TextClause, text

_HEAD: Final = re.compile(r"^-- name: (\w+)[ \t]*$", re.MULTILINE)
_SLOT: Final = re.compile(r"/\* (\w+) \*/")
_NAME: Final = re.compile(r'\s*((?:"(?:[^"]|"")*"|\w+)(?:\.(?:"(?:[^"]|"")*"|\w+))*)')


@cache
def statements(dialect: str, job: str) -> Mapping[str, str]:
    """Every statement of `sql/<dialect>/<job>.sql`, by name."""
    source = (files("backendops.backends") / "sql" / dialect / f"{job}.sql").read_text(encoding="utf-8")
    heads = list(_HEAD.finditer(source))
    ends = [head.start() for head in heads[1:]] + [len(source)]
    return {head[1]: source[head.end() : end].strip().removesuffix(";") for head, end in zip(heads, ends, strict=True)}


def fill(statement: str, slots: Mapping[str, str]) -> str:
    """Swap each slot's example for `slots`' text; raises KeyError where a slot is not given."""
    parts, position = [], 0
    while match := _SLOT.search(statement, position):
        if match[1] == "end":
            raise ValueError(f"a list ends that no slot began: {statement[: match.end()][-60:]!r}")
        parts.append(statement[position : match.start()])
        parts.append(slots[match[1]])
        position = _end_of_example(statement, match.end())
    parts.append(statement[position:])
    return "".join(parts)


def _end_of_example(statement: str, start: int) -> int:
    end, following = statement.find("/* end */", start), _SLOT.search(statement, start)
    if end >= 0 and following is not None and following.start() == end:
        return end + len("/* end */")
    if statement[start:].lstrip().startswith("("):
        return _closing_parenthesis(statement, statement.index("(", start)) + 1
    name = _NAME.match(statement, start)
    if name is None:
        raise ValueError(f"no example follows the slot at {statement[start - 20 : start + 20]!r}")
    return name.end()


def _closing_parenthesis(statement: str, opening: int) -> int:
    depth = 0
    for position in range(opening, len(statement)):
        depth += {"(": 1, ")": -1}.get(statement[position], 0)
        if depth == 0:
            return position
    raise ValueError(f"a parenthesis is never closed: {statement[opening:][:60]!r}")


def load(dialect: str, job: str, name: str, slots: Mapping[str, str] | None = None) -> TextClause:
    """One statement, ready to execute with its `:values`.

    A colon in a slot's text is part of a name, never a bind, unless the text is meant as SQL: see `literal`.
    """
    return _filled(dialect, job, name, tuple((slots or {}).items()))


# As many as a run uses again and again; a run of a thousand partitions makes thousands of others.
@lru_cache(maxsize=256)
def _filled(dialect: str, job: str, name: str, slots: tuple[tuple[str, str], ...]) -> TextClause:
    return text(fill(statements(dialect, job)[name], dict(slots)))


def together(*clauses: TextClause) -> TextClause:
    """Several statements as one message, which costs one round trip; what is said of rows is of the last one."""
    return text(";\n".join(clause.text for clause in clauses))


def readable(statement: TextClause, values: Mapping[str, object]) -> str:
    """A loaded statement with the values that are known, for people: what is not known stays `:name`."""

    def shown(match: re.Match[str]) -> str:
        name = match[1]
        if name not in values:
            return match[0]
        value = values[name]
        if value is None:
            return "NULL"
        return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"

    return re.sub(r"(?<![:\w\\]):(\w+)(?!:)", shown, statement.text).replace(r"\:", ":")


def literal(quoted_name: str) -> str:
    """A quoted name as slot text: its colons are escaped, so that none is taken for a bind."""
    return quoted_name.replace(":", r"\:")
