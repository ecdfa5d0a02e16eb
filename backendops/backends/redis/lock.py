"""The lock of changing jobs: a key of our own with a lease, so that a dead run's lock goes away by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Final, Literal

import redis
from redis.client import Pipeline
from redis.exceptions import LockError, LockNotOwnedError, OutOfMemoryError, RedisError, WatchError
from redis.lock import Lock as RedisLock

from backendops.contracts.backend import Lock

# Renewed after every step, and steps aim at a quarter of a second: long enough that only a hung run loses it,
# short enough that after a crash the next try of the slot finds it free.
LEASE_SECONDS: Final = 60

Translated = Callable[[], AbstractContextManager[None]]


class WatchedLock(RedisLock):
    """redis-py's lock, renewed and given back by WATCH instead of a script: some servers forbid those."""

    def do_release(self, expected_token: str | bytes) -> None:
        self._if_ours(expected_token, lambda transaction: transaction.unlink(self.name))

    def do_reacquire(self) -> Literal[True]:
        lease = int((self.timeout or LEASE_SECONDS) * 1000)
        self._if_ours(self.local.token, lambda transaction: transaction.pexpire(self.name, lease))
        return True

    def _if_ours(self, token: str | bytes | None, change: Callable[[Pipeline], object]) -> None:
        with self.redis.pipeline() as transaction:
            transaction.watch(self.name)
            if transaction.get(self.name) != token:
                raise LockNotOwnedError("the lock is not ours any more")
            transaction.multi()
            change(transaction)
            try:
                transaction.execute()
            except WatchError:
                raise LockNotOwnedError("the lock was taken in this very moment") from None


class Leased(Lock):
    """The lock, as long as each step ends within the lease."""

    def __init__(self, lock: RedisLock, translated: Translated) -> None:
        self._lock, self._translated = lock, translated

    def still_held(self) -> bool:
        """Renew the lease; False where it has run out, even if nobody has taken it since."""
        with self._translated():
            try:
                return bool(self._lock.reacquire())
            except LockError:
                return False


class NoRoom(Lock):
    """Stands in where the server is at maxmemory and can store no key, so no lock either.

    The job that would free its memory must run just then. It may: each change is a compare-and-set, so two
    sweeps at once do what one does.
    """

    def still_held(self) -> bool:
        return True


@contextmanager
def leased(client: redis.Redis, name: str, translated: Translated) -> Iterator[Lock | None]:
    """Take the lock without waiting; None where another run has it."""
    lock = WatchedLock(client, name, timeout=LEASE_SECONDS, blocking=False)
    with translated():
        try:
            held: Lock | None = Leased(lock, translated) if lock.acquire() else None
        except OutOfMemoryError:
            held = NoRoom()
    try:
        yield held
    finally:
        if isinstance(held, Leased):
            # Lost meanwhile, or the server is gone: the lease ends it, and a run's own error must not be hidden.
            with suppress(LockError, RedisError, OSError):
                lock.release()
