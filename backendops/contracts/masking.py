"""Keeping secrets out of everything that is printed, logged or stored."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Final
from urllib.parse import quote, unquote

from pydantic import BaseModel, SecretStr

MASK: Final = "***"

# As far as the last @ of the word: a password with an @ of its own is masked whole.
_IN_URL: Final = re.compile(r"""(://[^\s/@:"']*:)([^\s"'<>]*)@""")
_AS_PARAMETER: Final = re.compile(r"""(?i)\b((?:ssl)?pass(?:word|wd|phrase)?|secret|token)(=)([^\s&"'\\]+)""")
# A shorter one would mask half of every sentence; in a URL it is masked by its place.
_SHORTEST: Final = 4


def mask(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without the given secrets and without any password in a URL."""
    for form in sorted((form for secret in secrets for form in _forms(secret)), key=len, reverse=True):
        text = text.replace(form, MASK)
    text = _IN_URL.sub(rf"\1{MASK}@", text)
    return _AS_PARAMETER.sub(rf"\1\2{MASK}", text)


@cache
def _forms(secret: str) -> frozenset[str]:
    """As it is, and as a KeyError, a line of JSON or a URL would show it."""
    if len(secret) < _SHORTEST:
        return frozenset()
    written = {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], quote(secret, safe="")}
    return frozenset({secret, repr(secret)[1:-1], *written})


def secrets_of(model: BaseModel) -> Iterator[str]:
    """Every secret in a part of the policy: of a URL only its password, as written and as decoded."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from secrets_of(value)
        elif isinstance(value, SecretStr):
            text = value.get_secret_value()
            found = [password for _, password in _IN_URL.findall(text)] if "://" in text else [text]
            for secret in found:
                yield from {secret, unquote(secret)} - {""}
