"""The label of each sample, from a file beside the data or from the data themselves."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..errors import DataError, first_line
from ..files.reading import is_folder, read_text
from .arrays import CLASS, LABELS, check_labels, open_labels
from .calibration_set import CalibrationSet
from .listing import SHOWN_VALUE, quote, quote_some

Entries = list[tuple[str, str]]  # (file, class) as they are written
FILES = "give --labels a .csv, .json, .txt, .npy or .npz file"
MOST_BYTES = 2**26  # of a file of labels as text: 2 million files with names of 30 characters
MOST_LABELS = 2**21  # in such a file: each takes some 200 bytes in memory
_NUMBER = re.compile(r"[+-]?([0-9]{1,18}(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")  # all integers of it fit int64
_INTEGER = re.compile(r"[+-]?[0-9]+")


def choose_labels(given: Path | np.ndarray | None, samples: CalibrationSet) -> np.ndarray | None:
    """(samples,) labels of the file or the array, else of the data themselves, else None. Raises DataError."""
    if isinstance(given, np.ndarray):
        return _take_in_order("labels", given, samples)
    return samples.labels if given is None else read_labels(given, samples)


def read_labels(path: Path, samples: CalibrationSet) -> np.ndarray:
    """(samples,) labels of a file.

    A .csv has rows of file,class, with or without a header; a .json is {file: class}. Files are relative to the folder
    of the data. A .npy, an .npz with an array of labels, and a .txt have one number for each sample, in order. So does
    a .csv of one column, where several samples are in one file. Raises DataError.
    """
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".json", ".txt", ".npy", ".npz"):
        raise DataError(
            f"{path}: not a file of labels; give .csv or .json of file and class, or .npy or .txt of one number for"
            " each sample"
        )
    if is_folder(path, DataError, give=FILES):
        raise DataError(f"{path}: is a directory; {FILES}")
    if suffix in (".npy", ".npz"):
        return _take_in_order(path, open_labels(path), samples)
    text = read_text(path, DataError, give=FILES, most=MOST_BYTES)
    if max(map(text.count, ",\n\r")) > MOST_LABELS:
        raise DataError(f"{path}: holds more than {MOST_LABELS:,} labels, which is the most; give .npy or .npz")
    if suffix == ".txt" or (suffix == ".csv" and samples.names is None and "," not in text):
        return _take_in_order(path, _read_column(path, text), samples)
    if samples.names is None:
        raise DataError(
            f"{path}: classes by file, but the samples have no files of their own; give .npy, .npz, or a .txt or .csv"
            " of one column, with one integer for each sample, in their order"
        )
    entries = _read_csv(path, text, set(samples.names)) if suffix == ".csv" else _read_json(path, text)
    return _match(path, _read_classes(path, entries), samples)


def find_list(samples: CalibrationSet) -> Path | None:
    """The file of labels in the folder of the samples, which is suggested to the user but not read by itself."""
    if samples.folder is None:
        return None
    paths = (samples.folder / f"{name}{suffix}" for name in LABELS for suffix in (".csv", ".json"))
    return next((path for path in paths if os.path.isfile(path)), None)


def check_classes(labels: np.ndarray, classes: int, where: str, *, names: Sequence[str] | None = None) -> None:
    """Raise DataError for a label that is no integer from 0 to ``classes`` - 1; ``names`` are the samples' files."""
    if labels.dtype.kind == "f":
        raise DataError(
            f"{where}: labels are {labels.dtype}; class indices are integers from 0 on; give these, or --metric for"
            " labels of another meaning"
        )
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if not len(outside):
        return
    first = int(outside[0])
    advice = "give the class indices of the model's output"
    if labels.min() >= 1 and labels.max() == classes:
        advice = "they look counted from 1; subtract 1 from each"
    raise DataError(
        f"{where}: {len(outside)} of {len(labels)} labels are no class of the model, the first is {labels[first]} of"
        f" {f'sample {first}' if names is None else repr(names[first])}; allowed: 0 to {classes - 1}; {advice}"
    )


def _take_in_order(path: Path | str, values: Any, samples: CalibrationSet) -> np.ndarray:
    """One label for each sample of the source; labels behind a limit may be left out. Raises DataError."""
    if samples.texts is not None and samples.texts.skipped and values.shape[:1] != (samples.available,):
        raise DataError(
            f"{path}: labels are in the order of texts, but {samples.texts.skipped}, so labels may belong to other"
            " texts; take empty texts out of the data, and their labels out of the file"
        )
    return check_labels(str(path), values, len(samples), total=samples.available)


def _read_column(path: Path, text: str) -> np.ndarray:
    """One number a line; a first line that is no number is a header."""
    lines = [line.strip() for line in text.rstrip().split("\n")]
    headed = int(not _NUMBER.fullmatch(lines[0]))
    for number, line in enumerate(lines[headed:], 1 + headed):
        if not _NUMBER.fullmatch(line):
            raise DataError(
                f"{path}: line {number}: found {quote(line, SHOWN_VALUE)}; write one number a line, in the order of the"
                " samples"
            )
    whole = all(map(_INTEGER.fullmatch, lines[headed:]))
    return np.array([int(line) if whole else float(line) for line in lines[headed:]])


def _read_csv(path: Path, text: str, names: Collection[str]) -> Entries:
    """Rows of file and class; a first row that names no sample and has no number is a header."""
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
        raise DataError(
            f"{path}: line {rows.line_num}: not CSV ({first_line(error)}); write rows of file,class"
        ) from None
    headed = bool(entries) and entries[0][0] not in names and not _INTEGER.fullmatch(entries[0][1].strip())
    return entries[1:] if headed else entries


def _read_json(path: Path, text: str) -> Entries:
    """Pairs of file and class; both are kept where a file is there twice, so that its classes can be compared."""
    try:
        found: Any = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise DataError(f'{path}: not JSON ({first_line(error)}); write {{"file": class, ...}}') from None
    if not isinstance(found, tuple):
        raise DataError(f'{path}: found {type(found).__name__}, not an object; write {{"file": class, ...}}')
    return [(name, str(label)) for name, label in found]


def _read_classes(path: Path, entries: Entries) -> dict[str, int]:
    """File -> class; paths are normalized, so that ``./a//b.png`` becomes ``a/b.png``. Raises DataError."""
    refused = [(name, label) for name, label in entries if not CLASS.fullmatch(label.strip())]
    if refused:
        raise DataError(
            f"{path}: {len(refused)} of {len(entries)} classes are no integers from 0 on: those of"
            f" {quote_some(name for name, _ in refused)}, the first being {quote(refused[0][1], SHOWN_VALUE)}; give the"
            " class indices of the model's output"
        )
    classes: dict[str, int] = {}
    twice: dict[str, None] = {}
    for name, label in entries:
        odd = "//" in name or "/." in name or name[:1] in ("", ".") or name[-1] == "/"
        file = PurePosixPath(name).as_posix() if odd else name  # which is slow where names are many
        if classes.setdefault(file, int(label)) != int(label):
            twice[file] = None
    if twice:
        raise DataError(
            f"{path}: {len(twice)} of {len(classes)} files have two classes: {quote_some(twice)}; keep one for each"
        )
    return classes


def _match(path: Path, classes: dict[str, int], samples: CalibrationSet) -> np.ndarray:
    """int64 (samples,). Raises DataError where files and samples are not the same."""
    names = samples.names or ()
    missing = [name for name in names if name not in classes]
    unknown = [name for name in classes.keys() - set(names) if not _is_in(samples.folder, name)]
    if unknown:
        raise DataError(
            f"{path}: {len(unknown)} of {len(classes)} files are not in {samples.folder}:"
            f" {quote_some(sorted(unknown))}; write paths relative to it, such as {quote(names[0])}, and take other"
            " files out"
        )
    if missing:
        raise DataError(
            f"{path}: no class for {len(missing)} of {len(names)} samples: {quote_some(missing)}; add a line for each"
        )
    return np.array([classes[name] for name in names], np.int64)


def _is_in(folder: Path | None, name: str) -> bool:
    """Whether a file is in the folder of the data, even if a limit leaves it out of the set."""
    inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
    return folder is not None and inside and os.path.isfile(folder / name)
