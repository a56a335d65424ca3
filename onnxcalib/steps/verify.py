"""Verify: run the float and the quantized model in onnxruntime on the calibration samples, and compare."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto

from ..data import CalibrationSet
from ..graph.index import Index
from ..numeric.metrics import Comparison
from ..report import LayerRecord, OutputRecord, UnfusedRecord
from ..runtime.session import Session
from ..spec import LayerPlan
from .calibrate import batch_size, with_outputs

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class Verification:
    """What ``verify`` measured; float_pass_seconds is the float model's time over the whole set."""

    outputs: tuple[OutputRecord, ...]
    outputs_unoptimized: tuple[OutputRecord, ...]
    layers: tuple[LayerRecord, ...]
    unfused: tuple[UnfusedRecord, ...]
    float_pass_seconds: float


def verify(
    original: ModelProto,
    prepared: ModelProto,
    quantized: ModelProto,
    layers: Sequence[LayerPlan],
    samples: CalibrationSet,
    *,
    threads: int = 0,
) -> Verification:
    """Outputs of ``original`` against ``quantized`` with graph optimizations on and off, every layer's output against
    ``prepared``'s, and the Q/DQ that onnxruntime leaves standing; streamed over all samples. Raises ModelError."""
    reference = Session(original, threads=threads)
    optimized = Session(quantized, threads=threads)
    plain = Session(quantized, optimize=False, threads=threads)
    names = [layer.output for layer in layers]
    inner = [Session(with_outputs(m, names), threads=threads) for m in (prepared, quantized)]
    size = batch_size(inner[0], samples)
    on, off, by_layer = ({n: Comparison() for n in k} for k in (reference.outputs, reference.outputs, names))
    seconds = 0.0
    for feeds in samples.batches(size):
        start = time.perf_counter()
        wanted = reference.run(feeds)
        seconds += time.perf_counter() - start
        for comparisons, session in ((on, optimized), (off, plain)):
            _compare(comparisons, wanted, session.run(feeds))
        _compare(by_layer, *(session.run(feeds) for session in inner))
    return Verification(
        outputs=_output_records(on),
        outputs_unoptimized=_output_records(off),
        layers=tuple(
            LayerRecord(k.name, k.op, k.weight_spec.bits, k.activation_spec.bits, by_layer[k.output].sqnr_db)
            for k in layers
        ),
        unfused=find_unfused(quantized),
        float_pass_seconds=seconds,
    )


def _compare(comparisons: dict[str, Comparison], reference, other) -> None:
    for name, comparison in comparisons.items():
        value = reference.get(name, reference.get(f"{name}_float"))
        given = other.get(f"{name}_float", other.get(name))
        if value is not None and given is not None and value.dtype.kind == "f":
            comparison.add(value, given)


def _output_records(comparisons: dict[str, Comparison]) -> tuple[OutputRecord, ...]:
    return tuple(
        OutputRecord(name, c.sqnr_db, c.cosine, c.max_abs_error, c.agreement) for name, c in comparisons.items()
    )


def find_unfused(quantized: ModelProto) -> tuple[UnfusedRecord, ...]:
    """Every QuantizeLinear and DequantizeLinear that is left once onnxruntime has optimized the graph, and why."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        Session(quantized, dump=path)
        graph = onnx.load(path).graph
    index = Index(graph)
    left = [n for n in graph.node if n.op_type in (QUANTIZE, DEQUANTIZE)]
    return tuple(UnfusedRecord(n.op_type, n.input[0], _reason(index, n)) for n in left)


def _reason(index: Index, node: NodeProto) -> str:
    if node.op_type == QUANTIZE:
        producer = index.producer.get(node.input[0])
        if producer is None:
            return "entry of the graph"
        if producer.op_type == DEQUANTIZE:
            return "narrows the tensor for the layers that read fewer bits"
        return f"follows {producer.op_type}, which has no integer kernel in onnxruntime here"
    if node.input[0] in index.initializers:
        readers = ", ".join(sorted({n.op_type for n in index.consumers.get(node.output[0], [])}))
        return f"constant of {readers}, which has no integer kernel in onnxruntime here"
    if node.output[0] in index.outputs:
        return "exit of the graph"
    readers = sorted({n.op_type for n in index.consumers.get(node.output[0], [])})
    if readers == [QUANTIZE]:
        return "narrows the tensor for the layers that read fewer bits"
    return f"read by {', '.join(readers)}, which has no integer kernel in onnxruntime here"
