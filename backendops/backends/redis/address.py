"""Where the server is: Celery's Redis URLs, read as celery.backends.redis reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, unquote, urlparse

SCHEMES: Final = ("redis", "rediss", "redis+socket", "sentinel")
DEFAULT_PORT: Final = 6379

# Celery's ssl_ parameters of a rediss:// URL, with the ones redis-py adds that a client certificate may need.
_TLS: Final = frozenset(
    {"ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"}
)
_CERT_REQS: Final = {
    "required": "required", "optional": "optional", "none": "none",
    "CERT_REQUIRED": "required", "CERT_OPTIONAL": "optional", "CERT_NONE": "none",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Address:
    """What a result_backend URL says. `hosts` are the sentinels where the scheme is sentinel."""

    scheme: str
    hosts: tuple[tuple[str, int], ...] = ()
    socket: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Mapping[str, str | bool] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read a URL as Celery does; raises ValueError without naming a secret."""
        # Every sentinel is a URL of its own; database, user and password are the first one's.
        first, *others = (_parse_one(chunk) for chunk in url.split(";"))
        if others and any(one.scheme != "sentinel" for one in (first, *others)):
            raise ValueError("only sentinel:// URLs can be joined by a semicolon")
        return cls(
            first.scheme,
            first.hosts + tuple(host for other in others for host in other.hosts),
            first.socket,
            first.db,
            first.username,
            first.password,
            first.tls,
        )

    def __str__(self) -> str:
        """The address without its password."""
        user = self.username or ""
        login = f"{user}:***@" if self.password else f"{user}@" if user else ""
        if self.scheme == "redis+socket":
            return f"redis+socket://{login}{self.socket}" + (f"?virtual_host={self.db}" if self.db else "")
        return ";".join(f"{self.scheme}://{login}{_host(host)}:{port}/{self.db}" for host, port in self.hosts)


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _parse_one(url: str) -> Address:
    scheme, separator, rest = url.strip().partition("://")
    if not separator or scheme not in SCHEMES:
        raise ValueError(f"a Redis URL starts with one of {', '.join(f'{known}://' for known in SCHEMES)}")
    try:
        # As HTTP, so that urllib splits the login and the query whatever the scheme.
        parts = urlparse(f"http://{rest}")
    except ValueError:
        raise ValueError("what stands between // and / is not a host: an IPv6 address is written [::1]") from None
    try:
        # Celery's default for sentinels too, although theirs is 26379.
        port = parts.port or DEFAULT_PORT
    except ValueError:
        raise ValueError("the port is not a number from 1 to 65535") from None
    query = dict(parse_qsl(parts.query))
    if "credential_provider" in query:
        raise ValueError("credential_provider is Python of your application: give username and password instead")
    path = unquote(parts.path).removeprefix("/")
    login = unquote(parts.username or "") or None, unquote(parts.password or "") or None
    if scheme == "redis+socket":
        if not path:
            raise ValueError("a redis+socket:// URL has three slashes and a path: redis+socket:///run/redis.sock")
        database = query.get("virtual_host") or query.get("db") or ""
        return Address(scheme, (), f"/{path}", _database(database), *login)
    tls = _tls(scheme, query)
    # redis-py lets ?db= override the path, and Celery passes it on.
    host = unquote(parts.hostname or "") or "localhost"
    return Address(scheme, ((host, port),), "", _database(query.get("db") or path), *login, tls)


def _database(text: str) -> int:
    number = text.strip("/")
    if not number:
        return 0
    if not (number.isascii() and number.isdigit()):
        raise ValueError("the database after the slash is not a number, such as /0")
    return int(number)


def _tls(scheme: str, query: Mapping[str, str]) -> dict[str, str | bool]:
    given = {name: unquote(value) for name, value in query.items() if name in _TLS}
    if given and scheme == "redis":
        # Celery refuses this too: the connection would silently not be encrypted.
        raise ValueError("ssl_ parameters need rediss://, with two s")
    if scheme != "rediss" and not given:
        return {}
    written = given.get("ssl_cert_reqs", "required")
    if written not in _CERT_REQS:
        raise ValueError("ssl_cert_reqs is one of required, optional, none")
    settings: dict[str, str | bool] = {**given, "ssl_cert_reqs": _CERT_REQS[written]}
    if "ssl_check_hostname" in given:
        settings["ssl_check_hostname"] = given["ssl_check_hostname"].lower() not in {"false", "0", "no"}
    elif settings["ssl_cert_reqs"] == "none":
        # Without a verified certificate there is no name to check, and OpenSSL refuses the combination.
        settings["ssl_check_hostname"] = False
    return settings
