"""partitions: every partition there is, and those in quarantine taken back or dropped."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from backendops.cli.by_hand import backend_named, opened_to_read, run_by_hand, with_global_options
from backendops.cli.console import Misnamed, exit_code, moment, print_json, print_table
from backendops.cli.options import Options
from backendops.contracts.errors import BackendError
from backendops.contracts.partitions import CanShowPartitions, PartitionShown
from backendops.contracts.units import format_bytes
from backendops.jobs.partitions_by_hand import DropQuarantined, Reattach
from backendops.log import masked
from backendops.policy.model import Policy

_DOING = "partitions"


@click.group("partitions")
def group() -> None:
    """List partitions; take retired ones back out of quarantine, or drop them.

    A partition that the policy's `partition` job retires is detached, and dropped when its quarantine is over. Until
    then it is a table of its own, which `reattach` makes a partition again.
    """


@click.command("list")
@click.option("--backend", metavar="NAME", help="Only on this backend.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def list_all(options: Options, backend: str | None, as_json: bool) -> int:
    """Show every partition of the archives and of converted live tables, and what is in quarantine."""
    policy = options.load_policy()
    rows: list[tuple[str, PartitionShown]] = []
    codes = []
    for name in _backends(policy, backend):
        try:
            with opened_to_read(policy.backends[name]) as opened:
                rows += [(name, one) for one in opened.show_partitions()]  # type: ignore[attr-defined] # it can
            codes.append(0)
        except BackendError as error:
            codes.append(error.exit_code)
            click.echo(masked(f"backendops: {name}: {error}; {error.hint}"), err=True)
    if as_json:
        print_json([_document(name, one) for name, one in rows])
    elif rows:
        print_table(
            ["backend", "table", "partition", "state", "rows", "size", "bounds", "dropped after (UTC)"],
            [
                [
                    name, one.table, one.name, one.state, f"{one.rows:,}", format_bytes(one.bytes), one.bounds,
                    moment(one.drop_after),
                ]
                for name, one in rows
            ],
        )  # fmt: skip
    elif not any(codes):
        click.echo("no partitions")
    return exit_code(codes)


@click.command("reattach")
@click.argument("partition")
@click.option("--backend", metavar="NAME", help="The backend it is in; left out: the only one that has partitions.")
@click.pass_obj
def reattach(options: Options, partition: str, backend: str | None) -> int:
    """Take PARTITION out of quarantine: it is a part of its table again.

    The `partition` job retires it again in its next run unless `keep` (or `keep_live`) is longer by then.
    """
    policy = options.load_policy()
    return run_by_hand(options, policy, _only(policy, backend), Reattach.model_validate({"name": partition}))


@click.command("drop")
@click.argument("partition")
@click.option("--backend", metavar="NAME", help="The backend it is in; left out: the only one that has partitions.")
@click.option("--yes", is_flag=True, help="Without it nothing is dropped.")
@click.option("--now", "before_its_time", is_flag=True, help="Also before its quarantine is over.")
@click.pass_obj
def drop(options: Options, partition: str, backend: str | None, yes: bool, before_its_time: bool) -> int:
    """Drop PARTITION, which is in quarantine, with every result in it. Nothing brings them back."""
    if not yes:
        raise click.UsageError(f"this drops {partition} and every result in it: say --yes if it is meant")
    policy = options.load_policy()
    job = DropQuarantined.model_validate({"name": partition, "before_its_time": before_its_time})
    return run_by_hand(options, policy, _only(policy, backend), job)


for _command in (list_all, reattach, drop):
    group.add_command(with_global_options(_command))


def _backends(policy: Policy, name: str | None) -> list[str]:
    if name is not None:
        backend_named(policy, name, CanShowPartitions, _DOING)
        return [name]
    return [one for one, backend in policy.backends.items() if isinstance(backend, CanShowPartitions)]


def _only(policy: Policy, name: str | None) -> str:
    found = _backends(policy, name)
    if not found:
        raise Misnamed("no backend of the policy has partitions")
    if len(found) > 1:
        raise Misnamed(f"several backends have partitions: say --backend {' or --backend '.join(found)}")
    return found[0]


def _document(name: str, one: PartitionShown) -> dict[str, Any]:
    return {"backend": name, **asdict(one)}
