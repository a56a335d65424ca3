"""Times of layers as a user measured them elsewhere: a CSV file of layer, configuration and milliseconds."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from ..bitplan import FLOAT
from ..config import CANDIDATES
from ..errors import ConfigError

COLUMNS = ("layer", "configuration", "milliseconds")


def read_latencies(path: Path) -> dict[tuple[str, str], float]:
    """(layer, configuration) -> milliseconds; configurations are the candidates and float. Raises ConfigError."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows, header = list(reader), tuple(reader.fieldnames or ())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; give latencies a CSV file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: not CSV: {error}; write it with the columns {', '.join(COLUMNS)}") from None
    if not set(COLUMNS) <= set(header):
        raise ConfigError(f"{path}: found the columns {', '.join(header)}; needed are {', '.join(COLUMNS)}; add them")
    found: dict[tuple[str, str], float] = {}
    for number, row in enumerate(rows, start=2):
        layer, configuration, text = (row[name] for name in COLUMNS)
        where = f"{path}: line {number}"
        if configuration not in (*CANDIDATES, FLOAT):
            allowed = ", ".join((*CANDIDATES, FLOAT))
            raise ConfigError(f"{where}: found configuration {configuration!r}; allowed: {allowed}; correct it")
        if (layer, configuration) in found:
            raise ConfigError(f"{where}: {layer} at {configuration} is given twice; keep one")
        found[layer, configuration] = _read_time(where, text)
    return found


def _read_time(where: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ConfigError(f"{where}: found {text!r}; milliseconds of at least 0 are needed; correct it")
    return value
