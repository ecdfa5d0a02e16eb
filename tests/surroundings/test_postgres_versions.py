"""Every job on every supported major version of PostgreSQL; the conformance tests run on 15 and 18 only."""

from __future__ import annotations

import pytest

from backendops.contracts.partitions import ConvertBy
from tests.servers import EVERY_POSTGRES, Servers, postgres_versions
from tests.surroundings.running import Results, prove_conversion, prove_every_job, run

OTHERS = [version for version in EVERY_POSTGRES if version not in postgres_versions()]
# The default by the oldest and the newest of them.
BY: dict[str, ConvertBy] = {"14": "id", "16": "date_done", "17": "id"}


@pytest.mark.parametrize("version", OTHERS)
def test_every_job(servers: Servers, version: str) -> None:
    server = servers.postgres(version)
    name = server.create_database()
    url = server.celery_url(name)
    try:
        results = Results(url)
        prove_every_job(results, lambda kind: run(url, kind))
        # On what the jobs have left.
        prove_conversion(results, url, BY[version])
    finally:
        server.drop_database(name)
