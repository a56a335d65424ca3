"""Saturation: which integer kernels can saturate on x86 without VNNI, and what the outputs are where they do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from onnx import GraphProto, ModelProto

from ..data import CalibrationSet
from ..errors import ModelError
from ..graph.index import all_nodes
from ..graph.inspect.kernels import Kernel, find_kernels, find_source
from ..graph.passes.normalise import tidy
from ..graph.passes.saturating_sums import Saturated, saturate
from ..numeric.saturation import find_wide_pairs, pair_bound
from ..report import BoundRecord, SaturationRecord
from ..runtime.session import Session
from ..spec import INT16_MAX, VERSION_KEY
from .batches import batch_size
from .output_parts import Parts
from .output_tally import OutputTally
from .padding_mask import PaddingMask, find_real

# Steps of sequences, spread over them, among which those are on which saturating sums are measured.
SPREAD = 256
# Samples that are run with saturating sums.
LEAST_SAMPLES, MOST_SAMPLES = 16, 256
# With this share of pairs that can saturate, a sample takes as long as about 15 of the float model; with a larger share
# fewer samples are run. In trained weights on the full range of 8 bits about 2% of the pairs can saturate.
SHARE = 0.04
# The tensors of products in ``Saturated`` may take so many bytes together. A layer has about five in memory at once.
PRODUCT_BYTES = 32 * 2**20


def measure_saturation(
    original: ModelProto,
    quantized: ModelProto,
    optimized: GraphProto,
    samples: CalibrationSet,
    *,
    padding: PaddingMask,
    parts: Parts | None = None,
    threads: int = 0,
) -> SaturationRecord:
    """The bounds of all integer kernels, and the outputs with exact and with saturating sums against the float ones.

    Saturation is emulated, so that the result is the same on every machine except for operators that have no emulation.
    optimized: the graph that ``optimize`` returns for ``quantized``. padding: the padding mask of ``original``.
    """
    model = tidy(quantized)
    kernels = _restore_names(model, find_kernels(optimized))
    adding = [sums for sums in map(_PairSums.of, kernels) if sums is not None]
    saturating = [sums for sums in adding if len(sums.pairs)]
    if not saturating:
        return SaturationRecord(len(kernels))
    bounds = [BoundRecord(sums.kernel.name, sums.bound) for sums in saturating]
    record = SaturationRecord(len(kernels), tuple(sorted(bounds, key=lambda each: -each.bound)))
    share = sum(len(sums.pairs) for sums in saturating) / sum(sums.size / 2 for sums in adding)
    saturated = saturate(model, {sums.kernel.name: (sums.kernel, sums.pairs) for sums in saturating})
    names = {node.name for node in all_nodes(model.graph)}.difference(saturated.exact)
    unread = dict.fromkeys(sums.kernel.name for sums in saturating if sums.kernel.name not in names)
    record = replace(record, unread=tuple(unread))
    most = int(np.clip(MOST_SAMPLES * SHARE / share, LEAST_SAMPLES, MOST_SAMPLES))
    try:
        return _compare(
            record, (original, quantized), saturated, samples, most, padding=padding, parts=parts, threads=threads
        )
    except ModelError as error:
        return replace(record, reason=str(error))


@dataclass(frozen=True)
class _PairSums:
    """A kernel that adds up its products in pairs.

    pairs: those whose sums can saturate (``find_wide_pairs``). size: of its weight. bound: of its sums, if some can.
    """

    kernel: Kernel
    pairs: np.ndarray
    size: int
    bound: int

    @classmethod
    def of(cls, kernel: Kernel) -> _PairSums | None:
        """Those of a kernel, None where its sums are exact. Its weight is not kept."""
        rows = kernel.rows
        if rows is None:
            return None
        pairs = find_wide_pairs(rows, kernel.highest)
        return cls(kernel, pairs, rows.size, pair_bound(rows, kernel.highest) if len(pairs) else 0)


def _restore_names(model: ModelProto, kernels: Iterable[Kernel]) -> list[Kernel]:
    """The kernels, each named like the node of the model that it computes; without a node it keeps its name."""
    names = {node.name for node in all_nodes(model.graph)}
    return [replace(kernel, name=find_source(kernel.name, names) or kernel.name) for kernel in kernels]


def _compare(
    record: SaturationRecord,
    models: tuple[ModelProto, ModelProto],
    saturated: Saturated,
    samples: CalibrationSet,
    most: int,
    *,
    padding: PaddingMask,
    parts: Parts | None = None,
    threads: int,
) -> SaturationRecord:
    """The record with the comparisons on ``most`` samples, and on the rest of the last batch.

    The outputs of the quantized model are compared with the float model's twice: with exact sums, and with saturating
    sums if any kernel is emulated.
    """
    open_saturated = partial(
        Session, saturated.model, name="the model with saturating sums", optimize=False, threads=threads
    )
    size = batch_size(open_saturated(also=saturated.products), samples, PRODUCT_BYTES)
    reference, exact = (Session(model, threads=threads) for model in models)
    sessions = [exact, *([open_saturated()] if saturated.products else [])]
    tallies, done = [OutputTally(padding, parts) for _ in range(2)], 0
    for feeds in samples.batches(min(size, most)):
        real, count = find_real(feeds), samples.count(feeds)
        wanted = reference.run(feeds)
        for tally, session in zip(tallies, sessions, strict=False):
            tally.add(wanted, session.run(feeds), count, real)
        done += count
        if done >= most:
            break
    by_exact, by_saturating = (tally.records() for tally in tallies)
    return replace(record, samples=done, exact=by_exact, outputs=by_saturating)


def advise(found: SaturationRecord, quantized: ModelProto, samples: CalibrationSet) -> list[str]:
    """One line on the kernels that can saturate, and on what helps with this file; no line without such kernels."""
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
    """Whether onnxruntime runs the file when its option makes the int8 weights unsigned."""
    try:
        Session(quantized, unsigned=True).run(samples.read(range(samples.fixed_batch or 1)))
    except ModelError:
        return False
    return True
