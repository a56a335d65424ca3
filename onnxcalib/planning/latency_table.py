"""Times of layers as a user measured them elsewhere: a CSV file of layer, configuration and milliseconds."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from ..bitplan import FLOAT
from ..config import CANDIDATES
from ..errors import ConfigError, escape_controls, first_line, spell_value
from ..files.reading import read_text
from ..values import LATENCY, LONGEST, NUMBER

COLUMNS = ("layer", "configuration", "milliseconds")
MOST_TIME = LATENCY.most[1]  # milliseconds
SHOWN = 200  # letters of the header that messages show


def read_latencies(path: Path) -> dict[tuple[str, str], float]:
    """(layer, configuration) -> milliseconds; configurations are the candidates and float. Raises ConfigError."""
    text = read_text(path, ConfigError, give="give latencies a CSV file")
    columns = ", ".join(COLUMNS)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows, header = list(reader), tuple(reader.fieldnames or ())
    except csv.Error as error:
        raise ConfigError(f"{path}: not CSV: {first_line(error)}; write it with the columns {columns}") from None
    if not set(COLUMNS) <= set(header) or len(set(header)) < len(header):
        shown = escape_controls(", ".join(header)[:SHOWN]) or "none"
        raise ConfigError(f"{path}: found the columns {shown}; needed are {columns}, each once; correct them")
    if not rows:
        raise ConfigError(f"{path}: found no row; the times of all layers are needed; add them")
    found: dict[tuple[str, str], float] = {}
    for number, row in enumerate(rows, start=2):
        layer, configuration, text = (row[name] for name in COLUMNS)
        where = f"{path}: line {number}"
        if not layer:
            raise ConfigError(f"{where}: found no name of a layer; each row has one; add it")
        if None in row:
            raise ConfigError(f"{where}: found more cells than columns; write names with commas in quotes")
        if configuration not in (*CANDIDATES, FLOAT):
            allowed = ", ".join((*CANDIDATES, FLOAT))
            raise ConfigError(
                f"{where}: found configuration {spell_value(configuration)}; allowed: {allowed}; correct it"
            )
        if (layer, configuration) in found:
            raise ConfigError(f"{where}: {spell_value(layer)} at {configuration} is given twice; keep one")
        found[layer, configuration] = _read_time(where, text)
    return found


def _read_time(where: str, text: str | None) -> float:
    value = float(text) if text and NUMBER.fullmatch(text.strip()) and len(text) <= LONGEST else math.nan
    if not 0 <= value <= MOST_TIME:
        raise ConfigError(
            f"{where}: found {spell_value(text)}; milliseconds from 0 to {MOST_TIME:g} are needed; correct it"
        )
    return value
