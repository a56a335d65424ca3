"""Files of texts: the lines of .txt, columns of .csv and .tsv, and keys of .jsonl, with their line numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from ..config import DataConfig
from ..errors import DataError

SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl")
# Columns and keys that are read where the settings name none.
DEFAULT_COLUMNS = ("text", "sentence")


class Row(NamedTuple):
    """A row's texts, one from each column that is read, and the number of the row's last line.

    A blank line is a row of one empty text, however many columns are read.
    """

    line: int
    texts: tuple[str, ...]


def read_rows(path: Path, config: DataConfig) -> Iterator[Row]:
    """The rows of a file, read one at a time. Raises DataError."""
    if path.suffix.lower() == ".txt":
        if config.text_column or config.pairs:
            raise DataError(f"{path}: a .txt holds one text a line and no columns; leave out --text-column and --pairs")
        return (Row(number, (line.rstrip("\r\n"),)) for number, line in enumerate(_read_lines(path), 1))
    if config.pairs and len(config.text_column) != 2:
        raise DataError(
            f"{path}: pairs: found {len(config.text_column)} columns; a pair needs two; give --text-column A,B"
        )
    read = _read_jsonl if path.suffix.lower() == ".jsonl" else _read_table
    return read(path, config.text_column)


def _read_lines(path: Path) -> Iterator[str]:
    """The lines of a file, with their ends. Raises DataError."""
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text:  # a file may hold a byte order mark alone
                    yield text
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; make it readable") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: line {number}: not UTF-8 text ({error.reason}); save the file as UTF-8") from None


def _read_table(path: Path, wanted: tuple[str, ...]) -> Iterator[Row]:
    """The rows of a .csv or .tsv; a .csv whose first row has more tabs than commas is separated by tabs.

    Between tabs, quotes are plain characters, as in the files of data sets.
    """
    lines, head = _read_lines(path), []
    for line in lines:
        head.append(line)
        if line.strip():
            break
    tabs = path.suffix.lower() == ".tsv" or (bool(head) and head[-1].count("\t") > head[-1].count(","))
    options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    rows = csv.reader(chain(head, lines), **options)
    columns: list[int] = []
    try:
        for row in rows:
            if len(row) < 2 and not "".join(row).strip():
                yield Row(rows.line_num, ("",))
                continue
            if not columns:
                columns, headed = _choose_columns(path, row, wanted)
                if headed:
                    continue
            if len(row) <= max(columns):
                raise DataError(
                    f"{path}: line {rows.line_num}: found {len(row)} columns; column {max(columns) + 1} is needed; mend"
                    " the row"
                )
            yield Row(rows.line_num, tuple(row[column] for column in columns))
    except csv.Error as error:
        raise DataError(f"{path}: line {rows.line_num}: not CSV ({error}); mend the row") from None


def _choose_columns(path: Path, first: list[str], wanted: tuple[str, ...]) -> tuple[list[int], bool]:
    """Indices of the columns to read, from 0, and whether the first row is a header. Raises DataError."""
    if not wanted:
        usual = [name for name in DEFAULT_COLUMNS if name in first]
        if usual or len(first) == 1:
            return [first.index(usual[0]) if usual else 0], bool(usual)
    elif all(name in first for name in wanted):
        return [first.index(name) for name in wanted], True
    elif all(name.isdecimal() and 1 <= int(name) <= len(first) for name in wanted):
        return [int(name) - 1 for name in wanted], False
    found = next((repr(name) for name in wanted if name not in first), "none")
    raise DataError(
        f"{path}: text_column: found {found}; the columns are {', '.join(map(repr, first))}; give --text-column one of"
        f" these, or a number from 1 to {len(first)} where the first row is no header"
    )


def _read_jsonl(path: Path, wanted: tuple[str, ...]) -> Iterator[Row]:
    """The rows of a .jsonl, whose lines are objects with texts, or texts."""
    for number, line in enumerate(_read_lines(path), 1):
        if not line.strip():
            yield Row(number, ("",))
            continue
        where = f"{path}: line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({error}); write one object a line") from None
        if isinstance(value, str) and not wanted:
            yield Row(number, (value,))
            continue
        if not isinstance(value, dict):
            raise DataError(f"{where}: found {type(value).__name__}; write an object with the text under a key")
        keys = wanted or tuple(name for name in DEFAULT_COLUMNS if name in value)[:1]
        missing = next((repr(name) for name in keys if name not in value), None if keys else "none")
        if missing is not None:
            had = ", ".join(map(repr, value)) or "none"
            raise DataError(f"{where}: text_column: found {missing}; the keys are {had}; give one of these")
        for name in keys:
            if not isinstance(value[name], str):
                raise DataError(f"{where}: {name!r} is {type(value[name]).__name__}; a text is needed; mend the line")
        yield Row(number, tuple(value[name] for name in keys))
