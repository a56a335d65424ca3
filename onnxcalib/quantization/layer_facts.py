"""What each layer of a quantized file takes in bytes, and whether onnxruntime multiplies integers in it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from onnx import GraphProto, ModelProto, NodeProto

from ..graph.blocks import find_blocks
from ..graph.index import Index, all_nodes, index_graphs, is_op
from ..graph.inspect.kernels import find_kernels, find_source
from ..graph.inspect.quantized_layers import FLOAT_BITS, QuantizedLayer, find_layers
from ..graph.ops import DEQUANTIZE
from ..graph.packed import is_packed
from ..graph.values import count_bytes
from ..layer_record import LayerRecord, PlaceRecord
from ..report import UnfusedRecord
from ..spec import QuantScheme

SCALE_BYTES = 4  # of float32
WEIGHTS_ALONE = "reads float activations; its weights alone are integers"
NO_KERNEL = "onnxruntime has no integer kernel for it here"


def describe_layers(
    quantized: ModelProto, graph: GraphProto | None, unfused: Iterable[UnfusedRecord] = ()
) -> tuple[LayerRecord, ...]:
    """Every layer of a quantized model, whoever made it, those in bodies included, in graph order.

    graph: what onnxruntime made of it, by ``verify.optimize``; None where that was not asked for. unfused: the Q and DQ
    that are left in it.
    """
    names = {node.name for node in all_nodes(quantized.graph)}
    kernels = None if graph is None else {find_source(each.name, names) for each in find_kernels(graph)}
    reasons: dict[str, str] = {each.tensor: f"{each.op}: {each.reason}" for each in unfused}
    found = []
    for body, index in index_graphs(quantized.graph):
        for layer in find_layers(body, index):
            runs, reason = _find_kernel(layer, index, kernels, reasons)
            dynamic = layer.grid is None and layer.activation_bits < FLOAT_BITS
            bits = layer.weight_bits, layer.activation_bits
            found.append(
                LayerRecord(layer.name, layer.op, *bits, None, dynamic, _count_bytes(layer, index), runs, reason)
            )
    return tuple(found)


def complete(layers: Sequence[LayerRecord], described: Iterable[LayerRecord]) -> tuple[LayerRecord, ...]:
    """The layers with the bytes and kernels of those of the same name, in the same order where names repeat."""
    by_name: dict[str, list[LayerRecord]] = defaultdict(list)
    for each in described:
        by_name[each.name].append(each)
    known = [by_name[each.name].pop(0) if by_name[each.name] else each for each in layers]
    return tuple(
        replace(layer, bytes=each.bytes, on_integers=each.on_integers, reason=each.reason)
        for layer, each in zip(layers, known, strict=True)
    )


def list_places(model: ModelProto, scheme: QuantScheme) -> tuple[PlaceRecord, ...]:
    """The blocks of a graph, in order, each with those before it that it reads."""
    blocks = find_blocks(model, scheme)
    owner = {tensor: block.name for block in blocks for tensor in block.outputs}
    return tuple(
        PlaceRecord(
            block.name, tuple(dict.fromkeys(owner[each] for each in block.inputs if each in owner)), block.layers
        )
        for block in blocks
    )


def _find_kernel(
    layer: QuantizedLayer, index: Index, kernels: set[str | None] | None, reasons: dict[str, str]
) -> tuple[bool | None, str]:
    if kernels is None:
        return None, ""
    if layer.name in kernels:
        return True, ""
    if layer.activation_bits == FLOAT_BITS:
        return False, WEIGHTS_ALONE
    node = index.producer.get(layer.output)
    read = [] if node is None or is_packed(node) else node.input[1::-1]  # what is said of its weight tells most
    return False, next((reasons[each] for each in (*read, layer.source, layer.output) if each in reasons), NO_KERNEL)


def _count_bytes(layer: QuantizedLayer, index: Index) -> int:
    """Of the weight as it is stored, and of its scales; ``layer.scale`` repeats those of blocks."""
    scales = layer.scale.size
    if layer.packing is not None:
        scales = layer.packing.outputs * layer.packing.blocks
    elif (node := _find_dequantize(layer, index)) is not None and node.input[1] in index.initializers:
        scales = math.prod(index.initializers[node.input[1]].dims)
    return count_bytes(layer.weight) + SCALE_BYTES * scales


def _find_dequantize(layer: QuantizedLayer, index: Index) -> NodeProto | None:
    """The DequantizeLinear of the weight, which casts may stand in front of."""
    node = next(iter(index.readers(layer.weight.name)), None)
    while node is not None and is_op(node, "Cast", "Mul", "Add"):
        node = next(iter(index.readers(node.output[0])), None)
    return node if node is not None and node.op_type == DEQUANTIZE else None
