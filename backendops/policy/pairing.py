"""Which class a URL asks for, and which jobs can run on it: the one place where jobs and backends meet."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final

from backendops.backends import BACKENDS
from backendops.contracts.backend import Backend
from backendops.contracts.job import Job
from backendops.jobs import JOBS
from backendops.policy.bind import closest, suggestion
from backendops.policy.document import Problems, Value

# Celery's own (celery/app/backends.py), and the databases that its `db+` URLs reach through SQLAlchemy.
CELERY_SCHEMES: Final = frozenset({
    "arangodb", "azureblockblob", "cache", "cassandra", "consul", "cosmosdbsql", "couchbase", "couchdb", "database",
    "db", "disabled", "dynamodb", "elasticsearch", "file", "gs", "mongodb", "redis", "rediss", "riak", "rpc", "s3",
    "sentinel", "amqp", "django-db", "django-cache", "mongodb+srv",
    "db+mysql", "db+mariadb", "db+postgresql", "db+sqlite", "db+oracle", "db+mssql",
})  # fmt: skip
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(?:://.*)?", re.DOTALL)


def class_for_url(url: str) -> type[Backend]:
    """The backend class of a URL's scheme; raises ValueError that names what there is. It never shows the URL."""
    if not url.strip():
        raise ValueError("its url is empty: write any Celery result_backend URL")
    if url.startswith("$"):
        raise ValueError("a variable in a url is written with braces: ${NAME}")
    if url != url.strip():
        raise ValueError("its url begins or ends with a space: remove it")
    match = _SCHEME.fullmatch(url)
    known = [scheme for backend in BACKENDS for scheme in backend.schemes]
    # Each backend has more spellings; the first is Celery's own.
    there_is = ", ".join(f"{backend.schemes[0]}://" for backend in BACKENDS)
    if match is None or ("://" not in url and match[1].lower() not in CELERY_SCHEMES):
        raise ValueError(f"its url has no scheme: it begins with one of {there_is}")
    scheme = match[1].lower()
    # SQLAlchemy's URLs may name a driver, db+postgresql+asyncpg://: the database decides.
    without_driver = "+".join(scheme.split("+")[: 2 if scheme.startswith("db+") else 1])
    for wanted in (scheme, without_driver):
        for backend in BACKENDS:
            if wanted in backend.schemes:
                return backend
    if {scheme, without_driver} & CELERY_SCHEMES:
        raise ValueError(f"backendops does not support Celery's {scheme!r} yet: it supports {there_is}")
    meant = closest(scheme, known)
    raise ValueError(
        f"unknown scheme {scheme!r}" + (f", did you mean {meant!r}?" if meant else f": there is {there_is}")
    )


def can_do(backend: type[Backend], job: type[Job], keys: Collection[str] = ()) -> bool:
    """Has the backend the one ability that an entry of this kind with these keys needs?"""
    return issubclass(backend, job.ability(keys))


def given_keys(entry: Value) -> tuple[str, ...]:
    """The keys of an entry that have a value."""
    keys = entry.data if isinstance(entry.data, dict) else {}
    return tuple(key for key, each in keys.items() if each.value.data is not None)


def kinds_of(backend: type[Backend]) -> tuple[str, ...]:
    """The kinds of job that a backend can do."""
    return tuple(kind for kind, job in JOBS.items() if can_do(backend, job))


def pair_up(
    name: str, job: type[Job], entry: Value, classes: Mapping[str, type[Backend] | None], problems: Problems
) -> tuple[str, ...]:
    """The backends that an entry's `backend` key names; one that is unknown, unable or named twice is a problem."""
    given = entry.at("backend")
    assert given is not None  # noqa: S101 - asked only where it is there
    paired: list[str] = []
    items = given.data if isinstance(given.data, list) else [given]
    if not items and not given.broken:
        problems.add(given.place, f"job {name!r}: the list of backends is empty: name one, or leave `backend` out")
    for item in items:
        if item.broken or not isinstance(item.data, str):
            continue
        backend = item.data
        if backend not in classes:
            hint = suggestion(backend, classes) if classes else ""
            problems.add(item.place, f"job {name!r}: unknown backend {backend!r}{hint}")
            continue
        if backend in paired:
            problems.add(item.place, f"job {name!r} names backend {backend!r} twice: remove one")
            continue
        kind = classes[backend]
        if kind is None:
            continue
        if not can_do(kind, job, given_keys(entry)):
            able = ", ".join(kinds_of(kind)) or "nothing yet"
            elsewhere = " to another place" if can_do(kind, job) else ""
            what = f"a {kind.kind} backend has no {job.kind_name}{elsewhere}"
            with_to = can_do(kind, job, ("to",)) and "to" not in given_keys(entry)
            way = "write `to: {backend: NAME}` or `to: {files: PATH}`" if with_to else f"it can: {able}"
            what = f"{what} to a table of its own" if with_to else what
            problems.add(item.place, f"job {name!r} cannot run on {backend!r}: {what}; {way}")
            continue
        paired.append(backend)
    return tuple(paired)
