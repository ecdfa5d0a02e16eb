"""Empty databases of one PostgreSQL, used again: making one takes ten times what emptying one does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg2

from tests.engines import engine_of

# What was dropped stays behind in the catalogs, which nothing vacuums here; after so many tests a new one is cheaper.
MOST_TESTS = 25

# Whatever a test set for its database, or left locked, does not concern who empties it.
OPTIONS = "-c search_path=public -c statement_timeout=0 -c lock_timeout=5s -c default_transaction_read_only=off"

_EMPTY = """
DO $$
DECLARE
    one record;
BEGIN
    FOR one IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', one.nspname);
    END LOOP;
    IF current_setting('server_version_num')::integer < 150000 THEN
        CREATE SCHEMA public;
        GRANT CREATE ON SCHEMA public TO PUBLIC;
    ELSE
        CREATE SCHEMA public AUTHORIZATION pg_database_owner;
    END IF;
    GRANT USAGE ON SCHEMA public TO PUBLIC;
    IF EXISTS (SELECT FROM pg_db_role_setting AS s JOIN pg_database AS d ON d.oid = s.setdatabase
               WHERE d.datname = current_database() AND s.setrole = 0) THEN
        EXECUTE format('ALTER DATABASE %I RESET ALL', current_database());
    END IF;
END
$$
"""

# Everything that can be left in a database or be said of it; of pg_depend, nearly all objects have a row.
_TRACES = """
SELECT d.datdba, d.datacl::text, d.datconnlimit, d.datallowconn, d.datistemplate,
       (SELECT count(*) FROM pg_db_role_setting WHERE setdatabase = d.oid),
       (SELECT count(*) FROM pg_shdepend WHERE dbid = d.oid),
       (SELECT nspacl::text FROM pg_namespace WHERE nspname = 'public'),
       (SELECT count(*) FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp_'),
       (SELECT count(*) FROM pg_depend), (SELECT count(*) FROM pg_class), (SELECT count(*) FROM pg_type),
       (SELECT count(*) FROM pg_proc), (SELECT count(*) FROM pg_extension), (SELECT count(*) FROM pg_default_acl),
       (SELECT count(*) FROM pg_publication), (SELECT count(*) FROM pg_event_trigger),
       (SELECT count(*) FROM pg_largeobject_metadata), (SELECT count(*) FROM pg_foreign_data_wrapper),
       (SELECT count(*) FROM pg_cast), (SELECT count(*) FROM pg_init_privs)
FROM pg_database AS d WHERE d.datname = current_database()
"""


class Databases:
    """Those of one server that no test uses now."""

    def __init__(self, url: Callable[[str], str]) -> None:
        self._url = url
        self._free: list[str] = []
        self._tests: Counter[str] = Counter()
        self._untouched: tuple[Any, ...] | None = None

    def take(self) -> str | None:
        """One that is as a new one would be; None where there is none."""
        return self._free.pop() if self._free else None

    def give_back(self, name: str) -> bool:
        """Empty it for another test; False where it is to be dropped, as something of this test would stay."""
        # What an engine asked the server once, such as its schema, need not be so for the next test.
        engine_of.cache_clear()
        self._tests[name] += 1
        if self._tests[name] >= MOST_TESTS:
            return False
        try:
            if self._emptied(name) != self._untouched:
                return False
        except psycopg2.Error:
            return False
        self._free.append(name)
        return True

    def made(self, name: str) -> None:
        """One was made; of the first it is noted what one looks like that was emptied and never used."""
        if self._untouched is None:
            self._untouched = self._emptied(name)

    def _emptied(self, name: str) -> tuple[Any, ...]:
        with closing(psycopg2.connect(self._url(name), options=OPTIONS)) as session, session.cursor() as cursor:
            session.autocommit = True
            cursor.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            if not all(ended for (ended,) in cursor.fetchall()):
                return ()
            cursor.execute(_EMPTY)
            cursor.execute(_TRACES)
            (found,) = cursor.fetchall()
            return tuple(found)
