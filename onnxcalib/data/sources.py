"""Sources of samples: the parts of a path or of an object of Python, before they are checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from ..config import DataConfig
from ..errors import DataError
from ..files.reading import is_folder
from ..spec import InputSpec
from . import arrays, audio, images, iterables, tensors, textfiles, tokenized
from .arrays import Part
from .listing import list_folder, natural_order
from .room import Room
from .steps import as_steps

KINDS = "images (png, jpg, jpeg, bmp, webp), .wav, .npy or .npz"
SEQUENCES = (
    "one .npz, .npy or .wav, or a folder: of these, each a sequence, or of sub-folders whose files are steps of one"
)
FILES = "one .npz, .npy or .wav, or texts (txt, csv, tsv, jsonl)"


def open_parts(
    source: Any, inputs: Sequence[InputSpec], config: DataConfig, room: Room, limit: int | None
) -> Iterator[Part]:
    """The parts of a source, each opened when it is reached. Nothing beyond ``limit`` is encoded or pulled.

    Arrays of .npz files are still packed. Where inputs are states, samples are the steps of sequences, and ``limit``
    counts sequences.
    """
    if any(spec.state for spec in inputs):
        return _open_sequences(source, inputs, config, room, limit)
    if not isinstance(source, (str, Path)):
        if isinstance(source, Mapping) or arrays.is_array(source):
            return iter([arrays.take_arrays(source, inputs)])
        items = iterables.Items(source)
        if isinstance(items.peek(), str):
            return iter([tokenized.take_texts(iterables.check_texts(items), inputs, config, limit)])
        return iterables.spool_items(items, inputs, room.folder, limit)
    if source == "":
        raise DataError(f"data: found an empty path; give a folder of {KINDS}, {FILES}")
    path = Path(source)
    if is_folder(path, DataError, give=f"give a folder of {KINDS}, {FILES}"):
        return _open_folder(path, inputs, config, room)
    suffix = path.suffix.lower()
    if suffix in textfiles.SUFFIXES:
        return iter([tokenized.open_texts(path, inputs, config, limit)])
    if suffix not in (".npy", ".npz", audio.SUFFIX):
        raise DataError(f"{path}: not a file of samples; give a folder of {KINDS}, {FILES}")
    return _open_file(path, inputs, config)


def _open_sequences(
    source: Any, inputs: Sequence[InputSpec], config: DataConfig, room: Room, limit: int | None
) -> Iterator[Part]:
    """The parts of sequences: a file, an array or an item is one, and so is a sub-folder; see ``_open_steps``."""
    axis = config.sequence_axis
    if not isinstance(source, (str, Path)):
        if isinstance(source, Mapping) or arrays.is_array(source):
            return iter([as_steps(arrays.take_arrays(source, inputs), inputs, axis)])
        return iterables.spool_items(iterables.Items(source), inputs, room.folder, limit, axis)
    path = Path(source)
    if source == "" or not is_folder(path, DataError, give=f"give {SEQUENCES}"):
        if path.suffix.lower() not in (".npy", ".npz", audio.SUFFIX):
            raise DataError(f"{path}: not a file of sequences; give {SEQUENCES}")
        axis = 0 if path.suffix.lower() == audio.SUFFIX else axis  # a recording is one sequence
        return (as_steps(part, inputs, axis, room) for part in _open_file(path, inputs, config))
    entries = [entry for entry in list_folder(path, give=f"give {SEQUENCES}") if not _lists_labels(entry)]
    folders = natural_order(entry for entry in entries if is_folder(entry, DataError, give="take it out of the folder"))
    if len(folders) < len(entries) or not folders:
        return iter(_open_steps(path, entries, inputs, config, room, whole=False))
    names = {folder.name for folder in folders} - set(arrays.LABELS)
    if names <= {spec.name for spec in inputs}:
        return (as_steps(part, inputs, axis, room) for part in arrays.open_npy_columns(folders, inputs))
    listed = ((folder, list_folder(folder, give="put the steps of a sequence in it")) for folder in folders)
    return (part for each, files in listed for part in _open_steps(each, files, inputs, config, room, whole=True))


def _open_steps(
    folder: Path, entries: Sequence[Path], inputs: Sequence[InputSpec], config: DataConfig, room: Room, *, whole: bool
) -> Iterable[Part]:
    """The files of a folder in natural order: steps of one sequence if that is so for the ``whole`` folder.

    Otherwise each is a sequence where any has several steps, and each of audio is.
    """
    parts = _open_files(folder, natural_order(entries), inputs, config)
    if entries[0].suffix.lower() == audio.SUFFIX:  # a recording is no step
        return (as_steps(part, inputs, 0) for part in parts)
    steps = (as_steps(part, inputs, config.sequence_axis, room) for part in parts)
    found: list[Part] = []
    for part in steps:
        found.append(part)
        if not whole and part.lengths != (1,):
            return chain(found, steps)  # which are opened when they are reached
    if whole and max(len(part.lengths) for part in found) > 1:
        raise DataError(f"{folder}: found a file of several sequences; a sub-folder is one sequence; move it up")
    return [replace(part, sequence=str(folder)) for part in found]


def _open_file(path: Path, inputs: Sequence[InputSpec], config: DataConfig) -> Iterator[Part]:
    if path.suffix.lower() == audio.SUFFIX:
        return audio.open_audio([path], inputs, config)
    return iter([(arrays.open_npz if path.suffix.lower() == ".npz" else arrays.open_npy_file)(path, inputs)])


def _open_folder(folder: Path, inputs: Sequence[InputSpec], config: DataConfig, room: Room) -> Iterator[Part]:
    entries = [entry for entry in list_folder(folder, give=f"put {KINDS} in it") if not _lists_labels(entry)]
    if not entries:
        raise DataError(f"{folder}: found only labels; samples are needed; put {KINDS} beside them")
    folders = {entry for entry in entries if is_folder(entry, DataError, give="take it out of the folder")}
    sets = [entry for entry in entries if entry in folders and entry.name.startswith("test_data_set_")]
    if sets or any(entry.match("input_*.pb") for entry in entries):
        return (tensors.open_test_set(each, inputs, room) for each in sets or [folder])
    if len(folders) == len(entries):
        columns = {entry.name for entry in entries} - set(arrays.LABELS)
        if len(inputs) > 1 or columns <= {inputs[0].name}:
            return arrays.open_npy_columns(entries, inputs)
        return _open_classes(folder, entries, inputs, config)
    return _open_files(folder, entries, inputs, config)


def _open_classes(
    folder: Path, folders: Sequence[Path], inputs: Sequence[InputSpec], config: DataConfig
) -> Iterator[Part]:
    """The samples of sub-folders named by class, from each in turn, so that the first few hold all classes."""
    listed = {each: list_folder(each, give=f"put {KINDS} in it") for each in folders}
    turns = zip_longest(*([(file, each.name) for file in files] for each, files in listed.items()))
    files = dict(pair for turn in turns for pair in turn if pair is not None)
    parts = _open_files(folder, list(files), inputs, config)
    classes = _number_classes([each.name for each in folders])
    if classes is None:
        return parts
    return (replace(part, label=classes[name], labels=None) for part, name in zip(parts, files.values(), strict=True))


def _number_classes(names: Sequence[str]) -> dict[str, int] | None:
    """Folder name -> class, None for a single name that is no number.

    Names that are all numbers are the classes themselves. Other names are numbered in sorted order, as in torchvision.
    """
    if all(arrays.CLASS.fullmatch(name) for name in names):
        return {name: int(name) for name in names}
    return {name: number for number, name in enumerate(sorted(names))} if len(names) > 1 else None


def _open_files(
    folder: Path, entries: Sequence[Path], inputs: Sequence[InputSpec], config: DataConfig
) -> Iterator[Part]:
    suffix = _agree_on_suffix(folder, entries)
    if suffix == audio.SUFFIX:
        return audio.open_audio(entries, inputs, config)
    if suffix in images.SUFFIXES:
        return images.open_images(entries, [spec for spec in inputs if not spec.state], config)
    if suffix == ".npy" and sum(not spec.state for spec in inputs) > 1:
        return iter([arrays.open_npy_set(entries, inputs)])
    return (part for entry in entries for part in _open_file(entry, inputs, config))


def _lists_labels(entry: Path) -> bool:
    """Whether a file beside the samples holds their labels, as labels.csv does."""
    return entry.stem in arrays.LABELS and entry.suffix.lower() in (".csv", ".json")


def _agree_on_suffix(folder: Path, entries: Sequence[Path]) -> str:
    kinds: dict[str, Path] = {}
    for entry in entries:
        suffix = entry.suffix.lower()
        known = suffix in (".npy", ".npz", audio.SUFFIX, *images.SUFFIXES)
        if is_folder(entry, DataError, give="take it out of the folder") or not known:
            raise DataError(f"{entry}: not a file of samples; the folder may hold {KINDS}, of one kind; move it away")
        kinds.setdefault("image" if suffix in images.SUFFIXES else suffix, entry)
    if len(kinds) > 1:
        one, two = (path.relative_to(folder) for path in list(kinds.values())[:2])
        raise DataError(f"{folder}: found both {one} and {two}; a folder holds one kind of {KINDS}; separate them")
    return entries[0].suffix.lower()
