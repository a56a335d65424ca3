"""Texts as model inputs: read from lines, columns or JSON lines, and encoded by the model's own tokenizer."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from onnxcalib.arrays import Part
from onnxcalib.config import DataConfig
from onnxcalib.errors import DataError
from onnxcalib.slabs import MASK, POSITIONS
from onnxcalib.spec import InputSpec

SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl")
# What a tokenizer gives, by the names of inputs that exporters give them.
GIVEN = ("input_ids", MASK, "token_type_ids", POSITIONS)
# Columns and keys that hold the texts where none is named.
USUAL = ("text", "sentence")
# Tokens where neither the settings, the tokenizer nor the model say how many: those of BERT's table of positions.
MOST_TOKENS = 512
PADDING = ("[PAD]", "<pad>")


def open_texts(path: Path, inputs: Sequence[InputSpec], config: DataConfig, limit: int | None) -> Part:
    """The texts of a file as one part, those behind the first ``limit`` samples unread."""
    return _encode(path, _read_samples(path, config), inputs, config, limit)


def take_texts(texts: Sequence[str], inputs: Sequence[InputSpec], config: DataConfig, limit: int | None) -> Part:
    """A list of texts as one part."""
    if config.text_column or config.pairs:
        raise DataError("text_column: a list of texts has no columns; leave out text_column and pairs, or give a file")
    return _encode("data", iter(texts), inputs, config, limit)


def _encode(where: Any, samples: Iterator[Any], inputs: Sequence[InputSpec], config: DataConfig, limit) -> Part:
    """Arrays (samples, tokens), padded to the longest, or to what the model fixes; a mask has 1 for every token."""
    fixed = _check_inputs(where, inputs)
    tokenizer, padding = _open_tokenizer(where, config, fixed)
    found = list(islice(samples, limit))
    if not found:
        raise DataError(f"{where}: found no text; give at least one")
    codes = tokenizer.encode_batch(found)
    length = fixed or max(len(code.ids) for code in codes)
    arrays = {}
    for spec in inputs:
        values = np.full((len(codes), length), padding if spec.name == "input_ids" else 0, np.dtype(spec.dtype))
        for row, code in zip(values, codes, strict=True):
            row[: len(code.ids)] = _values(spec.name, code)
        arrays[spec.name] = values
    return Part(str(where), arrays, lengths=np.array([len(code.ids) for code in codes]))


def _values(name: str, code: Any) -> Sequence[int]:
    """What one encoded text gives an input."""
    if name == POSITIONS:
        return range(len(code.ids))
    return {"input_ids": code.ids, MASK: code.attention_mask, "token_type_ids": code.type_ids}[name]


def _check_inputs(where: Any, inputs: Sequence[InputSpec]) -> int | None:
    """Refuse inputs that a tokenizer cannot give; the number of tokens that the model fixes, if it does."""
    fixed = None
    for spec in inputs:
        dtype = np.dtype(spec.dtype)
        if spec.name not in GIVEN:
            raise DataError(
                f"{where}: the model's input {spec.name!r} is none of {', '.join(GIVEN)}, which a tokenizer gives;"
                " give .npz files with all inputs"
            )
        if dtype not in (np.int64, np.int32) or (spec.shape is not None and len(spec.shape) != 2):
            raise DataError(
                f"{where}: texts become int64 or int32 of (samples, tokens); the model's input {spec.name!r} is"
                f" {dtype} of {'any shape' if spec.shape is None else len(spec.shape)} axes; give .npz files"
            )
        fixed = fixed or (spec.shape[1] if spec.shape is not None else None)
    return fixed


def _open_tokenizer(where: Any, config: DataConfig, fixed: int | None) -> tuple[Any, int]:
    """The tokenizer, which truncates and does not pad, and the token that stands for padding."""
    if config.tokenizer is None:
        raise DataError(f"{where}: texts need the model's tokenizer; give --tokenizer its tokenizer.json")
    if not Path(config.tokenizer).is_file():
        raise DataError(f"{config.tokenizer}: no such file; give --tokenizer the model's tokenizer.json")
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(config.tokenizer)
    except Exception as error:  # the package raises no class of its own
        raise DataError(
            f"{config.tokenizer}: not a tokenizer ({error}); give --tokenizer the model's tokenizer.json"
        ) from None
    length = config.max_length or (tokenizer.truncation or {}).get("max_length", MOST_TOKENS)
    if fixed is not None:
        if config.max_length is not None and config.max_length > fixed:
            raise DataError(f"max_length: found {config.max_length}; the model takes {fixed} tokens; give no more")
        length = min(length, fixed)
    special = tokenizer.num_special_tokens_to_add(is_pair=config.pairs)
    if length <= special:
        raise DataError(
            f"max_length: found {length}; {special} are the tokenizer's own, so that none is left for text; give more"
        )
    padding = (tokenizer.padding or {}).get("pad_id")
    if padding is None:
        padding = next((i for i in map(tokenizer.token_to_id, PADDING) if i is not None), 0)
    tokenizer.enable_truncation(length)
    tokenizer.no_padding()
    return tokenizer, padding


def _read_samples(path: Path, config: DataConfig) -> Iterator[Any]:
    """One text a sample, row after row; with ``pairs`` the two texts of a row."""
    if path.suffix.lower() == ".txt":
        if config.text_column or config.pairs:
            raise DataError(f"{path}: a .txt holds a text a line, no columns; leave out --text-column and --pairs")
        yield from (line for _, line in _lines(path))
        return
    if config.pairs and len(config.text_column) != 2:
        raise DataError(
            f"{path}: pairs: found {len(config.text_column)} columns; a pair is of two; give --text-column A,B"
        )
    rows = _read_jsonl if path.suffix.lower() == ".jsonl" else _read_table
    for texts in rows(path, config.text_column):
        if config.pairs:
            yield tuple(texts)
        else:
            yield from texts


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that hold more than blanks, with their numbers."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; make it readable") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from None


def _read_table(path: Path, wanted: tuple[str, ...]) -> Iterator[list[str]]:
    """The texts of each row. In tab-separated files quotes are plain characters, as data sets have them there."""
    lines = [line + "\n" for _, line in _lines(path)]
    if not lines:
        return
    tabs = path.suffix.lower() == ".tsv" or ("\t" in lines[0] and "," not in lines[0])
    rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines, strict=True)
    try:
        first = next(rows)
        places, headed = _choose_columns(path, first, wanted)
        if not headed:
            yield [first[place] for place in places]
        for row in rows:
            if len(row) <= max(places):
                raise DataError(
                    f"{path}: row {rows.line_num}: found {len(row)} columns; column {max(places) + 1} is to be read;"
                    " mend the row"
                )
            yield [row[place] for place in places]
    except csv.Error as error:
        raise DataError(f"{path}: row {rows.line_num}: not CSV ({error}); mend the row") from None


def _choose_columns(path: Path, first: list[str], wanted: tuple[str, ...]) -> tuple[list[int], bool]:
    """Places of the columns, from 0, and whether the first row is a header."""
    if not wanted:
        usual = [name for name in USUAL if name in first]
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


def _read_jsonl(path: Path, wanted: tuple[str, ...]) -> Iterator[list[str]]:
    """The texts of each line: of an object's keys, or a text by itself."""
    for number, line in _lines(path):
        where = f"{path}: line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({error}); write an object a line") from None
        if isinstance(value, str) and not wanted:
            yield [value]
            continue
        if not isinstance(value, dict):
            raise DataError(f"{where}: found {type(value).__name__}; write an object with the text under a key")
        keys = wanted or tuple(name for name in USUAL if name in value)[:1]
        missing = next((repr(name) for name in keys if name not in value), None if keys else "none")
        if missing is not None:
            had = ", ".join(map(repr, value)) or "none"
            raise DataError(f"{where}: text_column: found {missing}; the keys are {had}; give one of these")
        for name in keys:
            if not isinstance(value[name], str):
                raise DataError(f"{where}: {name!r} is {type(value[name]).__name__}; a text is needed; mend the line")
        yield [value[name] for name in keys]
