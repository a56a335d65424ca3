"""A quantized graph that adds products as x86 without VNNI does, in operators that saturate on no machine.

The kernels there add the products of two neighbouring inputs in int16: p = clip(x0 * w0 + x1 * w1, -32768, 32767). In
the rewritten graph a layer keeps exact sums, and what saturation changes is added to them: scale * sum of
(clip(p) - p), over the pairs that can leave int16. Each term is a whole number below 2^24, which float32 holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..index import Index, attribute_of
from ..inspect.kernels import Kernel
from ..inspect.quantized_layers import find_quantized_layers
from ..inspect.sums import Sums, read_layer, read_operator

# So many pairs of a layer are computed at once, or those of one output channel.
PART = 512
LOW, HIGH = -(2.0**15), 2.0**15 - 1
# From here on the ends of a Clip are inputs.
CLIP_INPUTS = 11


@dataclass(frozen=True)
class Saturated:
    """A model whose layers' sums saturate, to be run without graph optimizations, which would make kernels of it again.

    exact: nodes that do not, as there is no other form of them here; products: for each that does, the name of the
    largest tensor that it takes.
    """

    model: ModelProto
    exact: tuple[str, ...]
    products: tuple[str, ...]


def saturate(model: ModelProto, kernels: Mapping[str, tuple[Kernel, np.ndarray]]) -> Saturated:
    """A copy in which the sums of these kernels saturate.

    kernels: by the name of the node that each is of, and which of its pairs can saturate, (n, 2): row and number of the
    pair in it, row by row. All nodes must have names. A node that holds other integers than its kernel stays exact.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    index = Index(copy.graph)
    layers = {layer.name: layer for layer in find_quantized_layers(copy)}
    nodes, exact, products = [], [], []
    for node in copy.graph.node:
        if node.name not in kernels:
            nodes.append(node)
            continue
        layer = layers.get(node.name)
        sums = read_operator(index, copy.graph, node) if layer is None else read_layer(index, node, layer)
        kernel, pairs = kernels[node.name]
        if sums is None or not np.array_equal(sums.rows, kernel.rows):
            exact.append(node.name)
            nodes.append(node)
        else:
            writer = _Writer(copy, sums.result)
            nodes.extend(_write(writer, sums, pairs))
            products.append(max(writer.products, key=writer.products.__getitem__))
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return Saturated(copy, tuple(exact), tuple(products))


def _write(writer: _Writer, sums: Sums, pairs: np.ndarray) -> Iterator[NodeProto]:
    """The nodes of a layer, and behind its result those that add what saturation changes."""
    for node in sums.nodes:
        if sums.result not in node.output:
            yield node
            continue
        node.output[0] = f"{sums.result}:exact"
        yield node
        change = (_change_conv if sums.conv is not None else _change_matrix)(writer, sums, pairs)
        if sums.kind != TensorProto.FLOAT:
            change = writer.apply("Cast", change, to=sums.kind)
        writer.apply("Add", node.output[0], change, output=sums.result)
        yield from writer.nodes


class _Writer:
    """Nodes that are written for one layer; their constants go into the model at once.

    products: tensors of pairs' products, and how many pairs.
    """

    def __init__(self, model: ModelProto, prefix: str) -> None:
        self.graph, self.prefix = model.graph, prefix
        self.nodes: list[NodeProto] = []
        self.products: dict[str, int] = {}
        self.opset = next(entry.version for entry in model.opset_import if not entry.domain)

    def keep(self, value: np.ndarray) -> str:
        name = f"{self.prefix}:constant{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def apply(self, op: str, *inputs: str | np.ndarray, output: str = "", **attributes) -> str:
        tensors = [each if isinstance(each, str) else self.keep(each) for each in inputs]
        name = f"{self.prefix}:{op}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, tensors, [output or name], name, **attributes))
        return output or name

    def excess(self, products: str, pairs: int) -> str:
        """What saturation changes in a tensor of products: clip(p) - p."""
        self.products[products] = pairs
        if self.opset < CLIP_INPUTS:
            clipped = self.apply("Clip", products, min=LOW, max=HIGH)
        else:
            clipped = self.apply("Clip", products, np.float32(LOW), np.float32(HIGH))
        return self.apply("Sub", clipped, products)

    def join(self, parts: list[str], axis: int) -> str:
        return parts[0] if len(parts) == 1 else self.apply("Concat", *parts, axis=axis)


def _change_conv(writer: _Writer, sums: Sums, pairs: np.ndarray) -> str:
    """A Conv with a group for each pair: its two inputs, less the zero point as it pads with 0, that is added back."""
    outputs, channels, *window = sums.weight_shape
    relative = writer.apply("Cast", sums.source, to=TensorProto.FLOAT)
    if sums.zero_point:
        relative = writer.apply("Sub", relative, np.float32(sums.zero_point))
    groups = attribute_of(sums.conv, "group", 1)
    kept = [each for each in sums.conv.attribute if each.name != "group"]
    parts = []
    for start, end, part in _split(pairs, outputs):
        weights, places = _weights(sums.rows, part)
        taps, sources = np.divmod(places, channels)
        sources += (part[:, :1] * groups // outputs) * channels
        filters = np.zeros((len(part), 2, int(np.prod(window))), np.float32)
        np.put_along_axis(filters, taps[..., None], weights[..., None], axis=2)
        inputs = writer.apply("Gather", relative, sources.reshape(-1), axis=1)
        padded = np.float32(sums.zero_point + sums.shift) * weights.sum(axis=1)
        products = writer.apply("Conv", inputs, filters.reshape(-1, 2, *window), padded, group=len(part))
        writer.nodes[-1].attribute.extend(kept)
        excess = writer.excess(products, len(part))
        summing = _summing(sums, part, start, end).T
        parts.append(writer.apply("Conv", excess, summing.reshape(*summing.shape, *[1] * len(window))))
    return writer.join(parts, 1)


def _change_matrix(writer: _Writer, sums: Sums, pairs: np.ndarray) -> str:
    """The inputs of every pair by their place on the last axis, multiplied and added up one by one."""
    source = writer.apply("Cast", sums.source, to=TensorProto.FLOAT)
    if sums.shift:
        source = writer.apply("Add", source, np.float32(sums.shift))
    if sums.transposed:
        source = writer.apply("Transpose", source, perm=[1, 0])
    parts = []
    for start, end, part in _split(pairs, len(sums.rows)):
        weights, places = _weights(sums.rows, part)
        one, other = (
            writer.apply("Mul", writer.apply("Gather", source, places[:, side], axis=-1), weights[:, side])
            for side in (0, 1)
        )
        products = writer.apply("Add", one, other)
        excess = writer.excess(products, len(part))
        parts.append(writer.apply("MatMul", excess, _summing(sums, part, start, end)))
    return writer.join(parts, -1)


def _split(pairs: np.ndarray, rows: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """All rows in turn, from one to before another, as many as have PART pairs, and these; no run is without any."""
    counts = np.bincount(pairs[:, 0], minlength=rows)
    start = held = done = 0
    for row, count in enumerate(counts):
        if held and held + count > PART:
            yield start, row, pairs[done : done + held]
            start, done, held = row, done + held, 0
        held += count
    yield start, rows, pairs[done:]


def _weights(rows: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both weights of each pair, float32 (n, 2), and their places in the row."""
    places = 2 * pairs[:, 1:] + np.arange(2)
    return rows[pairs[:, :1], places].astype(np.float32), places


def _summing(sums: Sums, pairs: np.ndarray, start: int, end: int) -> np.ndarray:
    """What pairs are multiplied by for the sums of the rows from ``start`` to before ``end``, (pairs, rows)."""
    matrix = np.zeros((len(pairs), end - start), np.float32)
    scales = 1 if sums.scales is None else sums.scales[pairs[:, 0]]
    matrix[np.arange(len(pairs)), pairs[:, 0] - start] = scales
    return matrix
