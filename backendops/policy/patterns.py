"""What two patterns of fnmatch have in common: can one text match both, must every match of one match the other?"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import cache

_TOKEN = re.compile(r"\[!?\]?[^\]]*\]|.", re.DOTALL)
_ANY = "*"


def overlap(one: str | None, other: str | None) -> bool:
    """Is there a text that both match? None matches every text; of two sets in brackets it is not looked closer at."""
    if one is None or other is None:
        return True
    first, second = _TOKEN.findall(one), _TOKEN.findall(other)

    @cache
    def meet(i: int, j: int) -> bool:
        if i == len(first) or j == len(second):
            return all(token == _ANY for token in (*first[i:], *second[j:]))
        if first[i] == _ANY:
            return meet(i + 1, j) or meet(i, j + 1)
        if second[j] == _ANY:
            return meet(i, j + 1) or meet(i + 1, j)
        return _share_a_character(first[i], second[j]) and meet(i + 1, j + 1)

    return meet(0, 0)


def covers(wide: str | None, narrow: str | None) -> bool:
    """Does every text that `narrow` matches match `wide`? False also where that is hard to tell."""
    if wide is None or wide == narrow:
        return True
    if narrow is None:
        return False
    if not re.search(r"[*?\[]", narrow):
        return fnmatchcase(narrow, wide)
    if re.search(r"[?\[]", wide) or "[" in narrow:
        return set(wide) == {_ANY}
    # With nothing but stars and plain text in the wide one, what stands for the narrow one's ? and * is in a star.
    return fnmatchcase(narrow, wide)


def _share_a_character(one: str, other: str) -> bool:
    if len(one) == 1 and one != "?":
        return fnmatchcase(one, other)
    if len(other) == 1 and other != "?":
        return fnmatchcase(other, one)
    return True
