"""matrix: which job works on which backend, read from the class headers."""

from __future__ import annotations

import click


@click.command("matrix")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.option("--markdown", is_flag=True, help="A table for the documentation.")
def command(as_json: bool, markdown: bool) -> None:
    """Show which job works on which backend, and the one capability that it needs there."""
    from backendops.cli.console import print_json, print_table  # noqa: PLC0415 - --help must not import every backend
    from backendops.policy.matrix import as_markdown, cells, columns, document, headings  # noqa: PLC0415 - as above

    if as_json and markdown:
        raise click.UsageError("--json and --markdown are two forms of the same table: take one")
    if as_json:
        print_json(document())
    elif markdown:
        click.echo(as_markdown(), nl=False)
    else:
        print_table(headings(), cells())
        for line in columns():
            click.echo(line)
