"""Why a run ended, and what to do next, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from backendops.contracts.run import Outcome
from backendops.contracts.units import Duration
from backendops.engine.pacing import GENTLE
from backendops.policy.model import Pair


@dataclass(frozen=True, slots=True)
class Ending:
    """The outcome, and what the report says beside it."""

    outcome: Outcome
    error: str = ""
    hint: str = ""
    what: str = ""


def ending_of(outcome: Outcome, pair: Pair, stopped_by: str, throttled: Mapping[str, float]) -> Ending:
    """What the outcome of a drive means for this pair; `throttled` is the seconds it lost, by reason."""
    goes_on = "what is done is committed; the next run goes on from there"
    match outcome:
        case Outcome.LOST_LOCK:
            return Ending(outcome, "the lock was lost in the middle of the run, so it ended at once", goes_on)
        case Outcome.STOPPED:
            return Ending(outcome, stopped_by, goes_on)
        case Outcome.OUT_OF_TIME:
            if throttled.get(GENTLE):
                goes_on += "; it went gently: a longer time_budget or `pace: full` does more in one run"
            return Ending(outcome, f"its time_budget of {Duration(pair.job.time_budget)} is used up", goes_on)
        case Outcome.CANCELLED:
            return Ending(outcome, "somebody cancelled it", goes_on)
        case _:
            return Ending(outcome)


def unexpected(error: Exception) -> tuple[str, str]:
    """The sentence and the way out of an error that nobody has foreseen."""
    said = str(error).strip().partition("\n")[0]
    sentence = f"unexpected {type(error).__name__}: {said}" if said else f"unexpected {type(error).__name__}"
    return sentence, "run it again with -v for the traceback, and report it: this is a fault of backendops"
