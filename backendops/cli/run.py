"""run: the daemon."""

from __future__ import annotations

import click

from backendops.cli.options import Options


@click.command("run")
@click.pass_obj
def command(options: Options) -> None:
    """Run the daemon: every job on its schedule, /metrics and a status page, until a signal ends it.

    SIGHUP loads the policy again. SIGTERM and Ctrl-C let the steps in hand end, within 30 s; a second Ctrl-C
    interrupts them.
    """
    from backendops.daemon.service import Service  # noqa: PLC0415 - --help must not import every backend
    from backendops.log import LogListener  # noqa: PLC0415 - as above
    from backendops.policy.load import find_policy  # noqa: PLC0415 - as above

    options.configure_log()
    Service(find_policy(options.policy), [LogListener()]).run()
