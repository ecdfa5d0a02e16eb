"""Every job on every supported major version of PostgreSQL; the conformance tests run on 15 and 18 only."""

from __future__ import annotations

import pytest

from tests.servers import EVERY_POSTGRES, Servers, postgres_versions
from tests.surroundings.running import Results, prove_every_job, run

OTHERS = [version for version in EVERY_POSTGRES if version not in postgres_versions()]


@pytest.mark.parametrize("version", OTHERS)
def test_every_job(servers: Servers, version: str) -> None:
    server = servers.postgres(version)
    name = server.create_database()
    url = server.celery_url(name)
    try:
        prove_every_job(Results(url), lambda kind: run(url, kind))
    finally:
        server.drop_database(name)
