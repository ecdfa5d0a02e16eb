"""run: the daemon."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

import click

from backendops.cli.options import Options


@click.command("run")
@click.pass_obj
def command(options: Options) -> None:
    """Run the daemon: every job on its schedule, /metrics and a status page, until a signal ends it.

    SIGHUP loads the policy again. SIGTERM and Ctrl-C let the steps in hand end, within 30 s; a second Ctrl-C
    interrupts them.
    """
    # Before the half second of imports: a signal that comes while it starts is answered when it has, and one that
    # comes while it ends no longer changes how.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGTERM, signal.SIGINT})
    from backendops.daemon.service import Service  # noqa: PLC0415 - --help must not import every backend
    from backendops.log import LogListener  # noqa: PLC0415 - as above
    from backendops.policy.load import find_policy  # noqa: PLC0415 - as above

    options.configure_log()
    Service(find_policy(options.policy), [LogListener()]).run()
    # Python would wait, for ever, for a thread that hangs in a call to a backend or to the ledger.
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)
