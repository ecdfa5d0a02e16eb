"""Small values that backends remember between runs, kept in the ledger."""

from __future__ import annotations

import structlog
from sqlalchemy import Engine, delete, insert, select
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from backendops.contracts.run import Watermarks
from backendops.engine.ledger_tables import watermarks

log = structlog.get_logger(__name__)


class LedgerWatermarks(Watermarks):
    """Losing one costs speed, never data: a ledger that fails here is logged and the run goes on."""

    def __init__(self, engine: Engine, backend: str) -> None:
        self._engine = engine
        self._backend = backend

    def recall(self, key: str) -> str | None:
        mine = (watermarks.c.backend == self._backend) & (watermarks.c.key == key)
        try:
            with self._engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
                value = connection.scalar(select(watermarks.c.value).where(mine))
        except SQLAlchemyError as error:
            log.warning("ledger.failed", doing="recall a watermark", error=str(error).partition("\n")[0])
            self.failed = True
            return None
        self.failed = False
        return None if value is None else str(value)

    def remember(self, key: str, value: str) -> None:
        mine = (watermarks.c.backend == self._backend) & (watermarks.c.key == key)
        try:
            with self._engine.begin() as connection:
                connection.execute(delete(watermarks).where(mine))
                connection.execute(insert(watermarks).values(backend=self._backend, key=key, value=value))
        except IntegrityError:
            return  # another run remembered the same thing at the same moment: either value will do
        except SQLAlchemyError as error:
            log.warning("ledger.failed", doing="remember a watermark", error=str(error).partition("\n")[0])


class ReadOnlyWatermarks(Watermarks):
    """What was remembered, for somebody who only looks."""

    def __init__(self, watermarks: Watermarks) -> None:
        self._watermarks = watermarks

    def recall(self, key: str) -> str | None:
        return self._watermarks.recall(key)

    def remember(self, key: str, value: str) -> None:
        pass
