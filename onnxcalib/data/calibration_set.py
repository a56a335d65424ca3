"""The calibration set: samples that are checked against the model's inputs first, then read batch by batch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from ..config import DataConfig
from ..errors import DataError
from ..files.scratch import Scratch
from ..progress import track
from ..spec import InputSpec, spell_shape
from .checked import CheckedSamples, check_part, share_batch, unpack_part
from .padding import trim_padding
from .past import says_past
from .remarks import find_unused, tell_audio, tell_normalization, tell_padding, tell_parts, tell_sequences
from .room import Room
from .scan import hold_images, scan_values
from .sources import open_parts
from .steps import first_sequences, list_lengths

Location = tuple[CheckedSamples, int]  # of a sample: its part, and its row in that
MOST_SAMPLES = 10_000_000  # as lists of their indices are kept in memory; ImageNet has an eighth of them


class CalibrationSet:
    """Samples for a model's inputs, each in its own shape, read from the disk when they are asked for.

    fixed_batch: the number of samples that a run of the model takes; None: any number.
    warnings: one line for each thing that looks wrong in the data.
    notes: one line for each thing that was done with the files beyond reading them.
    images: whether the samples are image files.
    folder: the folder of the samples; None where they are in one file or came from Python.
    batched: whether a run takes samples stacked on axis 0; else it takes one sample without such an axis.
    available: number of samples in the source; None where a limit was reached, since the rest is not counted.
    largest: index of the first sample with the most values.
    texts: facts about the texts that were encoded; None where the samples are no texts.
    sequences: the number of the sequence of which each sample is a step, (samples,); None where each is by itself.
    states: input -> the output that gives its value in the next step of a sequence.
    steps: whether samples are steps of sequences, or what a part of a model reads in such steps.
    """

    def __init__(
        self,
        inputs: Sequence[InputSpec],
        checked: Sequence[CheckedSamples],
        *,
        samples: int,
        fixed_batch: int | None,
        warnings: tuple[str, ...] = (),
        notes: tuple[str, ...] = (),
        folder: Path | None = None,
        available: int | None = None,
        sequences: np.ndarray | None = None,
        scratch: Scratch | None = None,
    ) -> None:
        self.inputs = tuple(inputs)
        self.fixed_batch = fixed_batch
        self.warnings = warnings
        self.notes = notes
        self.folder = folder
        self.available = available
        self.sequences, self.steps = sequences, sequences is not None
        self.states = {spec.name: spec.state for spec in inputs if spec.state}
        self._scratch = scratch  # the temporary folder ends with the set
        self._checked = tuple(checked)
        self.images = all(map(hold_images, checked))
        self.texts = checked[0].part.texts
        self._chosen: np.ndarray | None = None  # where the samples are in the source; None: all, in its order
        self._samples = samples
        self._ends = np.cumsum([part.rows for part in checked])
        self.batched = share_batch(inputs)
        self._kinds, self.largest = _sort_samples(checked, samples)

    def __len__(self) -> int:
        return self._samples

    @property
    def indices(self) -> np.ndarray:
        """Where the samples are in the source, (samples,)."""
        return np.arange(self._samples) if self._chosen is None else self._chosen

    def take(self, indices: Sequence[int]) -> CalibrationSet:
        """The samples of these indices, one at least, as a set of their own that reads the same files."""
        taken = copy(self)
        for cached in ("names", "labels"):
            taken.__dict__.pop(cached, None)
        taken._chosen, taken._samples = self.indices[list(indices)], len(indices)
        taken.sequences = None if self.sequences is None else self.sequences[list(indices)]
        kinds = None if self._kinds is None else self._kinds[list(indices)]
        taken._kinds, taken.largest = kinds, 0 if kinds is None else int(kinds.argmax())
        if self.texts is not None:
            lengths, largest = (of_text[list(indices)] for of_text in (self.texts.lengths, self.texts.largest))
            taken.texts = replace(self.texts, lengths=lengths, largest=largest)
        return taken

    @cached_property
    def names(self) -> tuple[str, ...] | None:
        """The file of each sample relative to the folder, with slashes; None where files hold several samples."""
        files = [part.part.file for part in self._checked if part.total == 1 and part.part.file is not None]
        if self.folder is None or len(files) < len(self._checked):
            return None
        return tuple(file.relative_to(self.folder).as_posix() for file in map(files.__getitem__, self.indices))

    @cached_property
    def labels(self) -> np.ndarray | None:
        """(samples,) numbers that the source itself holds, or None. Raises DataError for anything else."""
        without = [part.part.where for part in self._checked if not part.labelled]
        if len(without) == len(self._checked):
            return None
        if without:
            raise DataError(
                f"{without[0]}: no labels, as in {len(without)} of {len(self._checked)} files; all or none must have"
                " them; add them, or give --labels"
            )
        return np.concatenate([part.read_labels() for part in self._checked]).take(self.indices)

    def tell(self, note: Callable[[str], None], warn: Callable[[str], None]) -> None:
        """Call ``note`` with each of the notes, and ``warn`` with each of the warnings."""
        for text in self.notes:
            note(text)
        for text in self.warnings:
            warn(text)

    def read(self, indices: Iterable[int]) -> dict[str, np.ndarray]:
        """Input -> these samples, stacked on axis 0. A model without a batch axis gets one sample, without that axis.

        The samples must be of one shape, as in the runs of ``split``. Raises IndexError and DataError.
        """
        found = [self._locate(int(index)) for index in indices]
        if not self.batched:
            (part, row), *rest = found
            assert not rest, "this model takes one sample a run"
            return {spec.name: np.asarray(part.take(spec.name, [row], np.dtype(spec.dtype))[0]) for spec in self.inputs}
        return {spec.name: _gather(spec, found) for spec in self.inputs}

    def split(self, size: int, among: Sequence[int] | None = None) -> list[list[int]]:
        """Indices of all samples, or of those in ``among``, by run of the model.

        The samples of a run have one shape. There are ``fixed_batch`` of them, or at most ``size`` where that is None.
        Runs are in the order of their first samples.
        """
        count = self.fixed_batch or size
        alike: dict[int, list[int]] = {}
        for index in range(len(self)) if among is None else among:
            alike.setdefault(0 if self._kinds is None else int(self._kinds[index]), []).append(int(index))
        runs = [group[at : at + count] for group in alike.values() for at in range(0, len(group), count)]
        return sorted(runs, key=lambda run: run[0])

    def batches(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        """All samples, in the runs of ``split``; tells how many are done."""
        return (self.read(run) for run in track(self.split(size), len))

    def count(self, feeds: Mapping[str, np.ndarray]) -> int:
        """Number of samples in the feeds of a run; 1 where the model has no batch axis."""
        return len(next(iter(feeds.values()))) if self.batched else 1

    def alike(self, count: int) -> list[int]:
        """Indices of ``count`` samples that all have the shape of median size, repeated where there are fewer."""
        if self._kinds is None:
            return [index % len(self) for index in range(count)]
        chosen = np.flatnonzero(self._kinds == np.sort(self._kinds)[len(self) // 2])
        return [int(chosen[number % len(chosen)]) for number in range(count)]

    def arrays(self) -> Iterator[Any]:
        """The array, or the image file, of each sample's first input."""
        return (self._locate(at)[0].part.arrays[self.inputs[0].name] for at in range(len(self)))

    def _locate(self, index: int) -> Location:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index}: the calibration set has {len(self)}")
        index = index if self._chosen is None else int(self._chosen[index])
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._checked[number], index - int(self._ends[number]) + self._checked[number].rows


class DataReader(Protocol):
    """What onnxruntime's ``CalibrationDataReader`` offers: arrays by input name, and None after the last."""

    def get_next(self) -> Mapping[str, Any] | None: ...


SampleSource: TypeAlias = str | Path | Iterable[Any] | DataReader | CalibrationSet


def _gather(spec: InputSpec, found: Sequence[Location]) -> np.ndarray:
    """The samples of an input on axis 0, each part read once."""
    wanted: dict[int, tuple[CheckedSamples, list[int], list[int]]] = {}
    for position, (part, row) in enumerate(found):
        _, positions, rows = wanted.setdefault(id(part), (part, [], []))
        positions.append(position)
        rows.append(row)
    dtype = np.dtype(spec.dtype)
    read = [(positions, part.take(spec.name, rows, dtype)) for part, positions, rows in wanted.values()]
    gathered = np.empty((len(found), *read[0][1].shape[1:]), dtype)
    for positions, values in read:
        gathered[positions] = values
    return gathered


def open_calibration(
    source: SampleSource, inputs: Sequence[InputSpec], config: DataConfig | None = None, *, limit: int | None = None
) -> CalibrationSet:
    """Samples of ``source``, or its first ``limit``, checked against ``inputs``.

    source: one of

    - the path of a folder or file, or a set that is open already;
    - an array or tensor with samples on its first axis, or a mapping from input names to such arrays;
    - an iterable of texts;
    - an iterable of samples: a generator, a torch DataLoader, a split of Hugging Face ``datasets``, or onnxruntime's
      CalibrationDataReader.

    Each item of an iterable is a mapping from input names to arrays, a tuple or list of arrays in the order of the
    inputs, or the array of a model's only input. An array with as many axes as the input holds a batch, one with an
    axis less holds one sample; where the model has no batch axis, an array with an axis more holds a batch. Nested
    lists are arrays too. Items are read once, one at a time, and at most until there are ``limit`` samples. Their
    values are kept in a temporary folder that is removed with the set.

    Labels are read from the key ``label``, ``labels`` or ``y`` of a mapping. A tuple may hold labels, one integer a
    sample, behind its inputs: these are not read. Other keys are not read either. A warning tells of both.

    Where an input is a state (see ``InputSpec``), each item, file or array is a sequence instead, whose samples are its
    steps, and ``limit`` counts sequences; see ``steps.as_steps``. States that are left out start as zeros.

    Raises DataError.
    """
    config = DataConfig.take(config)
    if isinstance(source, CalibrationSet):
        return _take_open(source, inputs, limit)
    if not inputs:
        raise DataError("data: the model has no inputs; it gives the same outputs always; choose another model")
    scratch = Scratch()
    try:
        return _collect(source, inputs, config, limit, scratch)
    except BaseException:
        scratch.remove()
        raise


def _take_open(samples: CalibrationSet, inputs: Sequence[InputSpec], limit: int | None) -> CalibrationSet:
    count = len(samples) if samples.sequences is None else len(np.unique(samples.sequences))
    if limit is not None and limit < count:
        what = "samples" if samples.sequences is None else "sequences"
        raise DataError(f"data: found an open set of {count} {what}; {limit} are wanted; open it with limit=")
    found, wanted = ([(spec.name, np.dtype(spec.dtype)) for spec in each] for each in (samples.inputs, inputs))
    if found != wanted or not all(map(_agree, samples.inputs, inputs)):
        names = [", ".join(map(_spell_input, each)) for each in (samples.inputs, inputs)]
        raise DataError(
            f"data: the set was opened for the inputs {names[0]}; the model's are {names[1]}, each of a type and shape;"
            " open it with the model's own"
        )
    states = {spec.name: spec.state for spec in inputs if spec.state}
    if states not in ({}, samples.states):
        has, wanted_ones = (
            ", ".join(f"{out}:{name}" for name, out in each.items()) for each in (samples.states, states)
        )
        kind = f"with states {has}" if has else "without states"
        raise DataError(f"data: found an open set {kind}; {wanted_ones} are set; open it with these")
    return samples


def _agree(opened: InputSpec, wanted: InputSpec) -> bool:
    """Whether the ranks are equal, and each dimension that the model fixes."""
    if opened.shape is None or wanted.shape is None:
        return wanted.shape is None or not any(wanted.shape)
    same_rank = len(opened.shape) == len(wanted.shape)
    return same_rank and all(b in (None, a) for a, b in zip(opened.shape, wanted.shape, strict=True))


def _spell_input(spec: InputSpec) -> str:
    return f"{spec.name!r} {'of any shape' if spec.shape is None else spell_shape(spec.shape)}"


def _collect(
    source: SampleSource, inputs: Sequence[InputSpec], config: DataConfig, limit: int | None, scratch: Scratch
) -> CalibrationSet:
    path = Path(source) if isinstance(source, (str, Path)) else None
    where = str(path or "data")
    checked: list[CheckedSamples] = []
    samples, available, padded = 0, None, None
    room = Room(scratch.path, config.unpacked_bytes)
    stepwise = any(spec.state for spec in inputs)
    if stepwise:
        _refuse_batch(inputs)
    parts = open_parts(source, inputs, config, room, limit)
    if stepwise:
        parts, limit = first_sequences(parts, limit), None
    for opened in parts:
        left = None if limit is None else limit - samples
        part = check_part(opened, inputs, sum(opened.lengths) if stepwise else left)
        if samples + part.rows > MOST_SAMPLES:
            raise DataError(
                f"{opened.where}: found {samples + part.rows:,} samples or more; at most {MOST_SAMPLES:,} are used;"
                " give fewer with --samples"
            )
        part, reason = trim_padding(unpack_part(part, room), inputs)
        padded = padded or reason
        checked.append(part)
        samples += part.rows
        if samples == limit:
            break
    else:
        available = samples
    fixed_batch = _choose_batch(inputs, checked)
    used = samples - samples % (fixed_batch or 1)
    if used == 0:
        raise DataError(
            f"{where}: found {samples} samples; the model takes {fixed_batch} in a run; give at least these"
        )
    warnings = [*tell_parts(checked, inputs), *([] if padded is None else [tell_padding(where, padded, inputs)])]
    if used < samples:
        left_out = f"the last {samples - used} are left out"
        warnings.append(f"{where}: the model takes {fixed_batch} samples in a run; {left_out}")
    warnings += find_unused(config, checked[0], where)
    lengths = list_lengths(checked)
    normalization, chosen = tell_normalization(config, checked[0], where)
    notes = normalization if chosen else []
    warnings += [] if chosen else normalization
    return CalibrationSet(
        inputs,
        checked,
        samples=used,
        fixed_batch=fixed_batch,
        warnings=(*warnings, *scan_values(checked, inputs, used)),
        notes=(*notes, *tell_audio(where, checked), *tell_sequences(where, checked, lengths)),
        folder=path if path and os.path.isdir(path) else None,
        available=available,
        sequences=np.repeat(np.arange(len(lengths)), lengths) if stepwise else None,
        scratch=scratch,
    )


def _refuse_batch(inputs: Sequence[InputSpec]) -> None:
    """Raise DataError for a model that runs several samples at a time, as each sequence has its own states."""
    count = next((spec.shape[0] for spec in inputs if spec.shape and share_batch(inputs)), None)
    if count not in (None, 1):
        raise DataError(
            f"state: the model takes {count} samples in a run; sequences are run one by one, each with its own states;"
            " export the model for one sample, or for any number"
        )


def _sort_samples(checked: Sequence[CheckedSamples], samples: int) -> tuple[np.ndarray | None, int]:
    """The kind of each sample, (samples,), and the index of the first of the largest samples.

    Samples of one shape are of one kind; kinds count from 0 in the order of sizes. None where all have one shape.
    """
    sizes: list[tuple[int, str]] = []  # of the groups of samples that are alike and of one part
    members: list[np.ndarray] = []
    for part in checked:
        lengths, group = np.unique(part.lengths(), return_inverse=True)
        members.append(group + len(sizes))
        sizes += [_spell_sizes(part, length) for length in lengths]
    of_sample = np.concatenate(members)[:samples]
    used = np.unique(of_sample)
    ranks = {size: rank for rank, size in enumerate(sorted({sizes[number] for number in used}))}
    kinds = np.array([ranks.get(size, 0) for size in sizes])[of_sample]
    return (kinds if len(ranks) > 1 else None), int(kinds.argmax())


def _spell_sizes(part: CheckedSamples, length: int) -> tuple[int, str]:
    """The number of values in a sample of ``length`` tokens, and its shapes as text."""
    shapes = {name: (int(length), *shape[1:]) if name in part.trimmed else shape for name, shape in part.shapes.items()}
    return sum(math.prod(shape) for shape in shapes.values()), str(sorted(shapes.items()))


def _choose_batch(inputs: Sequence[InputSpec], checked: Sequence[CheckedSamples]) -> int | None:
    """The number of samples that a run must have: 1 where the model has no batch axis, or a past is read or not by
    one value of a run; None for any number.

    Raises DataError where a run takes several samples and they differ in size.
    """
    if not share_batch(inputs):
        return 1
    if any(map(says_past, inputs)):
        return 1
    fixed = next((spec.shape[0] for spec in inputs if spec.shape), None)
    for part in checked:
        if part.shapes != checked[0].shapes and fixed not in (None, 1):
            raise DataError(
                f"{part.part.where}: samples have other sizes than in {checked[0].part.where}; the model takes {fixed}"
                " in a run, of one size; make them equal"
            )
    return fixed
