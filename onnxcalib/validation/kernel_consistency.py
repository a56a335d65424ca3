"""Check, layer by layer, that graph optimizations do not change a quantized model's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
from onnx import GraphProto, ModelProto

from ..data import CalibrationSet
from ..errors import ModelError
from ..graph.index import all_nodes, attribute_of
from ..graph.inspect.integers import GIVEN, Integers, find_integers, find_mismatches, give_integers, open_at
from ..graph.packed import is_packed
from ..graph.passes.normalise import tidy
from ..numeric.metrics import Comparison, mean_sqnr
from ..quantization.batches import batch_size
from ..runtime.session import Session
from ..verdict import ContractRecord, StepsRecord
from .bodies import open_bodies

# Samples that are compared: a fault of a kernel shows in each of them, and without optimizations the model is slow.
SAMPLES = 32
# From this level on MatMulNBits computes in int8 (its schema, com.microsoft).
INT8_ACCURACY = 4


def check_consistency(quantized: ModelProto, samples: CalibrationSet, threads: int = 0) -> ContractRecord:
    """Compute every integer tensor with graph optimizations off and on, each time from the same integers before it.

    Differences cannot spread that way: each comes from the operators between two integer tensors. How far they spread
    together shows in the outputs of the whole model. Bodies of If, Loop and Scan are compared as models of their own,
    on what they read in runs of the quantized model. Raises ModelError.
    """
    model = tidy(quantized)
    whole = _check_graph(model, samples, threads)
    tensors, unread = list(whole.tensors), list[str]()
    with ExitStack() as stack:
        for body in open_bodies(model, samples, stack, threads=threads):
            if isinstance(body, str):
                unread.append(body)
                continue
            try:
                inside = check_consistency(body.model, body.samples, threads)
            except ModelError as error:
                unread.append(f"{body.path}: {error}")
            else:
                tensors += [replace(each, tensor=f"{body.path}/{each.tensor}") for each in inside.tensors]
                unread += [f"{body.path}/{line}" for line in inside.unread]
    tensors.sort(key=_rank)
    return replace(whole, tensors=tuple(tensors), unread=tuple(unread))


def _check_graph(model: ModelProto, samples: CalibrationSet, threads: int) -> ContractRecord:
    """Of the model's own graph, which is tidy, and of the outputs; mismatches are those of bodies too."""
    integers = find_integers(model)
    outputs = [value.name for value in model.graph.output]
    plain = Session(give_integers(model, integers), also=outputs, optimize=False, threads=threads)
    opened = Session(open_at(model, integers), deployed=True, threads=threads) if integers else None
    whole = Session(model, deployed=True, threads=threads)
    differences = [Difference() for _ in integers]
    changes = _Changes()
    size = min(batch_size(plain, samples), SAMPLES)
    done = 0
    for feeds in samples.batches(size):
        wanted = plain.run(feeds)
        changes.add(wanted, whole.run(feeds))
        if opened:
            values = [wanted[name] for name in opened.outputs]
            given = {f"{GIVEN}{each.tensor}": value for each, value in zip(integers, values, strict=True)}
            others = opened.run(feeds | given).values()
            for difference, one, other in zip(differences, values, others, strict=True):
                difference.add(one, other)
        done += samples.count(feeds)
        if done >= SAMPLES:
            break
    return ContractRecord(done, list_steps(integers, differences), find_mismatches(model), changes.sqnr_db)


def check_pairs(quantized: ModelProto) -> ContractRecord:
    """The tensors whose QuantizeLinear and DequantizeLinear differ alone; nothing is run."""
    return ContractRecord(0, (), find_mismatches(tidy(quantized)))


@dataclass
class Difference:
    """How far optimizations move one integer tensor; ``steps`` is in quantization steps, ``moved`` counts values."""

    steps: int = 0
    moved: int = 0
    values: int = 0

    def add(self, one: np.ndarray, other: np.ndarray) -> None:
        difference = np.abs(one.astype(np.int32) - other)
        self.steps = max(self.steps, int(difference.max(initial=0)))
        self.moved += int(np.count_nonzero(difference))
        self.values += difference.size


def list_steps(integers: Sequence[Integers], differences: Sequence[Difference]) -> tuple[StepsRecord, ...]:
    """A record of each tensor, those that differ most first."""
    records = [
        StepsRecord(each.tensor, each.op, difference.steps, difference.moved / max(difference.values, 1))
        for each, difference in zip(integers, differences, strict=True)
    ]
    return tuple(sorted(records, key=_rank))


def _rank(record: StepsRecord) -> tuple[float, float]:
    return -record.steps, -record.share


class _Changes:
    """How far optimizations move the float outputs.

    An output of another shape, or that is finite in other places, counts as an infinite error; values that are not
    finite in either session are left out.
    """

    def __init__(self) -> None:
        self.comparisons: dict[str, Comparison] = {}
        self.unlike: set[str] = set()

    def add(self, wanted: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]) -> None:
        for name, value in given.items():
            if name not in wanted or not isinstance(value, np.ndarray) or value.dtype.kind != "f":
                continue
            comparison = self.comparisons.setdefault(name, Comparison())
            if value.shape == wanted[name].shape and np.array_equal(np.isfinite(wanted[name]), np.isfinite(value)):
                comparison.add(wanted[name], value)
            else:
                self.unlike.add(name)

    @property
    def sqnr_db(self) -> float | None:
        """The mean of the outputs' relative errors in dB; None where no output has finite floats."""
        errors = [
            np.inf if name in self.unlike else each.relative_error
            for name, each in self.comparisons.items()
            if name in self.unlike or each.values
        ]
        return mean_sqnr(errors) if errors else None


def find_risks(optimized: GraphProto, quantized: ModelProto) -> list[str]:
    """Warnings of what onnxruntime computes other than the file says, found in its optimized graph, one line each."""
    packed = [node for node in all_nodes(quantized.graph) if is_packed(node)]
    # One that takes the Add of a bias behind it keeps its name, and gives what the Add gave.
    own = {name for node in packed for name in (node.name, node.output[0]) if name}
    rounded = [
        node.name or node.output[0]
        for node in all_nodes(optimized)
        if is_packed(node)
        and attribute_of(node, "accuracy_level", 0) >= INT8_ACCURACY
        and own.isdisjoint((node.name, node.output[0]))
    ]
    if not rounded:
        return []
    return [
        f"MatMulNBits: {len(rounded)} with weights of few bits and float input ({rounded[0]} first) quantize that"
        " input to 8 bits, which the file does not say; set onnxruntime's session option"
        " session.qdq_matmulnbits_accuracy_level to 1 for float activations"
    ]
