"""Decide which tensors get a QuantSpec, so that onnxruntime fuses the result into integer kernels.

The placement follows what onnxruntime's CPU provider fuses: uint8 activations with one grid a tensor, int8 weights with
one scale an output channel, one QuantizeLinear/DequantizeLinear pair a tensor read by all its consumers, nothing between
a layer, its Relu and the QuantizeLinear, and equal grids on both sides of an operator that only moves data.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper

from ..errors import ModelError
from ..spec import LayerPlan, QuantPlan, QuantSpec
from .index import Index, constant

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Operators whose output holds values of their first input and nothing else: they run on integers as they are.
MOVERS = (
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Slice", "Split", "Gather",
    "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "Pad",
)  # fmt: skip
# Operators with an integer kernel between a DequantizeLinear and a QuantizeLinear.
INTEGER_OPS = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu")
# Layers whose kernel gives a float output where no QuantizeLinear follows; a Conv stays float without one.
FLOAT_OUTPUT_LAYERS = ("Gemm", "MatMul", "ConvTranspose")
WIDE_BITS = 8


def make_plan(model: ModelProto, *, weight_bits: int = 8, activation_bits: int = 8, first_last_bits: int = 8) -> QuantPlan:
    """Plan the quantization of every weighted layer and of the tensors between them.

    ``activation_bits`` are those of the inputs of weighted layers; a tensor that an Add, a pool or a float operator
    reads too is kept at 8 bits and narrowed for the layers alone. Layers that no other layer precedes or follows get
    ``first_last_bits`` for weight and input. Raises ModelError where the graph has no quantizable layer.
    """
    index = Index(model.graph)
    layers = tuple(_layers(model.graph, index, weight_bits, activation_bits))
    if not layers:
        raise ModelError(
            "graph: no quantizable layer found; a Conv, ConvTranspose, Gemm or MatMul with a constant float weight is"
            " needed; nothing can be gained by quantizing this model"
        )
    ends = _end_layers(model.graph, index, {layer.name for layer in layers})
    layers = tuple(_at_bits(layer, first_last_bits, first_last_bits) if layer.name in ends else layer for layer in layers)
    quantized = _quantized_tensors(model.graph, index, layers)
    nonnegative = {t: c for t in quantized if (c := upper_bound(index, t)) is not None}
    shared = _sharing_sets(model.graph, index, quantized, nonnegative)
    activations, narrowed = _assign_bits(index, layers, quantized, shared)
    return QuantPlan(layers, activations, narrowed, shared, nonnegative)


def _at_bits(layer: LayerPlan, weight_bits: int, activation_bits: int) -> LayerPlan:
    return replace(
        layer,
        weight_spec=replace(layer.weight_spec, bits=weight_bits),
        activation_spec=replace(layer.activation_spec, bits=activation_bits),
    )


def _layers(graph: GraphProto, index: Index, weight_bits: int, activation_bits: int) -> Iterable[LayerPlan]:
    for node in graph.node:
        if node.op_type not in LAYERS or node.domain:
            continue
        weight = constant(index, node.input[1])
        if weight is None or weight.dtype != "float32" or node.input[0] in index.initializers:
            continue
        attributes = attributes_of(node)
        if node.op_type == "MatMul" and weight.ndim != 2:
            continue
        if node.op_type == "Gemm" and (attributes.get("transA") or not _plain_gemm(attributes)):
            continue
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        if bias is not None and bias not in index.initializers:
            continue
        yield LayerPlan(
            name=node.name,
            op=node.op_type,
            input=node.input[0],
            weight=node.input[1],
            bias=bias,
            output=node.output[0],
            weight_spec=QuantSpec(weight_bits, signed=True, symmetric=True, axis=_channel_axis(node.op_type, attributes)),
            activation_spec=QuantSpec(activation_bits),
            groups=attributes.get("group", 1),
        )


def _plain_gemm(attributes: dict) -> bool:
    return attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0


def _channel_axis(op: str, attributes: dict) -> int:
    if op == "Conv":
        return 0
    if op == "Gemm":
        return 0 if attributes.get("transB") else 1
    return 1


def attributes_of(node: NodeProto) -> dict:
    """Attributes of a node as Python values, those it leaves out left out."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _end_layers(graph: GraphProto, index: Index, names: set[str]) -> set[str]:
    """Names of the layers that no other layer precedes, or that no other layer follows."""
    seen: set[str] = set()
    first: set[str] = set()
    for node in graph.node:
        preceded = any(t in seen for t in node.input)
        if node.name in names and not preceded:
            first.add(node.name)
        if preceded or node.name in names:
            seen.update(node.output)
    last: set[str] = set()
    seen = set()
    for node in reversed(graph.node):
        followed = any(t in seen for t in node.output)
        if node.name in names and not followed:
            last.add(node.name)
        if followed or node.name in names:
            seen.update(node.input)
    return first | last


def upper_bound(index: Index, tensor: str) -> float | None:
    """The c of a Relu (infinity) or of a Clip(0, c) that makes ``tensor``; None where neither does."""
    node = index.producer.get(tensor)
    if node is None or node.domain:
        return None
    if node.op_type == "Relu":
        return float("inf")
    if node.op_type != "Clip":
        return None
    attributes = attributes_of(node)
    low, high = attributes.get("min"), attributes.get("max", float("inf"))
    if len(node.input) > 1 and node.input[1]:
        value = constant(index, node.input[1])
        low = None if value is None else float(value.reshape(-1)[0])
    if len(node.input) > 2 and node.input[2]:
        value = constant(index, node.input[2])
        high = None if value is None else float(value.reshape(-1)[0])
    return float(high) if low == 0 and high is not None and high > 0 else None


def rectified(index: Index, tensor: str) -> str:
    """The output of the Relu or Clip(0, c) that alone reads ``tensor``, or else ``tensor`` itself."""
    consumers = index.consumers.get(tensor, [])
    if len(consumers) == 1 and tensor not in index.outputs and upper_bound(index, consumers[0].output[0]) is not None:
        if consumers[0].input[0] == tensor:
            return consumers[0].output[0]
    return tensor


def data_inputs(index: Index, node: NodeProto) -> list[str]:
    """The inputs of an integer operator or a mover that carry activations."""
    return [t for t in node.input if t] if node.op_type in INTEGER_OPS else [node.input[0]]


def _quantized_tensors(graph: GraphProto, index: Index, layers: tuple[LayerPlan, ...]) -> dict[str, None]:
    """Tensors that get a grid, in graph order: what layers read and write, and what passes between them on integers."""
    by_name = {layer.name: layer for layer in layers}
    on_integers = {layer.input for layer in layers}
    chosen: list[NodeProto] = []
    for node in graph.node:
        if node.name in by_name:
            on_integers.add(rectified(index, node.output[0]))
        elif _runs_on_integers(index, node, on_integers):
            chosen.append(node)
            on_integers.update(rectified(index, t) for t in node.output)
    wanted = {layer.input for layer in layers}
    for node in reversed(chosen):
        if any(rectified(index, t) in wanted for t in node.output):
            wanted.update(data_inputs(index, node))
    for node in chosen:
        if any(rectified(index, t) in wanted for t in node.output) and moves_values(index, node):
            wanted.update(node.output)
    for layer in layers:
        if layer.op not in FLOAT_OUTPUT_LAYERS:
            wanted.add(rectified(index, layer.output))
    order = list(index.inputs) + [t for node in graph.node for t in node.output]
    return {t: None for t in order if t in wanted}


def _runs_on_integers(index: Index, node: NodeProto, on_integers: set[str]) -> bool:
    if node.op_type in INTEGER_OPS and not node.domain:
        return all(t in on_integers for t in data_inputs(index, node))
    return moves_values(index, node) and node.input[0] in on_integers


def moves_values(index: Index, node: NodeProto) -> bool:
    """Whether each value of the node's output is one of its first input's, or the zero of a Pad."""
    if node.domain or not node.output or not node.input:
        return False
    attributes = attributes_of(node)
    if node.op_type == "Resize":
        return attributes.get("mode", b"nearest") == b"nearest"
    if node.op_type == "Pad" and attributes.get("mode", b"constant") == b"constant":
        fill = constant(index, node.input[2]) if len(node.input) > 2 and node.input[2] else attributes.get("value", 0.0)
        return fill is not None and not np.any(fill)
    return node.op_type in MOVERS


def _sharing_sets(graph: GraphProto, index: Index, quantized: dict[str, None], nonnegative: dict[str, float]):
    """Sets of tensors with one grid: both sides of a mover, and a Concat with the inputs that it alone reads."""
    parent = {t: t for t in quantized}

    def find(t: str) -> str:
        while parent[t] != t:
            t = parent[t]
        return t

    for node in graph.node:
        outputs = [rectified(index, t) for t in node.output if rectified(index, t) in quantized]
        if moves_values(index, node):
            members = [t for t in (node.input[0],) if t in quantized] + outputs
        elif node.op_type == "Concat" and outputs and not node.domain:
            members = [t for t in node.input if t in quantized and len(index.consumers[t]) == 1]
            alike = all((t in nonnegative) == (node.input[0] in nonnegative) for t in node.input)
            members = members + outputs if alike else []
        else:
            continue
        for t in members[1:]:
            parent[find(t)] = find(members[0])
    sets: dict[str, list[str]] = {}
    for t in quantized:
        sets.setdefault(find(t), []).append(t)
    return tuple(tuple(s) for s in sets.values() if len(s) > 1)


def _assign_bits(index: Index, layers: tuple[LayerPlan, ...], quantized: dict[str, None], shared):
    """Give each set of tensors its layers' bits where only layers read it, else 8 with a narrower grid for the layers."""
    bits_of = {layer.name: layer.activation_spec.bits for layer in layers}
    set_of = {t: s for s in shared for t in s}
    activations: dict[str, QuantSpec] = {}
    narrowed: dict[str, QuantSpec] = {}
    for tensor in quantized:
        members = set_of.get(tensor, (tensor,))
        needs: set[int] = set()
        for member in members:
            readers = index.consumers.get(member, [])
            for node in readers:
                moves_inside = any(rectified(index, t) in members for t in node.output)
                if not moves_inside:
                    needs.add(bits_of.get(node.name, WIDE_BITS) if node.input[0] == member else WIDE_BITS)
            if member in index.outputs:
                needs.add(WIDE_BITS)
        bits = needs.pop() if len(needs) == 1 else WIDE_BITS
        activations[tensor] = QuantSpec(bits)
        narrower = {bits_of[n.name] for n in index.consumers.get(tensor, []) if n.name in bits_of} - {bits}
        if narrower:
            narrowed[tensor] = QuantSpec(min(narrower))
    return activations, narrowed
