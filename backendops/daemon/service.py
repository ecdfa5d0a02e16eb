"""The service: signals, reload and the orderly end around the schedule and the HTTP server."""

from __future__ import annotations

import ipaddress
import os
import signal
import ssl
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from backendops import __version__
from backendops.contracts.errors import BackendopsError, PolicyError
from backendops.daemon import sd_notify
from backendops.daemon.activity import Activity
from backendops.daemon.http import HttpServer, tls_context, use_certificate
from backendops.daemon.schedule import Scheduler
from backendops.daemon.site import Site
from backendops.daemon.view import View
from backendops.engine.ledger import Ledger
from backendops.engine.report import RunListener
from backendops.engine.stop import Stop
from backendops.log import keep_secret
from backendops.policy.load import load_policy
from backendops.policy.model import Http, Policy

log = structlog.get_logger(__name__)

# Stop interrupts a step after 20 s; what has not ended seven seconds later hangs in a call that nothing ends.
# systemd's TimeoutStopSec and the promise of 30 s lie just above.
EXIT_WITHIN: Final = 27.0
# Asked twice (Ctrl-C, Ctrl-C), the steps in hand are interrupted at once and get this long to roll back.
HURRY: Final = 3.0
# A file that is no policy at all has a problem in every line of it.
MOST_PROBLEMS: Final = 100
# How soon a clock that was set back is noticed; half of what systemd's watchdog has patience for.
LOOK_AT_CLOCK: Final = 5.0
# How soon the end of the last run is noticed.
POLL: Final = 0.05

_SIGNALS: Final = frozenset({signal.SIGHUP, signal.SIGTERM, signal.SIGINT})


class Service:
    """One daemon: `run` returns when a signal ends it."""

    def __init__(self, policy_file: Path | str, listeners: Iterable[RunListener] = ()) -> None:
        """Load the policy, open the ledger, bind the port; raises BackendopsError where one cannot be done."""
        self._file = policy_file
        policy = _loaded(policy_file)
        self._ledger = Ledger.open(policy.state)
        self._stop = Stop()
        self._activity = Activity()
        self._scheduler = Scheduler(self._ledger, self._stop, [*listeners, self._activity], self._beat)
        self._view = View(policy, self._ledger)
        self._view.next_runs, self._view.scheduler_alive = self._scheduler.next_runs, self._scheduler.alive
        self._site = Site(self._view, policy.http)
        try:
            self._tls = _tls(policy.http)
            self._http = HttpServer(policy.http.host, policy.http.port, self._site.respond, self._tls)
        except BackendopsError:
            self._ledger.close()
            raise
        self._served = policy.http
        """What the door was opened with; the policy in force may say something newer that waits for a restart."""
        self._said = ""

    @property
    def url(self) -> str:
        """Where the status page is."""
        return self._http.url

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; SIGHUP loads the policy again."""
        # Blocked before the first thread starts, so that every thread inherits it, and taken one by one below. A Python
        # handler runs only when the main thread comes round to it, and a wait that is just beginning may miss it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._serve()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _serve(self) -> None:
        policy = self._view.policy
        _warn_of_open_doors(policy.http)
        self._http.start()
        self._scheduler.start(policy)
        log.info(
            "service.started",
            version=__version__,
            policy=policy.file,
            jobs=len(policy.jobs),
            backends=len(policy.backends),
            status_page=self.url,
            metrics=f"{self.url}metrics",
        )
        sd_notify.ready(self._sentence())
        while (received := self._next_signal()) is signal.SIGHUP:
            self._reload()
        self._end(received)

    def _next_signal(self) -> signal.Signals:
        while (received := signal.sigtimedwait(_SIGNALS, LOOK_AT_CLOCK)) is None:
            self._scheduler.follow_clock()
        return signal.Signals(received.si_signo)

    def _beat(self) -> None:
        """Called by the scheduling loop once a second."""
        sd_notify.watchdog()
        said = self._sentence()
        if said != self._said and not self._stop.requested:
            self._said = said
            sd_notify.status(said)

    def _sentence(self) -> str:
        return self._activity.sentence(self._scheduler.next_runs())

    def _reload(self) -> None:
        sd_notify.reloading()
        try:
            policy = _loaded(self._file)
            self._change_door(policy.http)
            self._follow(policy)
        except PolicyError as error:
            self._refuse([str(problem) for problem in error.problems])
        except BackendopsError as error:
            self._refuse([str(error)])
        except Exception as error:  # noqa: BLE001 - a new policy may be refused, but it never ends the daemon
            self._refuse([f"unexpected {type(error).__name__}: {error}"])
        self._said = self._sentence()
        sd_notify.ready(self._said)

    def _refuse(self, problems: list[str]) -> None:
        shown = problems[:MOST_PROBLEMS]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more: `backendops validate` has them all")
        self._view.problems = tuple(shown)
        for problem in shown:
            log.error("policy.problem", problem=problem)
        log.error("policy.refused", problems=len(problems), reason="the policy loaded before stays in force")

    def _follow(self, policy: Policy) -> None:
        if policy.state != self._view.policy.state:
            log.warning("policy.needs_restart", key="state", reason="the ledger stays where it is until then")
        self._site.http = policy.http
        _warn_of_open_doors(policy.http)
        self._view.policy, self._view.problems, self._view.loaded_at = policy, (), datetime.now(UTC)
        self._scheduler.load(policy)
        log.info("policy.loaded", policy=policy.file, jobs=len(policy.jobs), backends=len(policy.backends))

    def _change_door(self, http: Http) -> None:
        """Listen where the new policy says, with its certificate; raises BackendopsError, and all stays as it was."""
        tls = _tls(http)
        before = self._served
        if http.port not in {before.port, self._http.port}:
            door = HttpServer(http.host, http.port, self._site.respond, tls)
            door.start()
            self._http.stop()
            self._http, self._tls, self._served = door, tls, http
            log.info("http.moved", status_page=self.url)
        elif http.listen != before.listen or (tls is None) != (self._tls is None):
            # The port cannot be bound a second time while the old address, or the old way to speak, holds it.
            log.warning("policy.needs_restart", key="http", reason=f"{self.url} is served as before until then")
        elif self._tls is not None and http.tls_certificate is not None:
            # Connections to come get the new certificate; `tls` has shown that it can be used.
            use_certificate(self._tls, http.tls_certificate, http.tls_key)

    def _end(self, received: signal.Signals) -> None:
        # Whatever hangs below, a log that nobody reads or a ledger that does not answer, the promise is kept.
        last_resort = threading.Timer(EXIT_WITHIN + 1.5, os._exit, [0])
        last_resort.daemon = True
        last_resort.start()
        running = self._activity.running
        finishing = ", ".join(str(run.pair) for run in running) or "nothing"
        log.info("service.stopping", reason=received.name, finishing=finishing)
        sd_notify.stopping(f"stopping; finishing the step in hand of {finishing}")
        self._stop.request(received.name)
        self._scheduler.stop()
        deadline = time.monotonic() + EXIT_WITHIN
        while self._scheduler.busy and time.monotonic() < deadline:
            again = signal.sigtimedwait(_SIGNALS, POLL)
            if again is not None and again.si_signo != signal.SIGHUP:
                self._stop.request(signal.Signals(again.si_signo).name)
                deadline = min(deadline, time.monotonic() + HURRY)
        self._http.stop()
        self._stop.close()
        left = self._scheduler.busy
        for run in self._activity.running if left else []:
            log.warning(
                "run.abandoned",
                run=run.id,
                job=run.pair.job_name,
                backend=run.pair.backend_name,
                reason="its step did not end; the server rolls it back, and the next start records it as failed",
            )
        log.info("service.stopped")
        self._ledger.close()
        last_resort.cancel()


def _loaded(file: Path | str) -> Policy:
    """The policy, its secrets known to the log before the first line about it."""
    policy = load_policy(file)
    keep_secret(policy.secrets)
    return policy


def _tls(http: Http) -> ssl.SSLContext | None:
    return tls_context(http.tls_certificate, http.tls_key) if http.tls_certificate else None


def _warn_of_open_doors(http: Http) -> None:
    try:
        private = ipaddress.ip_address(http.host).is_loopback
    except ValueError:
        private = http.host == "localhost"
    if private:
        return
    if http.username is None:
        reason = "whoever can reach this address can read job names, backend hosts and findings"
        log.warning(
            "http.open", listen=http.listen, reason=reason, fix="set http.username and http.password, or a firewall"
        )
    elif http.tls_certificate is None:
        reason = "the password travels in the clear"
        log.warning("http.open", listen=http.listen, reason=reason, fix="set http.tls_certificate and http.tls_key")
