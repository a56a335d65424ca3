"""Audio files (.wav) as windows of values, cut when they are read."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from ..config import DataConfig
from ..config.data import MOST_RATE
from ..errors import DataError, first_line
from ..files.reading import open_file
from ..spec import InputSpec, spell_shape
from .arrays import Part
from .checked import share_batch
from .listing import list_names, shorten

SUFFIX = ".wav"
RATES = ("sr", "fs", "rate", "sample_rate", "sampling_rate")  # names of inputs that take the values a second
MOST_TIMES = 1_000  # values that are made of one: a wrong rate in a header would make more of a file than memory holds
RIFF_BYTES, CHUNK_BYTES = 12, 8  # of the headers of a file and of each part of it
NO_LENGTH = (0, 2**32 - 1)  # in a header: the length is not known
SILENCE = 128  # the middle of the unsigned values of 8-bit files


class AudioFiles:
    """Reads files at one rate, of which the one that was read last stays in memory.

    rate: values a second, None before the first file where it is not given. found: the rates of the files.
    """

    def __init__(self, rate: int | None) -> None:
        self.rate = self._wanted = rate
        self.found: set[int] = set()
        self._kept: tuple[Path, np.ndarray] | None = None

    def read(self, path: Path) -> np.ndarray:
        """float32 (values,) from -1 to 1, the mean of all channels. Raises DataError."""
        if self._kept is None or self._kept[0] != path:
            self._kept = path, self._read(path)
        return self._kept[1]

    def _read(self, path: Path) -> np.ndarray:
        from scipy.io import wavfile  # which takes longer to import than small models to quantize

        with open_file(path, DataError, give="give a .wav file") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of chunks that are no audio
            if missing := _count_missing(file):
                raise DataError(
                    f"{path}: not a complete .wav file (found {missing:,} bytes less of audio than its header says);"
                    " give the whole file"
                )
            try:
                rate, values = wavfile.read(file)
            except Exception as error:  # scipy raises whatever damaged bytes lead it to
                raise DataError(
                    f"{path}: not a complete .wav file ({shorten(first_line(error))}); write it as PCM or floats"
                ) from None
        if not rate or values.dtype.kind not in "iuf" or not values.size:
            raise DataError(f"{path}: found no values in it; give a .wav file of PCM or floats")
        mono = _scale(values) if values.ndim == 1 else _scale(values).mean(axis=1, dtype=np.float32)
        if self._wanted is None and rate != (self.rate or rate):
            raise DataError(f"{path}: found {rate} Hz, and {self.rate} before; give --sample-rate, the model's own")
        self.rate = self._wanted or int(rate)
        self.found.add(int(rate))
        return mono if rate == self.rate else _resample(path, mono, int(rate), self.rate)


def _count_missing(file: BinaryIO) -> int:
    """Bytes by which the file is shorter than what its header says of its audio, which scipy reads as a shorter file.

    Programs that cannot go back to the header of a stream leave a length in it that says nothing.
    """
    head, end = file.read(RIFF_BYTES), file.seek(0, os.SEEK_END)
    order: Literal["big", "little"] = "big" if head[:4] == b"RIFX" else "little"
    whole, place, missing, long = int.from_bytes(head[4:8], order), RIFF_BYTES, 0, 0
    if head[:4] == b"RF64":  # whose ds64 has the lengths, of 64 bits, of the file and of its audio
        file.seek(RIFF_BYTES + CHUNK_BYTES)
        whole, long = (int.from_bytes(file.read(8), order) for _ in range(2))
    while whole not in NO_LENGTH and place + CHUNK_BYTES <= end:
        file.seek(place)
        name, size = file.read(4), int.from_bytes(file.read(4), order)
        size = long if long and name == b"data" else size
        place += CHUNK_BYTES + size
        if name == b"data" and size not in NO_LENGTH:
            missing = max(missing, place - end)
        place += size % 2
    file.seek(0)
    return missing


def _scale(values: np.ndarray) -> np.ndarray:
    """Values of any type as float32 from -1 to 1."""
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):  # values that are not finite are told of where samples are
            return values.astype(np.float32)
    bits = 8 * values.dtype.itemsize  # 24 bits stand in the upper ones of 32
    centred = values.astype(np.float32) - (SILENCE if values.dtype.kind == "u" else 0)
    return centred / np.float32(2 ** (bits - 1))


def _resample(path: Path, values: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """The values at another rate, by scipy's polyphase filter."""
    from scipy.signal import resample_poly

    if rate > MOST_RATE or wanted > MOST_TIMES * rate:
        raise DataError(
            f"{path}: found {rate:,} Hz, which is not resampled to {wanted:,}; {-(-wanted // MOST_TIMES):,} to"
            f" {MOST_RATE:,} Hz are; write the file with its own rate"
        )
    common = math.gcd(rate, wanted)
    found: np.ndarray = resample_poly(values, wanted // common, rate // common).astype(np.float32)
    if not found.size:
        raise DataError(f"{path}: found {values.size} values at {rate} Hz, too few for {wanted} Hz; give a longer one")
    return found


class Windows:
    """The windows of a file as an array (windows, ..., window), each ``hop`` values behind the one before.

    The last ``hop`` values of a window are new. Those in front of the file are zeros; what fills no hop is left out.
    """

    def __init__(self, files: AudioFiles, path: Path, window: int, hop: int, sides: int) -> None:
        count = files.read(path).size // hop
        if not count:
            raise DataError(
                f"{path}: found {files.read(path).size} values; a step takes {hop} new ones; give a longer file"
            )
        self.shape, self.dtype = (count, *[1] * sides, window), np.dtype(np.float32)
        self._path, self.files, self.hop = path, files, hop

    def __getitem__(self, index: Any) -> np.ndarray:
        """The windows at a list or slice of rows, or all of them for ``...``."""
        index = slice(None) if index is Ellipsis else index
        rows = range(self.shape[0])[index] if isinstance(index, slice) else index
        values, window = self.files.read(self._path), self.shape[-1]
        cut = np.zeros((len(rows), window), np.float32)
        for place, row in enumerate(rows):
            end = (row + 1) * self.hop
            piece = values[max(0, end - window) : end]
            cut[place, window - piece.size :] = piece
        return cut.reshape(len(rows), *self.shape[1:])


def open_audio(paths: Sequence[Path], inputs: Sequence[InputSpec], config: DataConfig) -> Iterator[Part]:
    """A part for each file, whose samples are its windows. Raises DataError."""
    where = str(paths[0].parent)
    spec = find_input(inputs, where)
    assert spec.shape is not None
    window = config.window or spec.shape[-1]
    if window is None:
        raise DataError(
            f"{where}: input {spec.name!r} takes any number of values, {spell_shape(spec.shape)}; give --window, the"
            " number that the model reads in a step"
        )
    hop = config.hop or window
    if hop > window:
        raise DataError(f"{where}: found a hop of {hop}, and windows of {window}; lower --hop, or raise --window")
    batched, files = share_batch(inputs), AudioFiles(config.sample_rate)
    sides = len(spec.shape) - 1 - batched
    for path in paths:
        windows = Windows(files, path, window, hop, sides)
        arrays: dict[str, Any] = {spec.name: windows}
        for other in inputs:
            if other is not spec and not other.state:
                shape = (windows.shape[0], *(1 for _ in (other.shape or ())[batched:]))
                arrays[other.name] = np.broadcast_to(np.asarray(files.rate, other.dtype), shape)
        yield Part(str(path), arrays, file=path)


def find_input(inputs: Sequence[InputSpec], where: str) -> InputSpec:
    """The input that takes audio: floats, of which the last axis alone has several values."""
    found = [spec for spec in inputs if not spec.state and not _takes_rate(spec)]
    fits = [
        spec
        for spec in found
        if np.dtype(spec.dtype).kind == "f" and spec.shape and all(side in (None, 1) for side in spec.shape[:-1])
    ]
    if len(fits) != 1 or len(found) != 1:
        raise DataError(
            f"{where}: audio feeds one input of floats, whose last axis counts values, beside a sample rate and states;"
            f" the model has inputs {list_names(spec.name for spec in inputs)}; give .npz files"
        )
    return fits[0]


def _takes_rate(spec: InputSpec) -> bool:
    return spec.name.lower() in RATES and np.dtype(spec.dtype).kind in "iuf" and len(spec.shape or ()) <= 1
