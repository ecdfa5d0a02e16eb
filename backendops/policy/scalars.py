"""What an unquoted YAML value means: YAML 1.2's reading, and a refusal wherever YAML 1.1 reads it otherwise."""

from __future__ import annotations

import re
from typing import Final

Plain = str | int | float | bool | None

_NULLS: Final = {"", "~", "null", "Null", "NULL"}
_BOOLEANS: Final = {
    "true": True, "True": True, "TRUE": True,
    "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_BOOLEANS_OF_1_1: Final = re.compile(r"(?:yes|Yes|YES|on|On|ON)|(?:no|No|NO|off|Off|OFF)")
_INTEGER: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_BASED: Final = re.compile(r"0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_LEADING_ZERO: Final = re.compile(r"[-+]?0[0-9_]+")
_INTEGER_OF_1_1: Final = re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|[1-9][0-9_]*)")
_SEXAGESIMAL: Final = re.compile(r"[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
_NOT_FINITE: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt \t].*)?")

# An int64: what databases and JSON readers hold.
_LARGEST: Final = 2**63 - 1
# Python refuses to convert thousands of digits; a longer number is beyond _LARGEST anyway.
_LONGEST: Final = 30


def is_text(value: str) -> bool:
    """Can the text be stored and sent? Not with a zero byte or half of a surrogate pair in it."""
    return not any(character == "\0" or "\ud800" <= character <= "\udfff" for character in value)


def resolve(text: str, shown: str) -> Plain:
    """The value of unquoted `text`; raises ValueError, naming it `shown`, where YAML readers disagree about it."""
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INTEGER.fullmatch(text) or _BASED.fullmatch(text):
        return _integer(text, shown)
    _refuse_traps(text, shown)
    return float(text) if _FLOAT.fullmatch(text) else text


def _integer(text: str, shown: str) -> int:
    number = int(text, 0) if len(text) <= _LONGEST else _LARGEST + 1
    if abs(number) > _LARGEST:
        raise ValueError(f"{shown} is too large a number")
    return number


def _refuse_traps(text: str, shown: str) -> None:
    if _BOOLEANS_OF_1_1.fullmatch(text):
        meant = "true" if text.lower() in {"yes", "on"} else "false"
        raise ValueError(f"{shown} is {meant} to some YAML readers and a word to others: write {meant}, or quote it")
    if _LEADING_ZERO.fullmatch(text):
        raise ValueError(f"{shown} is octal to some YAML readers: write it without the leading zero, or quote it")
    if _SEXAGESIMAL.fullmatch(text):
        raise ValueError(
            f"{shown} is a base-60 number to some YAML readers: quote it, or write a duration such as 90s or 15m"
        )
    if _DATE.fullmatch(text):
        raise ValueError(f"{shown} is a date to some YAML readers and text to others: quote it")
    if _INTEGER_OF_1_1.fullmatch(text):
        raise ValueError(
            f"{shown} is a number to some YAML readers and text to others: write plain digits, or quote it"
        )
    if _NOT_FINITE.fullmatch(text) or (_FLOAT.fullmatch(text) and abs(float(text)) > _LARGEST):
        raise ValueError(f"{shown} is no number to work with: write a finite one")
