"""Redis and Valkey as a Celery result backend."""

from backendops.backends.redis.backend import RedisBackend

__all__ = ["RedisBackend"]
