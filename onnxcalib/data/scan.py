"""The values of samples, scanned once before any work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import DataError
from ..spec import InputSpec
from .checked import CheckedSamples
from .images import ImageFile

SCAN_BYTES = 1 << 22  # bytes of an array that are scanned at once, which bounds the memory of a scan
RAW_PIXEL_PEAK = 64.0  # normalized images stay within a few units; 8-bit pixels of any real photograph pass this


def scan_values(checked: Sequence[CheckedSamples], inputs: Sequence[InputSpec], samples: int) -> list[str]:
    """Read all values of float inputs once, and give one line for each input whose values are unlikely.

    Image files are not read. An input of one value beside others that vary is a state, a cache or a mask, and likely.
    Raises DataError for NaN and infinity.
    """
    warnings, constant, vary = [], list[str](), False
    for spec in inputs:
        if np.dtype(spec.dtype).kind != "f" or hold_images(checked[0]):
            continue
        least, most = _find_extremes(checked, spec, samples)
        if least == most:
            constant.append(f"input {spec.name!r}: every value is {least:g}; real data vary")
        vary |= least < most
        if spec.shape is not None and len(spec.shape) == 4 and least >= 0 and RAW_PIXEL_PEAK < most <= 255:
            warnings.append(
                f"input {spec.name!r}: values from {least:g} to {most:g} look like raw pixels; normalize them as in"
                " training"
            )
    if constant and not vary and not _integers_vary(checked, inputs, samples):
        warnings += constant
    return warnings


def _integers_vary(checked: Sequence[CheckedSamples], inputs: Sequence[InputSpec], samples: int) -> bool:
    whole = (spec for spec in inputs if np.dtype(spec.dtype).kind in "iub" and not hold_images(checked[0]))
    extremes = (_find_extremes(checked, spec, samples) for spec in whole)
    return any(least < most for least, most in extremes)


def hold_images(part: CheckedSamples) -> bool:
    """Whether a part is an image file."""
    return any(isinstance(getattr(array, "source", array), ImageFile) for array in part.part.arrays.values())


def _find_extremes(checked: Sequence[CheckedSamples], spec: InputSpec, samples: int) -> tuple[float, float]:
    """The least and the largest value of an input. Raises DataError for NaN and infinity."""
    least, most, left = np.inf, -np.inf, samples
    for part in checked:
        for start, chunk in _chunks(part, spec.name, np.dtype(spec.dtype), left):
            if not chunk.size:  # an empty past
                continue
            low, high = float(chunk.min()), float(chunk.max())
            if not (np.isfinite(low) and np.isfinite(high)):
                bad = start + int(np.flatnonzero(~np.isfinite(chunk.reshape(len(chunk), -1)).all(axis=1))[0])
                raise DataError(f"{part.part.where}: input {spec.name!r}: NaN or infinity in sample {bad}; remove it")
            least, most = min(least, low), max(most, high)
        left -= min(left, part.rows)
    return least, most


def _chunks(part: CheckedSamples, name: str, dtype: np.dtype, limit: int) -> Iterator[tuple[int, np.ndarray]]:
    """The first ``limit`` samples of an input with their padding: the row of the first, and some of them."""
    rows = min(part.rows, limit)
    count = max(1, SCAN_BYTES // (max(1, int(np.prod(part.shapes[name]))) * dtype.itemsize))
    for start in range(0, rows, count):
        with np.errstate(over="ignore"):
            chunk = part.take(name, range(start, min(start + count, rows)), dtype, whole=True)
        yield start, chunk
