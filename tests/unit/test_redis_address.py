"""Redis URLs mean what they mean to Celery."""

from __future__ import annotations

from typing import Any

import pytest
from celery.backends.redis import RedisBackend as CeleryRedisBackend
from celery.backends.redis import SentinelBackend as CelerySentinelBackend
from pydantic import ValidationError

from backendops.backends.redis import RedisBackend
from backendops.backends.redis.address import Address
from tests.celery_rows import celery_app

URLS = [
    "redis://",
    "redis://localhost",
    "redis://cache.example:6380/3",
    "redis://cache.example:6380//3",
    "redis://:p%40ss%2Fword@cache/2",
    "redis://user:p%3Aw@cache/2?socket_timeout=5",
    "redis://user@cache",
    "redis://cache/?db=7",
    "redis://[::1]:7000/1",
    "rediss://cache/0?ssl_cert_reqs=none",
    "rediss://cache/0?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs=%2Fetc%2Fca.pem&ssl_certfile=/c.pem&ssl_keyfile=/k.pem",
    "redis+socket:///run/redis/redis.sock",
    "redis+socket:///run/redis/redis.sock?virtual_host=4",
    "redis+socket://:pw@/run/redis.sock?virtual_host=4",
]
SENTINELS = [
    "sentinel://one:26379/2;sentinel://two:26380/2",
    "sentinel://:pw@one/2;sentinel://:other@two/5",
    "sentinel://user:pw@one",
]


def celery_params(url: str, kind: type = CeleryRedisBackend) -> dict[str, Any]:
    """What Celery itself makes of the URL."""
    # Celery takes the part before `+` as the backend's name.
    backend: Any = kind(app=celery_app("redis://"), url=url.removeprefix("redis+"))
    return dict(backend.connparams)


@pytest.mark.parametrize("url", URLS)
def test_a_url_says_what_it_says_to_celery(url: str) -> None:
    celery, ours = celery_params(url), Address.parse(url)

    assert ours.db == int(celery["db"])
    assert ours.password == celery.get("password")
    assert ours.username == celery.get("username")
    if ours.socket:
        assert ours.socket == celery["path"]
    else:
        assert ours.hosts == ((celery["host"], int(celery["port"])),)
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        assert ours.tls.get(name) == celery.get(name)
    if "ssl_cert_reqs" in celery:
        assert f"CERT_{str(ours.tls['ssl_cert_reqs']).upper()}" == celery["ssl_cert_reqs"].name


@pytest.mark.parametrize("url", SENTINELS)
def test_sentinels_are_those_that_celery_asks(url: str) -> None:
    celery, ours = celery_params(url, CelerySentinelBackend), Address.parse(url)

    assert ours.hosts == tuple((host["host"], int(host["port"])) for host in celery["hosts"])
    assert (ours.db, ours.password, ours.username) == (celery["db"], celery.get("password"), celery.get("username"))


def test_tls_is_verified_unless_the_url_says_otherwise() -> None:
    assert Address.parse("rediss://cache").tls == {"ssl_cert_reqs": "required"}
    assert Address.parse("rediss://cache?ssl_cert_reqs=none").tls["ssl_check_hostname"] is False
    assert Address.parse("rediss://cache?ssl_check_hostname=false").tls["ssl_check_hostname"] is False
    assert Address.parse("redis://cache").tls == {}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://", "redis://localhost:6379/0"),
        ("redis://:s3cret@cache/2", "redis://:***@cache:6379/2"),
        ("redis://me:s3cret@[::1]:7/2", "redis://me:***@[::1]:7/2"),
        ("redis://me@cache", "redis://me@cache:6379/0"),
        ("redis+socket://:s3cret@/run/r.sock?virtual_host=3", "redis+socket://:***@/run/r.sock?virtual_host=3"),
        ("redis://cache?password=s3cret", "redis://cache:6379/0"),
        (
            "sentinel://:s3cret@one:1/2;sentinel://:s3cret@two:2/2",
            "sentinel://:***@one:1/2;sentinel://:***@two:2/2",
        ),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str) -> None:
    backend = RedisBackend.model_validate({"url": url, "master_name": "m"})
    assert backend.display_url == shown
    assert "s3cret" not in repr(backend) + repr(backend.address)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://cache:port/0", "port is not a number"),
        ("redis://cache:99999/0", "port is not a number"),
        ("redis://cache/results", "database after the slash is not a number"),
        ("redis://cache/1?ssl_cert_reqs=required", "rediss://, with two s"),
        ("rediss://cache/1?ssl_cert_reqs=maybe", "required, optional, none"),
        ("redis+socket://", "three slashes"),
        ("redis://cache/0?credential_provider=my.module", "username and password"),
        ("redis://one;redis://two", "semicolon"),
        ("postgresql://host/db", "starts with one of redis://"),
        ("redis://[::1", "is not a host"),
    ],
)
def test_a_bad_url_is_a_problem_that_says_what_to_write(url: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as raised:
        RedisBackend.model_validate({"url": url.replace("://", "://:s3cret@")})
    assert "s3cret" not in str(raised.value)


def test_sentinels_need_the_masters_name() -> None:
    with pytest.raises(ValidationError, match="sentinel:// needs master_name"):
        RedisBackend.model_validate({"url": "sentinel://one"})
