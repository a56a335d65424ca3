"""Check that graph optimizations leave a quantized model's numbers as they are, layer by layer."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, ModelProto

from ..data import CalibrationSet
from ..graph.index import attribute_of
from ..graph.integers import GIVEN, find_integers, find_mismatches, give_integers, open_at
from ..graph.layers import find_quantized_layers, kernel_rows
from ..graph.normalise import tidy
from ..numeric.saturation import INT16_MAX, pair_bound
from ..runtime.session import Session
from ..verdict import ContractRecord, StepsRecord
from .calibrate import batch_size

# Samples looked at: a fault of a kernel is in each of them, and the model without optimizations is slow.
SAMPLES = 32
# From this level on MatMulNBits computes in int8 (its schema, com.microsoft).
INT8_ACCURACY = 4


def conform(quantized: ModelProto, samples: CalibrationSet, threads: int = 0) -> ContractRecord:
    """Compute every integer tensor with graph optimizations off and all on, from equal integers before it.

    A difference so cannot spread: each is that of the operators between two integer tensors. Raises ModelError.
    """
    model = tidy(quantized)
    integers = find_integers(model)
    mismatched = find_mismatches(model)
    if not integers:
        return ContractRecord(0, (), mismatched)
    plain = Session(give_integers(model, integers), optimize=False, threads=threads)
    opened = Session(open_at(model, integers), threads=threads)
    size = min(batch_size(plain, samples), SAMPLES)
    steps = np.zeros(len(integers), np.int64)
    moved = np.zeros(len(integers), np.int64)
    values = np.zeros(len(integers), np.int64)
    done = 0
    for feeds in samples.batches(size):
        wanted = list(plain.run(feeds).values())
        given = {f"{GIVEN}{each.tensor}": value for each, value in zip(integers, wanted, strict=True)}
        for place, (one, other) in enumerate(zip(wanted, opened.run(feeds | given).values(), strict=True)):
            difference = np.abs(one.astype(np.int16) - other)
            steps[place] = max(steps[place], difference.max(initial=0))
            moved[place] += np.count_nonzero(difference)
            values[place] += difference.size
        done = min(done + (samples.fixed_batch or size), len(samples))
        if done >= SAMPLES:
            break
    records = [
        StepsRecord(each.tensor, each.op, int(steps[i]), float(moved[i] / max(values[i], 1)))
        for i, each in enumerate(integers)
    ]
    records.sort(key=lambda record: (-record.steps, -record.share))
    return ContractRecord(done, tuple(records), mismatched)


def find_risks(quantized: ModelProto, optimized: GraphProto) -> list[str]:
    """What makes the numbers differ on another machine, or from what the file says, one line each.

    ``optimized`` is the graph that onnxruntime runs.
    """
    bounds = {}
    for layer in find_quantized_layers(tidy(quantized)):
        rows = kernel_rows(layer)
        bounds[layer.name] = 0 if rows is None else pair_bound(rows, layer.highest)
    wide = [name for name, bound in bounds.items() if bound > INT16_MAX]
    risks = []
    if wide:
        worst = max(wide, key=bounds.__getitem__)
        risks.append(
            f"{len(wide)} of {len(bounds)} layers can saturate on x86 without VNNI (in {worst} sums of two products"
            f" reach {bounds[worst]:,}, int16 ends at {INT16_MAX:,}); there set onnxruntime's"
            " session.x64quantprecision to 1, or give these layers 4-bit weights"
        )
    rounded = [
        node.name or node.output[0]
        for node in optimized.node
        if node.op_type == "MatMulNBits" and attribute_of(node, "accuracy_level", 0) >= INT8_ACCURACY
    ]
    if rounded:
        risks.append(
            f"MatMuls with 4-bit weights ({len(rounded)} of them, {rounded[0]} first) quantize the activations that"
            " they read to 8 bits, which the file does not say; set onnxruntime's"
            " session.qdq_matmulnbits_accuracy_level to 1 for float activations"
        )
    return risks
