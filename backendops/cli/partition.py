"""partition: a live table made a partitioned one, while Celery goes on writing to it, and a plain one again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import click

from backendops.cli.by_hand import backend_named, opened_to_read, run_by_hand, with_global_options
from backendops.cli.console import print_json
from backendops.cli.options import Options
from backendops.contracts.partitions import CanConvert, Conversion
from backendops.jobs.partitions_by_hand import Convert, Undo
from backendops.log import masked

# As the partition job's own default.
AHEAD: Final = 3
# By id, what one partition must at least hold: a lookup by task id goes through every partition there is.
FEWEST: Final = 1000


@click.group("partition")
def group() -> None:
    """Partition a live table, or make it plain again, while Celery goes on writing to it.

    No row is copied, and writers wait for milliseconds. By id is recommended: a row never moves from one partition
    to another, and the primary key stays. From then on the policy's `partition` job makes the next partitions and
    retires old ones (`keep_live`).
    """


@click.command("convert")
@click.argument("backend", metavar="NAME")
@click.option(
    "--by", type=click.Choice(["id", "date_done"]), default="id", show_default=True, help="The partition key."
)
@click.option("--rows-per-partition", type=click.IntRange(min=FEWEST), help="By id; left out: about a week's results.")
@click.option("--every", type=click.Choice(["month", "week", "day"]), help="By date_done.  [default: month]")
@click.option("--table", type=click.Choice(["task", "group"]), default="task", show_default=True, help="Which table.")
@click.option("--ahead", type=click.IntRange(1, 400), default=AHEAD, show_default=True, help="Partitions made ahead.")
@click.option("--plan", "only_plan", is_flag=True, help="Show every statement with its lock; change nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --plan: one JSON document.")
@click.pass_obj
def convert(options: Options, /, backend: str, only_plan: bool, as_json: bool, **how: Any) -> int:
    """Make the live table of backend NAME a partitioned one, or go on where that was cut short.

    Look at --plan first: it names every statement, its lock and how long that is held, and what stands in the way.
    """
    if how["every"] is not None and how["by"] == "id":
        raise click.UsageError("--every is for --by date_done; by id the size is --rows-per-partition")
    if how["rows_per_partition"] is not None and how["by"] != "id":
        raise click.UsageError("--rows-per-partition is for --by id; by date_done the length is --every")
    if as_json and not only_plan:
        raise click.UsageError("--json goes with --plan")
    policy = options.load_policy()
    one = backend_named(policy, backend, CanConvert, "live tables that could be partitioned")
    how["rows"], how["every"] = how.pop("rows_per_partition"), how["every"] or "month"
    job = Convert.model_validate(how)
    if not only_plan:
        return run_by_hand(options, policy, backend, job)
    with opened_to_read(one) as opened:
        return _shown(opened.plan_conversion(job.plan(datetime.now(UTC))), as_json)  # type: ignore[attr-defined] # it can, see above


@click.command("undo")
@click.argument("backend", metavar="NAME")
@click.option("--table", type=click.Choice(["task", "group"]), default="task", show_default=True, help="Which table.")
@click.option("--plan", "only_plan", is_flag=True, help="Show what would be done; change nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --plan: one JSON document.")
@click.pass_obj
def undo(options: Options, backend: str, table: str, only_plan: bool, as_json: bool) -> int:
    """Make a converted table of backend NAME plain again, or go on where that was cut short. No result is ever lost.

    The partition that was the table becomes the table again in a moment; the rows of the others are moved into it in
    batches.
    """
    if as_json and not only_plan:
        raise click.UsageError("--json goes with --plan")
    policy = options.load_policy()
    one = backend_named(policy, backend, CanConvert, "live tables that could be partitioned")
    if not only_plan:
        return run_by_hand(options, policy, backend, Undo.model_validate({"table": table}))
    with opened_to_read(one) as opened:
        return _shown(opened.plan_undo(table), as_json)  # type: ignore[attr-defined] # it can, see above


group.add_command(with_global_options(convert))
group.add_command(with_global_options(undo))


def _shown(conversion: Conversion, as_json: bool) -> int:
    code = 5 if conversion.refusals else 0
    if as_json:
        print_json(
            {
                "summary": conversion.summary,
                "refused": [{"sentence": one.sentence, "fix": one.fix} for one in conversion.refusals],
                "findings": [{"sentence": one.sentence, "fix": one.fix} for one in conversion.findings],
                "statements": [
                    {"sql": one.sql, "lock": one.lock, "hold": one.hold, "same_transaction": one.together}
                    for one in conversion.statements
                ],
            }
        )
        return code
    click.echo(masked(conversion.summary))
    for one in conversion.refusals:
        click.echo(masked(click.style(f"would be refused: {one.sentence}; {one.fix}", fg="red")))
    for one in conversion.findings:
        click.echo(masked(f"{one.severity}: {one.sentence}; {one.fix}"))
    for statement in conversion.statements:
        if not statement.together or statement.hold:
            where = " (in the same transaction)" if statement.together else ""
            click.echo(f"\n-- {statement.lock}{where}; held: {statement.hold}")
        click.echo(masked(f"{statement.sql};"))
    return code
