"""Log lines on stderr: JSON where a machine reads them, readable ones on a terminal, and every secret masked."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any, Final, Literal

import structlog
from structlog.contextvars import bind_contextvars, merge_contextvars, unbind_contextvars
from structlog.typing import EventDict, Processor, WrappedLogger

from backendops.contracts.masking import mask
from backendops.contracts.readings import Severity
from backendops.contracts.run import Step
from backendops.engine.report import Run, RunListener, RunReport

# A run of an hour makes 360 lines at most.
PROGRESS_EVERY: Final = timedelta(seconds=10)

# They speak of every job they start and every statement they send; what of it matters we say ourselves.
_CHATTY: Final = ("apscheduler", "sqlalchemy", "urllib3")

# What the eye looks for in a line of JSON.
_FIRST: Final = ("timestamp", "level", "event", "run", "job", "backend")

_LEVELS: Final = {Severity.INFO: "info", Severity.WARNING: "warning", Severity.CRITICAL: "error"}

log = structlog.get_logger("backendops")
_secrets: set[str] = set()


def keep_secret(secrets: Iterable[str]) -> None:
    """From now on these are masked in every line, wherever they come from."""
    _secrets.update(secrets)


def masked(text: str) -> str:
    """The text without any secret that is known."""
    return mask(text, _secrets)


def configure(log_format: Literal["json", "console"] | None = None, level: str = "info") -> None:
    """Send our own and every library's log lines to stderr; without a format, what stderr is decides."""
    chosen = log_format or ("console" if sys.stderr.isatty() else "json")
    shared: list[Processor] = [
        merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _masked_values,
                _json() if chosen == "json" else _console(),
            ],
        )
    )
    root = logging.getLogger()
    for other in list(root.handlers):
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(capture=True)


def _json() -> Processor:
    return structlog.processors.JSONRenderer(sort_keys=False)


def _console() -> Processor:
    # Its own tracebacks would show the values of local variables, secrets among them.
    return structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR"),
        exception_formatter=structlog.dev.plain_traceback,
        pad_event_to=0,
    )


def _masked_values(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Before rendering, so that no escaping hides a secret from the mask."""
    first = {key: event[key] for key in _FIRST if key in event}
    return {key: _masked(value) for key, value in (first | dict(event)).items()}


def _masked(value: Any) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case dict():
            return {str(key): _masked(inner) for key, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_masked(inner) for inner in value]
        case date():
            return value.isoformat()
        case _:
            return masked(str(value))


@dataclass(slots=True)
class _Heard:
    """What the log knows of a run that goes on."""

    last_line: float
    rows: int = 0
    throttled: dict[str, float] = field(default_factory=dict)


class LogListener(RunListener):
    """Writes run.started, run.progressed, run.throttled and run.ended, each with the run's id."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._runs: dict[int, _Heard] = {}

    def started(self, run: Run) -> None:
        bind_contextvars(run=run.id, job=run.pair.job_name, backend=run.pair.backend_name)
        self._runs[id(run)] = _Heard(self._monotonic())
        # A probe every half minute is one line each, not two.
        log.log(logging.INFO if run.pair.job.changes else logging.DEBUG, "run.started", trigger=run.trigger.value)

    def stepped(self, run: Run, step: Step) -> None:
        heard = self._runs[id(run)]
        heard.rows += step.rows
        if self._is_time(heard):
            log.info("run.progressed", rows=heard.rows, **({"what": step.what} if step.what else {}))

    def throttled(self, run: Run, reason: str, seconds: float) -> None:
        heard = self._runs[id(run)]
        is_new = reason not in heard.throttled
        heard.throttled[reason] = heard.throttled.get(reason, 0.0) + seconds
        if is_new or self._is_time(heard):
            log.info("run.throttled", reason=reason, seconds=round(heard.throttled[reason], 1))

    def ended(self, run: Run, report: RunReport) -> None:
        for finding in report.findings:
            log.log(
                logging.getLevelNamesMapping()[_LEVELS[finding.severity].upper()],
                "finding.raised",
                severity=finding.severity.value,
                code=finding.code,
                sentence=finding.sentence,
                fix=finding.fix,
            )
        said = {
            "what": report.what,
            "error": report.error,
            "hint": report.hint,
            "throttled": {reason: round(seconds, 1) for reason, seconds in report.throttled.items()},
        }
        log.log(
            logging.ERROR if report.outcome.is_failure else logging.INFO,
            "run.ended",
            outcome=report.outcome.value,
            rows=report.rows,
            seconds=round(report.seconds, 3),
            **{name: value for name, value in said.items() if value},
        )
        self._runs.pop(id(run), None)
        unbind_contextvars("run", "job", "backend")

    def _is_time(self, heard: _Heard) -> bool:
        now = self._monotonic()
        if now - heard.last_line < PROGRESS_EVERY.total_seconds():
            return False
        heard.last_line = now
        return True
