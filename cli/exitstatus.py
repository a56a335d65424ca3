"""The exit statuses of the commands, and how faults turn into them."""

from __future__ import annotations

import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import typer

from onnxcalib.errors import ConfigError, GateError, OnnxCalibError, escape_controls

from .console import WIDEST, wrap
from .main import INTERRUPTED, STATUS

_begun = False


class ExitStatus(IntEnum):
    """GATE: validation finished, and a gate does not hold. INTERRUPTED: what shells give after Ctrl-C."""

    OK = 0
    ERROR = 1
    USAGE = 2
    GATE = 3
    INTERRUPTED = STATUS


def print_error(text: str) -> None:
    """Print one line on stderr, without the line breaks and the control characters of the text.

    A terminal has it broken at words.
    """
    line = f"error: {escape_controls(' '.join(text.split()))}"
    if sys.stderr.isatty():
        line = "\n".join(wrap(line, min(WIDEST, shutil.get_terminal_size().columns)))
    print(line, file=sys.stderr)


def has_worked() -> bool:
    """Whether a command began its work, and did not only show its help."""
    return _begun


@contextmanager
def report_faults(*, verbose: bool) -> Iterator[None]:
    """Turn any exception into one line on stderr and a typer.Exit; ``verbose`` shows tracebacks too."""
    global _begun
    _begun = True
    try:
        yield
    except (typer.Exit, typer.BadParameter):
        raise
    except OnnxCalibError as error:
        if verbose:
            traceback.print_exc()
        print_error(str(error))
        usage = isinstance(error, ConfigError) and not isinstance(error, GateError)
        raise typer.Exit(ExitStatus.USAGE if usage else ExitStatus.ERROR) from None
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        raise typer.Exit(ExitStatus.INTERRUPTED) from None
    except MemoryError:
        if verbose:
            traceback.print_exc()
        print_error(
            "memory: this machine has too little of it for the model and its samples; give fewer samples, or run it on"
            " a larger one"
        )
        raise typer.Exit(ExitStatus.ERROR) from None
    except (
        Exception
    ) as error:  # the last line of defence: anything else is a fault of ours, and must still end in one line
        if verbose:
            traceback.print_exc()
        print_error(_spell_unexpected(error, "above" if verbose else "that --verbose shows"))
        raise typer.Exit(ExitStatus.ERROR) from None


def _spell_unexpected(error: Exception, where: str) -> str:
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package in ("", "onnxcalib"):
        return f"unexpected {type(error).__name__}: {error}; please report this with the traceback {where}"
    return (
        f"found no package {package}; validate, inspect and targets alone do without some of the packages; install"
        " onnxcalib with all of them: without --no-deps"
    )
