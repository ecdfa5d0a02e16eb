"""The Lua scripts beside this file; the server keeps them by their hash."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import redis


@cache
def source(name: str) -> str:
    """The text of `<name>.lua`."""
    return (files("backendops.backends.redis") / f"{name}.lua").read_text(encoding="utf-8")


def call(client: redis.Redis, name: str, keys: list[bytes], arguments: list[Any]) -> Any:
    """Run a script on one server; it is sent once and then named by its hash."""
    return client.register_script(source(name))(keys=keys, args=arguments)
