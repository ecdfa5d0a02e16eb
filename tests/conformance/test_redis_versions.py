"""Every version of Redis and Valkey that can be had beside the two most tests use: all that is done to each, once."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from backendops import embedded
from backendops.backends.redis import expire as sweeping
from backendops.backends.redis.errors import NOT_IN_7_0, acl_line
from backendops.backends.redis.keys import ResultKeys
from backendops.backends.redis.nodes import OneServer, walk
from backendops.contracts.retention import Retention
from backendops.contracts.run import Limits
from backendops.jobs.expire import Expire
from tests.conformance.redis_canary import canary
from tests.conformance.redis_store import FixedPace, about, client_of, opened
from tests.conformance.test_redis_expire import KEEP, NESTED, Interrupted, chord, idle, key_of, parts_of, store
from tests.fetch_redis import WHEELS, binary_of
from tests.servers import FETCHED_POSTGRES, debian_binary, debian_environment, missing

# Celery 5.7 calls SETEX in the way that redis-py 8 would rather not see.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

# Redis 7.0 is Debian's.
VERSIONS = sorted({*WHEELS, "redis-7.0"})
DAY = 86400
JOB = Expire.model_validate({"keep": "30d", "redis": {"shorten": True, "rpc_lists": "2d"}})


def binary(name: str) -> tuple[Path, dict[str, str]]:
    """That version's server and what it needs in its environment; skips where it is not here."""
    if name not in WHEELS:
        return debian_binary("redis-server"), debian_environment()
    if not binary_of(name).exists():
        missing(name, "make servers fetches it for Linux on x86_64, without installing it")
    if name != "redis-7.4":
        return binary_of(name), {}
    openssl = FETCHED_POSTGRES / "14" / "package" / "native" / "lib"
    if not (openssl / "libssl.so.1.1").exists():
        if shutil.which("npm") is None:
            pytest.skip("Redis 7.4 needs OpenSSL 1.1, which make servers fetches with PostgreSQL 14 where npm is")
        missing("OpenSSL 1.1 for Redis 7.4", "make servers fetches it with PostgreSQL 14, where npm is")
    return binary_of(name), {"LD_LIBRARY_PATH": str(openssl)}


@pytest.fixture(params=VERSIONS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The server, for a user who has the rights that backendops names and no others."""
    path, environment = binary(request.param)
    server = embedded.start_valkey(tmp_path / "server", binary=path, password="", environment=environment)
    try:
        with client_of(server.url()) as client:
            told: Any = client.info("server")
            version = told.get("valkey_version", told["redis_version"])
            assert version.startswith(request.param.rpartition("-")[2]), "another version than its name says"
        yield server.url()
    finally:
        server.stop()


def keeper(url: str, client: redis.Redis) -> str:
    """A user with the rights that an error's way out names, on every key, as reply lists have free names."""
    line = acl_line("keeper", "").split()
    if cast(Any, client.info("server"))["redis_version"].startswith("7.0."):
        line = [word for word in line if word not in NOT_IN_7_0]
    client.execute_command(*line, "on", ">secret", "~*")
    return url.replace("redis://", "redis://keeper:secret@")


def test_everything_is_done_to_each_version(url: str, celery_results: Callable[..., list[str]]) -> None:
    with client_of(url) as client:
        ids = celery_results(url, 10, groups=1, started=1, result_expires=None)
        with canary(url, client):
            user = keeper(url, client)
            running, ended, orphan = (parts_of(chord(url)) for _ in range(3))
            client.delete(*orphan[:3])
            reply, busy = str(uuid.uuid4()), str(uuid.uuid4())
            client.rpush(reply, "nobody fetched it")
            client.rpush(busy, "somebody will")
            client.expire(key_of(ids[0]), 100 * DAY)
            for key in (*ended, reply):
                idle(client, key, 60 * DAY)

            with opened(user, limits=Limits(read_only=True)) as backend:
                survey, memory = backend.survey_keys(), backend.report_memory(timedelta(seconds=2))
                planned = JOB.preview(backend, datetime.now(UTC))
                assert backend.report_pool().notes == ()
            client.execute_command("ACL", "SETUSER", "keeper", "-@scripting")
            with opened(user, limits=Limits(read_only=True)) as backend:
                assert backend.survey_keys().kinds == survey.kinds, "without scripts the same"
                assert JOB.preview(backend, datetime.now(UTC)).summary == planned.summary
            client.execute_command("ACL", "SETUSER", "keeper", "+eval", "+evalsha", "+script|load")
            # Ten and a group of three, but for the retry; the group, the ended chord, the reply; the rest differs.
            assert sum(figures.keys for figures in survey.kinds.values()) == survey.keys == client.dbsize()
            assert memory.result_keys == {kind: survey.kinds[kind].keys for kind in ("task", "group", "chord")}
            assert cast(int, client.object("idletime", reply)) >= 59 * DAY, "looking is no use of it"

            with opened(user) as backend, backend.lock() as held:
                assert held is not None
                assert held.still_held()
                steps = list(JOB.run(backend, datetime.now(UTC), FixedPace(100)))
            assert sum(step.rows for step in steps) == planned.rows
            assert not client.exists(reply, *ended[1:3]), "not used for longer than they are kept"
            assert client.exists(busy) == 1
            assert [client.ttl(key) for key in running[1:3]] == [-1, -1], "a chord in use keeps its parts"
            # Before Redis 8 nobody can tell when a small number was used: where that is all there is, it expires.
            assert client.ttl(orphan[3]) in {-1, 30 * DAY, 30 * DAY - 1}
            ttls = [cast(int, client.ttl(key_of(task_id))) for task_id in ids]
            assert all(about(ttl, KEEP) for number, ttl in enumerate(ttls[:-1]) if number != 9), ttls
            assert ttls[9] == ttls[-1] == -1, "not finished"
            assert client.exists("backendops:lock:0") == 0


def test_a_value_rewritten_meanwhile_keeps_its_own(url: str) -> None:
    with client_of(url) as client:
        for scripted in (True, False):
            key, now = store(url, [NESTED], state="FAILURE"), datetime.now(UTC)
            sweep = sweeping.Sweep(ResultKeys(), Retention(now - KEEP), now)
            sweep.scripted = scripted
            sweep._decision = Interrupted(ResultKeys(), sweep.due, now)
            sweep._decision.happens = lambda key=key: client.set(key, "rewritten", ex=777)
            for _ in walk(OneServer(client), sweep.page, {}):
                pass
            assert about(cast(int, client.ttl(key)), timedelta(seconds=777))
