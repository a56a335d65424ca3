"""What identifies samples: image files by their bytes, which is quicker than decoding them, others by their values."""

from __future__ import annotations

import hashlib

import numpy as np

from .calibration_set import CalibrationSet

AT_ONCE = 32  # samples that are read together


def digest_samples(samples: CalibrationSet) -> str:
    """SHA-256 of all samples, which are read for it, and of their sequences, in hexadecimal. Raises DataError."""
    sequences = None if samples.sequences is None else samples.sequences.tolist()
    facts = samples.inputs, samples.fixed_batch, samples.batched, len(samples), samples.steps, sequences
    found = hashlib.sha256(repr(facts).encode())
    if samples.images:
        for array in samples.arrays():
            found.update(array.digest())
        return found.hexdigest()
    for run in samples.split(samples.fixed_batch or AT_ONCE):
        found.update(repr(run).encode())
        for name, value in samples.read(run).items():
            found.update(f"{name} {value.dtype} {value.shape}".encode())
            found.update(repr(value.tolist()).encode() if value.dtype.hasobject else np.ascontiguousarray(value).data)
    return found.hexdigest()
