"""Consoles that show text from files as it is: nothing in it is markup, and control characters are visible."""

from __future__ import annotations

import os
import textwrap
from typing import Any

from rich.console import Console
from rich.text import Text

from onnxcalib.errors import escape_controls

WIDEST = 100  # columns of tables and sentences; longer lines are hard to read


class PlainConsole(Console):
    """A console without markup, on which names of tensors and files cannot move the cursor or change colours."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=stderr)

    @property
    def is_screen(self) -> bool:
        """Whether the cursor can be moved on it; colours may be asked for elsewhere too, as in a pipeline's log."""
        return self.is_interactive and self.file.isatty()

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str("\n".join(map(escape_controls, text.split("\n"))), **options)


def open_console(*, stderr: bool = False) -> Console:
    """Where tables go: stdout, or stderr where stdout has a record for another program.

    It is as wide as the terminal or COLUMNS says, up to WIDEST, which files and pipes have.
    """
    console = PlainConsole(stderr=stderr)
    known = console.is_terminal or os.environ.get("COLUMNS", "").isdigit()
    console.width = min(console.width, WIDEST) if known else WIDEST
    return console


def print_lines(console: Console, lines: list[str], style: str | None = None) -> None:
    """Print sentences: on a terminal broken at words, elsewhere each in one line, which can be searched for."""
    if console.is_terminal:
        lines = [part for line in lines for part in wrap(line, console.width)]
    console.print("\n".join(lines), style=style, soft_wrap=True)


def wrap(line: str, width: int) -> list[str]:
    """A sentence in lines of this width, each behind the first indented; words, such as paths, are never broken."""
    margin = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(
        line, width, subsequent_indent=f"{margin}  ", break_long_words=False, break_on_hyphens=False
    ) or [""]
