"""redis: what a Redis or Valkey holds, as tables and bars."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from backendops.cli.options import Options
from backendops.contracts.errors import BackendError
from backendops.contracts.keyspace import BUCKETS, KEY_KINDS, CanSurveyKeys, Keyspace
from backendops.contracts.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from backendops.policy.model import Policy

# Characters of the longest bar: with its label and its number it fits a terminal of eighty.
LONGEST_BAR: Final = 40

_MEANINGS: Final = {
    "task": "results of tasks", "group": "saved groups", "chord": "parts of chords", "rpc": "replies of RPC",
    "broker": "a Celery broker", "foreign": "everything else",
}  # fmt: skip


@click.group("redis")
def command() -> None:
    """Look into a Redis or Valkey.

    Nothing is changed, and no call holds the server for longer than some milliseconds.
    """


@command.command("survey")
@click.argument("name", required=False, metavar="[NAME]")
@click.option("--top", type=click.IntRange(1, 100), default=10, help="How many tasks and largest keys to show.")
@click.option("--weigh-all", is_flag=True, help="Weigh every key, not a sample: exact sizes, in twice the time.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def survey(options: Options, name: str | None, top: int, weigh_all: bool, as_json: bool) -> int:
    """Show what the keys are: how many of each kind, how large, when they expire, how old.

    Numbers of keys are counted. Sizes, states and tasks are measured on a sample and say how far off they may be.
    """
    from backendops.cli.console import exit_code, print_json  # noqa: PLC0415 - --help must not import every backend

    policy = options.load_policy()
    options.configure_log("info" if options.wants_log else "error")
    documents: list[dict[str, Any]] = []
    codes = []
    for backend_name, backend in _chosen(policy, name):
        try:
            found = _survey(backend_name, backend, top, weigh_all)
        except BackendError as error:
            said = f"{error}; {error.hint}" if error.hint else str(error)
            click.echo(f"backendops: {backend_name}: {said}", err=True)
            codes.append(error.exit_code)
            documents.append({"backend": backend_name, "error": str(error), "hint": error.hint})
            continue
        codes.append(0)
        documents.append({"backend": backend_name, "buckets": list(BUCKETS), **asdict(found)})
        if not as_json:
            _print(backend_name, backend.display_url, found)
    if as_json:
        print_json(documents)
    return exit_code(codes)


def _chosen(policy: Policy, name: str | None) -> list[tuple[str, Any]]:
    from backendops.cli.console import Misnamed  # noqa: PLC0415 - as above

    able = {key: backend for key, backend in policy.backends.items() if isinstance(backend, CanSurveyKeys)}
    if name is None:
        if not able:
            raise Misnamed("the policy has no Redis or Valkey backend")
        return list(able.items())
    if name not in policy.backends:
        raise Misnamed(f"the policy has no backend {name!r}; it has {', '.join(policy.backends)}")
    if name not in able:
        raise Misnamed(f"{name!r} has no keys to survey: it is {policy.backends[name].kind}")
    return [(name, able[name])]


def _survey(name: str, backend: Any, top: int, weigh_all: bool) -> Keyspace:
    from backendops.contracts.run import Limits, NoWatermarks  # noqa: PLC0415 - as above

    with _progress(name) as progress, backend.open(Limits(read_only=True), NoWatermarks()) as connected:
        found: Keyspace = connected.survey_keys(top=top, weigh_all=weigh_all, progress=progress)
        return found


@contextmanager
def _progress(name: str) -> Iterator[Callable[[float], None] | None]:
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415 - only a terminal needs it
    from rich.progress import Progress  # noqa: PLC0415 - as above

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"survey of {name}", total=1.0)
        yield lambda part: bar.update(task, completed=part)


def _print(name: str, url: str, found: Keyspace) -> None:
    from backendops.cli.console import print_table  # noqa: PLC0415 - as above

    rate = f", {found.keys / found.seconds:,.0f}/s" if found.seconds else ""
    click.echo(
        f"{name}: {found.keys:,} keys on {url}, surveyed in {format_seconds(found.seconds)}{rate}, "
        f"longest call {found.longest_call * 1000:.1f} ms"
    )
    kinds = [(kind, found.kinds[kind]) for kind in KEY_KINDS]
    click.echo()
    print_table(
        ["kind", "", "keys", "bytes", "may be off by", "weighed", "without expiry"],
        [
            [
                kind,
                _MEANINGS[kind],
                f"{figures.keys:,}",
                format_bytes(figures.size),
                f"±{format_bytes(figures.size_error)}" if figures.size_error else "-",
                f"{figures.weighed:,}",
                f"{figures.without_ttl:,}",
            ]
            for kind, figures in kinds
        ],
    )
    results = [figures for kind, figures in kinds if kind in {"task", "group", "chord"}]
    left = [sum(figures.ttl[place] for figures in results) for place in range(len(BUCKETS))]
    _bars(
        "time left of results",
        [*_labels(), "no expiry"],
        [*left, sum(figures.without_ttl for figures in results)],
    )
    _bars("age of finished results (since date_done)", _labels(), found.ages)
    _bars("states", [share.name for share in found.states], [share.keys for share in found.states])
    if found.tasks:
        click.echo()
        print_table(
            ["task", "keys", "bytes"],
            [[share.name, f"{share.keys:,}", format_bytes(share.size)] for share in found.tasks],
        )
    if found.largest:
        click.echo()
        print_table(["largest results weighed", "bytes"], [[key, format_bytes(size)] for key, size in found.largest])
    for note in found.notes:
        click.echo(f"note: {note}")
    click.echo()


def _labels() -> list[str]:
    return [*(f"up to {bucket}" for bucket in BUCKETS[:-1]), f"over {BUCKETS[-2]}"]


def _bars(title: str, labels: Sequence[str], counts: Sequence[int]) -> None:
    from backendops.cli.console import writes_unicode  # noqa: PLC0415 - as above

    total, most = sum(counts), max(counts, default=0)
    if not total:
        return
    click.echo(f"\n{title}")
    width = max(map(len, labels))
    # A terminal or a file that does not take the block character gets one that every one does.
    block = "█" if writes_unicode() else "#"
    for label, count in zip(labels, counts, strict=True):
        bar = block * max(1 if count else 0, round(count / most * LONGEST_BAR))
        click.echo(f"  {label:<{width}}  {bar:<{LONGEST_BAR}}  {count:>11,}  {count / total:>4.0%}")
