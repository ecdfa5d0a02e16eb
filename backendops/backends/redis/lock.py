"""The lock of changing jobs: a key of our own with a lease, so that a dead run's lock goes away by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Final

import redis
from redis.exceptions import LockError, OutOfMemoryError, RedisError
from redis.lock import Lock as RedisLock

from backendops.contracts.backend import Lock

# Renewed after every step, and steps aim at a quarter of a second: long enough that only a hung run loses it,
# short enough that after a crash the next try of the slot finds it free.
LEASE_SECONDS: Final = 60

Translated = Callable[[], AbstractContextManager[None]]


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
    lock = RedisLock(client, name, timeout=LEASE_SECONDS, blocking=False)
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
