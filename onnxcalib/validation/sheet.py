"""A table of text, and how Markdown and JUnit show it."""

from __future__ import annotations

from dataclasses import dataclass

from .markup import draw_table, escape, spell_code, spell_text

ABSENT = "-"
INTERVAL = " (95%)"  # at the end of a header: behind the number stands its interval at 95% confidence


@dataclass(frozen=True)
class Sheet:
    """A table of text.

    named: the first column holds names from a model, which may be any text. keys: so many of the first columns say what
    a row is of. prose: the columns of sentences.
    """

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    named: bool = True
    keys: int = 1
    prose: tuple[int, ...] = ()


def list_lines(sheet: Sheet) -> list[str]:
    """One line for each row, ``name: header cell, header cell``, as proportional fonts do not align columns."""
    lines = []
    for name, *cells in sheet.rows:
        pairs = zip(sheet.headers[1:], cells, strict=True)
        parts = (_spell_pair(header, cell) for header, cell in pairs if cell not in ("", ABSENT))
        lines.append(escape(f"{name}: {', '.join(parts)}"))
    return lines


def _spell_pair(header: str, cell: str) -> str:
    """A cell behind its header; what its interval is stands in that where it has one."""
    if header.endswith(INTERVAL):
        header, cell = header.removesuffix(INTERVAL), cell.replace(" (", " (95%: ")
    return f"{header} {cell}".strip()


def draw_sheet(sheet: Sheet) -> str:
    """The table as Markdown."""
    first = spell_code if sheet.named else spell_text
    return draw_table(sheet.headers, [(first(name), *map(spell_text, cells)) for name, *cells in sheet.rows])
