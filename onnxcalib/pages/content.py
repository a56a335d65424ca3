"""What a page is made of: an outcome, gates, figures, and sections of tables, plots and texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

ABSENT = "–"
# Room beside the outermost of measured value, interval and limit, as a share of what lies between them.
MARGIN = 0.12
Data: TypeAlias = Mapping[str, Any]  # a record as its JSON has it


@dataclass(frozen=True)
class Scale:
    """Where a gate's numbers lie, in % of its drawing: the limit, what was measured, and the interval.

    least: whether values above the limit pass.
    """

    limit: float
    measured: float
    interval: tuple[float, float] | None
    least: bool

    @classmethod
    def of_gate(cls, gate: Data) -> Scale | None:
        """None for a gate without numbers."""
        limit, measured, interval = gate.get("limit"), gate.get("measured"), gate.get("interval")
        if limit is None or measured is None:
            return None
        ends = [end for end in interval or () if end is not None]
        known = [limit, measured, *ends]
        low, high = min(known), max(known)
        room = MARGIN * (high - low) or max(abs(high), 1.0)
        first, whole = low - room, high - low + 2 * room

        def place(value: float) -> float:
            return round(float(100 * (value - first) / whole), 2)

        drawn = (place(ends[0]), place(ends[1])) if len(ends) == 2 else None
        return cls(place(limit), place(measured), drawn, gate["name"].startswith("min_"))


@dataclass(frozen=True)
class Gate:
    """A gate in words, and drawn where it has numbers."""

    name: str
    passed: bool
    text: str
    scale: Scale | None = None


@dataclass(frozen=True)
class Figure:
    """One number that a reader looks for first. note: what it is compared with."""

    label: str
    value: str
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """sort: what rows are ordered by, in place of the text. share: 0 to 1, drawn as a bar. tone: good or bad."""

    text: str
    sort: float | None = None
    share: float | None = None
    tone: str = ""


@dataclass(frozen=True)
class Column:
    """number: cells are aligned right and ordered as numbers. choices: rows can be filtered by its values."""

    title: str
    number: bool = False
    choices: bool = False


@dataclass(frozen=True)
class Table:
    """caption: what it holds, for those who do not see it. searched: rows can be sorted and filtered.

    details: of each row, keys of plots that are drawn when the row is opened; empty without any.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    searched: bool = False
    details: tuple[tuple[str, ...], ...] = ()
    kind: str = field(default="table", init=False)

    def choices_of(self, number: int) -> list[str]:
        """The values of a column, by which rows can be filtered."""
        return sorted({row[number].text for row in self.rows})


@dataclass(frozen=True)
class Chart:
    """A plot: the name of its specification, its rows, and what it shows, in words."""

    key: str
    spec: str
    rows: tuple[Data, ...]
    text: str
    kind: str = field(default="chart", init=False)


@dataclass(frozen=True)
class Lines:
    """Texts in a list, of which each may be long."""

    lines: tuple[str, ...]
    kind: str = field(default="lines", init=False)


@dataclass(frozen=True)
class Facts:
    """Names and values side by side."""

    caption: str
    pairs: tuple[tuple[str, str], ...]
    kind: str = field(default="facts", init=False)


@dataclass(frozen=True)
class Code:
    """Text to copy."""

    label: str
    text: str
    kind: str = field(default="code", init=False)


@dataclass(frozen=True)
class Box:
    """A block of a drawing, by its middle. level: which of the colours it has; None where nothing is known."""

    x: float
    y: float
    level: int | None
    text: str


@dataclass(frozen=True)
class Drawing:
    """Blocks that lines connect. lines: paths of SVG; levels: the ends between the colours; size: of a block."""

    text: str
    width: float
    height: float
    boxes: tuple[Box, ...]
    lines: tuple[str, ...]
    levels: tuple[float, ...]
    size: float
    kind: str = field(default="drawing", init=False)


Part: TypeAlias = Table | Chart | Lines | Facts | Code | Drawing


@dataclass(frozen=True)
class Section:
    """key: its anchor. lead: a sentence in front of the parts."""

    key: str
    title: str
    parts: tuple[Part, ...]
    lead: str = ""


@dataclass(frozen=True)
class Page:
    """title: what was run; subject: on what. passed: None where nothing is judged. outcome: in a sentence.

    judged: what the gates are called. details: plots of single rows by key, which are drawn when the row is opened.
    """

    title: str
    subject: str
    outcome: str
    passed: bool | None = None
    gates: tuple[Gate, ...] = ()
    judged: str = "Gates"
    figures: tuple[Figure, ...] = ()
    sections: tuple[Section, ...] = ()
    details: Mapping[str, Chart] = field(default_factory=dict)


def without_empty(table: Table) -> Table:
    """The table without columns that have nothing in any row; the first one stays."""
    kept = [0, *(i for i in range(1, len(table.columns)) if any(row[i].text not in ("", ABSENT) for row in table.rows))]
    rows = tuple(tuple(row[i] for i in kept) for row in table.rows)
    return replace(table, columns=tuple(table.columns[i] for i in kept), rows=rows)


def make_table(caption: str, headers: Iterable[str], rows: Iterable[Iterable[str]], *, numbers: int = 0) -> Table:
    """A plain table of texts, of which the last ``numbers`` columns are numbers."""
    names = list(headers)
    columns = tuple(Column(name, number=place >= len(names) - numbers) for place, name in enumerate(names))
    return without_empty(Table(caption, columns, tuple(tuple(Cell(text) for text in row) for row in rows)))


def spell_number(value: float | None, form: str = ".2f") -> str:
    return ABSENT if value is None else format(value, form)


def spell_bytes(count: float) -> str:
    """With a unit that keeps three digits: ``1.23 MB``; of few bytes their number."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.9995 * size:  # less has three digits in a smaller unit
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:,.0f} {unit}"
    return f"{count:,.0f} B"


def spell_seconds(seconds: float) -> str:
    """Seconds, minutes or hours, as exact as an estimate is."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def spell_shape(shape: Iterable[int | str | None] | None) -> str:
    """``1x3x224x224``, with ``?`` for a dimension without a size or a name; apart where names are words."""
    if shape is None:
        return "?"
    sizes = ["?" if each is None else str(each) for each in shape]
    words = any(len(each) > 1 and not each.isdigit() for each in sizes)
    return (" x " if words else "x").join(sizes) or "scalar"


def spell_grid(grid: Data | None) -> str:
    """Of a record of ``inspect``: ``int8 symmetric, a scale each channel``."""
    if grid is None:
        return "float"
    name, bits, scales = grid["type"].rpartition(".")[2], grid["bits"], grid["scales"]  # without another tool's domain
    counted = f" ({bits} bits)" if bits is not None and not name.endswith(str(bits)) else ""
    kind = {True: " symmetric", False: " asymmetric", None: ""}[grid["symmetric"]]
    spread = {"run": "scale found in each run", "tensor": "one scale"}.get(scales, f"a scale each {scales}")
    return f"{name}{counted}{kind}, {spread}"


def spell_interval(ends: Iterable[float] | None, form: str = ".2f", scale: float = 1.0) -> str:
    """``1.20 to 3.40``; empty without ends."""
    found = [end for end in ends or () if end is not None]
    return f"{scale * found[0]:{form}} to {scale * found[1]:{form}}" if len(found) == 2 else ""
