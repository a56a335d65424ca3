"""The class of each sample, from a file beside the data or from the data themselves."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..errors import DataError
from .arrays import CLASS, LABELS, check_labels, load_labels
from .calibration_set import CalibrationSet

Entries = list[tuple[str, str]]  # (file, class) as they are written
SHOWN = 3  # names in a message
SHOWN_LENGTH = 40  # characters of what should be a class: a file of another kind may hold anything there
_NUMBER = re.compile(r"[+-]?([0-9]{1,18}\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"[+-]?[0-9]+")


def choose_labels(path: Path | None, samples: CalibrationSet) -> np.ndarray | None:
    """(samples,): those of the file, else those that the data carry, else None; DataError where they are no numbers."""
    return samples.labels if path is None else read_labels(path, samples)


def read_labels(path: Path, samples: CalibrationSet) -> np.ndarray:
    """(samples,) from a file that gives every sample a class.

    .csv: rows of file,class, with or without a header; .json: {file: class}; the files are relative to the folder of
    the data. .npy, .npz with an array of labels, .txt, or .csv of one column where the samples have no files of their
    own: one number a sample, in their order. Raises DataError.
    """
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".json", ".txt", ".npy", ".npz"):
        raise DataError(
            f"{path}: not a file of labels; give .csv or .json of file and class, or .npy or .txt of one number each"
        )
    if not path.is_file():
        raise DataError(f"{path}: no such file; give --labels a .csv, .json, .txt, .npy or .npz file")
    if suffix in (".npy", ".npz"):
        return _take_in_order(path, np.atleast_1d(load_labels(path)), samples)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; make it readable") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from None
    if suffix == ".txt" or (suffix == ".csv" and samples.names is None and "," not in text):
        return _take_in_order(path, _read_column(path, text), samples)
    if samples.names is None:
        raise DataError(
            f"{path}: classes by file, but the samples have no files of their own; "
            "give .npy, .npz, or .txt or .csv of one column, of one integer a sample, in their order"
        )
    entries = _read_csv(path, text, set(samples.names)) if suffix == ".csv" else _read_json(path, text)
    return _match(path, _read_classes(path, entries), samples)


def find_list(samples: CalibrationSet) -> Path | None:
    """A list of labels in the folder of the samples, which is read only where it is asked for."""
    if samples.folder is None:
        return None
    places = (samples.folder / f"{name}{suffix}" for name in LABELS for suffix in (".csv", ".json"))
    return next((place for place in places if place.is_file()), None)


def check_classes(labels: np.ndarray, classes: int, where: str, *, names: Sequence[str] | None = None) -> None:
    """Raise DataError where a label is none of 0 to ``classes`` - 1; names: those of the samples, if any."""
    if labels.dtype.kind == "f":
        raise DataError(
            f"{where}: labels are {labels.dtype}; class indices are whole numbers from 0 on; give these, or --metric"
            " for labels of another meaning"
        )
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if not len(outside):
        return
    first = int(outside[0])
    advice = "give the class indices of the model's output"
    if labels.min() >= 1 and labels.max() == classes:
        advice = "they look counted from 1; subtract 1 from each"
    raise DataError(
        f"{where}: {len(outside)} of {len(labels)} labels are no class of the model, the first is {labels[first]} of "
        f"{f'sample {first}' if names is None else repr(names[first])}; allowed: 0 to {classes - 1}; {advice}"
    )


def _take_in_order(path: Path, values: np.ndarray, samples: CalibrationSet) -> np.ndarray:
    """Labels of all the samples in the source; those of samples that a limit leaves out may be there or not."""
    if samples.texts is not None and samples.texts.skipped and len(values) != samples.available:
        raise DataError(
            f"{path}: labels in the order of texts, but {samples.texts.skipped}, so that others than it may get its"
            " label; take empty texts out of the data, and their labels out of the file"
        )
    if samples.available is not None:
        return check_labels(str(path), values, samples.available)[: len(samples)]
    return check_labels(str(path), values[: len(samples)], len(samples))


def _read_column(path: Path, text: str) -> np.ndarray:
    """One number a line; a first line that is none is a header."""
    lines = [line.strip() for line in text.rstrip().split("\n")]
    headed = int(not _NUMBER.fullmatch(lines[0]))
    for number, line in enumerate(lines[headed:], 1 + headed):
        if not _NUMBER.fullmatch(line):
            raise DataError(
                f"{path}: line {number}: found {line[:SHOWN_LENGTH]!r}; write one number a line, in the order of the"
                " samples"
            )
    whole = all(map(_INTEGER.fullmatch, lines[headed:]))
    return np.array([int(line) if whole else float(line) for line in lines[headed:]])


def _read_csv(path: Path, text: str, names: Collection[str]) -> Entries:
    """Rows of file and class; a first one that names no sample and has no number is a header."""
    entries: Entries = []
    rows = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        for row in rows:
            if not row:
                continue
            if len(row) != 2:
                raise DataError(
                    f"{path}: line {rows.line_num}: found {len(row)} columns; write two, file,class, with a comma"
                )
            entries.append((row[0], row[1]))
    except csv.Error as error:
        raise DataError(f"{path}: line {rows.line_num}: not CSV ({error}); write rows of file,class") from None
    headed = bool(entries) and entries[0][0] not in names and not _INTEGER.fullmatch(entries[0][1].strip())
    return entries[1:] if headed else entries


def _read_json(path: Path, text: str) -> Entries:
    """Objects come as tuples of pairs, so that a key that is there twice is seen twice."""
    try:
        found: Any = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise DataError(f'{path}: not JSON ({error}); write {{"file": class, ...}}') from None
    if not isinstance(found, tuple):
        raise DataError(f'{path}: found no object but a {type(found).__name__}; write {{"file": class, ...}}')
    return [(name, str(label)) for name, label in found]


def _read_classes(path: Path, entries: Entries) -> dict[str, int]:
    """File -> class, each file under the plain form of its path: ``./a//b.png`` is ``a/b.png``."""
    odd = [(name, label) for name, label in entries if not CLASS.fullmatch(label.strip())]
    if odd:
        raise DataError(
            f"{path}: {len(odd)} of {len(entries)} classes are no integers from 0 on: "
            f"those of {_name_some(name for name, _ in odd)}, the first being {odd[0][1][:SHOWN_LENGTH]!r}; "
            "give the class indices of the model's output"
        )
    classes: dict[str, int] = {}
    twice: dict[str, None] = {}
    for name, label in entries:
        file = PurePosixPath(name).as_posix()
        if classes.setdefault(file, int(label)) != int(label):
            twice[file] = None
    if twice:
        raise DataError(
            f"{path}: {len(twice)} of {len(classes)} files have two classes: {_name_some(twice)}; keep one for each"
        )
    return classes


def _match(path: Path, classes: dict[str, int], samples: CalibrationSet) -> np.ndarray:
    names = samples.names or ()
    missing = [name for name in names if name not in classes]
    unknown = [name for name in classes.keys() - set(names) if not _is_in(samples.folder, name)]
    if unknown:
        raise DataError(
            f"{path}: {len(unknown)} of {len(classes)} files are not in {samples.folder}: "
            f"{_name_some(sorted(unknown))}; write paths relative to it, such as {names[0]!r}, and take strangers out"
        )
    if missing:
        raise DataError(
            f"{path}: no class for {len(missing)} of {len(names)} samples: {_name_some(missing)}; add a line for each"
        )
    return np.array([classes[name] for name in names], np.int64)


def _is_in(folder: Path | None, name: str) -> bool:
    """Whether a file is in the folder of the data, where a limit may have left it out of the set."""
    inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
    return folder is not None and inside and os.path.isfile(folder / name)


def _name_some(names: Iterable[str]) -> str:
    first = [repr(name) for name in islice(names, SHOWN + 1)]
    return ", ".join(first[:SHOWN]) + (", ..." if len(first) > SHOWN else "")
