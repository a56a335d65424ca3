"""Arrays named by model input, from .npy and .npz files or from Python, left on disk until they are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..config import nearest
from ..errors import DataError, first_line
from ..spec import InputSpec, spell_shape
from .listing import SHOWN_TEXT, list_folder, list_names, quote
from .npy import StoredArray, open_npy
from .npz import PackedArray, find_members, open_archive, open_member
from .past import is_past
from .states import may_lack

LABELS = ("label", "labels", "y")  # names that data sets give to labels
CLASS = re.compile(r"[0-9]{1,18}")  # a class in digits; every number of 18 digits fits int64
UNNAMED = "arr_0"  # numpy's name for an array that was saved to .npz without one
NUMBERS = "fiub"  # kinds of numpy's types that samples may have
BROKEN_LABELS = "labels are not a complete array of numbers"


@dataclass(frozen=True)
class Texts:
    """Facts about the texts from which a part's arrays were encoded.

    where: the file of the texts. tokenizer: the file of the tokenizer. lengths: number of tokens, (rows,). largest: the
    largest token, (rows,). left: whether padding stands before a text instead of behind it. skipped: a line about the
    texts that were left out, or ''.
    """

    where: str
    tokenizer: str
    lengths: np.ndarray
    largest: np.ndarray
    left: bool
    skipped: str


@dataclass(frozen=True)
class Part:
    """Samples of one source: arrays by input name, from a file, a set of files, or Python.

    where: the source, as messages name it. file: the file, where one holds them all. label: the class of all samples.
    labels: opens the array of their labels, unchecked. texts: facts about encoded texts. Each is None where there is
    none. notes: warnings for the user, one line each. lengths: of its sequences, where samples are steps of these.
    sequence: names the sequence that parts in a row hold the steps of; empty where a part holds whole ones.
    """

    where: str
    arrays: dict[str, Any]
    file: Path | None = None
    label: int | None = None
    labels: Callable[[], Any] | None = None
    texts: Texts | None = None
    notes: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    sequence: str = ""


def is_array(value: Any) -> bool:
    """Whether a value is an array or a tensor of any library, or an image of Pillow."""
    return any(hasattr(value, name) for name in ("__array__", "__array_interface__", "detach"))


def to_array(value: Any, where: str) -> np.ndarray:
    """NumPy array of an array or a tensor of any library, on any device, or of nested lists. Raises DataError."""
    try:
        if hasattr(value, "detach"):  # torch's, which may need gradients or lie on another device
            value = value.detach().cpu()
            value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
        return np.asarray(value)
    except Exception as error:  # each library raises its own
        found = f"{type(value).__name__} that is no array ({first_line(error)})"
        if "inhomogeneous" in str(error):
            found = "lists of unlike lengths"
        raise DataError(
            f"{where}: found {found}; numbers in a regular array are needed; pad the samples, or give an iterable that"
            " yields each of them by itself"
        ) from error


def take_arrays(source: Any, inputs: Sequence[InputSpec]) -> Part:
    """An array or tensor, or a mapping from input names to arrays."""
    where = "data"
    if isinstance(source, Mapping):
        names = match_names([str(name) for name in source], inputs, where)
        label = find_labels(source, inputs)
        return Part(
            where,
            {name: to_array(source[found], f"{where}: input {name!r}") for name, found in names.items()},
            labels=None if label is None else partial(to_array, source[label], f"{where}: labels"),
        )
    return Part(where, {_only_input(inputs, where): to_array(source, where)})


def open_npy_file(path: Path, inputs: Sequence[InputSpec]) -> Part:
    """The samples of a .npy file, for a model with one input."""
    return Part(str(path), {_only_input(inputs, str(path)): open_npy(path)}, file=path)


def open_npy_set(paths: Sequence[Path], inputs: Sequence[InputSpec]) -> Part:
    """The samples of .npy files, of which each holds one input and has its name."""
    where = str(paths[0].parent)
    by_stem = {path.stem: path for path in paths}
    names = match_names(list(by_stem), inputs, where)
    label = find_labels(by_stem, inputs)
    return Part(
        where,
        {name: open_npy(by_stem[found]) for name, found in names.items()},
        labels=None if label is None else partial(open_labels, by_stem[label]),
    )


def open_npy_columns(folders: Sequence[Path], inputs: Sequence[InputSpec]) -> Iterator[Part]:
    """The samples of sub-folders, of which each holds one input and has its name; a part is a file name in all."""
    where = str(folders[0].parent)
    by_name = {folder.name: folder for folder in folders}
    columns = {name: by_name[found] for name, found in match_names(list(by_name), inputs, where).items()}
    first, *others = columns.values()
    files = _list_npy(first)
    for other in others:
        unmatched = set(files) ^ set(_list_npy(other))
        if unmatched:
            raise DataError(
                f"{where}: {min(unmatched)} is in only one of {first.name} and {other.name}; each sample needs both;"
                " add the missing file"
            )
    label = find_labels(by_name, inputs)
    for file in files:
        yield Part(
            f"{where}/*/{file}",
            {name: open_npy(folder / file) for name, folder in columns.items()},
            file=None if others else first / file,
            labels=None if label is None else partial(open_labels, by_name[label] / file),
        )


def open_npz(path: Path, inputs: Sequence[InputSpec]) -> Part:
    """The samples of an .npz file, packed."""
    with open_archive(path) as archive:
        members = find_members(archive)
        names = match_names(list(members), inputs, str(path))
        arrays = {name: open_member(archive, path, found) for name, found in names.items()}
    label = find_labels(members, inputs)
    return Part(str(path), arrays, file=path, labels=None if label is None else partial(open_labels, path, label))


def match_names(found: Sequence[str], inputs: Sequence[InputSpec], where: str) -> dict[str, str]:
    """Input -> the name of its array. Raises DataError for a name that is neither an input's nor one of LABELS.

    The inputs of a past, and states, may be left out.
    """
    wanted = [spec.name for spec in inputs]
    needed = [spec.name for spec in inputs if not may_lack(spec)]
    found = [name for name in found if name in wanted or name not in LABELS]
    if found == [UNNAMED] and (len(wanted) == 1 or (len(needed) == 1 and any(spec.state for spec in inputs))):
        return {(needed or wanted)[0]: UNNAMED}
    expected = f"the model's inputs are {list_names(wanted)}"
    for name in found:
        if name not in wanted:
            hint = nearest(name[:SHOWN_TEXT], wanted) or " rename it, or take it out"
            raise DataError(f"{where}: {quote(name)} is no input of the model; {expected};{hint}")
    for name in needed:
        if name not in found:
            had = list_names(found) or "none"
            raise DataError(f"{where}: no array for input {name!r}, found {had}; {expected}; add it")
    return {name: name for name in wanted if name in found}


def find_labels(found: Iterable[str], inputs: Sequence[InputSpec]) -> str | None:
    """The first name of LABELS that was found and is not an input's."""
    wanted = [spec.name for spec in inputs]
    return next((name for name in LABELS if name in found and name not in wanted), None)


def open_labels(path: Path, name: str | None = None) -> StoredArray | PackedArray:
    """The array of a .npy file, or of an .npz file the array ``name``, by default the first of LABELS in it."""
    if path.suffix.lower() == ".npy":
        return open_npy(path, BROKEN_LABELS)
    with open_archive(path, BROKEN_LABELS) as archive:
        members = find_members(archive)
        name = name or find_labels(members, ())
        if name is None:
            raise DataError(
                f"{path}: no array of labels, found {list_names(members) or 'none'}; name it {' or '.join(LABELS)}"
            )
        return open_member(archive, path, name, BROKEN_LABELS)


def check_labels(where: str, values: Any, rows: int, *, total: int | None) -> np.ndarray:
    """The first ``rows`` labels as int64 or float64 (rows,), of an array that is not read before its shape is known.

    values: of shape (total,), (total, 1), or () for one sample; where the total is None, of ``rows`` or more labels.
    Raises DataError.
    """
    if values.dtype.kind not in "iuf":
        raise DataError(
            f"{where}: labels are {values.dtype}; numbers are needed, one for each sample; give class indices"
        )
    shape = tuple(values.shape)
    count = 1 if shape == () else shape[0]
    if shape[1:] not in ((), (1,)) or (count != total if total is not None else count < rows):
        raise DataError(
            f"{where}: found labels of shape {spell_shape(shape)}; there are {rows if total is None else total}"
            " samples; give one label for each"
        )
    labels = np.asarray(values[...] if shape == () else values[:rows]).reshape(rows)
    if labels.dtype.kind == "f":
        target: type = np.float64
        odd = np.flatnonzero(~np.isfinite(labels))
    else:
        target = np.int64
        odd = np.flatnonzero(labels > np.iinfo(np.int64).max)
    if len(odd):
        raise DataError(
            f"{where}: the label of sample {odd[0]} is {labels[int(odd[0])]}; labels are numbers of 64 bits; give"
            " class indices"
        )
    return labels.astype(target)


def check_array(where: str, array: Any, spec: InputSpec, *, batched: bool) -> bool:
    """Check type, rank and shape against an input, and say whether axis 0 counts samples.

    A sample has the input's shape, without the first axis where the model is ``batched``. An array of that rank is one
    sample, an array with one axis more holds several. Where the rank of the input is unknown, axis 0 counts samples.
    Raises DataError.
    """
    _check_dtype(where, array.dtype, np.dtype(spec.dtype))
    shape = tuple(array.shape)
    if spec.shape is None:
        sample: tuple[int | None, ...] = (None,) * (len(shape) - 1)
    else:
        sample = spec.shape[1:] if batched else spec.shape
    stacked = len(shape) == len(sample) + 1
    if not _fits(shape[1:] if stacked else shape, sample):
        allowed = spell_shape(spec.shape or ()) + (", the first axis being samples" if batched else " in a run")
        raise DataError(f"{where}: found shape {spell_shape(shape)}; the model takes {allowed};{_hint(shape, sample)}")
    if 0 in (shape[: len(shape) - len(sample)] if is_past(spec) or spec.alone else shape):
        raise DataError(f"{where}: found shape {spell_shape(shape)}, which holds no values; give at least one sample")
    return stacked


def _check_dtype(where: str, found: np.dtype, wanted: np.dtype) -> None:
    if found == wanted or (found.kind == "f" and wanted.kind == "f"):
        return
    if wanted.kind == "f" and found.kind in "iu":
        raise DataError(
            f"{where}: found {found}; the model takes {wanted}; convert as in training, for example with"
            f" ((x / 255 - mean) / std).astype('{wanted}'), or give image files with --mean and --std"
        )
    if found.kind not in NUMBERS or wanted.kind not in NUMBERS or wanted.kind == "f" or not np.can_cast(found, wanted):
        raise DataError(f"{where}: found {found}; the model takes {wanted}; convert with .astype('{wanted}')")


def _list_npy(folder: Path) -> list[str]:
    files = [entry.name for entry in list_folder(folder, give="put one .npy file a sample in it")]
    for file in files:
        if not file.lower().endswith(".npy"):
            raise DataError(f"{folder / file}: a sub-folder of one input holds .npy files only; move it away")
    return files


def _only_input(inputs: Sequence[InputSpec], where: str) -> str:
    inputs = [spec for spec in inputs if not spec.state]
    if len(inputs) != 1:
        names = list_names(spec.name for spec in inputs)
        raise DataError(
            f"{where}: found one array; the model has inputs {names}; give one for each by name, as in .npz"
        )
    return inputs[0].name


def _fits(found: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(found) == len(wanted) and all(want in (None, have) for have, want in zip(found, wanted, strict=True))


def _hint(found: tuple[int, ...], sample: tuple[int | None, ...]) -> str:
    """What to do about a shape that does not fit."""
    if len(sample) > 1:
        shape = tuple(found[-len(sample) :])
        if len(shape) == len(sample):
            if _fits((shape[-1], *shape[:-1]), sample):
                return f" channels are last; move them with numpy.moveaxis(x, -1, {len(found) - len(sample)})"
            if _fits((*shape[1:], shape[0]), sample):
                return f" channels are first; move them with numpy.moveaxis(x, {len(found) - len(sample)}, -1)"
    return " reshape or resize the data"
