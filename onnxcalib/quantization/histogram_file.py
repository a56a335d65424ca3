"""Histograms of activations as a file: another range method, or another machine, chooses ranges from them.

Counts are packed, as most bins of most tensors are empty or hold few values. A file that is read runs no code.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from onnx import ModelProto

from ..errors import ConfigError, escape_controls
from ..files.reading import check_file
from ..files.writing import replacing
from ..graph.save import fingerprint
from ..numeric.histogram import BINS, Histogram
from ..runtime.record_file import read_record, spell_record
from .calibrate import Statistics
from .prepared import Prepared

SUBJECT, NAME = "onnxcalib histograms 1", "statistics"
COUNT = np.dtype(np.int64)


@dataclass(frozen=True)
class _Packed:
    """A histogram: bytes of its counts, compressed by zlib, as an array of uint8; the rest as it is."""

    width: float
    first: int
    counts: np.ndarray
    minimum: float
    maximum: float
    peaks: np.ndarray


@dataclass(frozen=True)
class _Saved:
    """prepared: the fingerprint of the model that gave the histograms."""

    prepared: str
    histograms: dict[str, _Packed]
    batch: int
    sample_bytes: int


def take_histograms(prepared: Prepared, given: str | Path | None, target: str | Path | None) -> Prepared:
    """The prepared model with its statistics: those of a file, or collected now; they are saved as ``target``.

    Raises ConfigError and OutputError.
    """
    if given is not None:
        found = read_histograms(Path(given), prepared.model, prepared.scheme.activations)
        prepared = replace(prepared, statistics=found)
    if target is not None:
        save_histograms(Path(target), prepared.model, prepared.collect(prepared.scheme))
    return prepared


def save_histograms(path: Path, model: ModelProto, statistics: Statistics) -> None:
    """Write the statistics of a prepared model under another name, then rename the file. Raises OutputError."""
    packed = {tensor: _pack(histogram) for tensor, histogram in statistics.histograms.items()}
    saved = _Saved(fingerprint(model), packed, statistics.batch, statistics.sample_bytes)
    with replacing() as files:
        file = files.open(path)
        for piece in spell_record(SUBJECT, NAME, saved, _Saved):
            file.write(piece)


def read_histograms(path: Path, model: ModelProto, tensors: Iterable[str]) -> Statistics:
    """The statistics of a file. Raises ConfigError for a file without those of these tensors of this prepared model."""
    check_file(path, ConfigError, give="give --histograms a file of calibrate --save-histograms")
    saved = read_record(path, SUBJECT, NAME, _Saved)
    again = "collect them again with --save-histograms"
    try:
        histograms = {} if saved is None else {tensor: _unpack(each) for tensor, each in saved.histograms.items()}
    except (ValueError, zlib.error):
        saved = None
    if saved is None:
        raise ConfigError(f"{path}: holds no histograms of this version, or is damaged; {again}")
    if saved.prepared != fingerprint(model):
        raise ConfigError(
            f"histograms: found those of another model in {path}, or of this one with settings or samples for which it"
            f" is rewritten otherwise; {again}"
        )
    for tensor in tensors:
        if tensor not in histograms:
            raise ConfigError(f"histograms: found none of tensor {escape_controls(repr(tensor))} in {path}; {again}")
    return Statistics(histograms, saved.batch, saved.sample_bytes)


def _pack(given: Histogram) -> _Packed:
    counts = np.frombuffer(zlib.compress(given.counts.astype(COUNT).tobytes()), np.uint8)
    return _Packed(given.width, given.first, counts, given.minimum, given.maximum, given.peaks)


def _unpack(given: _Packed) -> Histogram:
    """Raises ValueError or zlib.error for counts that are none."""
    data = zlib.decompressobj().decompress(given.counts.tobytes(), BINS * COUNT.itemsize + 1)
    if len(data) != BINS * COUNT.itemsize or given.peaks.ndim != 2 or len(given.peaks) != 2:
        raise ValueError("no histogram")
    counts = np.frombuffer(data, COUNT).copy()
    return Histogram(given.width, given.first, counts, given.minimum, given.maximum, given.peaks)
