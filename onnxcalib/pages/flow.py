"""The blocks of a graph as a drawing, coloured by what is lost up to each: small enough for hundreds of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .content import Box, Data, Drawing, Section

COLUMNS = 40  # blocks side by side; the drawing goes on below
STEP, SIZE, ROOM = 26, 16, 18  # from block to block, of a block, and above a row for lines that skip blocks
# SQNR in dB at the end of a block, from which on it has the next colour.
LEVELS = (10.0, 20.0, 30.0, 40.0)


def draw_flow(places: Sequence[Data], decibels: Mapping[str, float | None]) -> Section | None:
    """The section of the graph. decibels: layer -> SQNR of its output. None for fewer than two blocks."""
    if len(places) < 2:
        return None
    column: dict[str, int] = {}
    for each in places:
        column[each["name"]] = 1 + max((column[name] for name in each["after"] if name in column), default=-1)
    lanes: dict[int, int] = {}
    lane: dict[str, int] = {}
    for each in places:
        lane[each["name"]] = lanes.get(column[each["name"]], 0)
        lanes[column[each["name"]]] = lane[each["name"]] + 1
    tops, height = _stack(lanes)
    spots = {
        name: (STEP * (place % COLUMNS) + SIZE / 2, tops[place // COLUMNS] + ROOM + STEP * lane[name] + SIZE / 2)
        for name, place in column.items()
    }
    boxes = tuple(_draw_box(each, *spots[each["name"]], decibels) for each in places)
    lines = [
        line
        for each in places
        for name in each["after"]
        if name in spots
        for line in _connect(spots[name], spots[each["name"]], column[each["name"]] - column[name])
    ]
    width = STEP * min(COLUMNS, max(lanes) + 1)
    text = f"{len(places)} blocks from left to right, row by row; colours are SQNR at the end of each, in dB"
    drawing = Drawing(text, width, height, boxes, tuple(filter(None, lines)), LEVELS, SIZE)
    return Section("graph", "Graph", (drawing,), "Each block has its name and numbers under the pointer.")


def _stack(lanes: Mapping[int, int]) -> tuple[list[float], float]:
    """The upper end of each row of blocks, and the lower end of the last."""
    tops, height = [], 0.0
    for start in range(0, max(lanes) + 1, COLUMNS):
        tops.append(height)
        height += ROOM + STEP * max(lanes.get(place, 1) for place in range(start, start + COLUMNS))
    return tops, height


def _draw_box(place: Data, x: float, y: float, decibels: Mapping[str, float | None]) -> Box:
    known = [(name, decibels[name]) for name in place["layers"] if decibels.get(name) is not None]
    last = known[-1][1] if known else None
    level = None if last is None else sum(last >= each for each in LEVELS)
    layers = "; ".join(f"{name} {each:.1f} dB" for name, each in known) or "no layer measured"
    return Box(x, y, level, f"{place['name']}: {layers}")


def _connect(start: tuple[float, float], end: tuple[float, float], columns: int) -> list[str]:
    """Paths of SVG from block to block; what goes on in another row leaves on the right and comes in on the left."""
    (x, y), (to_x, to_y), half = start, end, SIZE / 2
    if to_x <= x:  # in a row below
        right, left = STEP * COLUMNS - STEP + SIZE + 4, -4
        return [f"M{x + half} {y}H{right}" if columns < 2 else "", f"M{left} {to_y}H{to_x - half}"]
    if columns == 1:
        middle = (x + to_x) / 2
        return [f"M{x + half} {y}C{middle} {y} {middle} {to_y} {to_x - half} {to_y}"]
    rise = min(y, to_y) - half - min(4 + 2 * columns, ROOM - 4)
    return [f"M{x} {y - half}C{x} {rise} {to_x} {rise} {to_x} {to_y - half}"]
