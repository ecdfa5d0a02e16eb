"""Leaving metrics for node_exporter's textfile collector."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from backendops.contracts.errors import BackendopsError
from backendops.engine.ledger import Ledger
from backendops.policy.model import Policy


def write_textfile(file: Path, ledger: Ledger, policy: Policy) -> None:
    """Write the metrics whole or not at all; raises BackendopsError where the file cannot be written."""
    from backendops.daemon.metrics import render_textfile  # noqa: PLC0415 - only this option needs the exporter

    # The collector reads every *.prom: the unfinished file must not end in it.
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(render_textfile(ledger=ledger, policy=policy))
        # node_exporter is another user, and what it reads is public on /metrics anyway.
        unfinished.chmod(0o644)
        unfinished.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise BackendopsError(
            f"cannot write {file}: {error.strerror}; the runs themselves are done: make the directory writable"
        ) from None
