"""The one way in which tables are printed: columns that fit, names shortened in the middle, numbers always whole."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace

from rich.cells import cell_len, set_cell_size
from rich.console import Console

from onnxcalib.errors import escape_controls
from onnxcalib.validation.sheet import Sheet

from .console import print_lines

GAP = "  "
LEAST_NAME = 20  # columns of a name; shorter ones would tell little of it
LEAST_PROSE = 14  # and of sentences, which go on in the next line
FIRST, LAST = 30, 10  # rows that are shown of longer tables


def print_table(
    console: Console,
    sheet: Sheet,
    *,
    before: bool = False,
    after: bool = False,
    whole: str = "the JSON that --report or --json writes",
) -> None:
    """Print a table within the console's width, with an empty line before or after it; nothing where it has no rows.

    Of a long one the first and the last rows are shown. whole: what has all of them.

    Where its columns do not fit beside each other it is printed in several parts, each with the columns that say what a
    row is of. Names in the first column are shortened in the middle; columns of prose go on in the next line; no other
    cell is cut or broken.
    """
    if not sheet.rows:
        return
    mark, more = find_mark(console), len(sheet.rows) - FIRST - LAST
    if more > 1:
        told = (f"{mark} {more:,} more", *[""] * (len(sheet.headers) - 1))
        sheet = replace(sheet, rows=(*sheet.rows[:FIRST], told, *sheet.rows[-LAST:]))
    for number, (header, *lines) in enumerate(lay_out(sheet, console.width, mark)):
        if number or before:
            console.print()
        console.print(header, style="bold", soft_wrap=True)
        console.print("\n".join(lines), soft_wrap=True)
    if more > 1:
        print_lines(console, [f"all {more + FIRST + LAST:,} rows are in {whole}"])
    if after:
        console.print()


def find_mark(console: Console) -> str:
    """What stands in place of what is cut."""
    return "…" if console.encoding.startswith("utf") else "..."


def lay_out(sheet: Sheet, width: int, mark: str = "…") -> list[list[str]]:
    """The lines of each part of the table: the lines of its headers as one text, then those of its rows."""
    cells = [[escape_controls(cell) for cell in row] for row in (sheet.headers, *sheet.rows)]
    heads, body, prose = cells[0], cells[1:], sheet.prose
    left = {*range(sheet.keys), *prose} if sheet.named else {*range(len(heads))}
    least = [_widest(head.split()) for head in heads]
    full = [max(_widest([row[i] for row in body]), least[i]) for i in range(len(heads))]
    words = [_widest([word for row in body for word in row[i].split()]) for i in range(len(heads))]
    small = [min(each, max(words[i], LEAST_PROSE)) if i in prose else each for i, each in enumerate(full)]
    small[0] = max(least[0], min(full[0], LEAST_NAME))
    groups = _group(small, width, sheet.keys)
    parts = []
    for group in groups:
        room = width - len(GAP) * (len(group) - 1)
        flush = [i in left for i in group]
        widths = _widen([small[i] for i in group], [full[i] for i in group], room)
        wide = [max(full[i], cell_len(heads[i])) for i in group]  # headers in one line where there is room for them
        widths = _widen(widths, wide, room)
        names = shorten_all([row[0] for row in body], widths[0], mark)
        lines = [_wrap_header([heads[i] for i in group], widths, flush)]
        for name, row in zip(names, body, strict=True):
            folded = [
                name if i == 0 else _fold(row[i], size) if i in prose else [row[i]]
                for i, size in zip(group, widths, strict=True)
            ]
            lines += _align(folded, widths, flush)
        parts.append(lines)
    return parts


def shorten_all(names: Sequence[str], width: int, mark: str) -> list[list[str]]:
    """Each name in one line, shortened in the middle where no two look alike then; otherwise folded into several."""
    different = dict.fromkeys(names)
    most = (width - cell_len(mark)) // 3
    for front in range(most, -1, -1):
        short = {name: shorten(name, width, mark, front) for name in different}
        if len({*short.values()}) == len(short):
            return [[short[name]] for name in names]
    return [textwrap.wrap(name, width, break_on_hyphens=False, drop_whitespace=False) or [""] for name in names]


def shorten(name: str, width: int, mark: str, front: int) -> str:
    """A name that is wider with ``mark`` in place of what does not fit behind its first ``front`` columns."""
    if cell_len(name) <= width:
        return name
    back = width - cell_len(mark) - front
    return set_cell_size(name, front) + mark + set_cell_size(name[::-1], back)[::-1]


def _group(sizes: Sequence[int], width: int, keys: int) -> list[list[int]]:
    """The columns of each part of a table; each part begins with the keys, and has one column more at least."""
    first = list(range(keys))
    groups = [list(first)]
    for column in range(keys, len(sizes)):
        group = [*groups[-1], column]
        if len(groups[-1]) > keys and sum(sizes[i] for i in group) + len(GAP) * (len(group) - 1) > width:
            groups.append([*first, column])
        else:
            groups[-1] = group
    return groups


def _widen(widths: Sequence[int], wanted: Sequence[int], room: int) -> list[int]:
    """Columns made wider, up to what is wanted, as far as there is room: those that lack most first."""
    found = list(widths)
    while sum(found) < room:
        lack = [most - size for most, size in zip(wanted, found, strict=True)]
        if max(lack) <= 0:
            break
        found[lack.index(max(lack))] += 1
    return found


def _wrap_header(heads: Sequence[str], widths: Sequence[int], left: Sequence[bool]) -> str:
    """The headers, broken at words where their columns are narrower; they stand on the line above the rows."""
    folded = [_fold(head, size) for head, size in zip(heads, widths, strict=True)]
    depth = max(map(len, folded))
    return "\n".join(_align([[""] * (depth - len(each)) + each for each in folded], widths, left))


def _fold(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def _align(cells: Sequence[Sequence[str]], widths: Sequence[int], left: Sequence[bool]) -> list[str]:
    """The lines of a row whose cells have one or more lines."""
    lines = []
    for depth in range(max(map(len, cells))):
        texts = [each[depth] if depth < len(each) else "" for each in cells]
        padded = [
            text + " " * (size - cell_len(text)) if flush else " " * (size - cell_len(text)) + text
            for text, size, flush in zip(texts, widths, left, strict=True)
        ]
        lines.append(GAP.join(padded).rstrip())
    return lines


def _widest(texts: Sequence[str]) -> int:
    return max(map(cell_len, texts), default=0)
