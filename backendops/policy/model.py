"""The policy as the program uses it: checked, expanded, every job paired with its backends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from backendops.contracts.backend import Backend
from backendops.contracts.job import Job
from backendops.policy.schedule import Schedule


class Http(BaseModel):
    """Where the daemon serves /metrics, /livez, /readyz, the status page and /api/status."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    listen: str = Field("127.0.0.1:9919", description="Address and port, such as 127.0.0.1:9919 or [::]:9919.")
    tls_certificate: str | None = Field(None, description="PEM file of the server's certificate chain.")
    tls_key: str | None = Field(None, description="PEM file of the certificate's key.")
    username: str | None = Field(None, description="Ask every request but /livez and /readyz for this name.")
    password: SecretStr | None = Field(None, description="The password of `username`.")


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

    def pairs_of(self, job_name: str) -> tuple[Pair, ...]:
        """Every pair of one job; none where the policy has no such job."""
        return tuple(pair for pair in self.pairs if pair.job_name == job_name)
