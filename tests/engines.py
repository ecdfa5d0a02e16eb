"""SQLAlchemy engines for looking into a result store from beside backendops."""

from __future__ import annotations

from functools import lru_cache

from sqlalchemy import Engine, NullPool, create_engine, make_url


# A test has one store, or two, or three; what is forgotten had no connection.
@lru_cache(maxsize=8)
def engine_of(url: str) -> Engine:
    """The engine of a result_backend URL, without a pool; made once, as each new one asks the server four questions."""
    parsed = make_url(url.removeprefix("db+"))
    if parsed.drivername == "postgresql":
        # SQLAlchemy 2.1 would look for psycopg 3.
        parsed = parsed.set(drivername="postgresql+psycopg2")
    if parsed.get_backend_name() == "postgresql":
        return create_engine(parsed, poolclass=NullPool, use_native_hstore=False)
    return create_engine(parsed, poolclass=NullPool)
