"""What every SQL backend shares: Celery's URL and table settings, and connections with bounded statements."""

from __future__ import annotations

from typing import ClassVar, Final
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, field_validator
from sqlalchemy import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError

from backendops.contracts.backend import Backend
from backendops.contracts.masking import mask
from backendops.contracts.readings import Finding, Severity
from backendops.contracts.run import Limits, NoWatermarks, Watermarks

_LAST_PORT: Final = 65535
# Of so many results one has a name where result_extended is on: rows from before it was are soon outnumbered.
SAMPLE: Final = 100


def nothing_named(table: str, word: str, rows: int) -> Finding:
    """What to say where rules go by `task` or `queue`, and none of the newest results has one."""
    return Finding(
        Severity.WARNING,
        f"retention.no-{word}",
        f"rules go by {word}, but none of the last {rows:,} results of {table} has one: no such rule matches any",
        "set result_extended = True in the Celery application; results from then on have their task and queue",
    )


class Tables(BaseModel):
    """Celery's database_table_names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str = Field("celery_taskmeta", min_length=1, max_length=63, description="The table of task results.")
    group: str = Field("celery_tasksetmeta", min_length=1, max_length=63, description="The table of group results.")


class Schemas(BaseModel):
    """Celery's database_table_schemas."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str | None = Field(None, description="Schema of the task table; left out: the first of search_path.")
    group: str | None = Field(None, description="Schema of the group table.")


class SqlBackend(Backend):
    """A result store behind SQLAlchemy."""

    drivername: ClassVar[str]
    """SQLAlchemy's dialect and driver: Celery's URL may leave the driver out, or name another."""

    tables: Tables = Field(Tables(), description="Celery's database_table_names.")
    schemas: Schemas = Field(Schemas(), description="Celery's database_table_schemas.")
    date_done_timezone: str = Field(
        "UTC",
        description="The zone of the naive date_done column: on PostgreSQL the TimeZone of Celery's sessions, "
        "on SQLite and MySQL the Celery application's timezone.",
    )

    _engine: Engine | None = PrivateAttr(None)
    _limits: Limits = PrivateAttr(default_factory=Limits)
    _watermarks: Watermarks = PrivateAttr(default_factory=NoWatermarks)

    @field_validator("url")
    @classmethod
    def _can_be_read(cls, value: SecretStr) -> SecretStr:
        try:
            url = make_url(value.get_secret_value().removeprefix("db+"))
        except (ArgumentError, ValueError):
            raise ValueError(
                "this URL cannot be read: check its port, and write @ : / in a password as %40 %3A %2F"
            ) from None
        # An @ of the password would end up in the host, where it is shown.
        if "@" in (url.host or ""):
            raise ValueError("this URL has two @: write the one in the password as %40")
        if url.port is not None and not 1 <= url.port <= _LAST_PORT:
            raise ValueError(f"the port is not a number from 1 to {_LAST_PORT}")
        return value

    @field_validator("date_done_timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"{value!r} is not a time zone: write one such as UTC or Europe/Berlin") from None
        return value

    @property
    def sqlalchemy_url(self) -> URL:
        """The URL with the driver that is installed: SQLAlchemy 2.1 defaults to others."""
        written = self.url.get_secret_value()
        return make_url(written.removeprefix("db+").removeprefix("database+")).set(drivername=self.drivername)

    @property
    def display_url(self) -> str:
        written = self.sqlalchemy_url.set(drivername=self.drivername.partition("+")[0])
        # libpq takes a password among the options too, which SQLAlchemy would show.
        return mask(written.render_as_string(hide_password=True))

    @property
    def zone(self) -> ZoneInfo:
        """The zone that naive date_done values are in."""
        return ZoneInfo(self.date_done_timezone)

    def table_names(self) -> tuple[str, ...]:
        return (self.tables.task, self.tables.group)
