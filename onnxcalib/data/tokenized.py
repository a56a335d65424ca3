"""Texts as model inputs: encoded by the model's own tokenizer, kept without padding."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..config import DataConfig
from ..errors import DataError, first_line
from ..files.reading import is_folder, read_text
from ..spec import InputSpec
from .arrays import Part, Texts
from .listing import shorten
from .packed import pack_texts
from .padding import MASK, POSITIONS
from .past import of_past
from .textfiles import Row, read_rows

# Inputs that can be made from texts, by the names that exporters give them.
GIVEN = ("input_ids", MASK, "token_type_ids", POSITIONS)
# Where neither the settings, the tokenizer nor the model limit the length: the number of positions of BERT.
MAX_TOKENS = 512
MOST_TOKENS = 2**20  # as the settings allow
PAD_TOKENS = ("[PAD]", "<pad>")  # names of the token that pads, where the tokenizer has no padding of its own
# Texts encoded at once, and their characters: until it is packed, an encoded text takes some 200 bytes a token.
CHUNK = 1024
CHUNK_CHARACTERS = 2**19
MOST_BYTES = 2**26  # of a tokenizer.json: those of 900,000 tokens have 61 MB, of which each takes 15 in memory
MOST_EMPTY = 1_000_000  # texts that are left out: a file with more is no file of texts
MOST_ID = np.iinfo(np.int32).max  # as the model's inputs are int32 or int64
GIVE = "give --tokenizer the model's tokenizer.json"
STDERR = 2  # the file of the process


class PadToken(NamedTuple):
    """The token that fills short rows, its token type, and whether it stands before the others."""

    id: int
    type_id: int
    left: bool


class Tokens:
    """An input's values (rows, tokens), stored without padding and padded when they are read.

    flat: the values of all rows, one row behind the other. ends: the index in ``flat`` behind each row's last value.
    """

    def __init__(self, flat: np.ndarray, ends: np.ndarray, length: int, dtype: np.dtype, pad: tuple[int, bool]):
        """``pad`` is the value that fills short rows, and whether it stands before the others."""
        self.shape, self.dtype = (len(ends), length), dtype
        self._flat, self._ends, self._pad = flat, ends, pad

    def __getitem__(self, rows: Sequence[int]) -> np.ndarray:
        """(len(rows), tokens)"""
        filling, left = self._pad
        values = np.full((len(rows), self.shape[1]), filling, self.dtype)
        for target, row in zip(values, rows, strict=True):
            found = self._flat[self._ends[row - 1] if row else 0 : self._ends[row]]
            target[slice(len(target) - len(found), None) if left else slice(len(found))] = found
        return values


class _Codes:
    """The texts encoded so far, and the numbers of those that were left out.

    unit: what the numbers count, lines of a file or texts of a list.
    """

    def __init__(self, where: str, unit: str) -> None:
        self.where, self.unit = where, unit
        self.ids: list[np.ndarray] = []
        self.types: list[np.ndarray] = []
        self.lengths: list[int] = []
        self.largest: list[int] = []
        self.skipped = 0
        self.first_skipped = 0

    def add(self, codes: Sequence[Any], lines: Sequence[int]) -> None:
        """Keep the encoded texts; a text without tokens is left out. Raises DataError for tokens out of range."""
        for line, code in zip(lines, codes, strict=True):
            ids = code.ids
            if not ids:
                self.skip(line)
                continue
            largest = max(ids)
            if max(largest, max(code.type_ids)) > MOST_ID:
                raise DataError(
                    f"{self.where}: the tokenizer makes token {largest} of {self.unit} {line}; {MOST_ID} is the most;"
                    f" {GIVE}"
                )
            self.lengths.append(len(ids))
            self.largest.append(largest)
            self.ids.append(np.array(ids, np.int32))
            self.types.append(np.array(code.type_ids, np.int32))

    def skip(self, line: int) -> None:
        """Leave out a text. Raises DataError where that is so of too many."""
        self.skipped += 1
        self.first_skipped = min(self.first_skipped, line) if self.first_skipped else line
        if self.skipped > MOST_EMPTY:
            raise DataError(f"{self.where}: more than {MOST_EMPTY:,} texts are empty; take them out")

    def tell_skipped(self) -> str:
        if not self.skipped:
            return ""
        count = f"{self.skipped} texts are" if self.skipped > 1 else "1 text is"
        return f"{self.where}: {count} empty and left out, the first at {self.unit} {self.first_skipped}"


def open_texts(path: Path, inputs: Sequence[InputSpec], config: DataConfig, limit: int | None) -> Part:
    """The texts of a file, of which at most ``limit`` are read. Raises DataError."""
    return _encode(_Codes(str(path), "line"), read_rows(path, config), inputs, config, limit)


def take_texts(texts: Iterable[str], inputs: Sequence[InputSpec], config: DataConfig, limit: int | None) -> Part:
    """Texts of Python, of which at most ``limit`` are read. Raises DataError."""
    if config.text_column or config.pairs:
        raise DataError("text_column: a list of texts has no columns; leave out text_column and pairs, or give a file")
    rows = (Row(number, (text,)) for number, text in enumerate(texts, 1))
    return _encode(_Codes("data", "text"), rows, inputs, config, limit)


def _encode(
    codes: _Codes, rows: Iterator[Row], inputs: Sequence[InputSpec], config: DataConfig, limit: int | None
) -> Part:
    """A part of arrays (samples, tokens), of the longest text's length or of the one that the model fixes."""
    fixed = check_inputs(codes.where, inputs)
    if config.sequence_length is not None:
        return _pack(codes, rows, inputs, config, limit=limit, fixed=fixed)
    tokenizer, pad = _open_tokenizer(codes.where, config, fixed)
    samples = _list_samples(codes, rows, pairs=config.pairs)
    while chunk := _take_chunk(samples, CHUNK if limit is None else min(CHUNK, limit - len(codes.lengths))):
        lines, found = zip(*chunk, strict=True)
        where = f"{codes.where}: {config.tokenizer} cannot encode {codes.unit}s {lines[0]} to {lines[-1]}"
        with _guard(where, "give the model's own tokenizer.json, or another --max-length"):
            encoded = tokenizer.encode_batch(found)
        codes.add(encoded, lines)
    if not codes.lengths:
        raise DataError(f"{codes.where}: found no text; give at least one")
    lengths = np.array(codes.lengths)
    ends = np.cumsum(lengths)
    length = fixed or int(lengths.max())
    arrays = {}
    for spec in inputs:
        if of_past(spec):
            continue
        filling = {"input_ids": pad.id, "token_type_ids": pad.type_id}.get(spec.name, 0)
        flat = _join(spec.name, codes, ends)
        arrays[spec.name] = Tokens(flat, ends, length, np.dtype(spec.dtype), (filling, pad.left))
    facts = Texts(codes.where, str(config.tokenizer), lengths, np.array(codes.largest), pad.left, codes.tell_skipped())
    return Part(codes.where, arrays, texts=facts)


def _pack(
    codes: _Codes,
    rows: Iterator[Row],
    inputs: Sequence[InputSpec],
    config: DataConfig,
    *,
    limit: int | None,
    fixed: int | None,
) -> Part:
    """A part of arrays (sequences, tokens), of all texts one behind the other."""
    length = config.sequence_length
    assert length is not None
    if fixed not in (None, length):
        raise DataError(f"sequence_length: found {length}; the model takes {fixed} tokens; give these")
    tokenizer = _load_tokenizer(codes.where, config.tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = (text for line, found in rows for text in found if _check_text(codes, line, text))

    def encode(text: str, special: bool) -> Any:
        with _guard(f"{codes.where}: {config.tokenizer} cannot encode the text", GIVE):
            return tokenizer.encode(text, add_special_tokens=special)

    ids = pack_texts(codes.where, texts, encode, length, limit=limit)
    largest = ids.max(axis=1)
    if largest.max() > MOST_ID:
        raise DataError(f"{codes.where}: the tokenizer makes token {largest.max()}; {MOST_ID} is the most; {GIVE}")
    values = {
        "input_ids": ids,
        MASK: np.ones_like(ids),
        POSITIONS: np.broadcast_to(np.arange(length), ids.shape),
        "token_type_ids": np.zeros_like(ids),
    }
    arrays = {spec.name: values[spec.name].astype(spec.dtype) for spec in inputs if not of_past(spec)}
    facts = Texts(codes.where, str(config.tokenizer), np.full(len(ids), length), largest, False, "")
    return Part(codes.where, arrays, texts=facts)


def _check_text(codes: _Codes, line: int, text: str) -> bool:
    """True for a text that can be encoded. Raises DataError for one that cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{codes.where}: {codes.unit} {line}: found {text[error.start]!r}, a lone surrogate, which is no"
            " character; mend the text"
        ) from None
    return True


def _list_samples(codes: _Codes, rows: Iterator[Row], *, pairs: bool) -> Iterator[tuple[int, Any]]:
    """The line and the text of each sample, or with ``pairs`` the two texts of a row; empty ones are left out."""
    for line, texts in rows:
        for text in texts:
            _check_text(codes, line, text)
        for sample in [texts] if pairs else [(text,) for text in texts]:
            if all(text.strip() for text in sample):
                yield line, sample if pairs else sample[0]
            else:
                codes.skip(line)


def _take_chunk(samples: Iterator[tuple[int, Any]], count: int) -> list[tuple[int, Any]]:
    """The next ``count`` samples, or less where they have CHUNK_CHARACTERS."""
    chunk: list[tuple[int, Any]] = []
    characters = 0
    while len(chunk) < count and characters < CHUNK_CHARACTERS:
        sample = next(samples, None)
        if sample is None:
            break
        chunk.append(sample)
        characters += len(sample[1]) if isinstance(sample[1], str) else sum(map(len, sample[1]))
    return chunk


def _join(name: str, codes: _Codes, ends: np.ndarray) -> np.ndarray:
    """An input's values for all texts, one text behind the other."""
    if name == MASK:
        return np.broadcast_to(np.uint8(1), ends[-1])
    if name == POSITIONS:
        starts = np.repeat(ends - codes.lengths, codes.lengths)
        return (np.arange(ends[-1]) - starts).astype(np.int32)
    return np.concatenate(codes.ids if name == "input_ids" else codes.types)


def check_inputs(where: Any, inputs: Sequence[InputSpec]) -> int | None:
    """The number of tokens that the model fixes, if it does. Raises DataError for inputs that texts cannot give."""
    fixed = None
    for spec in inputs:
        dtype = np.dtype(spec.dtype)
        if of_past(spec):
            continue
        if spec.name not in GIVEN:
            raise DataError(
                f"{where}: the model's input {spec.name!r} is none of {', '.join(GIVEN)}, which a tokenizer gives, and"
                " no past of floats with an open number of tokens; give .npz files with all inputs"
            )
        if dtype not in (np.int64, np.int32) or (spec.shape is not None and len(spec.shape) != 2):
            raise DataError(
                f"{where}: texts become int64 or int32 of (samples, tokens); the model's input {spec.name!r} is"
                f" {dtype} of {'any shape' if spec.shape is None else len(spec.shape)} axes; give .npz files"
            )
        fixed = fixed or (spec.shape[1] if spec.shape is not None else None)
    return fixed


def _open_tokenizer(where: Any, config: DataConfig, fixed: int | None) -> tuple[Any, PadToken]:
    """The tokenizer, set to truncate and not to pad, and the token that pads. Raises DataError."""
    tokenizer = _load_tokenizer(where, config.tokenizer)
    own = tokenizer.truncation or {}
    length = config.max_length or min(own.get("max_length", MAX_TOKENS), MOST_TOKENS)
    if fixed is not None:
        if config.max_length is not None and config.max_length > fixed:
            raise DataError(f"max_length: found {config.max_length}; the model takes {fixed} tokens; give no more")
        length = min(length, fixed)
    special = tokenizer.num_special_tokens_to_add(is_pair=config.pairs)
    if length <= special:
        raise DataError(
            f"max_length: found {length}; {special} are the tokenizer's own, so that none is left for text; give more"
        )
    # The strategy concerns pairs only. The stride is left out: what is truncated makes no samples of its own.
    strategy = own.get("strategy", "longest_first") if config.pairs else "longest_first"
    with _guard(f"{config.tokenizer}: not a tokenizer", GIVE):
        tokenizer.enable_truncation(length, strategy=strategy, direction=own.get("direction", "right"))
    padding = tokenizer.padding or {}
    token = padding.get("pad_id")
    if token is None:
        token = next((i for i in map(tokenizer.token_to_id, PAD_TOKENS) if i is not None), 0)
    tokenizer.no_padding()
    pad = PadToken(token, padding.get("pad_type_id", 0), padding.get("direction") == "left")
    if max(pad.id, pad.type_id) > MOST_ID:
        raise DataError(
            f"{config.tokenizer}: pads with token {pad.id} of type {pad.type_id}; {MOST_ID} is the most; {GIVE}"
        )
    return tokenizer, pad


def _load_tokenizer(where: Any, path: str | None) -> Any:
    if path is None:
        raise DataError(f"{where}: texts need the model's tokenizer; give --tokenizer its tokenizer.json")
    if is_folder(Path(path), DataError, give=GIVE):
        raise DataError(f"{path}: found a folder; give --tokenizer the file tokenizer.json in it")
    text = read_text(Path(path), DataError, give=GIVE, most=MOST_BYTES)
    from tokenizers import Tokenizer

    with _guard(f"{path}: not a tokenizer", GIVE):
        tokenizer = Tokenizer.from_str(text)
        if getattr(tokenizer.model, "dropout", None):  # it draws other tokens in each run, and is for training alone
            tokenizer.model.dropout = None
        return tokenizer


@contextmanager
def _guard(found: str, advice: str) -> Iterator[None]:
    """Raise DataError in place of whatever the package raises, which has no class of its own."""
    try:
        with _hold_stderr():
            yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        raise DataError(f"{found} ({shorten(first_line(error))}); {advice}") from None


@contextmanager
def _hold_stderr() -> Iterator[None]:
    """Hold back what is written to the standard error, and drop it where Rust panics: its traces are of no use.

    Rust writes to the file of the process, past Python's ``sys.stderr``.
    """
    try:
        held = tempfile.TemporaryFile()
        original = os.dup(STDERR)
    except OSError:  # there is no standard error, or no room
        yield
        return
    panicked = False
    with os.fdopen(original, "wb", buffering=0) as kept, held:
        os.dup2(held.fileno(), STDERR)
        try:
            yield
        except BaseException as error:
            panicked = not isinstance(error, (Exception, KeyboardInterrupt, SystemExit))
            raise
        finally:
            os.dup2(original, STDERR)
            if not panicked:
                held.seek(0)
                kept.write(held.read())
