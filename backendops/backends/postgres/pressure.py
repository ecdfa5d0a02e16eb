"""Whether PostgreSQL can take more: who waits for a lock, which replica is behind, what the policy itself asks."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, Self

from pydantic import Field, PrivateAttr, field_validator
from sqlalchemy import Connection

from backendops.backends.postgres.connection import PostgresSession, milliseconds
from backendops.backends.postgres.errors import STATEMENT_TIMEOUT, code_of, driver_errors
from backendops.backends.postgres.watch import Watch
from backendops.backends.sql_files import literal, load, together
from backendops.contracts.capabilities import CanReportPressure, Pressure
from backendops.contracts.errors import BackendError, BackendRefused, BackendUnreachable
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.run import Limits, Watermarks
from backendops.contracts.units import Duration, Forever, Keep, format_seconds

# Asked every second, an answer must take far less; a server that needs longer for it is a server to leave alone.
ASK_TIMEOUT: Final = timedelta(seconds=1)

NO_ANSWER: Final = "no-answer"
# What may stand in a query without being SQL, so that a semicolon in it ends nothing.
_OPAQUE: Final = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/|(\$\w*\$).*?\1", re.DOTALL)


class PressureOnPostgres(PostgresSession, CanReportPressure):
    """Can say that a changing run should wait."""

    max_replica_lag: Keep = Field(
        Duration.parse("30s"),
        description="Runs that change this backend wait while a replica replays later than this; forever: never.",
    )
    ignore_replicas: list[str] = Field(
        default_factory=list,
        description="The application_name of replicas whose lag does not matter, such as one that is delayed on "
        "purpose.",
        examples=[["delayed"]],
    )
    pause_when: str | None = Field(
        None,
        description="A query; runs that change this backend wait while its first value is true, a number other than "
        "0, or a text that is not empty.",
        examples=["SELECT count(*) > 50 FROM pg_stat_activity WHERE state = 'active'"],
    )
    stop_when: str | None = Field(
        None,
        description="A query like pause_when; where it says so a run ends (outcome stopped), and the next one goes on.",
        examples=["SELECT pg_database_size(current_database()) > 500 * 1024 ^ 3"],
    )

    _watch: Watch | None = PrivateAttr(None)
    _was_asked: bool = PrivateAttr(False)

    @field_validator("pause_when", "stop_when")
    @classmethod
    def _is_one_query(cls, value: str | None) -> str | None:
        if value is None:
            return None
        query = value.strip().rstrip(";").rstrip()
        bare = _OPAQUE.sub(" ", query)
        if re.match(r"\s*\(*\s*(select|with|values|table)\b", bare, re.IGNORECASE) is None:
            raise ValueError(f"{value!r} is no query: write one that begins with SELECT")
        if ";" in bare:
            raise ValueError("this is more than one statement: write one query, without a semicolon in it")
        if bare.count("(") != bare.count(")"):
            raise ValueError("this query has a parenthesis that is never opened or never closed")
        return query

    @contextmanager
    def open(self, limits: Limits, watermarks: Watermarks) -> Iterator[Self]:
        with super().open(limits, watermarks) as opened:
            opened._watch, opened._was_asked = None, False
            try:
                yield opened
            finally:
                if opened._watch is not None:
                    opened._watch.close()

    def pressure(self) -> Pressure:
        # Most runs are over within a second: they cost one question on their own connection. A longer one is watched
        # from a second connection, which sees who waits for a batch while the batch goes on.
        if not self._was_asked:
            self._was_asked = True
            with self.autocommit(2 * ASK_TIMEOUT) as connection:
                return self._ask(connection)
        if self._watch is None:
            self._watch = Watch(self.connect, self._ask, self._unwatched)
        return self._watch.latest()

    def _ask(self, connection: Connection) -> Pressure:
        slots = {"stop_when": _as_slot(self.stop_when), "pause_when": _as_slot(self.pause_when)}
        try:
            return self._judged(_answer(connection, self.display_url, "ask", slots, self._values()))
        except BackendUnreachable:
            raise
        except BackendError as error:
            if code_of(error) == STATEMENT_TIMEOUT:
                return Pressure(NO_ANSWER, f"the server gave no answer within {format_seconds(ASK_TIMEOUT.seconds)}")
            self._blame(connection)
            return self._unwatched(error)

    def _judged(self, found: Mapping[str, Any]) -> Pressure:
        findings, in_use = tuple(_hidden(found["hidden_replicas"])), bool(found["in_use"])
        stop, pause = first_value(found["stop_when"]), first_value(found["pause_when"])
        if stop:
            return Pressure(end=f"stop_when of the backend says so: {_said(stop)}", findings=findings)
        lag, most = found["lag"], self.max_replica_lag
        if pause:
            wait, why = "pause-when", f"pause_when says so: {_said(pause)}"
        elif lag is not None and not isinstance(most, Forever) and lag > most.shortest.total_seconds():
            wait, why = (
                "replica-lag",
                f"replica {found['slowest'] or '(unnamed)'} is {format_seconds(float(lag))} behind",
            )
        elif found["waiting"]:
            wait, why = "lock-waits", f"{found['waiting']} sessions wait for a lock on Celery's tables, or for this run"
        else:
            return Pressure(findings=findings, in_use=in_use)
        return Pressure(wait, why, findings=findings, in_use=in_use)

    def _blame(self, connection: Connection) -> None:
        """Raise BackendRefused that names the policy's question, where one of them is what the server refused."""
        for name, query in (("stop_when", self.stop_when), ("pause_when", self.pause_when)):
            if query is None:
                continue
            try:
                _answer(connection, self.display_url, "ask_one", {"question": _as_slot(query)}, {})
            except BackendUnreachable:
                raise
            except BackendError as error:
                if code_of(error) != STATEMENT_TIMEOUT:
                    raise BackendRefused(
                        f"{name} of the backend cannot be answered: {error}", f"correct {name} in the policy"
                    ) from error

    def _unwatched(self, error: BackendError) -> Pressure:
        """What a run makes of a connection that cannot be had, or was lost."""
        if self.pause_when or self.stop_when:
            return Pressure(NO_ANSWER, f"pause_when and stop_when cannot be asked: {error}")
        finding = Finding(
            Severity.WARNING,
            "postgres.unwatched",
            f"nobody sees who waits while this run goes on: {error}",
            (error.hint if isinstance(error, BackendRefused) else "")
            or "a run that changes something takes three connections: allow backendops' role, or its pool, as many",
        )
        return Pressure(findings=(finding,), in_use=True)

    def _values(self) -> dict[str, Any]:
        return {
            "task": self.tables.task,
            "task_schema": self.schemas.task,
            "group": self.tables.group,
            "group_schema": self.schemas.group,
            "ignored": self.ignore_replicas,
        }


def first_value(row: str | None) -> Any:
    """The first value of a row given as JSON; None where there is no row. What Python takes for true means yes."""
    if row is None:
        return None
    # As pairs: two columns of one name must not hide the first behind the second.
    columns = json.loads(row, object_pairs_hook=list)
    return columns[0][1] if columns else None


def _said(value: Any) -> str:
    # A log line is no place for a whole document.
    return textwrap.shorten(json.dumps(value, ensure_ascii=False), 80)


def _as_slot(query: str | None) -> str:
    # On lines of its own: a comment at the query's end must not hide the parenthesis.
    return f"(\n{literal(query)}\n)" if query else "(SELECT false)"


def _answer(
    connection: Connection, where: str, name: str, slots: Mapping[str, str], values: Mapping[str, Any]
) -> Mapping[str, Any]:
    limits, question = load("postgres", "pressure", "bound"), load("postgres", "pressure", name, slots)
    values = {**values, "statement_timeout": milliseconds(ASK_TIMEOUT)}
    with driver_errors(where):
        row = connection.execute(together(limits, question), values).mappings().first()
    return {} if row is None else dict(row)


def _hidden(replicas: int) -> Iterator[Finding]:
    if replicas:
        yield Finding(
            Severity.INFO,
            "postgres.replica-lag-hidden",
            f"the lag of {replicas} replica{'s' if replicas > 1 else ''} is hidden from backendops' role, "
            "so no run waits for it",
            "GRANT pg_read_all_stats TO backendops' role, or name the replicas under ignore_replicas of the backend",
        )
