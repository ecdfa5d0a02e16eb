"""schema: the policy's JSON Schema, for editors and other checkers."""

from __future__ import annotations

import json

import click


@click.command("schema")
def command() -> None:
    """Print the policy's JSON Schema (draft 2020-12), built from the same models that validate a policy."""
    from backendops.policy.schema import policy_schema  # noqa: PLC0415 - --help must not import every backend

    click.echo(json.dumps(policy_schema(), indent=2, ensure_ascii=False))
