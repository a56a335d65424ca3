"""Files of texts: the lines of .txt, columns of .csv and .tsv, and keys of .jsonl, with their line numbers."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..config import DataConfig
from ..errors import DataError, first_line
from ..files.reading import open_file, read_object, spell_fault
from .listing import quote, quote_some

SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl")
# Columns and keys that are read where the settings name none.
DEFAULT_COLUMNS = ("text", "sentence")
NUMBER = re.compile(r"[0-9]{1,8}")  # of a column; no file has more


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
        return (Row(number, (line.rstrip("\r\n"),)) for number, line in _read_lines(path, config.line_bytes))
    if config.pairs and len(config.text_column) != 2:
        raise DataError(
            f"{path}: pairs: found {len(config.text_column)} columns; a pair needs two; give --text-column A,B"
        )
    read = _read_jsonl if path.suffix.lower() == ".jsonl" else _read_table
    return read(path, config.text_column, config.line_bytes)


class Lines:
    """The lines of a file as text, with their ends. Raises DataError.

    number: that of the line read last, from 1. left: the bytes that the present row may still have; whoever reads rows
    calls ``start_row``.
    """

    def __init__(self, path: Path, most: int) -> None:
        self._path, self._most = path, most
        self.number = 0
        self.start_row()

    def start_row(self) -> None:
        self.left = self._most

    def __iter__(self) -> Iterator[str]:
        with open_file(self._path, DataError, give="give a file of texts") as file:
            while line := self._read(file):
                self.number += 1
                text = self._decode(line)
                if text:  # a file may hold a byte order mark alone
                    yield text

    def _read(self, file: BinaryIO) -> bytes:
        """The next line, of which no more than may be is read."""
        try:
            line = file.readline(self.left + 1)
        except OSError as error:
            raise DataError(f"{self._path}: {spell_fault(error)}; make it readable") from None
        self.left -= len(line)
        if self.left < 0:
            raise DataError(
                f"{self._path}: line {self.number + 1}: a line, or a row of several, is longer than {self._most:,}"
                " bytes; write one text a line, or raise --max-line"
            )
        return line

    def _decode(self, line: bytes) -> str:
        where = f"{self._path}: line {self.number}"
        if b"\0" in line:
            raise DataError(f"{where}: found a null byte, so that it is no UTF-8 text; save the file as UTF-8")
        try:
            return line.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8 text (at byte {error.start}); save the file as UTF-8") from None


def _read_lines(path: Path, most: int) -> Iterator[tuple[int, str]]:
    """The number of each line and its text, where a line is a row."""
    lines = Lines(path, most)
    for line in lines:
        yield lines.number, line
        lines.start_row()


def _read_table(path: Path, wanted: tuple[str, ...], most: int) -> Iterator[Row]:
    """The rows of a .csv or .tsv; a .csv whose first row has more tabs than commas is separated by tabs.

    Between tabs, quotes are plain characters, as in the files of data sets.
    """
    counted = Lines(path, most)
    lines, head = iter(counted), []
    for line in lines:
        head.append(line)
        if line.strip():
            break
        counted.start_row()
    tabs = path.suffix.lower() == ".tsv" or (bool(head) and head[-1].count("\t") > head[-1].count(","))
    csv.field_size_limit(max(csv.field_size_limit(), most))  # of the whole process; Lines has the limit of this file
    options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    rows = csv.reader(chain(head, lines), **options)
    columns: list[int] = []
    width = 0
    try:
        for row in rows:
            counted.start_row()
            if len(row) < 2 and not "".join(row).strip():
                yield Row(rows.line_num, ("",))
                continue
            if not columns:
                columns, headed = _choose_columns(path, row, wanted)
                width = len(row)
                if headed:
                    continue
            if len(row) != width:  # a comma that is not quoted moves texts into other columns
                raise DataError(
                    f"{path}: line {rows.line_num}: found {len(row)} columns; the first row has {width}; mend the row"
                )
            yield Row(rows.line_num, tuple(row[column] for column in columns))
    except csv.Error as error:
        raise DataError(f"{path}: line {rows.line_num}: not CSV ({first_line(error)}); mend the row") from None


def _choose_columns(path: Path, first: list[str], wanted: tuple[str, ...]) -> tuple[list[int], bool]:
    """Indices of the columns to read, from 0, and whether the first row is a header. Raises DataError."""
    if not wanted:
        usual = next((name for name in DEFAULT_COLUMNS if name in first), None)
        if usual is not None:
            return _choose_columns(path, first, (usual,))
        if len(first) == 1:
            return [0], False
    elif all(name in first for name in wanted):
        twice = next((name for name in wanted if first.count(name) > 1), None)
        if twice is not None:
            raise DataError(
                f"{path}: text_column: found {quote(twice)}, the name of {first.count(twice)} columns; a name of its"
                " own is needed; mend the header"
            )
        return [first.index(name) for name in wanted], True
    elif all(NUMBER.fullmatch(name) and 1 <= int(name) <= len(first) for name in wanted):
        return [int(name) - 1 for name in wanted], False
    found = next((quote(name) for name in wanted if name not in first), "none")
    raise DataError(
        f"{path}: text_column: found {found}; the columns are {quote_some(first, 20)}; give --text-column one of"
        f" these, or a number from 1 to {len(first)} where the first row is no header"
    )


def _read_jsonl(path: Path, wanted: tuple[str, ...], most: int) -> Iterator[Row]:
    """The rows of a .jsonl, whose lines are objects with texts, or texts."""
    for number, line in _read_lines(path, most):
        if not line.strip():
            yield Row(number, ("",))
            continue
        where = f"{path}: line {number}"
        try:
            value = json.loads(line, object_pairs_hook=read_object)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({first_line(error)}); write one object a line") from None
        if isinstance(value, str) and not wanted:
            yield Row(number, (value,))
            continue
        if not isinstance(value, dict):
            raise DataError(f"{where}: found {type(value).__name__}; write an object with the text under a key")
        keys = wanted or tuple(name for name in DEFAULT_COLUMNS if name in value)[:1]
        missing = next((quote(name) for name in keys if name not in value), None if keys else "none")
        if missing is not None:
            had = quote_some(value, 20) or "none"
            raise DataError(f"{where}: text_column: found {missing}; the keys are {had}; give one of these")
        for name in keys:
            if not isinstance(value[name], str):
                raise DataError(
                    f"{where}: {quote(name)} is {type(value[name]).__name__}; a text is needed; mend the line"
                )
        yield Row(number, tuple(value[name] for name in keys))
