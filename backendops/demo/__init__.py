"""`make run`: the daemon at work on a private PostgreSQL and Valkey that a real Celery worker fills with results."""
