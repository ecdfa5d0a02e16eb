"""What the driver says when there is no session, in an operator's words: as servers, poolers and libpq put it."""

from __future__ import annotations

import psycopg2
import pytest

from backendops.backends.postgres.errors import translated
from backendops.contracts.errors import BackendError, BackendRefused, BackendUnreachable

WHERE = "postgresql://backendops:***@db.example:5432/celery"
AT = 'connection to server at "10.0.0.7", port 5432 failed: '
NO_ENTRY = 'no pg_hba.conf entry for host "10.0.0.9", user "backendops", database "celery"'


@pytest.mark.parametrize(
    ("said", "kind", "way_out"),
    [
        (f"{AT}Connection refused", BackendUnreachable, "is the server running"),
        (f"{AT}timeout expired", BackendUnreachable, "is the server running"),
        (f"{AT}SSL SYSCALL error: EOF detected", BackendUnreachable, "is the server running"),
        (f"{AT}FATAL:  sorry, too many clients already", BackendUnreachable, "raise max_connections"),
        (
            f"{AT}FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
            BackendUnreachable,
            "raise max_connections",
        ),
        (
            f"{AT}FATAL:  remaining connection slots are reserved for non-replication superuser connections",
            BackendUnreachable,
            "raise max_connections",
        ),
        (
            f'{AT}FATAL:  too many connections for role "backendops"',
            BackendUnreachable,
            'ALTER ROLE "backendops" CONNECTION LIMIT',
        ),
        (f'{AT}FATAL:  too many connections for database "celery"', BackendUnreachable, "ALTER DATABASE"),
        (f"{AT}FATAL:  no more connections allowed (max_client_conn)", BackendUnreachable, "max_client_conn"),
        (f"{AT}FATAL:  pgbouncer cannot connect to server", BackendUnreachable, "the server behind it does not"),
        (
            f"{AT}FATAL:  server login has been failing, cached error: no such user (server_login_retry)",
            BackendUnreachable,
            "the server behind it does not",
        ),
        (f"{AT}FATAL:  the database system is starting up", BackendUnreachable, "wait"),
        (f"{AT}FATAL:  the database system is not yet accepting connections", BackendUnreachable, "wait"),
        (
            f'{AT}FATAL:  database "celery" is not currently accepting connections',
            BackendUnreachable,
            "ALLOW_CONNECTIONS",
        ),
        (f"{AT}FATAL:  {NO_ENTRY}, SSL encryption", BackendRefused, "pg_hba.conf of the server must allow"),
        # sslmode=prefer: over TLS first, then without.
        (
            f"{AT}FATAL:  {NO_ENTRY}, SSL encryption\n{AT}FATAL:  {NO_ENTRY}, no encryption",
            BackendRefused,
            "pg_hba.conf of the server must allow",
        ),
        (f"{AT}FATAL:  {NO_ENTRY}, no encryption", BackendRefused, "sslmode=verify-full"),
        (f"{AT}FATAL:  {NO_ENTRY}, no encryption", BackendRefused, "pg_hba.conf must allow"),
        (
            f'{AT}FATAL:  pg_hba.conf rejects connection for host "10.0.0.9", user "backendops", database "celery", '
            "SSL encryption",
            BackendRefused,
            "pg_hba.conf of the server must allow",
        ),
        (f"{AT}SSL error: certificate verify failed", BackendRefused, "sslrootcert"),
        (f"{AT}SSL error: sslv3 alert certificate expired", BackendRefused, "a new one issued"),
        (f"{AT}SSL error: ssl/tls alert certificate revoked", BackendRefused, "a new one issued"),
        (f"{AT}SSL error: tlsv1 alert unknown ca", BackendRefused, "`sslcert=` and `sslkey=`"),
        (f"{AT}SSL error: tlsv13 alert certificate required", BackendRefused, "`sslcert=` and `sslkey=`"),
        (f'{AT}FATAL:  password authentication failed for user "backendops"', BackendRefused, "check user, password"),
        (f'{AT}FATAL:  role "backendops" is not permitted to log in', BackendRefused, 'ALTER ROLE "backendops" LOGIN;'),
        (f'{AT}FATAL:  database "celery" does not exist', BackendRefused, "database name"),
        (
            f'{AT}FATAL:  permission denied for database "celery"\nDETAIL:  User does not have CONNECT privilege.',
            BackendRefused,
            'GRANT CONNECT ON DATABASE "celery" TO "backendops";',
        ),
        # lc_messages of the server: the driver gives no code at a login.
        (
            f"{AT}FATAL:  Passwort-Authentifizierung für Benutzer »backendops« fehlgeschlagen",
            BackendUnreachable,
            "lc_messages = 'C'",
        ),
        (f"{AT}ВАЖНО:  пользователь не прошёл проверку подлинности", BackendUnreachable, "check user, password"),
    ],
)
def test_no_session(said: str, kind: type[BackendError], way_out: str) -> None:
    error = translated(psycopg2.OperationalError(said + "\n"), WHERE)
    assert type(error) is kind, error
    assert way_out in error.hint
    assert said.partition("\n")[0] in str(error)


class Denied(psycopg2.ProgrammingError):
    """A missing privilege."""

    pgcode = "42501"


@pytest.mark.parametrize(
    ("said", "way_out"),
    [
        ("permission denied for table celery_taskmeta", "DELETE ON TABLE celery_taskmeta TO"),
        ("permission denied for schema archive", "GRANT USAGE, CREATE ON SCHEMA archive TO"),
        ("permission denied for function pgstattuple_approx", "GRANT EXECUTE ON FUNCTION pgstattuple_approx TO"),
        ("permission denied for index ix_date_done", "GRANT the role that owns the table of ix_date_done TO"),
        ("must be owner of index ix_date_done", "GRANT the role that owns the table of ix_date_done TO"),
        ("must be owner of table celery_taskmeta", "ALTER TABLE celery_taskmeta OWNER TO"),
        ("FEHLER:  keine Berechtigung für Schema public", "docs/privileges.md"),
    ],
)
def test_what_is_to_be_granted(said: str, way_out: str) -> None:
    error = translated(Denied(said), WHERE)
    assert type(error) is BackendRefused
    assert way_out in error.hint
