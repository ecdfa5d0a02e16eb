"""The Lua scripts beside this file; the server keeps them by their hash."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import redis
from redis.commands.core import Script
from redis.exceptions import NoPermissionError, ResponseError


@cache
def source(name: str) -> str:
    """The text of `<name>.lua`, with the clock that every script has."""
    folder = files("backendops.backends.redis")
    return "".join((folder / f"{part}.lua").read_text(encoding="utf-8") for part in ("clock", name))


@cache
def script(name: str) -> Script:
    """The script, its hash known: no server is asked for that."""
    return redis.Redis().register_script(source(name))


def call(client: redis.Redis, name: str, keys: list[bytes], arguments: list[Any]) -> Any:
    """Run a script on one server; it is sent once and then named by its hash."""
    return script(name)(keys=keys, args=arguments, client=client)


def are_forbidden(error: Exception) -> bool:
    """Does the server take no scripts from us, where it would take the commands inside them?"""
    text = str(error).lower()
    if isinstance(error, NoPermissionError):
        # Redis 6.2 does not name the command.
        return "in script" not in text and ("eval" in text or "script" in text or "'" not in text)
    return isinstance(error, ResponseError) and "unknown command" in text and ("eval" in text or "script" in text)
