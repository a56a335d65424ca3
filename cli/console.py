"""Consoles that show text from files as it is: nothing in it is markup, and control characters are visible."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from onnxcalib.errors import escape_controls

PLAIN_WIDTH = 120  # columns where stdout is no terminal and has no width of its own


class PlainConsole(Console):
    """A console without markup, on which names of tensors and files cannot move the cursor or change colours."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=stderr)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str("\n".join(map(escape_controls, text.split("\n"))), **options)


def open_console() -> Console:
    """Stdout."""
    console = PlainConsole()
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


def print_lines(console: Console, lines: list[str], style: str | None = None) -> None:
    """Print without line breaks of rich's own, so that lines can be searched for and copied."""
    console.print("\n".join(lines), style=style, soft_wrap=True)
