"""Writes config/policy.reference.yaml: every key of every job and backend, its default, and what it is for.

`python -m backendops.policy.reference` writes it, `--check` fails where it is not current.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, get_args

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from backendops.backends import BACKENDS
from backendops.contracts.job import Job
from backendops.contracts.units import ByteSize, Duration, format_bytes
from backendops.jobs import JOBS
from backendops.policy.model import PolicyKeys
from backendops.policy.pairing import can_do

FILE: Final = Path("config/policy.reference.yaml")
_WIDTH: Final = 110
_HEAD: Final = """\
# Every key there is, with its default and what it is for. Written by
# `python -m backendops.policy.reference`: do not edit it here.
# A key that has no default is commented out, with an example. Begin with policy.yaml, and take from here.
#
# Durations: 250ms 30s 15m 6h 7d 2w 13 months. Text from outside: ${VAR}, ${VAR:-default}, ${file:/path}; $$ is one $.
"""
# What a reader sees where there is no default: the keys that must be given, and those that may be.
_EXAMPLES: Final = {
    "keep": "30d",
    "older_than": "7d",
    "result_expires": "30d",
    "schedule": "every 15m",
    "max_rows": "1000000",
    "state": "/var/lib/backendops",
    "tls_certificate": "/etc/backendops/tls.crt",
    "tls_key": "/etc/backendops/tls.key",
    "username": "prometheus",
    "password": "${file:${CREDENTIALS_DIRECTORY}/http-password}",
    "full": "{start: '02:00', end: '04:00', timezone: UTC}",
    "schema": "archive",
    "task": "celery",
    "group": "celery",
    "pgbouncer_url": "postgresql://stats@localhost:6432/pgbouncer",
    "master_name": "mymaster",
    "ssl_ca_certs": "/etc/ssl/certs/ca-certificates.crt",
}
_URLS: Final = {
    "db+postgresql": "${RESULTS_URL:-db+postgresql://celery@localhost/celery}",
    "redis": "${CACHE_URL:-redis://localhost:6379/0}",
    "db+sqlite": "${LOCAL_URL:-db+sqlite:////var/lib/celery/results.db}",
}


def reference() -> str:
    """The text of the reference policy; it is itself a policy that loads."""
    lines = [*_HEAD.splitlines(), ""]
    for name, field in PolicyKeys.model_fields.items():
        if name == "backends":
            lines += ["", *_comment(field.description, ""), "backends:"]
            for backend in BACKENDS:
                url = {"url": _URLS.get(backend.schemes[0], f"{backend.schemes[0]}://localhost/celery")}
                lines += [f"  {backend.kind}:", *_keys(backend, backend.model_fields, url)]
        elif name == "jobs":
            lines += ["", *_comment(field.description, ""), "jobs:"]
            for job in JOBS.values():
                lines += _job(job)
        else:
            lines += _key(name, field, "", None)
    return "\n".join(lines) + "\n"


def _job(job: type[Job]) -> Iterator[str]:
    """Its own keys with what they are for; those of every job are explained in the first one only."""
    common = list(Job.model_fields)
    own = [name for name in job.model_fields if name not in common]
    able = ", ".join(backend.kind for backend in BACKENDS if can_do(backend, job))
    given = {"kind": job.kind_name, "backend": f"[{able}]"}
    yield from _comment((job.__doc__ or "").strip().splitlines()[0], "  ")
    yield f"  {job.kind_name}:"
    yield from _keys(job, own, {})
    first = next(iter(JOBS.values()))
    yield f"    # -- as in every job{'' if job is first else f'; explained in {first.kind_name}'}"
    yield from _keys(job, common, given, explain=job is first)


def _keys(
    model: type[BaseModel], names: Iterable[str], given: dict[str, str], *, explain: bool = True
) -> Iterator[str]:
    for name in names:
        field = model.model_fields[name]
        for line in _key(field.alias or name, field, "    ", given.get(name)):
            if explain or not line.lstrip().startswith("#") or line.lstrip().startswith(f"# {field.alias or name}: "):
                yield line


def _key(key: str, field: FieldInfo, indent: str, given: str | None) -> Iterator[str]:
    yield from _comment(field.description, indent)
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        yield from _group(key, type(default).model_fields, indent)
        return
    if given is None and default is not None:
        size = any(part in get_args(ByteSize) for part in field.metadata)
        yield f"{indent}{key}: {format_bytes(default).replace('.0 ', '') if size else _written(default)}"
        return
    example = given or _example(key, field)
    yield f"{indent}{'' if field.is_required() else '# '}{key}: {example}".rstrip()


def _group(key: str, fields: Mapping[str, FieldInfo], indent: str) -> Iterator[str]:
    nested = {field.alias or name: field for name, field in fields.items()}
    if any(field.get_default(call_default_factory=True) is not None for field in nested.values()):
        yield f"{indent}{key}:"
        for name, field in nested.items():
            yield from _key(name, field, indent + "  ", None)
        return
    # Nothing in it has a default, and a key with only comments under it would be empty.
    for name, field in nested.items():
        yield from _comment(f"{name}: {field.description}", indent)
    yield f"{indent}# {key}: {{{', '.join(f'{name}: {_example(name, field)}' for name, field in nested.items())}}}"


def _example(key: str, field: FieldInfo) -> str:
    if field.examples:
        return _written(field.examples[0])
    if key in _EXAMPLES:
        return _EXAMPLES[key]
    if field.is_required():
        raise ValueError(f"{key!r} must be given and has no example: add one to its Field(examples=[...])")
    return ""


def _comment(description: str | None, indent: str) -> Iterator[str]:
    for line in textwrap.wrap(description or "", _WIDTH - len(indent)):
        yield f"{indent}# {line}"


def _written(value: Any) -> str:
    """A default as an operator would write it."""
    if isinstance(value, timedelta):
        return str(Duration(value))
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        return yaml.safe_dump(list(value) if not isinstance(value, dict) else value, default_flow_style=True).strip()
    text = yaml.safe_dump(str(value), default_flow_style=True, width=1000).removesuffix("...\n").strip()
    return text.replace("$", "$$")


def main(arguments: list[str]) -> int:
    """Write the file, or with --check say whether it is current: 0 where it is, 1 where it is not."""
    text = reference()
    if arguments == ["--check"]:
        if FILE.exists() and FILE.read_text(encoding="utf-8") == text:
            return 0
        sys.stderr.write(f"{FILE} is not current: run `python -m backendops.policy.reference`\n")
        return 1
    if arguments:
        sys.stderr.write("usage: python -m backendops.policy.reference [--check]\n")
        return 2
    FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
