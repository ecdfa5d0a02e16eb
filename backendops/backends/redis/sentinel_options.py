"""Celery's sentinel_kwargs: the login to the sentinels."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class SentinelOptions(BaseModel):
    """How to log in to the sentinels themselves; the server's own login is in the URL."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    username: str | None = Field(None, description="User of the sentinels.")
    password: SecretStr | None = Field(None, description="Password of the sentinels.")
    ssl: bool = Field(False, description="Connect to the sentinels over TLS.")
    ssl_ca_certs: str | None = Field(None, description="PEM file of the sentinels' certificate authority.")
    ssl_certfile: str | None = Field(
        None,
        description="PEM file of the certificate that the sentinels ask us for.",
        examples=["/etc/ssl/certs/backendops.pem"],
    )
    ssl_keyfile: str | None = Field(
        None, description="PEM file of its key.", examples=["/etc/ssl/private/backendops.key"]
    )

    def as_redis(self) -> dict[str, Any]:
        """As redis-py's Sentinel takes them."""
        given = self.model_dump(exclude_none=True, exclude_defaults=True)
        if self.password is not None:
            given["password"] = self.password.get_secret_value()
        return given
