"""Findings as a number: what the metric of findings reads after a run."""

from __future__ import annotations

from backendops.contracts.errors import BackendError
from backendops.contracts.metrics import findings_by_severity
from backendops.contracts.readings import Finding
from backendops.contracts.run import Step, Steps


def with_findings_counted(steps: Steps) -> Steps:
    """Pass the steps on, and end with one that reads how many findings they had, also where they end in an error."""
    findings: list[Finding] = []
    try:
        for step in steps:
            findings += step.findings
            yield step
    except BackendError:
        yield Step(readings=findings_by_severity(findings))
        raise
    yield Step(readings=findings_by_severity(findings))
