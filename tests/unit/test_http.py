"""The HTTP server on a real socket, and the site behind it."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path

import pytest
from pydantic import SecretStr

from backendops.contracts.errors import BackendopsError
from backendops.contracts.run import Outcome, Trigger
from backendops.daemon import http
from backendops.daemon.http import BadRequest, HttpServer, Request, Response, parse_head
from backendops.daemon.site import Site
from backendops.daemon.view import View
from backendops.engine.ledger import Ledger
from backendops.engine.report import RunReport
from backendops.policy.load import load_policy
from backendops.policy.model import Http

POLICY = """
version: 1
state: {state}
backends: {{results: {{url: "db+sqlite:///{state}/results.db"}}}}
jobs: {{pool-health: {{schedule: every 30s}}, expire: {{keep: 30d}}}}
"""


@pytest.fixture
def view(tmp_path: Path) -> Iterator[View]:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY.format(state=tmp_path))
    with closing(Ledger.open(str(tmp_path))) as ledger:
        yield View(load_policy(file), ledger)


@pytest.fixture
def site(view: View) -> Site:
    return Site(view, Http())


@pytest.fixture
def server(site: Site) -> Iterator[HttpServer]:
    serving = HttpServer("127.0.0.1", 0, site.respond)
    serving.start()
    yield serving
    serving.stop()


def ask(server: HttpServer, *requests: bytes, until_closed: bool = False) -> bytes:
    """Send raw bytes; everything that comes back until the server closes, or as many answers as requests."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"".join(requests))
        got = b""
        while until_closed or got.count(b"HTTP/1.1 ") < len(requests) or not _whole(got):
            chunk = client.recv(65536)
            if not chunk:
                break
            got += chunk
        return got


def _whole(got: bytes) -> bool:
    head, _, body = got.rpartition(b"HTTP/1.1 ")[2].partition(b"\r\n\r\n")
    length = head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0]
    return bool(length) and len(body) >= int(length)


@pytest.mark.parametrize(
    ("head", "method", "path", "keep_open"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "GET", "/metrics", True),
        (b"HEAD /a%20b?c=d HTTP/1.1\r\nConnection: close\r\n\r\n", "HEAD", "/a b", False),
        (b"GET / HTTP/1.0\r\n\r\n", "GET", "/", False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", "GET", "/", True),
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n", "POST", "/", False),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "GET", "/", False),
        (b"GET http://host:1/livez HTTP/1.1\r\n\r\n", "GET", "/livez", True),
    ],
)
def test_heads(head: bytes, method: str, path: str, keep_open: bool) -> None:
    request, stays = parse_head(head)
    assert (request.method, request.path, stays) == (method, path, keep_open)


@pytest.mark.parametrize(
    "head",
    [
        b"\x16\x03\x01\x02\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"G=T / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\n: no name\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length : 5\r\n\r\n",
        b"GET http://[::1/ HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_request(head: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_head(head)


def test_two_requests_on_one_connection(server: HttpServer) -> None:
    got = ask(server, b"GET /livez HTTP/1.1\r\n\r\n", b"GET /nothing HTTP/1.1\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"HTTP/1.1 404 Not Found\r\n" in got


def test_head_has_the_length_and_no_body(server: HttpServer) -> None:
    got = ask(server, b"HEAD /livez HTTP/1.1\r\nConnection: close\r\n\r\n", until_closed=True)
    assert b"Content-Length: " in got
    assert b"Content-Length: 0" not in got
    assert got.endswith(b"\r\n\r\n")


def test_a_body_is_never_taken(server: HttpServer) -> None:
    smuggled = b"GET /metrics HTTP/1.1\r\n\r\n"
    head = b"POST /metrics HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(smuggled)
    got = ask(server, head + smuggled, until_closed=True)
    assert got.startswith(b"HTTP/1.1 405 ")
    assert b"Allow: GET, HEAD\r\n" in got
    assert got.count(b"HTTP/1.1 ") == 1


def test_too_much_and_nonsense_are_refused(server: HttpServer) -> None:
    assert ask(server, b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000).startswith(b"HTTP/1.1 431 ")
    assert ask(server, b"\x16\x03\x01\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert ask(server, b"GET /livez HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_a_silent_client_is_let_go(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_TIMEOUT", 0.1)
    assert ask(server, b"GET /metrics HTT", until_closed=True) == b""


def test_a_page_that_fails_says_so_and_harms_no_other() -> None:
    def respond(request: Request) -> Response:
        if request.path == "/bad":
            raise RuntimeError("the reason")
        return Response(HTTPStatus.OK, b"fine\n")

    failing = HttpServer("127.0.0.1", 0, respond)
    failing.start()
    try:
        bad = ask(failing, b"GET /bad HTTP/1.1\r\n\r\n")
        assert bad.startswith(b"HTTP/1.1 500 ")
        assert b"the reason" not in bad
        assert ask(failing, b"GET / HTTP/1.1\r\n\r\n").endswith(b"fine\n")
    finally:
        failing.stop()


def test_a_taken_port_names_itself(server: HttpServer) -> None:
    with pytest.raises(BackendopsError, match=rf"cannot listen on 127.0.0.1, port {server.port}: Address already"):
        HttpServer("127.0.0.1", server.port, lambda _: Response(HTTPStatus.OK, b""))
    with pytest.raises(BackendopsError, match="not an address of this host"):
        HttpServer("no.such.host.invalid", 0, lambda _: Response(HTTPStatus.OK, b""))
    with pytest.raises(BackendopsError, match=r"cannot listen on 192\.0\.2\.1"):
        HttpServer("192.0.2.1", 0, lambda _: Response(HTTPStatus.OK, b""))


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:"), ("::", "http://[::1]:"), ("0.0.0.0", "http://127.0.0.1:")],  # noqa: S104 - for a moment
)  # fmt: skip
def test_where_a_browser_finds_it(host: str, url: str) -> None:
    listening = HttpServer(host, 0, lambda _: Response(HTTPStatus.OK, b""))
    listening.stop()
    assert listening.url.startswith(url)


def test_certificates_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(BackendopsError, match="No such file"):
        http.tls_context(str(tmp_path / "none.pem"), None)
    (tmp_path / "bad.pem").write_text("nothing")
    with pytest.raises(BackendopsError, match=r"bad.pem are no certificate and its key"):
        http.tls_context(str(tmp_path / "bad.pem"), str(tmp_path / "bad.pem"))


def test_a_name_may_have_an_address_that_this_host_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """`localhost` is ::1 as well where there is no IPv6."""
    stream = socket.SOCK_STREAM
    places = [(socket.AF_INET, stream, 6, "", (address, 0)) for address in ("192.0.2.1", "127.0.0.1")]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: places)
    serving = HttpServer("localhost", 0, lambda _: Response(HTTPStatus.OK, b""))
    assert serving.port
    serving.stop()
    del places[1]
    with pytest.raises(BackendopsError, match="Cannot assign requested address"):
        HttpServer("localhost", 0, lambda _: Response(HTTPStatus.OK, b""))


def test_pages_say_so_when_the_ledger_is_broken(view: View, site: Site) -> None:
    with view.ledger._engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE backendops_runs")
    for path in ("/", "/api/status"):
        answer = site.respond(Request("GET", path))
        assert answer.status == HTTPStatus.SERVICE_UNAVAILABLE
        assert answer.body == b"the ledger cannot be read: no such table: backendops_runs\n"


def test_a_full_disk_shows(view: View, site: Site) -> None:
    """All that was written before can still be read; a transaction that writes nothing notices nothing."""

    def writes_fail(they_do: bool) -> None:
        with closing(view.ledger._engine.raw_connection()) as connection:
            refused = {sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE} if they_do else set()
            connection.driver_connection.set_authorizer(lambda what, *_: what in refused)

    writes_fail(True)
    ready = site.respond(Request("GET", "/readyz"))
    assert ready.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert "not authorized" in json.loads(ready.body)["reasons"]["ledger"]
    assert b"backendops_ledger_up 0.0\n" in site.respond(Request("GET", "/metrics")).body
    assert b"backendops_job_interval_seconds{" in site.respond(Request("GET", "/metrics")).body
    assert "not authorized" in json.loads(site.respond(Request("GET", "/api/status")).body)["ledger"]["failure"]
    page = site.respond(Request("GET", "/")).body
    assert b"backendops: ledger failing" in page
    assert b"not authorized" in page
    writes_fail(False)
    assert site.respond(Request("GET", "/readyz")).status == HTTPStatus.OK
    assert b"backendops_ledger_up 1.0\n" in site.respond(Request("GET", "/metrics")).body


def test_metrics_in_the_format_asked_for(site: Site) -> None:
    plain = site.respond(Request("GET", "/metrics"))
    assert plain.content_type.startswith("text/plain; version=0.0.4")
    zipped = site.respond(Request("GET", "/metrics", {"accept-encoding": "gzip"}))
    assert zipped.headers["Content-Encoding"] == "gzip"
    assert b"backendops_build_info" in gzip.decompress(zipped.body)
    open_metrics = site.respond(Request("GET", "/metrics", {"accept": "application/openmetrics-text; version=1.0.0"}))
    assert open_metrics.content_type.startswith("application/openmetrics-text")
    assert open_metrics.body.endswith(b"# EOF\n")


def test_ready_says_why_not(view: View, site: Site) -> None:
    def ready(**headers: str) -> tuple[int, dict[str, object]]:
        answer = site.respond(Request("GET", "/readyz", headers))
        return answer.status, json.loads(answer.body)

    assert ready() == (200, {"ok": True, "checks": {"policy": True, "scheduler": True, "ledger": True}, "reasons": {},
                             "backends_down": []})  # fmt: skip
    view.problems = ("policy.yaml:3:1: wrong",)
    assert ready()[1]["reasons"] == {"policy": "policy.yaml:3:1: wrong"}
    site.http = Http(username="ops", password=SecretStr("secret"))
    status, closed = ready()
    assert (status, closed["checks"]) == (503, {"policy": False, "scheduler": True, "ledger": True})
    assert "wrong" not in json.dumps(closed)
    assert "backends_down" not in closed
    view.problems = ()
    view.scheduler_alive = lambda: False
    assert ready()[0] == 503
    assert site.respond(Request("GET", "/livez")).status == 503
    view.scheduler_alive = lambda: True
    assert view.ledger.directory
    for file in view.ledger.directory.glob("ledger.sqlite3*"):
        file.unlink()
    view.ledger.close()
    (view.ledger.directory / "ledger.sqlite3").mkdir()
    token = base64.b64encode(b"ops:secret").decode()
    status, body = ready(authorization=f"Basic {token}")
    assert status == 503
    assert "unable to open database file" in str(body["reasons"])
    assert site.respond(Request("GET", "/livez")).status == 200, "a broken disk is no reason to start again"


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("", 401),
        ("Basic", 401),
        ("Basic !!!", 401),
        ("Basic " + base64.b64encode(b"ops:wrong").decode(), 401),
        ("Basic " + base64.b64encode("ops:s3crét".encode()).decode(), 200),
        ("basic " + base64.b64encode("ops:s3crét".encode()).decode(), 200),
        ("Bearer " + base64.b64encode("ops:s3crét".encode()).decode(), 401),
    ],
)
def test_who_may_enter(site: Site, authorization: str, status: int) -> None:
    site.http = Http(username="ops", password=SecretStr("s3crét"))
    for path in ("/", "/metrics", "/api/status"):
        assert site.respond(Request("GET", path, {"authorization": authorization})).status == status
    assert site.respond(Request("GET", "/livez", {"authorization": authorization})).status == 200


def test_the_page_escapes_what_it_shows(view: View, site: Site) -> None:
    pair = view.policy.pairs[0]
    now = datetime.now(UTC)
    run_id = view.ledger.started(pair, Trigger.SCHEDULE, now)
    evil = "<script>alert('x')</script>"
    key = (pair.job_name, pair.backend_name)
    view.ledger.ended(RunReport(run_id, *key, Trigger.SCHEDULE, Outcome.FAILED, now, now, error=evil, hint=evil))
    view.problems = (evil,)
    page = site.respond(Request("GET", "/"))
    assert page.status == 200
    assert b"<script" not in page.body
    assert page.body.count(b"&lt;script&gt;") == 5, "the banner, and error and hint in the job and in the run"
    assert "script-src" not in page.headers["Content-Security-Policy"]
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'sha256-")
    for outside in (b"http://", b"https://", b"src="):
        assert outside not in page.body, "the page takes nothing from elsewhere"


def test_status_is_the_whole_state(site: Site) -> None:
    status = json.loads(site.respond(Request("GET", "/api/status")).body)
    assert status["policy"]["valid"] is True
    assert [(job["job"], job["schedule"]) for job in status["jobs"]] == [("pool-health", "every 30s"), ("expire", None)]
    assert status["backends"][0]["up"] is None
    assert status["recent_runs"] == status["findings"] == []
