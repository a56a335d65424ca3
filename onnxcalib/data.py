"""The calibration set: samples checked against the model's inputs before any work, and read batch by batch."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from onnxcalib import arrays, images
from onnxcalib.arrays import Part, check_array
from onnxcalib.config import DataConfig
from onnxcalib.errors import DataError
from onnxcalib.spec import InputSpec

SCAN_BYTES = 1 << 24  # how much of an array is looked at in one go, so that a scan needs no more memory
RAW_PIXEL_PEAK = 64.0  # normalized images stay within a few units; 8-bit pixels of any real photograph pass this
KINDS = "images (png, jpg, jpeg, bmp, webp), .npy or .npz"


@dataclass(frozen=True)
class _Slab:
    """A part that has been checked: ``rows`` samples of these shapes; stacked arrays have the samples on axis 0."""

    part: Part
    rows: int
    shapes: dict[str, tuple[int, ...]]
    stacked: dict[str, bool]

    def take(self, name: str, rows: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """(len(rows), *sample shape)"""
        array = self.part.arrays[name]
        values = array[list(rows)] if self.stacked[name] else array[...][None]
        return np.asarray(values).astype(dtype, copy=False)

    @property
    def labelled(self) -> bool:
        return self.part.label is not None or self.part.labels is not None

    def read_labels(self) -> np.ndarray:
        """int64 (rows,)"""
        if self.part.labels is None:
            return np.full(self.rows, self.part.label, np.int64)
        return arrays.check_labels(self.part.where, self.part.labels(), self.rows)


class CalibrationSet:
    """Samples for a model's inputs, read from their source as they are asked for.

    fixed_batch: a run of the model takes exactly so many samples; None: any number.
    warnings: what looks odd in the values, one line each.
    images: whether the samples are image files.
    folder: that of the samples, None where they are in one file or were given as arrays.
    available: samples in the source; None where a limit was reached, so that they were not counted.
    """

    def __init__(
        self,
        inputs: Sequence[InputSpec],
        slabs: Sequence[_Slab],
        *,
        samples: int,
        fixed_batch: int | None,
        warnings: tuple[str, ...] = (),
        folder: Path | None = None,
        available: int | None = None,
    ) -> None:
        self.inputs = tuple(inputs)
        self.fixed_batch = fixed_batch
        self.warnings = warnings
        self.folder = folder
        self.available = available
        self._slabs = tuple(slabs)
        self.images = all(map(_hold_images, slabs))
        self._samples = samples
        self._ends = np.cumsum([slab.rows for slab in slabs])
        self._batched = _share_batch(inputs)

    def __len__(self) -> int:
        return self._samples

    @cached_property
    def names(self) -> tuple[str, ...] | None:
        """The file of each sample relative to the folder, with slashes; None where not every sample has its own."""
        files = [slab.part.file for slab in self._slabs if slab.rows == 1]
        if self.folder is None or len(files) < len(self._slabs) or None in files:
            return None
        return tuple(file.relative_to(self.folder).as_posix() for file in files[: len(self)])

    @cached_property
    def labels(self) -> np.ndarray | None:
        """int64 (samples,), the classes that the source itself tells, or None; DataError where they are no classes."""
        without = [slab.part.where for slab in self._slabs if not slab.labelled]
        if len(without) == len(self._slabs):
            return None
        if without:
            raise DataError(
                f"{without[0]}: no labels, as in {len(without)} of {len(self._slabs)} files; "
                "all or none must have them; add them, or give --labels"
            )
        return np.concatenate([slab.read_labels() for slab in self._slabs])[: len(self)]

    def read(self, indices: Iterable[int]) -> dict[str, np.ndarray]:
        """Input -> the samples, stacked on axis 0; for a model without a batch axis one sample, as it is fed."""
        places = [self._locate(int(index)) for index in indices]
        if not self._batched:
            (slab, row), *rest = places
            assert not rest, "this model takes one sample a run"
            return {spec.name: np.asarray(slab.take(spec.name, [row], np.dtype(spec.dtype))[0]) for spec in self.inputs}
        return {spec.name: self._gather(spec, places) for spec in self.inputs}

    def batches(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        """All samples in order, ``size`` at a time, or as many as ``fixed_batch`` says."""
        step = self.fixed_batch or size
        for start in range(0, len(self), step):
            yield self.read(range(start, min(start + step, len(self))))

    def _locate(self, index: int) -> tuple[_Slab, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index}: the calibration set has {len(self)}")
        place = int(np.searchsorted(self._ends, index, side="right"))
        return self._slabs[place], index - int(self._ends[place]) + self._slabs[place].rows

    def _gather(self, spec: InputSpec, places: Sequence[tuple[_Slab, int]]) -> np.ndarray:
        wanted: dict[int, tuple[_Slab, list[int], list[int]]] = {}
        for position, (slab, row) in enumerate(places):
            _, positions, rows = wanted.setdefault(id(slab), (slab, [], []))
            positions.append(position)
            rows.append(row)
        dtype = np.dtype(spec.dtype)
        gathered = np.empty((len(places), *places[0][0].shapes[spec.name]), dtype)
        for slab, positions, rows in wanted.values():
            gathered[positions] = slab.take(spec.name, rows, dtype)
        return gathered


def open_calibration(
    source: Any, inputs: Sequence[InputSpec], config: DataConfig | None = None, *, limit: int | None = None
) -> CalibrationSet:
    """Samples of ``source``, or its first ``limit``, checked against ``inputs``.

    source: a folder or file path, a NumPy array, a mapping from input names to arrays, or a set that is open already.
    Raises DataError.
    """
    if isinstance(source, CalibrationSet):
        return _take_open(source, inputs, limit)
    if not inputs:
        raise DataError("data: the model has no inputs; it gives the same outputs always; choose another model")
    scratch = Path(tempfile.mkdtemp(prefix="onnxcalib-"))
    try:
        calibration = _collect(source, inputs, config or DataConfig(), limit, scratch)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    weakref.finalize(calibration, shutil.rmtree, scratch, ignore_errors=True)
    return calibration


def _take_open(samples: CalibrationSet, inputs: Sequence[InputSpec], limit: int | None) -> CalibrationSet:
    if limit is not None and limit < len(samples):
        raise DataError(f"data: found an open set of {len(samples)} samples; {limit} are wanted; open it with limit=")
    found, wanted = ([(spec.name, np.dtype(spec.dtype)) for spec in each] for each in (samples.inputs, inputs))
    if found != wanted or not all(map(_agree, samples.inputs, inputs)):
        names = [", ".join(repr(spec.name) for spec in each) for each in (samples.inputs, inputs)]
        raise DataError(
            f"data: the set was opened for the inputs {names[0]}; the model's are {names[1]}, each of a type and shape;"
            " open it with the model's own"
        )
    return samples


def _agree(one: InputSpec, other: InputSpec) -> bool:
    """Whether no dimension differs that both fix."""
    if one.shape is None or other.shape is None:
        return True
    same_rank = len(one.shape) == len(other.shape)
    return same_rank and all(a == b or None in (a, b) for a, b in zip(one.shape, other.shape, strict=True))


def _collect(
    source: Any, inputs: Sequence[InputSpec], config: DataConfig, limit: int | None, scratch: Path
) -> CalibrationSet:
    path = Path(source) if isinstance(source, (str, Path)) else None
    where = path or "data"
    slabs: list[_Slab] = []
    samples, available = 0, None
    for part in _open_parts(source, inputs, config, scratch):
        slabs.append(_check_part(part, inputs))
        samples += slabs[-1].rows
        if limit is not None and samples >= limit:
            samples = limit
            break
    else:
        available = samples
    fixed_batch = _choose_batch(inputs, slabs)
    used = samples - samples % (fixed_batch or 1)
    if used == 0:
        raise DataError(
            f"{where}: found {samples} samples; the model takes {fixed_batch} in a run; give at least these"
        )
    notes = []
    if used < samples:
        notes.append(f"{where}: the model takes {fixed_batch} samples in a run; the last {samples - used} are left out")
    if config != DataConfig() and not _hold_images(slabs[0]):
        notes.append(f"{where}: mean, std, sizes and layout are for image files; these arrays are used as they are")
    warnings = (*notes, *_scan(slabs, inputs, used))
    return CalibrationSet(
        inputs,
        slabs,
        samples=used,
        fixed_batch=fixed_batch,
        warnings=warnings,
        folder=path if path and path.is_dir() else None,
        available=available,
    )


def _hold_images(slab: _Slab) -> bool:
    return any(isinstance(array, images.ImageFile) for array in slab.part.arrays.values())


def _open_parts(source: Any, inputs: Sequence[InputSpec], config: DataConfig, scratch: Path) -> Iterator[Part]:
    if isinstance(source, (np.ndarray, Mapping)):
        return iter([arrays.take_arrays(source, inputs)])
    if not isinstance(source, (str, Path)):
        raise DataError(f"data: found {type(source).__name__}; give a path, a NumPy array or a dict of arrays")
    path = Path(source)
    if path.is_dir():
        return _open_folder(path, inputs, config, scratch)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give a folder of {KINDS}, or one .npz or .npy")
    if path.suffix.lower() not in (".npy", ".npz"):
        raise DataError(f"{path}: not a file of samples; give a folder of {KINDS}, or one .npz or .npy")
    return iter([_open_file(path, inputs, scratch)])


def _open_file(path: Path, inputs: Sequence[InputSpec], scratch: Path) -> Part:
    return arrays.open_npz(path, inputs, scratch) if path.suffix.lower() == ".npz" else arrays.open_npy(path, inputs)


def _open_folder(folder: Path, inputs: Sequence[InputSpec], config: DataConfig, scratch: Path) -> Iterator[Part]:
    entries = [entry for entry in _list_folder(folder) if not _lists_labels(entry)]
    if not entries:
        raise DataError(f"{folder}: found labels alone; put {KINDS} beside them")
    sets = [entry for entry in entries if entry.is_dir() and entry.name.startswith("test_data_set_")]
    if sets or any(entry.match("input_*.pb") for entry in entries):
        return (arrays.open_test_set(each, inputs, scratch) for each in sets or [folder])
    if all(entry.is_dir() for entry in entries):
        columns = {entry.name for entry in entries} - set(arrays.LABELS)
        if len(inputs) > 1 or columns <= {inputs[0].name}:
            return arrays.open_npy_columns(entries, inputs)
        return _open_classes(folder, entries, inputs, config, scratch)
    return _open_files(folder, entries, inputs, config, scratch)


def _open_classes(
    folder: Path, folders: Sequence[Path], inputs: Sequence[InputSpec], config: DataConfig, scratch: Path
) -> Iterator[Part]:
    """Sub-folders named by class, all of one kind of files: one of each in turn, so that the first few have all."""
    turns = zip_longest(*([(file, each.name) for file in _list_folder(each)] for each in folders))
    files = dict(pair for turn in turns for pair in turn if pair is not None)
    parts = _open_files(folder, list(files), inputs, config, scratch)
    classes = _number_classes([each.name for each in folders])
    if classes is None:
        return parts
    return (replace(part, label=classes[name], labels=None) for part, name in zip(parts, files.values(), strict=True))


def _number_classes(names: Sequence[str]) -> dict[str, int] | None:
    """Name -> class: the number that it is, where all are, else its place in the sorted names, as in torchvision.

    None for a single name that is no number: such a folder holds samples, but tells nothing of their class.
    """
    if all(arrays.CLASS.fullmatch(name) for name in names):
        return {name: int(name) for name in names}
    return {name: place for place, name in enumerate(sorted(names))} if len(names) > 1 else None


def _open_files(
    folder: Path, entries: Sequence[Path], inputs: Sequence[InputSpec], config: DataConfig, scratch: Path
) -> Iterator[Part]:
    suffix = _agree_on_suffix(folder, entries)
    if suffix in images.SUFFIXES:
        return images.open_images(entries, inputs, config)
    if suffix == ".npy" and len(inputs) > 1:
        return iter([arrays.open_npy_set(entries, inputs)])
    return (_open_file(entry, inputs, scratch) for entry in entries)


def _lists_labels(entry: Path) -> bool:
    """Whether a file beside the samples is that of their classes, such as labels.csv."""
    return entry.stem in arrays.LABELS and entry.suffix.lower() in (".csv", ".json")


def _list_folder(folder: Path) -> list[Path]:
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}; make it readable") from None
    if not entries:
        raise DataError(f"{folder}: the folder is empty; put {KINDS} in it")
    return entries


def _agree_on_suffix(folder: Path, entries: Sequence[Path]) -> str:
    kinds: dict[str, Path] = {}
    for entry in entries:
        suffix = entry.suffix.lower()
        if entry.is_dir() or suffix not in (".npy", ".npz", *images.SUFFIXES):
            raise DataError(f"{entry}: not a file of samples; the folder may hold {KINDS}, of one kind; move it away")
        kinds.setdefault("image" if suffix in images.SUFFIXES else suffix, entry)
    if len(kinds) > 1:
        one, two = (path.relative_to(folder) for path in list(kinds.values())[:2])
        raise DataError(f"{folder}: found both {one} and {two}; a folder holds one kind of {KINDS}; separate them")
    return entries[0].suffix.lower()


def _check_part(part: Part, inputs: Sequence[InputSpec]) -> _Slab:
    """Types, ranks and shapes of one part, from headers alone."""
    batched = _share_batch(inputs)
    shapes, stacked, counts = {}, {}, {}
    for spec in inputs:
        array = part.arrays[spec.name]
        stacked[spec.name] = check_array(f"{part.where}: input {spec.name!r}", array, spec, batched=batched)
        shapes[spec.name] = tuple(array.shape[1:] if stacked[spec.name] else array.shape)
        counts[spec.name] = array.shape[0] if stacked[spec.name] else 1
    (first, rows), *others = counts.items()
    for name, count in others:
        if count != rows:
            raise DataError(
                f"{part.where}: found {rows} samples of {first!r}, {count} of {name!r}; give as many of each"
            )
    return _Slab(part, rows, shapes, stacked)


def _choose_batch(inputs: Sequence[InputSpec], slabs: Sequence[_Slab]) -> int | None:
    """Samples that one run must have: the model's, or one where a model has no batch axis or samples differ in size."""
    if not _share_batch(inputs):
        return 1
    fixed = next((spec.shape[0] for spec in inputs if spec.shape), None)
    for slab in slabs:
        if slab.shapes != slabs[0].shapes:
            if fixed not in (None, 1):
                raise DataError(
                    f"{slab.part.where}: samples have other sizes than in {slabs[0].part.where}; "
                    f"the model takes {fixed} in a run, of one size; make them equal"
                )
            return 1
    return fixed


def _share_batch(inputs: Sequence[InputSpec]) -> bool:
    """Whether all inputs have a leading axis of one and the same length, fixed or open."""
    ranked = [spec.shape for spec in inputs if spec.shape is not None]
    return all(shape for shape in ranked) and len({shape[0] for shape in ranked if shape}) <= 1


def _scan(slabs: Sequence[_Slab], inputs: Sequence[InputSpec], samples: int) -> list[str]:
    """Read arrays of floats once, refuse NaN and infinity, and say which inputs hold unlikely values."""
    warnings = []
    for spec in inputs:
        dtype = np.dtype(spec.dtype)
        if dtype.kind != "f" or _hold_images(slabs[0]):
            continue
        least, most, left = np.inf, -np.inf, samples
        for slab in slabs:
            for start, chunk in _chunks(slab, spec.name, dtype, left):
                low, high = float(chunk.min()), float(chunk.max())
                if not (np.isfinite(low) and np.isfinite(high)):
                    bad = start + int(np.flatnonzero(~np.isfinite(chunk.reshape(len(chunk), -1)).all(axis=1))[0])
                    raise DataError(
                        f"{slab.part.where}: input {spec.name!r}: NaN or infinity in sample {bad}; remove it"
                    )
                least, most = min(least, low), max(most, high)
            left -= min(left, slab.rows)
        if least == most:
            warnings.append(f"input {spec.name!r}: every value is {least:g}; real data vary")
        if spec.shape is not None and len(spec.shape) == 4 and least >= 0 and RAW_PIXEL_PEAK < most <= 255:
            warnings.append(
                f"input {spec.name!r}: values from {least:g} to {most:g} look like raw pixels; "
                "normalize them as in training"
            )
    return warnings


def _chunks(slab: _Slab, name: str, dtype: np.dtype, limit: int) -> Iterator[tuple[int, np.ndarray]]:
    rows = min(slab.rows, limit)
    step = max(1, SCAN_BYTES // (max(1, int(np.prod(slab.shapes[name]))) * dtype.itemsize))
    for start in range(0, rows, step):
        with np.errstate(over="ignore"):
            chunk = slab.take(name, range(start, min(start + step, rows)), dtype)
        yield start, chunk
