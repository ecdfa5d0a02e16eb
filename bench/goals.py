"""What was measured beside what must be reached."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure, or None where it could not be had; `limit` is the least it must be, or the most; None: only told."""

    name: str
    value: float | None
    limit: float | None
    unit: str = ""
    most: bool = False

    @property
    def missed(self) -> bool:
        """Is the figure on the wrong side of its limit?"""
        if self.limit is None or self.value is None:
            return False
        return self.value > self.limit if self.most else self.value < self.limit

    @property
    def wanted(self) -> str:
        """The limit in words."""
        if self.limit is None:
            return "–"
        return f"{'≤' if self.most else '≥'} {self.limit:g} {self.unit}"


def table(goals: list[Goal]) -> str:
    """The figures as a Markdown table."""
    rows = ["| measured | wanted | figure | |", "|---|---|---|---|"]
    for goal in goals:
        verdict = "" if goal.limit is None else "missed" if goal.missed else "reached"
        figure = "–" if goal.value is None else _figure(goal.value, goal.unit)
        rows.append(f"| {goal.name} | {goal.wanted} | {figure} | {verdict} |")
    return "\n".join(rows) + "\n"


def _figure(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.2f} {unit}"
