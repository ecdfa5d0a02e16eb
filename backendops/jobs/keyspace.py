"""What a survey of the keyspace found, as readings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from backendops.contracts import metrics
from backendops.contracts.keyspace import BUCKETS, KEY_KINDS, Keyspace
from backendops.contracts.readings import Metric, Reading

KEYSPACE_METRICS: Final[tuple[Metric, ...]] = (
    metrics.REDIS_KEYS,
    metrics.REDIS_KEY_BYTES,
    metrics.REDIS_KEYS_BY_TTL,
    metrics.REDIS_RESULTS_BY_AGE,
    metrics.REDIS_SURVEYED,
)


def keyspace_readings(keyspace: Keyspace | None) -> Iterator[Reading]:
    """Every series of a survey; none where there was no survey."""
    if keyspace is None:
        return
    for kind in KEY_KINDS:
        yield metrics.REDIS_KEYS.read(keyspace.kinds[kind].keys, kind=kind)
        yield metrics.REDIS_KEY_BYTES.read(keyspace.kinds[kind].size, kind=kind)
    for kind in metrics.RESULT_KINDS:
        for bucket, count in zip(BUCKETS, keyspace.kinds[kind].ttl, strict=True):
            yield metrics.REDIS_KEYS_BY_TTL.read(count, kind=kind, ttl=bucket)
        yield metrics.REDIS_KEYS_BY_TTL.read(keyspace.kinds[kind].without_ttl, kind=kind, ttl="none")
    for bucket, count in zip(BUCKETS, keyspace.ages, strict=True):
        yield metrics.REDIS_RESULTS_BY_AGE.read(count, age=bucket)
    yield metrics.REDIS_SURVEYED.read(keyspace.part)
