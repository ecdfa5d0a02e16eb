"""What every unit test leaves as it found it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from backendops import log


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command called in this process configures the log for all of it; the next test knows nothing of that."""
    root = logging.getLogger()
    handlers, level, secrets = list(root.handlers), root.level, set(log._secrets)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    log._secrets.clear()
    log._secrets.update(secrets)
