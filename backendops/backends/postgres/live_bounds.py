"""The CHECK that a killed conversion or partition job leaves on a live table: the next job takes it away."""

from __future__ import annotations

from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.live_lock import unbind
from backendops.backends.postgres.tables import find_tables, quoted
from backendops.backends.sql_files import literal, load
from backendops.contracts.readings import Finding, Severity


def take_bounds_away(session: PostgresSession) -> tuple[Finding, ...]:
    """Let no result be refused one day for a run that was killed; what was found, and what became of it.

    For whoever has the lock of the changing jobs: nobody needs what is there then.
    """
    with session.transaction() as connection:
        oids = [live.oid for live in find_tables(session, connection).tables]
        left = connection.execute(load("postgres", "live_partition", "list_bounded"), {"oids": oids}).all()
    findings = []
    for one in left:
        name = f"{quoted(one.schema)}.{quoted(one.name)}"
        if one.is_owner and unbind(session, one.oid, literal(name)):
            findings.append(
                Finding(
                    Severity.INFO, "live.bound-gone", f"took away the CHECK that a killed run had left on {name}", ""
                )
            )
        else:
            findings.append(_still_there(name, one.bound, one.owner, one.is_owner))
    return tuple(findings)


def _still_there(name: str, bound: str, owner: str, is_owner: bool) -> Finding:
    who = "a transaction that does not end keeps it there" if is_owner else f"only its owner, {owner}, can drop it"
    return Finding(
        Severity.CRITICAL,
        "live.bound-left",
        f"a killed `partition convert` or `partition` job left {bound} on {name}: results beyond it would be refused; "
        f"{who}",
        f"ALTER TABLE {name} DROP CONSTRAINT IF EXISTS backendops_bound;",
    )
