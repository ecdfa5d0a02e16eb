"""validate: check the policy, offline."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:  # reading a policy imports every backend; --help must not
    from backendops.cli.options import Options
    from backendops.policy.model import Policy


@click.command("validate")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def command(options: Options, as_json: bool) -> int:
    """Check the policy without connecting to anything: every problem with its place, or what would run when."""
    from backendops.cli.console import print_json  # noqa: PLC0415 - see above
    from backendops.contracts.errors import PolicyError  # noqa: PLC0415 - as above

    try:
        policy = options.load_policy()
    except PolicyError as error:
        if not as_json:
            raise
        print_json({"valid": False, "problems": [_problem(problem) for problem in error.problems]})
        return error.exit_code
    if as_json:
        print_json(_document(policy, datetime.now(UTC)))
    else:
        _print(policy, datetime.now(UTC))
    return 0


def _print(policy: Policy, now: datetime) -> None:
    from backendops.cli.console import distance, moment, print_table  # noqa: PLC0415 - as above

    jobs, backends = _count(len(policy.jobs), "job"), _count(len(policy.backends), "backend")
    click.echo(f"{policy.file}: {jobs} on {backends}, no problems")
    click.echo()
    print_table(
        ["backend", "kind", "url"],
        [[name, backend.kind, backend.display_url] for name, backend in policy.backends.items()],
    )
    click.echo()
    rows = []
    for pair in policy.pairs:
        following = pair.schedule.next_after(now) if pair.schedule else None
        rows.append(
            [
                pair.job_name,
                pair.backend_name,
                str(pair.schedule or "-"),
                f"{moment(following)}  {distance(following, now)}" if following else "when asked",
            ]
        )
    print_table(["job", "backend", "schedule", f"next run (UTC; schedules are in {policy.timezone})"], rows)
    click.echo()
    click.echo(f"state: {_without_password(policy.state)}")


def _without_password(state: str) -> str:
    from backendops.contracts.masking import mask  # noqa: PLC0415 - as above

    return mask(state)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _problem(problem: Any) -> dict[str, Any]:
    return {"file": problem.file, "line": problem.line, "column": problem.column, "message": problem.message}


def _document(policy: Policy, now: datetime) -> dict[str, Any]:
    return {
        "valid": True,
        "problems": [],
        "policy": policy.file,
        "timezone": str(policy.timezone),
        "state": _without_password(policy.state),
        "http": policy.http.listen,
        "backends": {
            name: {"kind": backend.kind, "url": backend.display_url} for name, backend in policy.backends.items()
        },
        "jobs": [
            {
                "job": pair.job_name,
                "kind": pair.job.kind_name,
                "backend": pair.backend_name,
                "schedule": pair.schedule.text if pair.schedule else None,
                "next_run": pair.schedule.next_after(now) if pair.schedule else None,
            }
            for pair in policy.pairs
        ],
    }
