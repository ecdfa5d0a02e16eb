"""The command line: one file per command, each imported only when it is asked for."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from backendops import __version__
from backendops.cli.options import GLOBAL_OPTIONS, Options
from backendops.contracts.errors import BackendopsError, PolicyError

# What an interrupted shell command exits with: 128 and the number of SIGINT.
_INTERRUPTED: Final = 130
_NOT_FINISHED: Final = 75
# They take half a second to import before they listen for signals themselves. What only looks may just be ended, and
# `run` sees to it on its own.
_ANSWER_SIGTERM: Final = frozenset({"run-once", "restore", "partition", "partitions"})

# Name, module in this package, the command in it, and what --help says: listing them must import none of them.
_COMMANDS: Final = (
    ("run", "run", "command", "Run the daemon: every job on its schedule, until a signal ends it."),
    ("run-once", "run_once", "command", "Run jobs now, then exit."),
    ("plan", "plan", "command", "Show what each job would do now; changes nothing."),
    ("status", "status", "command", "Show each job's last run, next run and what runs now."),
    ("history", "history", "command", "Show past runs."),
    ("pause", "control", "pause", "Let no scheduled run of a job begin, and the one that runs rest."),
    ("resume", "control", "resume", "End the pause of a job."),
    ("cancel", "control", "cancel", "End the run of a job after the step in hand."),
    ("accept", "control", "accept", "Let a job whose keep got shorter remove what plan shows, however much."),
    ("restore", "restore", "command", "Put archived results back, by id or by when they finished."),
    ("archive", "archive", "command", "Verify what archive jobs have kept."),
    ("redis", "redis", "command", "Look into a Redis or Valkey: what its keys are, how large, when they go."),
    ("partitions", "partitions", "group", "List partitions; take retired ones back, or drop them."),
    ("partition", "partition", "group", "Partition a live table while Celery writes to it; or undo that."),
    ("validate", "validate", "command", "Check the policy, offline."),
    ("schema", "schema", "command", "Print the policy's JSON Schema."),
    ("matrix", "matrix", "command", "Show which job works on which backend."),
)


class _AskedToEndError(BaseException):
    """SIGTERM came before the command listened for it, or after."""


class _NobodyReadsError(Exception):
    """Whoever read our output has seen enough."""


class _Commands(click.Group):
    """A group that knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's shape
        return [name for name, module, _, _ in _COMMANDS if Path(__file__).with_name(f"{module}.py").exists()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for name, module, attribute, _ in _COMMANDS:
            if name == cmd_name and name in self.list_commands(ctx):
                command: click.Command = getattr(import_module(f"backendops.cli.{module}"), attribute)
                _take_global_options(command)
                return command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in known:
            near = get_close_matches(args[0], known, n=1)
            also = f", did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
            raise click.UsageError(f"there is no command {args[0]!r}{also}", ctx)
        if args and args[0] in _ANSWER_SIGTERM and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _asked_to_end)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            # click itself would exit with 1, as if something had failed.
            raise _NobodyReadsError from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        known = self.list_commands(ctx)
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, _, _, text in _COMMANDS if name in known])


def _take_global_options(command: click.Command) -> None:
    """`backendops run --policy FILE` reads as naturally as `backendops --policy FILE run`."""
    taken = {option for parameter in command.params for option in parameter.opts}
    command.params.extend(o for o in GLOBAL_OPTIONS if not taken & {*o.opts} and o not in command.params)
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        _take_global_options(inner)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="backendops", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, /, **_: Any) -> None:
    """Keep Celery result backends healthy: one policy, one daemon, or any job once.

    The policy is --policy, else $BACKENDOPS_POLICY, else ./config/policy.yaml, else /etc/backendops/policy.yaml.

    Exits with 0 done or nothing to do, 1 failed, 2 usage or policy wrong, 3 backend unreachable, 4 some failed and
    the rest ran, 5 refused by a safety limit, 75 not finished: try again later.
    """
    ctx.ensure_object(Options)


cli.params.extend(GLOBAL_OPTIONS)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The `backendops` command: whatever happens, a person reads a sentence and a script an exit code."""
    _mend_streams()
    options, color = Options(), False if os.environ.get("NO_COLOR") else None
    try:
        code = cli.main(args=arguments, prog_name="backendops", standalone_mode=False, obj=options, color=color)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _say("backendops: interrupted")
        sys.exit(_INTERRUPTED)
    except _AskedToEndError:
        _say("backendops: ended by SIGTERM; what is done is kept: run it again for the rest")
        sys.exit(_NOT_FINISHED)
    except PolicyError as error:
        for problem in error.problems:
            _say(str(problem))
        sys.exit(error.exit_code)
    except BackendopsError as error:
        hint = getattr(error, "hint", "")
        _say(f"backendops: {error}; {hint}" if hint else f"backendops: {error}")
        sys.exit(error.exit_code)
    except (_NobodyReadsError, BrokenPipeError):
        # Python must not try to flush the rest at its exit.
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(0)
    except Exception as error:  # noqa: BLE001 - no traceback reaches a user who has not asked for it
        _say(_sentence(error))
        _say(_traceback(error) if options.verbose else "backendops: run it again with -v for the traceback")
        sys.exit(1)
    finally:
        if signal.getsignal(signal.SIGTERM) is _asked_to_end:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(code if isinstance(code, int) else 0)


def _asked_to_end(*_: object) -> NoReturn:
    raise _AskedToEndError


def _mend_streams() -> None:
    """Make streams out of closed ones (`>&-`), and let none fail over a character that it cannot write."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Its descriptor, too: the next file that is opened must not become our standard output.
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - for as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _sentence(error: Exception) -> str:
    # Backends' errors are in an operator's words by then; what speaks SQLAlchemy here is the ledger. It is not imported
    # for this: where nobody has, the error is none of its.
    exc = sys.modules.get("sqlalchemy.exc")
    if exc is not None and isinstance(error, exc.SQLAlchemyError):
        from backendops.engine.ledger_file import first_line  # noqa: PLC0415 - only a failure pays for the import

        return f"backendops: the ledger cannot be used: {first_line(error)}; `state:` of the policy says where it is"
    return f"backendops: internal error: {type(error).__name__}: {error}"


def _say(text: str) -> None:
    from backendops.log import masked  # noqa: PLC0415 - only a failure pays for the import

    click.echo(masked(text), err=True)


def _traceback(error: Exception) -> str:
    from traceback import format_exception  # noqa: PLC0415 - as above

    return "".join(format_exception(error)).rstrip()
