"""Why there is no session, told to an operator.

The driver has no code to give then, only the server's words, a pooler's or libpq's.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

from backendops.contracts.errors import BackendError, BackendRefused, BackendUnreachable

# The first that fits has the way out: a TLS connection that breaks says SSL, too, and without TLS every missing entry
# says "no encryption". A server that has no room, or a pooler that has no server, is down to the application as well.
_AT_LOGIN: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), kind, way_out)
    for pattern, kind, way_out in (
        (r"SSL SYSCALL error|closed (the connection )?unexpectedly|timeout expired", BackendUnreachable, ""),
        (
            r"too many connections for role",
            BackendUnreachable,
            "ALTER ROLE {role} CONNECTION LIMIT 5; a run that changes something takes three connections",
        ),
        (
            r"too many connections for database",
            BackendUnreachable,
            "end some of the database's sessions, or raise it: ALTER DATABASE … CONNECTION LIMIT …",
        ),
        (
            r"too many clients|remaining connection slots",
            BackendUnreachable,
            "end some sessions, raise max_connections of the server, or put a pooler before it: `pool-health` says who "
            "has them while there is room",
        ),
        (
            r"no more connections allowed|max client connections",
            BackendUnreachable,
            "the pooler is full: raise its max_client_conn, or lower the number of its clients",
        ),
        (
            r"cannot connect to server|server login (has been failing|failed)|query_wait_timeout",
            BackendUnreachable,
            "the pooler answers, and the server behind it does not: look at both logs, and at SHOW POOLS of PgBouncer",
        ),
        (
            r"the database system is |is not currently accepting connections",
            BackendUnreachable,
            "wait, where it starts, recovers or stops: the server's log says how far it is; a database is closed by "
            "ALTER DATABASE … ALLOW_CONNECTIONS false",
        ),
        (
            r"group or world access|permissions should be",
            BackendRefused,
            "the file that sslkey of the URL names must be readable by its owner alone: chmod 0600",
        ),
        (
            r"root certificate file|certificate verify failed",
            BackendRefused,
            "sslrootcert of the URL must name the certificate of the authority that signed the server's, and neither "
            "may have expired",
        ),
        (
            r"does not match host name",
            BackendRefused,
            "the URL must name the server as its certificate does; `hostaddr=` in the URL says where it is",
        ),
        (
            r"alert certificate (expired|revoked)",
            BackendRefused,
            "the certificate of `sslcert=` in the URL has expired or was revoked: have a new one issued for this role",
        ),
        (
            r"client certificate|certificate authentication failed|alert (unknown ca|certificate required|bad cert"
            r"|decrypt error|certificate unknown|unsupported certificate)",
            BackendRefused,
            "the server wants a certificate of this role's that it trusts: `sslcert=` and `sslkey=` in the URL",
        ),
        (
            r"channel binding",
            BackendRefused,
            "only a login by scram-sha-256 over TLS has channel binding: let pg_hba.conf ask for that, or take "
            "channel_binding out of the URL",
        ),
        (
            r"certificate file|private key file|could not load .*(certificate|key)",
            BackendRefused,
            "sslcert and sslkey of the URL must be files that backendops may read, and that belong to each other; an "
            "encrypted key takes sslpassword",
        ),
        (
            r"does not support SSL",
            BackendRefused,
            "switch `ssl` on in the server, or choose another sslmode in the URL",
        ),
        (
            r"no pg_hba\.conf entry.*(SSL encryption|SSL on|GSS encryption)|pg_hba\.conf rejects",
            BackendRefused,
            "pg_hba.conf of the server must allow this user, database and address a login",
        ),
        (
            r"no encryption|SSL off",
            BackendRefused,
            "the server takes this login over TLS only (`sslmode=verify-full` in the URL), or not at all: then "
            "pg_hba.conf must allow this user, database and address a login",
        ),
        (
            r"unsupported startup parameter",
            BackendRefused,
            "take the options out of the URL: a pooler refuses them, and backendops needs none",
        ),
        (r"not permitted to log in", BackendRefused, "ALTER ROLE {role} LOGIN;"),
        (
            r"authentication failed|no pg_hba\.conf entry|does not exist|no such (database|user)|auth failed"
            r"|no password supplied|certificate|SSL",
            BackendRefused,
            "check user, password, database name and TLS settings of the URL",
        ),
    )
)

# libpq puts the server's word for FATAL before the message, whatever its language, and two spaces after the colon.
_SERVER_SAID: Final = re.compile(r"failed: [^:\n]+:  \S")


def no_session(words: str, said: str, where: str) -> BackendError:
    """Why there is no session, with the way out."""
    if denied := re.search(r"permission denied for database (\".+\")", words):
        return BackendRefused(
            f"{where} refused to log in: {said}", f"GRANT CONNECT ON DATABASE {denied[1]} TO {role_in(where)};"
        )
    found = ((kind, way_out) for pattern, kind, way_out in _AT_LOGIN if pattern.search(words))
    kind, way_out = next(found, (BackendUnreachable, ""))
    if kind is BackendRefused:
        return BackendRefused(f"{where} refused to log in: {said}", way_out.replace("{role}", role_in(where)))
    if not way_out and _SERVER_SAID.search(words):
        way_out = (
            "check user, password and database of the URL, pg_hba.conf, and the limits of connections; with "
            "lc_messages = 'C' in postgresql.conf the server says it in words that backendops knows the way out of"
        )
    what = "takes no connection" if way_out else "does not answer"
    return BackendUnreachable(
        f"{where} {what}: {said}",
        way_out.replace("{role}", role_in(where)) or "is the server running, and reachable from this host?",
    )


def role_in(where: str) -> str:
    """Who we are, as SQL, by the URL; in plain words where it names nobody."""
    user = re.match(r"[\w+]+://([^:@/]+)[:@][^/]*", where)
    return f'"{unquote(user[1])}"' if user and "@" in user[0] else "backendops' role"
