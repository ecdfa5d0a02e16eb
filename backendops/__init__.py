"""backendops keeps Celery result backends healthy: one daemon, one YAML policy."""

__version__ = "0.1.0"
