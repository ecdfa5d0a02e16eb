"""A small HTTP/1.1 server: one thread holds every connection, so that idle and slow clients cost next to nothing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import structlog

from backendops.contracts.errors import BackendopsError

log = structlog.get_logger(__name__)

# The longest head that Apache and nginx take by default is 8 KiB; a cookie of another site on this host may come along.
MAX_HEAD: Final = 16 * 1024
# Well under the usual limit of 1,024 open files, so that the backends' connections always find one.
MAX_CONNECTIONS: Final = 400
# A client that has not sent a whole request by then is let go. Longer than a usual scrape interval would keep idle
# connections for nothing, shorter would make every scrape connect anew.
REQUEST_TIMEOUT: Final = 20.0
RESPONSE_TIMEOUT: Final = 15.0
# Of a name's addresses, one that this host has not.
_ABSENT: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
# A scrape, a status page and two probes at the same moment.
WORKERS: Final = 4


@dataclass(frozen=True, slots=True)
class Request:
    """One request; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Response:
    """One answer."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


class BadRequest(Exception):
    """Not HTTP/1, or more of it than we take."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def parse_head(head: bytes) -> tuple[Request, bool]:
    """The request, and whether the connection stays open after it; raises BadRequest."""
    lines = head.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1.") or not parts[0].isalpha():  # noqa: PLR2004 - method, target, version
        raise BadRequest(HTTPStatus.BAD_REQUEST, "this is not an HTTP/1 request")
    headers = {}
    for line in lines[1:]:
        if line:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise BadRequest(HTTPStatus.BAD_REQUEST, "a header line has no name")
            headers[name.lower()] = value.strip()
    try:
        path = unquote(urlsplit(parts[1]).path)
    except ValueError:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "the target is not a URL") from None
    wishes = headers.get("connection", "").lower()
    keep_open = "keep-alive" in wishes if parts[2] == "HTTP/1.0" else "close" not in wishes
    # A body is never read (nothing here takes one), so nothing may follow it on this connection.
    has_body = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
    return Request(parts[0], path, headers), keep_open and not has_body


def tls_context(certificate: str, key: str | None) -> ssl.SSLContext:
    """A server's context; raises BackendopsError that names the file that cannot be used."""
    for name in filter(None, (certificate, key)):
        try:
            Path(name).read_bytes()
        except OSError as error:
            raise BackendopsError(f"cannot read {name} for TLS: {error.strerror}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    use_certificate(context, certificate, key)
    return context


def use_certificate(context: ssl.SSLContext, certificate: str, key: str | None) -> None:
    """Load a certificate into a context; raises BackendopsError where the files are not one and its key."""
    try:
        # A password callback: without one OpenSSL would ask on the terminal, and the daemon would hang.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as error:  # ssl's own errors among them
        raise BackendopsError(
            f"{certificate} and {key or certificate} are no certificate and its key, PEM, without a passphrase: {error}"
        ) from error


class HttpServer:
    """Serves `respond`'s answers on one address until it is stopped."""

    def __init__(
        self, host: str, port: int, respond: Callable[[Request], Response], tls: ssl.SSLContext | None = None
    ) -> None:
        """Bind the address; raises BackendopsError where it is taken or not ours."""
        self.host = host
        self._respond = respond
        self._tls = tls
        self._sockets = _bind(host, port)
        self.port = int(self._sockets[0].getsockname()[1])
        """The port that was bound: the one asked for, or the one the system chose for 0."""
        self._clients: dict[asyncio.Task[None], bool] = {}
        """Every open connection, the longest waiting first, and whether an answer is being made for it."""
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="http")
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    @property
    def url(self) -> str:
        """Where a browser on this host finds it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"{'https' if self._tls else 'http'}://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def start(self) -> None:
        """Accept connections, on a thread of its own."""
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_quietly)
        self._thread.start()

    def stop(self) -> None:
        """Close every connection and free the port."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            # Nothing in the loop blocks; a second is for a machine that is very busy.
            self._thread.join(1.0)
        for listening in self._sockets:
            listening.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        servers = [self._loop.run_until_complete(self._listen(listening)) for listening in self._sockets]
        self._loop.run_forever()
        for server in servers:
            server.close()
        for client in list(self._clients):
            client.cancel()
        with contextlib.suppress(Exception):  # the process or the port goes away; nobody is left to tell
            self._loop.run_until_complete(asyncio.gather(*self._clients, return_exceptions=True))
        self._loop.close()

    async def _listen(self, listening: socket.socket) -> asyncio.Server:
        handshake, shutdown = (5.0, 1.0) if self._tls else (None, None)  # asyncio takes none without TLS
        return await asyncio.start_server(
            self._serve,
            sock=listening,
            limit=MAX_HEAD,
            ssl=self._tls,
            ssl_handshake_timeout=handshake,
            ssl_shutdown_timeout=shutdown,
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = asyncio.current_task()
        if client is None:  # pragma: no cover - asyncio always runs this in a task
            return
        self._clients[client] = False
        if len(self._clients) > MAX_CONNECTIONS:
            # The longest waiting one goes: a newcomer is likelier to be a scrape than another idle connection.
            next((waiting for waiting, busy in self._clients.items() if not busy), client).cancel()
        try:
            while await self._exchange(client, reader, writer):
                self._clients[client] = self._clients.pop(client)
            writer.close()
        except (OSError, asyncio.IncompleteReadError, TimeoutError, asyncio.CancelledError):
            # The client went away, sent or read nothing, or had to make room. Closing would wait for it to read.
            writer.transport.abort()
        finally:
            del self._clients[client]

    async def _exchange(
        self, client: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """One request and its answer; may another one follow?"""
        keep_open, with_body = False, True
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                request, keep_open = parse_head(await reader.readuntil(b"\r\n\r\n"))
        except asyncio.LimitOverrunError:
            response = _plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request's head is over 16 KiB")
        except BadRequest as error:
            response = _plain(error.status, str(error))
        else:
            with_body = request.method != "HEAD"
            self._clients[client] = True
            response = await self._answer(request)
            self._clients[client] = False
        writer.write(_encode(response, keep_open=keep_open, with_body=with_body))
        async with asyncio.timeout(RESPONSE_TIMEOUT):
            await writer.drain()
        return keep_open

    async def _answer(self, request: Request) -> Response:
        try:
            async with asyncio.timeout(RESPONSE_TIMEOUT):
                return await self._loop.run_in_executor(self._pool, self._respond, request)
        except TimeoutError:
            return _plain(HTTPStatus.SERVICE_UNAVAILABLE, "no answer in time: the ledger or the machine is too slow")
        except Exception as error:
            log.exception("http.failed", path=request.path, error=f"{type(error).__name__}: {error}")
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR, "backendops could not make this page; its log says why")


def _bind(host: str, port: int) -> list[socket.socket]:
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise BackendopsError(f"http.listen: {host!r} is not an address of this host: {error.strerror}") from error
    bound: list[socket.socket] = []
    absent: OSError | None = None
    try:
        for family, _, _, _, place in places:
            try:
                bound.append(_bound(family, place, only_v6=len(places) > 1))
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                # `localhost` is ::1 as well in many a container that has no IPv6.
                absent = error
        if absent is not None and not bound:
            raise absent
    except OSError as error:
        for listening in bound:
            listening.close()
        raise BackendopsError(
            f"cannot listen on {host}, port {port}: {error.strerror}; is another daemon running there? "
            "Set http.listen in the policy to an address and a port that are free"
        ) from error
    return bound


def _bound(family: int, place: Any, only_v6: bool) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # [::] takes IPv4 too, as everybody expects of it; beside 0.0.0.0 it must not.
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only_v6))
        listening.bind(place)
        listening.listen(MAX_CONNECTIONS)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


def _plain(status: HTTPStatus, text: str) -> Response:
    return Response(status, f"{text}\n".encode())


def _encode(response: Response, *, keep_open: bool, with_body: bool) -> bytes:
    headers = {
        "Date": formatdate(usegmt=True),
        "Content-Type": response.content_type,
        "Content-Length": str(len(response.body)),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        **response.headers,
    }
    if not keep_open:
        headers["Connection"] = "close"
    head = f"HTTP/1.1 {response.status.value} {response.status.phrase}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{head}\r\n".encode("latin-1") + (response.body if with_body else b"")


def _quietly(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """A client that speaks plain HTTP to TLS, or resets, is no event of ours."""
    log.debug("http.client_failed", reason=str(context.get("exception") or context.get("message")))
