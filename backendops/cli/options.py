"""The options that every command takes, before its name or after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import click

if TYPE_CHECKING:  # reading a policy imports every backend; --help must not
    from backendops.policy.model import Policy


@dataclass(slots=True)
class Options:
    """What the command line says for every command; commands get it with `click.pass_obj`."""

    policy: str | None = None
    log_format: Literal["json", "console"] | None = None
    verbose: int = 0

    @property
    def wants_log(self) -> bool:
        """Has somebody asked for log lines?"""
        return bool(self.verbose or self.log_format)

    def load_policy(self) -> Policy:
        """The policy, its secrets known to the log; raises PolicyError with every problem."""
        from backendops.log import keep_secret  # noqa: PLC0415 - see above
        from backendops.policy.load import find_policy, load_policy  # noqa: PLC0415 - as above

        policy = load_policy(find_policy(self.policy))
        keep_secret(policy.secrets)
        return policy

    def configure_log(self, level: str = "info") -> None:
        """Log lines from `level` on, or all of them where somebody said -vv."""
        from backendops.log import configure  # noqa: PLC0415 - see above

        configure(self.log_format, "debug" if self.verbose > 1 else level)


def _take(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    options = ctx.ensure_object(Options)
    # Said after the command, an option beats what was said before it; left out, it changes nothing.
    if value:
        setattr(options, str(parameter.name), value)


GLOBAL_OPTIONS: Final = (
    click.Option(
        ["--policy"], metavar="FILE", expose_value=False, callback=_take, help="The policy to use; see above."
    ),
    click.Option(
        ["--log-format"],
        type=click.Choice(["json", "console"]),
        expose_value=False,
        callback=_take,
        help="Log lines for machines or for people; left out: by what stderr is.",
    ),
    click.Option(
        ["-v", "--verbose"],
        count=True,
        expose_value=False,
        callback=_take,
        help="Log what is done; -vv also why, with tracebacks.",
    ),
)
