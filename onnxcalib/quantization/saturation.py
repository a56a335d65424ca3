"""Saturation: which integer kernels can saturate on x86 without VNNI, and what the outputs are where they do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from onnx import GraphProto, ModelProto

from ..data import CalibrationSet
from ..errors import ModelError
from ..graph.inspect.kernels import Kernel, find_kernels, find_source
from ..graph.passes.normalise import tidy
from ..graph.passes.saturating_sums import Saturated, saturate
from ..numeric.saturation import find_wide_pairs, pair_bound
from ..report import BoundRecord, SaturationRecord
from ..runtime.session import Session
from ..spec import INT16_MAX, VERSION_KEY
from .calibrate import batch_size
from .output_tally import OutputTally
from .padding_mask import PaddingMask, find_real

# Samples that are run with saturating sums.
LEAST_SAMPLES, MOST_SAMPLES = 16, 256
# With such a share of all pairs a sample takes about 15 runs of the float model; with more there are fewer samples. Of
# trained weights on the full range of 8 bits about 2% of the pairs can saturate.
SHARE = 0.04
# The tensors of products in ``Saturated`` may take so many bytes together; a run holds about five of one layer at once.
PRODUCT_BYTES = 32 * 2**20


def measure_saturation(
    original: ModelProto,
    quantized: ModelProto,
    optimized: GraphProto,
    samples: CalibrationSet,
    *,
    padding: PaddingMask,
    threads: int = 0,
) -> SaturationRecord:
    """The bounds of all integer kernels, and the outputs of exact and of saturating sums against those of ``original``.

    Equal on all machines, but for operators that cannot be emulated. optimized: the graph that onnxruntime runs of
    ``quantized``, as ``optimize`` gives it. padding: that of ``original``.
    """
    model = tidy(quantized)
    kernels = _restore_names(model, find_kernels(optimized))
    adding = [kernel for kernel in kernels if kernel.rows is not None]
    found = [(kernel, find_wide_pairs(kernel.rows, kernel.highest)) for kernel in adding]
    wide = [(kernel, pairs) for kernel, pairs in found if len(pairs)]
    if not wide:
        return SaturationRecord(len(kernels))
    bounds = [BoundRecord(kernel.name, pair_bound(kernel.rows, kernel.highest)) for kernel, _ in wide]
    record = SaturationRecord(len(kernels), tuple(sorted(bounds, key=lambda each: -each.bound)))
    share = sum(len(pairs) for _, pairs in wide) / sum(kernel.rows.size / 2 for kernel in adding)
    saturated = saturate(model, {kernel.name: (kernel, pairs) for kernel, pairs in wide})
    names = {node.name for node in model.graph.node}.difference(saturated.exact)
    unread = dict.fromkeys(kernel.name for kernel, _ in wide if kernel.name not in names)
    record = replace(record, unread=tuple(unread))
    most = int(np.clip(MOST_SAMPLES * SHARE / share, LEAST_SAMPLES, MOST_SAMPLES))
    try:
        return _compare(record, (original, quantized), saturated, samples, most, padding=padding, threads=threads)
    except ModelError as error:
        return replace(record, reason=str(error))


def _restore_names(model: ModelProto, kernels: Iterable[Kernel]) -> list[Kernel]:
    """Kernels by the names of the model's nodes that they are of; one of a node that it has not keeps its name."""
    names = {node.name for node in model.graph.node}
    return [replace(kernel, name=find_source(kernel.name, names) or kernel.name) for kernel in kernels]


def _compare(
    record: SaturationRecord,
    models: tuple[ModelProto, ModelProto],
    saturated: Saturated,
    samples: CalibrationSet,
    most: int,
    *,
    padding: PaddingMask,
    threads: int,
) -> SaturationRecord:
    """The record with what was found on ``most`` samples, or on those of the last batch too.

    The float model's outputs against those of the quantized one with exact sums, and with saturating ones, which are
    none where no kernel is emulated.
    """
    how = {"name": "the model with saturating sums", "optimize": False, "threads": threads}
    size = batch_size(Session(saturated.model, also=saturated.products, **how), samples, PRODUCT_BYTES)
    reference, exact = (Session(model, threads=threads) for model in models)
    sessions = [exact, *([Session(saturated.model, **how)] if saturated.products else [])]
    tallies, done = (OutputTally(), OutputTally()), 0
    for feeds in samples.batches(min(size, most)):
        real, count = find_real(feeds), samples.count(feeds)
        wanted = padding.mask_outputs(reference.run(feeds), real)
        for tally, session in zip(tallies, sessions, strict=False):
            tally.add(wanted, padding.mask_outputs(session.run(feeds), real), count)
        done += count
        if done >= most:
            break
    by_exact, by_saturating = (tally.records() for tally in tallies)
    return replace(record, samples=done, exact=by_exact, outputs=by_saturating)


def advise(found: SaturationRecord, quantized: ModelProto, samples: CalibrationSet) -> list[str]:
    """A line on the kernels that can saturate and on what helps with this file; none where there are none."""
    if not found.layers:
        return []
    worst = found.layers[0]
    own = any(entry.key == VERSION_KEY for entry in quantized.metadata_props)
    again = "with --weight-range bounded" if own else "by onnxcalib, or with weights of 7 bits (reduce_range) or fewer"
    option = "onnxruntime's session.x64quantprecision"
    taken = _takes_unsigned(quantized, samples)
    there = f", or set {option} to 1 there" if taken else f" ({option} = 1 cannot run this file)"
    return [
        f"{len(found.layers)} of {found.kernels} integer kernels can saturate on x86 without VNNI (in {worst.name} sums"
        f" of two products reach {worst.bound:,}, int16 ends at {INT16_MAX:,}); quantize again {again}{there}"
    ]


def _takes_unsigned(quantized: ModelProto, samples: CalibrationSet) -> bool:
    """Whether onnxruntime loads and runs the file with weights that it makes unsigned."""
    try:
        Session(quantized, unsigned=True).run(samples.read(range(samples.fixed_batch or 1)))
    except ModelError:
        return False
    return True
