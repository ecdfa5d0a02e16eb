"""The daemon's pages: which path answers what, and to whom."""

from __future__ import annotations

import base64
import binascii
import gzip
import hmac
import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final

import structlog
from prometheus_client.exposition import gzip_accepted
from sqlalchemy.exc import SQLAlchemyError

from backendops.contracts.errors import BackendopsError
from backendops.daemon import page
from backendops.daemon.http import Request, Response
from backendops.daemon.metrics import negotiate, registry
from backendops.daemon.status import snapshot
from backendops.daemon.view import View
from backendops.engine.ledger_file import first_line
from backendops.policy.model import Http

log = structlog.get_logger(__name__)

JSON: Final = "application/json; charset=utf-8"
# Orchestrators and load balancers ask these without a password; to whom has none they only say yes or no.
OPEN: Final = frozenset({"/livez", "/readyz"})


class Site:
    """Answers requests from the view; `http` may be replaced by a reload."""

    def __init__(self, view: View, http: Http) -> None:
        self.http = http
        self._view = view
        self._registry = registry(view)
        self._pages: Mapping[str, Callable[[Request], Response]] = {
            "/": self._status_page,
            "/metrics": self._metrics,
            "/livez": self._alive,
            "/readyz": self._ready,
            "/api/status": self._status,
        }

    def respond(self, request: Request) -> Response:
        """The answer to one request."""
        answer = self._pages.get(request.path)
        if request.path not in OPEN and not self._may_enter(request):
            return Response(
                HTTPStatus.UNAUTHORIZED,
                b"this daemon asks for a name and a password: http.username and http.password of its policy\n",
                headers={"WWW-Authenticate": 'Basic realm="backendops", charset="UTF-8"'},
            )
        if answer is None:
            return Response(HTTPStatus.NOT_FOUND, f"nothing here; there is {', '.join(self._pages)}\n".encode())
        if request.method not in {"GET", "HEAD"}:
            return Response(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD\n", headers={"Allow": "GET, HEAD"})
        try:
            return answer(request)
        except (SQLAlchemyError, BackendopsError) as error:
            said = first_line(error) if isinstance(error, SQLAlchemyError) else str(error)
            log.error("ledger.failed", doing=f"show {request.path}", error=said)  # noqa: TRY400 - a sentence for operators
            return Response(HTTPStatus.SERVICE_UNAVAILABLE, f"the ledger cannot be read: {said}\n".encode())

    def _may_enter(self, request: Request) -> bool:
        if self.http.username is None or self.http.password is None:
            return True
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            given = base64.b64decode(token.strip(), validate=True) if scheme.lower() == "basic" else b""
        except (binascii.Error, ValueError):
            given = b""
        wanted = f"{self.http.username}:{self.http.password.get_secret_value()}".encode()
        return hmac.compare_digest(given, wanted)

    def _metrics(self, request: Request) -> Response:
        encode, content_type = negotiate(request.headers.get("accept", ""))
        body, headers = encode(self._registry), {"Vary": "Accept, Accept-Encoding"}
        if gzip_accepted(request.headers.get("accept-encoding", "")):
            body, headers["Content-Encoding"] = gzip.compress(body, compresslevel=1), "gzip"
        return Response(HTTPStatus.OK, body, content_type, headers)

    def _alive(self, _: Request) -> Response:
        return _checks({"scheduler": self._scheduler()})

    def _ready(self, request: Request) -> Response:
        view = self._view
        checks = {"policy": "; ".join(view.problems), "scheduler": self._scheduler()}
        down: list[str] = []
        try:
            view.ledger.check()
            checks["ledger"] = ""
            down = [backend["backend"] for backend in snapshot(view)["backends"] if backend["up"] is False]
        except (SQLAlchemyError, BackendopsError, OSError) as error:
            checks["ledger"] = first_line(error) if isinstance(error, SQLAlchemyError) else str(error)
        if not self._may_enter(request):
            return _checks({name: "log in to read why" if reason else "" for name, reason in checks.items()})
        # A dead backend is what the daemon watches for: it is as ready as ever.
        return _checks(checks, backends_down=down)

    def _scheduler(self) -> str:
        return "" if self._view.scheduler_alive() else "the scheduling loop has not turned lately"

    def _status(self, _: Request) -> Response:
        return Response(HTTPStatus.OK, json.dumps(snapshot(self._view), indent=2).encode() + b"\n", JSON)

    def _status_page(self, _: Request) -> Response:
        return Response(
            HTTPStatus.OK,
            page.render(snapshot(self._view)),
            "text/html; charset=utf-8",
            {"Content-Security-Policy": page.CONTENT_SECURITY_POLICY},
        )


def _checks(checks: Mapping[str, str], **more: object) -> Response:
    """200 where no check has anything to say, else 503; the JSON names what is wrong."""
    ok = not any(checks.values())
    reasons = {name: reason for name, reason in checks.items() if reason}
    body = {"ok": ok, "checks": {name: not reason for name, reason in checks.items()}, "reasons": reasons, **more}
    status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
    return Response(status, json.dumps(body).encode() + b"\n", JSON)
