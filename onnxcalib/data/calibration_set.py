"""The calibration set: samples checked against the model's inputs before any work, and read batch by batch."""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..config import IMAGE_SETTINGS, TEXT_SETTINGS, DataConfig
from ..errors import DataError
from ..spec import InputSpec
from . import images
from .padding import MASK, CheckedSamples, check_part, cut_padding, share_batch
from .sources import open_parts

SCAN_BYTES = 1 << 24  # how much of an array is looked at in one go, so that a scan needs no more memory
RAW_PIXEL_PEAK = 64.0  # normalized images stay within a few units; 8-bit pixels of any real photograph pass this


class CalibrationSet:
    """Samples for a model's inputs, read from their source as they are asked for, each in its own shape.

    fixed_batch: a run of the model takes exactly so many samples; None: any number.
    warnings: what looks odd in the values, one line each.
    images: whether the samples are image files.
    folder: that of the samples, None where they are in one file or were given as arrays.
    batched: whether a run's samples are stacked on axis 0; else a run takes one, as it is.
    available: samples in the source; None where a limit was reached, so that they were not counted.
    largest: the first of the samples with the most values.
    texts: what is known of the texts that the samples were made of, None where they were not.
    """

    def __init__(
        self,
        inputs: Sequence[InputSpec],
        checked: Sequence[CheckedSamples],
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
        self._checked = tuple(checked)
        self.images = all(map(_hold_images, checked))
        self.texts = checked[0].part.texts
        self._samples = samples
        self._ends = np.cumsum([part.rows for part in checked])
        self.batched = share_batch(inputs)
        self._kinds, self.largest = _sort_samples(checked, samples)

    def __len__(self) -> int:
        return self._samples

    @cached_property
    def names(self) -> tuple[str, ...] | None:
        """The file of each sample relative to the folder, with slashes; None where not every sample has its own."""
        files = [part.part.file for part in self._checked if part.rows == 1]
        if self.folder is None or len(files) < len(self._checked) or None in files:
            return None
        return tuple(file.relative_to(self.folder).as_posix() for file in files[: len(self)])

    @cached_property
    def labels(self) -> np.ndarray | None:
        """int64 (samples,), the classes that the source itself tells, or None; DataError where they are no classes."""
        without = [part.part.where for part in self._checked if not part.labelled]
        if len(without) == len(self._checked):
            return None
        if without:
            raise DataError(
                f"{without[0]}: no labels, as in {len(without)} of {len(self._checked)} files; "
                "all or none must have them; add them, or give --labels"
            )
        return np.concatenate([part.read_labels() for part in self._checked])[: len(self)]

    def read(self, indices: Iterable[int]) -> dict[str, np.ndarray]:
        """Input -> the samples, stacked on axis 0; for a model without a batch axis one sample, as it is fed."""
        places = [self._locate(int(index)) for index in indices]
        if not self.batched:
            (part, row), *rest = places
            assert not rest, "this model takes one sample a run"
            return {spec.name: np.asarray(part.take(spec.name, [row], np.dtype(spec.dtype))[0]) for spec in self.inputs}
        return {spec.name: self._gather(spec, places) for spec in self.inputs}

    def split(self, size: int, among: Sequence[int] | None = None) -> list[list[int]]:
        """The samples, or those ``among`` them, in the runs that a model takes: ``size`` of one shape at most.

        A run has as many as ``fixed_batch`` says, if it does. Runs come in the order of their first samples.
        """
        step = self.fixed_batch or size
        alike: dict[int, list[int]] = {}
        for index in range(len(self)) if among is None else among:
            alike.setdefault(0 if self._kinds is None else int(self._kinds[index]), []).append(int(index))
        runs = [group[at : at + step] for group in alike.values() for at in range(0, len(group), step)]
        return sorted(runs, key=lambda run: run[0])

    def batches(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        """All samples, run by run as ``split`` has them."""
        return (self.read(run) for run in self.split(size))

    def count(self, feeds: Mapping[str, np.ndarray]) -> int:
        """Samples in the feeds of a run; one where the model has no axis of them."""
        return len(next(iter(feeds.values()))) if self.batched else 1

    def alike(self, count: int) -> list[int]:
        """So many samples of one shape, that of the median size, again from the first where they are fewer."""
        if self._kinds is None:
            return [index % len(self) for index in range(count)]
        chosen = np.flatnonzero(self._kinds == np.sort(self._kinds)[len(self) // 2])
        return [int(chosen[number % len(chosen)]) for number in range(count)]

    def _locate(self, index: int) -> tuple[CheckedSamples, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index}: the calibration set has {len(self)}")
        place = int(np.searchsorted(self._ends, index, side="right"))
        return self._checked[place], index - int(self._ends[place]) + self._checked[place].rows

    def _gather(self, spec: InputSpec, places: Sequence[tuple[CheckedSamples, int]]) -> np.ndarray:
        wanted: dict[int, tuple[CheckedSamples, list[int], list[int]]] = {}
        for position, (part, row) in enumerate(places):
            _, positions, rows = wanted.setdefault(id(part), (part, [], []))
            positions.append(position)
            rows.append(row)
        dtype = np.dtype(spec.dtype)
        gathered = None
        for part, positions, rows in wanted.values():
            values = part.take(spec.name, rows, dtype)
            if gathered is None:
                gathered = np.empty((len(places), *values.shape[1:]), dtype)
            gathered[positions] = values
        return gathered


def open_calibration(
    source: Any, inputs: Sequence[InputSpec], config: DataConfig | None = None, *, limit: int | None = None
) -> CalibrationSet:
    """Samples of ``source``, or its first ``limit``, checked against ``inputs``.

    source: a folder or file path, a NumPy array, a mapping from input names to arrays, a list of texts, or a set that
    is open already. Raises DataError.
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
    checked: list[CheckedSamples] = []
    samples, available, padded = 0, None, None
    for part in open_parts(source, inputs, config, scratch, limit):
        part, reason = cut_padding(check_part(part, inputs), inputs)
        padded = padded or reason
        checked.append(part)
        samples += checked[-1].rows
        if limit is not None and samples >= limit:
            samples = limit
            break
    else:
        available = samples
    fixed_batch = _choose_batch(inputs, checked)
    used = samples - samples % (fixed_batch or 1)
    if used == 0:
        raise DataError(
            f"{where}: found {samples} samples; the model takes {fixed_batch} in a run; give at least these"
        )
    notes = []
    if used < samples:
        notes.append(f"{where}: the model takes {fixed_batch} samples in a run; the last {samples - used} are left out")
    if padded is not None:
        share = (
            "its mask keeps it out of what is measured and learned, wherever the graph shows which axes count tokens;"
            " convolutions over tokens mix it in; a model of any length needs none"
        )
        if all(spec.name != MASK for spec in inputs):
            share = "the model has no mask, so that it enters ranges, solving and losses"
        notes.append(f"{where}: padding is run: {padded}; {share}")
    if checked[0].part.texts is not None and checked[0].part.texts.skipped:
        notes.append(checked[0].part.texts.skipped)
    notes += _find_unused(config, checked[0], str(where))
    warnings = (*notes, *_scan(checked, inputs, used))
    return CalibrationSet(
        inputs,
        checked,
        samples=used,
        fixed_batch=fixed_batch,
        warnings=warnings,
        folder=path if path and path.is_dir() else None,
        available=available,
    )


def _hold_images(part: CheckedSamples) -> bool:
    return any(isinstance(array, images.ImageFile) for array in part.part.arrays.values())


def _find_unused(config: DataConfig, part: CheckedSamples, where: str) -> list[str]:
    """Lines for settings that are for samples of another kind."""
    default = DataConfig()
    given = {name for name in DataConfig.model_fields if getattr(config, name) != getattr(default, name)}
    notes = []
    if given.intersection(IMAGE_SETTINGS) and not _hold_images(part):
        notes.append(f"{where}: mean, std, sizes and layout are for image files; these samples are used as they are")
    if given.intersection(TEXT_SETTINGS) and part.part.texts is None:
        notes.append(f"{where}: tokenizer, columns and lengths are for texts; these samples are used as they are")
    return notes


def _sort_samples(checked: Sequence[CheckedSamples], samples: int) -> tuple[np.ndarray | None, int]:
    """A number for each sample that is that of its shape, in the order of sizes, and the first of the largest.

    None for the numbers where all samples have one shape.
    """
    found: list[tuple[int, str]] = []
    for part in checked:
        spelled = {length: _spell_sizes(part, length) for length in np.unique(part.lengths())}
        found += [spelled[length] for length in part.lengths()]
    ranks = {sizes: rank for rank, sizes in enumerate(sorted(set(found[:samples])))}
    kinds = np.array([ranks[sizes] for sizes in found[:samples]])
    return (kinds if len(ranks) > 1 else None), int(kinds.argmax())


def _spell_sizes(part: CheckedSamples, length: int) -> tuple[int, str]:
    """Values in a sample of so many tokens, and its shapes."""
    shapes = {name: (int(length), *shape[1:]) if name in part.cut else shape for name, shape in part.shapes.items()}
    return sum(math.prod(shape) for shape in shapes.values()), str(sorted(shapes.items()))


def _choose_batch(inputs: Sequence[InputSpec], checked: Sequence[CheckedSamples]) -> int | None:
    """Samples that one run must have: the model's, one where a model has no batch axis, or None for any number."""
    if not share_batch(inputs):
        return 1
    fixed = next((spec.shape[0] for spec in inputs if spec.shape), None)
    for part in checked:
        if part.shapes != checked[0].shapes and fixed not in (None, 1):
            raise DataError(
                f"{part.part.where}: samples have other sizes than in {checked[0].part.where}; "
                f"the model takes {fixed} in a run, of one size; make them equal"
            )
    return fixed


def _scan(checked: Sequence[CheckedSamples], inputs: Sequence[InputSpec], samples: int) -> list[str]:
    """Read arrays of floats once, refuse NaN and infinity, and say which inputs hold unlikely values."""
    warnings = []
    for spec in inputs:
        dtype = np.dtype(spec.dtype)
        if dtype.kind != "f" or _hold_images(checked[0]):
            continue
        least, most, left = np.inf, -np.inf, samples
        for part in checked:
            for start, chunk in _chunks(part, spec.name, dtype, left):
                low, high = float(chunk.min()), float(chunk.max())
                if not (np.isfinite(low) and np.isfinite(high)):
                    bad = start + int(np.flatnonzero(~np.isfinite(chunk.reshape(len(chunk), -1)).all(axis=1))[0])
                    raise DataError(
                        f"{part.part.where}: input {spec.name!r}: NaN or infinity in sample {bad}; remove it"
                    )
                least, most = min(least, low), max(most, high)
            left -= min(left, part.rows)
        if least == most:
            warnings.append(f"input {spec.name!r}: every value is {least:g}; real data vary")
        if spec.shape is not None and len(spec.shape) == 4 and least >= 0 and RAW_PIXEL_PEAK < most <= 255:
            warnings.append(
                f"input {spec.name!r}: values from {least:g} to {most:g} look like raw pixels; "
                "normalize them as in training"
            )
    return warnings


def _chunks(part: CheckedSamples, name: str, dtype: np.dtype, limit: int) -> Iterator[tuple[int, np.ndarray]]:
    rows = min(part.rows, limit)
    step = max(1, SCAN_BYTES // (max(1, int(np.prod(part.shapes[name]))) * dtype.itemsize))
    for start in range(0, rows, step):
        with np.errstate(over="ignore"):
            chunk = part.take(name, range(start, min(start + step, rows)), dtype, whole=True)
        yield start, chunk
