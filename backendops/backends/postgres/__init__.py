"""PostgreSQL as a result backend."""

from __future__ import annotations

from contextlib import AbstractContextManager

from backendops.backends.postgres.archive import ArchiveOnPostgres
from backendops.backends.postgres.convert import ConversionOnPostgres
from backendops.backends.postgres.expire import ExpireOnPostgres
from backendops.backends.postgres.handover import HandOverOnPostgres
from backendops.backends.postgres.lock import take_lock
from backendops.backends.postgres.partition import PartitionsOnPostgres
from backendops.backends.postgres.partition_hands import PartitionsByHandOnPostgres
from backendops.backends.postgres.pool import PoolOnPostgres
from backendops.backends.postgres.pressure import PressureOnPostgres
from backendops.backends.postgres.restore import RestoreOnPostgres
from backendops.backends.postgres.standing import read_standing
from backendops.backends.postgres.store import StoreOnPostgres
from backendops.backends.postgres.stuck import StuckOnPostgres
from backendops.backends.postgres.vacuum import VacuumOnPostgres
from backendops.backends.sql import SqlBackend
from backendops.contracts.archive import CanHandOver, CanKeepArchive, CanRestore, CanTakeBack
from backendops.contracts.backend import Lock, Standing
from backendops.contracts.capabilities import (
    CanArchive,
    CanExpire,
    CanKeepNewest,
    CanMoveStuck,
    CanPartition,
    CanReportPool,
    CanReportPressure,
    CanVacuum,
)
from backendops.contracts.partitions import CanConvert, CanShowPartitions


class PostgresBackend(
    ExpireOnPostgres,
    ArchiveOnPostgres,
    StuckOnPostgres,
    HandOverOnPostgres,
    StoreOnPostgres,
    RestoreOnPostgres,
    PartitionsOnPostgres,
    PartitionsByHandOnPostgres,
    ConversionOnPostgres,
    VacuumOnPostgres,
    PoolOnPostgres,
    PressureOnPostgres,
    SqlBackend,
    CanExpire,
    CanKeepNewest,
    CanArchive,
    CanMoveStuck,
    CanHandOver,
    CanKeepArchive,
    CanRestore,
    CanTakeBack,
    CanPartition,
    CanShowPartitions,
    CanConvert,
    CanVacuum,
    CanReportPool,
    CanReportPressure,
):
    """PostgreSQL 14 and later, directly or through PgBouncer."""

    def standing(self) -> Standing:
        return read_standing(self)

    def lock(self) -> AbstractContextManager[Lock | None]:
        return take_lock(self)
