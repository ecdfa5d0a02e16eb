"""The policy as the program uses it: checked, expanded, every job paired with its backends."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from backendops.contracts.backend import Backend
from backendops.contracts.job import Job
from backendops.policy.schedule import Schedule

_LISTEN: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\s:\[\]/]+):(?P<port>[0-9]{1,5})", re.ASCII)
_LAST_PORT: Final = 65535


class Http(BaseModel):
    """Where the daemon serves /metrics, /livez, /readyz, the status page and /api/status."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    listen: str = Field(
        "127.0.0.1:9919",
        description="Address and port, such as 127.0.0.1:9919 or [::]:9919; port 0 takes any free one.",
    )
    tls_certificate: str | None = Field(None, description="PEM file of the server's certificate chain.")
    tls_key: str | None = Field(None, description="PEM file of the certificate's key.")
    username: str | None = Field(None, description="Ask every request but /livez and /readyz for this name.")
    password: SecretStr | None = Field(None, description="The password of `username`.")

    @field_validator("listen", mode="before")
    @classmethod
    def _listens(cls, value: object) -> object:
        match = _LISTEN.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise ValueError(f"{value!r} is not an address and a port: write 127.0.0.1:9919, or [::]:9919 for all")
        if int(match["port"]) > _LAST_PORT:
            raise ValueError(f"there is no port {match['port']}: ports go up to {_LAST_PORT}")
        return value

    @field_validator("tls_certificate", "tls_key")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        # Not pathlib, which raises for a name that is too long.
        if value is not None and not os.path.isfile(value):  # noqa: PTH113 - see above
            raise ValueError(f"there is no file {value!r}: name a PEM file")
        if value is not None and not os.access(value, os.R_OK):
            raise ValueError(f"{value!r} may not be read by this user: check its mode and owner")
        return value

    @model_validator(mode="after")
    def _in_pairs(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together: give both, or neither")
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password belong together: give both, or neither")
        return self

    @property
    def host(self) -> str:
        """The address to listen on, without the brackets of IPv6."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port to listen on."""
        return int(self.listen.rpartition(":")[2])


class PolicyKeys(BaseModel):
    """The keys at the top of a policy file; jobs and backends are bound one by one, each to its own kind."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = Field(1, description="The version of this format: 1.")
    timezone: str = Field("UTC", description="The time zone of the schedules' hours.")
    state: str | None = Field(
        None,
        description="Where history, pauses and last runs are kept: a directory, or a SQLAlchemy URL that several "
        "hosts share. Left out: $STATE_DIRECTORY, /var/lib/backendops if writable, else ~/.local/state/backendops.",
    )
    http: Http = Field(Http(), description="Where /metrics, the health checks and the status page are served.")
    backends: dict[str, Any] = Field(description="The result stores, each by a name of your choice.")
    jobs: dict[str, Any] = Field(description="The work, each entry by its kind, or by any name with `kind:`.")


@dataclass(frozen=True, slots=True)
class Pair:
    """A job on one of its backends: the unit that is scheduled, run, recorded and measured."""

    job_name: str
    job: Job
    backend_name: str
    backend: Backend
    schedule: Schedule | None

    def __str__(self) -> str:
        return f"{self.job_name} on {self.backend_name}"


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy without a problem."""

    file: str
    timezone: ZoneInfo
    state: str
    """A directory, or a SQLAlchemy URL that several hosts share."""
    http: Http
    backends: Mapping[str, Backend]
    jobs: Mapping[str, Job]
    pairs: tuple[Pair, ...]
    secrets: frozenset[str] = field(default_factory=frozenset, repr=False)
    """Every text that no log line, report or page may show."""

    def pairs_of(self, job_name: str) -> tuple[Pair, ...]:
        """Every pair of one job; none where the policy has no such job."""
        return tuple(pair for pair in self.pairs if pair.job_name == job_name)
