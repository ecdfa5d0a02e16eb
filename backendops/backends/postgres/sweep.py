"""What expire and archive have in common: survey the tables, walk each of them, say what was done and what is left."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from backendops.backends.postgres.connection import PostgresSession
from backendops.backends.postgres.live_bounds import take_bounds_away
from backendops.backends.postgres.survey import PREVIEW_BUDGET, RUN_BUDGET, Target, count_due, oldest_ages, survey
from backendops.backends.postgres.tables import LiveTable
from backendops.backends.postgres.walk import Deed, Walk, walked_column
from backendops.backends.sql_files import load, readable
from backendops.contracts import metrics
from backendops.contracts.retention import Retention
from backendops.contracts.run import Pace, Preview, Step, Steps


def sweep(session: PostgresSession, retention: Retention, deed_for: Callable[[Target], Deed], pace: Pace) -> Steps:
    """Do the deed to every due row. Everything that can be refused is, before the first row of any table."""
    targets, findings = survey(session, retention)
    for target in targets:
        target.live.require_delete()
    findings += take_bounds_away(session)
    deeds = [(target, deed_for(target)) for target in targets]
    counts = [count_due(session, target, RUN_BUDGET) for target in targets]
    findings += tuple(finding for count in counts for finding in count.findings)
    due = sum(count.rows for count in counts)
    about = "" if all(count.exact for count in counts) else "about "
    nothing = "; ".join(finding.sentence for finding in findings)
    is_due = f"{about}{due:,} results are due" if due or about else "no result is due"
    said = [is_due] if targets or not nothing else [nothing]
    yield Step(
        what="; ".join([*said, *(deed.made_ready for _, deed in deeds if deed.made_ready)]),
        readings=(metrics.RESULTS_DUE.read(due),),
        findings=findings,
    )
    locked = 0
    emptied: dict[LiveTable, datetime | None] = {}
    for target, deed in deeds:
        walk = Walk(session, target, deed, pace)
        for taken in walk.batches():
            locked += taken.locked
            # The same words for every batch: the number is said once, at the end.
            left = "what other sessions hold is left for the next run" if taken.locked else ""
            yield Step(rows=taken.rows, what="; ".join(filter(None, [deed.done if taken.rows else "", left])))
        for _ in deed.finish():
            yield Step()
        emptied[target.live] = walk.emptied_to if isinstance(walk.emptied_to, datetime) else None
    if targets:
        left = "nothing that is due is left" if due or about else ""
        if locked:
            left = f"{locked:,} due results are left, locked by other sessions"
        yield Step(what=left, readings=(metrics.RESULTS_DUE.read(locked), *oldest_ages(session, emptied)))


def preview_sweep(
    session: PostgresSession, retention: Retention, deed_for: Callable[[Target], Deed], would: str
) -> Preview:
    """What `sweep` would do, from a read-only connection."""
    targets, findings = survey(session, retention)
    deeds = [(target, deed_for(target)) for target in targets]
    counts = [count_due(session, target, PREVIEW_BUDGET) for target in targets]
    findings += tuple(finding for count in counts for finding in count.findings)
    rows = sum(count.rows for count in counts)
    about = "" if all(count.exact for count in counts) else "about "
    cutoff = retention.latest
    if not targets:
        said = "; ".join(finding.sentence for finding in findings) or "every result is kept"
        return Preview(f"nothing to do: {said}", cutoff=cutoff, findings=findings)
    tables = " and ".join(target.live.sql_name for target in targets)
    return Preview(
        f"would {would} {about}{rows:,} results of {tables}"
        + (f" that finished before {_moment(cutoff)}" if cutoff else ""),
        rows=rows,
        oldest=min((count.oldest for count in counts if count.oldest is not None), default=None),
        cutoff=cutoff,
        statements=tuple(_shown(target, deed) for target, deed in deeds),
        readings=(
            metrics.RESULTS_DUE.read(rows),
            *oldest_ages(session, dict.fromkeys(target.live for target in targets)),
        ),
        findings=findings,
    )


def _shown(target: Target, deed: Deed) -> str:
    by = walked_column(target.live)
    slots = {"live": target.live.slot, "by": by, "due": target.due.sql, **deed.slots}
    values = {**target.due.values, **deed.values}
    statements = [readable(load("postgres", deed.job, name, slots), values) for name in deed.whole]
    return f"-- again and again, over ranges of {by} from :low to :high, each of a batch's rows\n" + ";\n".join(
        statements
    )


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S %Z}"
