"""expire on PostgreSQL: results past keeping are removed, a range of keys at a time."""

from __future__ import annotations

from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.survey import Target
from backendops.backends.postgres.sweep import preview_sweep, sweep
from backendops.backends.postgres.walk import Deed
from backendops.contracts.capabilities import CanExpire, CanKeepNewest
from backendops.contracts.retention import Retention
from backendops.contracts.run import Pace, Preview, Steps


class ExpireOnPostgres(PostgresSession, CanExpire, CanKeepNewest):
    """Can remove old results."""

    def preview_expire(self, due: Retention) -> Preview:
        return preview_sweep(self, due, _removal, "remove")

    def expire(self, due: Retention, pace: Pace) -> Steps:
        yield from sweep(self, due, _removal, pace)


def _removal(target: Target) -> Deed:
    done = f"removed from {target.live.label}"
    return Deed("expire", ("remove_range",), "remove_unlocked", {}, {}, done, lazy=True)
