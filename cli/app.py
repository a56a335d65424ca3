"""The commands: reads the command line, runs a command, and gives its exit status."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from onnxcalib import __version__

from .calibrate import calibrate
from .exitstatus import ExitStatus, print_error
from .inspect import inspect
from .main import INTERRUPTED
from .options import FLAG, find_owners
from .plan import plan
from .quantize import quantize
from .targets import targets
from .validate import validate

if TYPE_CHECKING:
    from typer._click import Context as ClickContext
    from typer._click.exceptions import UsageError
else:
    UsageError = typer.BadParameter.__base__  # typer brings its own click, and does not export this class


class _Command(TyperCommand):
    def get_help_option(self, ctx: ClickContext) -> TyperOption | None:
        return _hide_type(super().get_help_option(ctx))


class _Group(TyperGroup):
    def get_help_option(self, ctx: ClickContext) -> TyperOption | None:
        return _hide_type(super().get_help_option(ctx))


def _hide_type(option: TyperOption | None) -> TyperOption | None:
    """The option shown as a flag; typer shows the type of the help option, <bool>, otherwise."""
    if option is not None:
        option.metavar = FLAG
    return option


app = typer.Typer(cls=_Group, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
app.command("quantize", cls=_Command)(quantize)
app.command("calibrate", cls=_Command)(calibrate)
app.command("plan", cls=_Command)(plan)
app.command("validate", cls=_Command)(validate)
app.command("inspect", cls=_Command)(inspect)
app.command("targets", cls=_Command)(targets)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"onnxcalib {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def show_help(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            metavar=FLAG,
            callback=_print_version,
            is_eager=True,
            help="Print the version and leave.",
        ),
    ] = False,
) -> None:
    """Quantize trained ONNX models to 8, 4, 3 or 2 bits with a small, unlabelled calibration set."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        print_error("no command found; quantize, calibrate, plan, validate, inspect or targets is needed; see the help")
        raise typer.Exit(ExitStatus.USAGE)


def run_app(arguments: Sequence[str]) -> int:
    """Run a command line, and return its exit status."""
    try:
        status = app(args=list(arguments), prog_name="onnxcalib", standalone_mode=False)
        sys.stdout.flush()
        return int(status or ExitStatus.OK)
    except UsageError as error:
        command = error.ctx.command_path if error.ctx else "onnxcalib"
        print_error(f"{_spell_usage(error).rstrip('.')} (see '{command} --help')")
        return ExitStatus.USAGE
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return ExitStatus.INTERRUPTED


def _spell_usage(error: UsageError) -> str:
    """What was wrong; for an option of another command, which command that is."""
    option: str | None = getattr(error, "option_name", None)
    hint = None if option is None else find_owners(option)
    return f"No such option: {option}; {hint}" if hint else error.format_message().replace("unexpected extra", "extra")
