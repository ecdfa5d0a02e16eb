"""Which texts of a policy must never be shown: passwords, and whatever `${...}` put into a URL or a password."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import parse_qsl, unquote

from backendops.policy.document import Value, is_secret

# Masking every "0" or "db" of a log would hide more than it protects.
_SHORTEST: Final = 4


def secrets_in(value: Value, key: str = "") -> Iterator[str]:
    """Every secret under a key, in the forms in which it could reach a log line."""
    if isinstance(value.data, list):
        for item in value.data:
            yield from secrets_in(item, key)
    elif isinstance(value.data, dict):
        for name, entry in value.data.items():
            # In a mapping under a secret key, every value may be one.
            yield from secrets_in(entry.value, key if is_secret(key) else name)
    elif isinstance(value.data, str):
        yield from passwords_of(value.data)
        if is_secret(key):
            yield from _of_secret_key(value.data, value.expanded)


def _of_secret_key(text: str, expanded: Iterable[str]) -> Iterator[str]:
    if "://" not in text:
        yield text
        return
    # A host, a user or a database that came from a variable is no secret, and masking it would hide the report.
    harmless = set(_harmless_parts(text))
    for piece in expanded:
        if "://" in piece:
            if any(True for _ in passwords_of(piece)):
                yield piece
        elif len(piece) >= _SHORTEST and not harmless & {piece, unquote(piece)}:
            yield piece


def passwords_of(text: str) -> Iterator[str]:
    """The passwords in a URL, as written and as meant; a sentinel URL has one for each of its servers."""
    for url in text.split(";"):
        _, found, rest = url.partition("://")
        if not found:
            continue
        # Both readings of an unescaped @ or /: too much hidden is better than too little.
        for userinfo in {rest.rpartition("@")[0], rest.partition("@")[0] if "@" in rest else ""}:
            password = userinfo.partition(":")[2]
            if password:
                yield from {password, unquote(password)}
        for name, value in parse_qsl(rest.partition("?")[2]):
            if value and is_secret(name):
                yield value


def _harmless_parts(text: str) -> Iterator[str]:
    for url in text.split(";"):
        scheme, _, rest = url.partition("://")
        userinfo, _, server = rest.rpartition("@")
        authority, _, path = server.partition("?")[0].partition("/")
        host, _, port = authority.rpartition(":")
        yield from (scheme, scheme.removeprefix("db+"), authority, host.strip("[]"), host, port, path, "/" + path)
        yield from (userinfo.partition(":")[0], server, server.partition("?")[0])
