"""Arrays named by model input, from .npy, .npz and ONNX test data files or from Python, left on disk until read."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..config import nearest
from ..errors import DataError, first_line
from ..spec import InputSpec, spell_shape

LABELS = ("label", "labels", "y")  # names that data sets give to labels
CLASS = re.compile(r"[0-9]{1,18}")  # a class in digits; every number of 18 digits fits int64
UNNAMED = "arr_0"  # numpy's name for an array that was saved to .npz without one


class StoredArray:
    """A .npy file. It is mapped anew for each read, so that earlier reads do not count as memory of this process."""

    def __init__(self, path: Path, where: str | None = None) -> None:
        self._path = path
        self._where = where or str(path)
        view = self._map()
        self.shape, self.dtype = view.shape, view.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.array(self._map()[index])

    def _map(self) -> np.ndarray:
        try:
            return np.asarray(np.lib.format.open_memmap(self._path, mode="r"))
        except Exception as error:  # numpy's parser raises whatever a damaged header leads it to
            text = first_line(error)
            raise DataError(f"{self._where}: not a complete .npy array of numbers ({text}); write it again") from None


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
    labels: reads the array of their labels, unchecked. texts: facts about encoded texts. Each is None where there is
    none. notes: warnings for the user, one line each.
    """

    where: str
    arrays: dict[str, Any]
    file: Path | None = None
    label: int | None = None
    labels: Callable[[], np.ndarray] | None = None
    texts: Texts | None = None
    notes: tuple[str, ...] = ()


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


def open_npy(path: Path, inputs: Sequence[InputSpec]) -> Part:
    """The samples of a .npy file, for a model with one input."""
    return Part(str(path), {_only_input(inputs, str(path)): StoredArray(path)}, file=path)


def open_npy_set(paths: Sequence[Path], inputs: Sequence[InputSpec]) -> Part:
    """The samples of .npy files, of which each holds one input and has its name."""
    where = str(paths[0].parent)
    by_stem = {path.stem: path for path in paths}
    names = match_names(list(by_stem), inputs, where)
    label = find_labels(by_stem, inputs)
    return Part(
        where,
        {name: StoredArray(by_stem[found]) for name, found in names.items()},
        labels=None if label is None else partial(load_labels, by_stem[label]),
    )


def open_npy_columns(folders: Sequence[Path], inputs: Sequence[InputSpec]) -> Iterator[Part]:
    """The samples of sub-folders, of which each holds one input and has its name; a part is a file name in all."""
    where = str(folders[0].parent)
    by_name = {folder.name: folder for folder in folders}
    columns = {name: by_name[found] for name, found in match_names(list(by_name), inputs, where).items()}
    first, *others = columns.values()
    files = _list_npy(first)
    if not files:
        raise DataError(f"{first}: the folder is empty; put one .npy file a sample in it")
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
            {name: StoredArray(folder / file) for name, folder in columns.items()},
            file=None if others else first / file,
            labels=None if label is None else partial(load_labels, by_name[label] / file),
        )


def open_npz(path: Path, inputs: Sequence[InputSpec], scratch: Path) -> Part:
    """The samples of an .npz file, whose arrays are unpacked into ``scratch`` so that rows can be read singly."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
            names = match_names(list(members), inputs, str(path))
            arrays = {}
            for name, found in names.items():
                target = _new_file(scratch)
                with archive.open(members[found]) as packed, target.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
                arrays[name] = StoredArray(target, f"{path}: array {found!r}")
    except DataError:
        raise
    except Exception as error:  # as above, and zipfile's and zlib's own
        raise DataError(
            f"{path}: not a complete .npz file ({first_line(error)}); write it again with numpy.savez"
        ) from None
    label = find_labels(members, inputs)
    return Part(str(path), arrays, file=path, labels=None if label is None else partial(load_labels, path, label))


def open_test_set(folder: Path, inputs: Sequence[InputSpec], scratch: Path) -> Part:
    """The samples of ``input_0.pb``, ``input_1.pb``..., ONNX tensors named by input or else in the inputs' order."""
    files = sorted(folder.glob("input_*.pb"), key=lambda path: (len(path.name), path.name))
    if len(files) != len(inputs):
        names = ", ".join(spec.name for spec in inputs)
        raise DataError(
            f"{folder}: found {len(files)} input_*.pb; the model has inputs {names}; give one file for each"
        )
    tensors = [_load_tensor(file) for file in files]
    named = dict(zip((name for name, _ in tensors), range(len(tensors)), strict=True))
    by_name = {spec.name for spec in inputs} == set(named)
    arrays = {}
    for number, spec in enumerate(inputs):
        source = named[spec.name] if by_name else number
        target = _new_file(scratch)
        np.save(target, tensors[source][1], allow_pickle=False)
        arrays[spec.name] = StoredArray(target, str(files[source]))
    return Part(str(folder), arrays)


def match_names(found: Sequence[str], inputs: Sequence[InputSpec], where: str) -> dict[str, str]:
    """Input -> the name of its array. Raises DataError for a name that is neither an input's nor one of LABELS."""
    wanted = [spec.name for spec in inputs]
    found = [name for name in found if name in wanted or name not in LABELS]
    if len(wanted) == 1 and found == [UNNAMED]:
        return {wanted[0]: UNNAMED}
    expected = f"the model's inputs are {', '.join(wanted)}"
    for name in found:
        if name not in wanted:
            hint = nearest(name, wanted) or " rename it, or take it out"
            raise DataError(f"{where}: {name!r} is no input of the model; {expected};{hint}")
    for name in wanted:
        if name not in found:
            had = ", ".join(found) or "none"
            raise DataError(f"{where}: no array for input {name!r}, found {had}; {expected}; add it")
    return {name: name for name in wanted}


def find_labels(found: Iterable[str], inputs: Sequence[InputSpec]) -> str | None:
    """The first name of LABELS that was found and is not an input's."""
    wanted = [spec.name for spec in inputs]
    return next((name for name in LABELS if name in found and name not in wanted), None)


def load_labels(path: Path, name: str | None = None) -> np.ndarray:
    """The array of a .npy file, or of an .npz file the array ``name``, by default the first of LABELS in it."""
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            return stored
        with stored:
            name = name or find_labels(stored.files, ())
            if name is None:
                had = ", ".join(stored.files) or "none"
                raise DataError(f"{path}: no array of labels, found {had}; name it {' or '.join(LABELS)}")
            labels: np.ndarray = stored[name]
            return labels
    except DataError:
        raise
    except Exception as error:  # as above
        text = first_line(error)
        raise DataError(f"{path}: labels are not a complete array of numbers ({text}); write it again") from None


def check_labels(where: str, values: np.ndarray, rows: int) -> np.ndarray:
    """Labels as int64 or float64 (rows,), from shape (rows,), (rows, 1), or () for one row. Raises DataError."""
    if values.dtype.kind not in "iuf":
        raise DataError(
            f"{where}: labels are {values.dtype}; numbers are needed, one for each sample; give class indices"
        )
    if values.shape not in ((rows,), (rows, 1)) and not (rows == 1 and values.shape == ()):
        raise DataError(
            f"{where}: found labels of shape {spell_shape(values.shape)}; there are {rows} samples; give one label"
            " for each"
        )
    return values.astype(np.float64 if values.dtype.kind == "f" else np.int64).reshape(rows)


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
    if 0 in shape:
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
    if wanted.kind == "f" or not np.can_cast(found, wanted):
        raise DataError(f"{where}: found {found}; the model takes {wanted}; convert with .astype('{wanted}')")


def _load_tensor(file: Path) -> tuple[str, np.ndarray]:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        tensor = onnx.load_tensor(str(file))
        array = onnx.numpy_helper.to_array(tensor)
    except (OSError, DecodeError, ValueError, TypeError) as error:
        raise DataError(f"{file}: not an ONNX tensor ({error}); write it with onnx.save_tensor") from None
    if array.dtype.kind not in "fiub":
        raise DataError(f"{file}: found {array.dtype}; samples are integers, floats or booleans; convert it")
    return tensor.name, array


def _list_npy(folder: Path) -> list[str]:
    files = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    for file in files:
        if not file.lower().endswith(".npy"):
            raise DataError(f"{folder / file}: a sub-folder of one input holds .npy files only; move it away")
    return files


def _new_file(scratch: Path) -> Path:
    handle, name = tempfile.mkstemp(".npy", dir=scratch)
    os.close(handle)
    return Path(name)


def _only_input(inputs: Sequence[InputSpec], where: str) -> str:
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
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
