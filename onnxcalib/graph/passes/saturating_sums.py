"""Rewrite a quantized graph to add products as x86 without VNNI does, in operators that saturate on no processor.

The kernels there add the products of two neighbouring inputs in int16: p = clip(x0 * w0 + x1 * w1, -32768, 32767). In
the rewritten graph a layer keeps its exact sums, to which the effect of saturation is added: scale * sum of (clip(p) -
p), over the pairs of products that can leave int16. Each term is a whole number below 2^24, which float32 represents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from ..edit import add_constant, copy_model, refill, write_attributes
from ..index import attribute_of, index_graphs
from ..inspect.kernels import Kernel
from ..inspect.quantized_layers import find_layers
from ..inspect.sums import Sums, read_layer, read_operator
from ..ops import DYNAMIC_LAYERS

# Number of pairs of a layer that are computed at once, unless one output channel has more.
PART = 512
LOW, HIGH = -(2.0**15), 2.0**15 - 1
# The first opset in which the ends of a Clip are inputs.
CLIP_INPUTS = 11


@dataclass(frozen=True)
class Saturated:
    """A model whose layers' sums saturate. It must run without graph optimizations, which would fuse it into kernels.

    exact: nodes that cannot be rewritten and stay exact. products: for each other node, the name of the largest
    tensor that it takes.
    """

    model: ModelProto
    exact: tuple[str, ...]
    products: tuple[str, ...]


def saturate(model: ModelProto, kernels: Mapping[str, tuple[Kernel, np.ndarray]]) -> Saturated:
    """A copy in which the sums of these kernels, those in bodies included, saturate.

    kernels: name of a node -> its kernel, and the pairs of products that can saturate, (n, 2): row and number in the
    row, row by row. All nodes must have names. A node with other integers than its kernel stays exact.
    """
    copy = copy_model(model)
    exact: list[str] = []
    products: list[str] = []
    for graph, index in reversed([*index_graphs(copy.graph)]):  # bodies before the nodes that have them
        layers = {layer.name: layer for layer in find_layers(graph, index) if layer.op not in DYNAMIC_LAYERS}
        nodes: list[NodeProto] = []
        for node in graph.node:
            layer = layers.get(node.name)
            written = None
            if node.name in kernels:
                sums = read_operator(index, graph, node) if layer is None else read_layer(index, node, layer)
                written = _rewrite(copy, sums, *kernels[node.name])
                exact += [node.name] if written is None else []
            if written is None:
                nodes.append(node)
            else:
                nodes.extend(written[0])
                products.append(written[1])
        refill(graph.node, nodes)
    return Saturated(copy, tuple(exact), tuple(products))


def _rewrite(
    model: ModelProto, sums: Sums | None, kernel: Kernel, pairs: np.ndarray
) -> tuple[list[NodeProto], str] | None:
    """The nodes of a layer whose sums saturate, and their largest tensor; None for other integers than the kernel's."""
    if sums is None or kernel.rows is None or not np.array_equal(sums.rows, kernel.rows):
        return None
    writer = _Writer(model, sums.result)
    nodes = list(_write(writer, sums, pairs))
    return nodes, max(writer.products, key=writer.products.__getitem__)


def _write(writer: _Writer, sums: Sums, pairs: np.ndarray) -> Iterator[NodeProto]:
    """The nodes of a layer, and behind its result the nodes that add the effect of saturation."""
    for node in sums.nodes:
        if sums.result not in node.output:
            yield node
            continue
        node.output[0] = f"{sums.result}:exact"
        yield node
        if sums.conv is None:
            change = _change_matrix(writer, sums, pairs)
        else:
            change = _change_conv(writer, sums, sums.conv, pairs)
        if sums.kind != TensorProto.FLOAT:
            change = writer.apply("Cast", change, to=sums.kind)
        writer.apply("Add", node.output[0], change, output=sums.result)
        yield from writer.nodes


class _Writer:
    """Writes the nodes of one layer; their constants go into the model at once.

    products: tensor of the products of pairs -> number of pairs.
    """

    def __init__(self, model: ModelProto, prefix: str) -> None:
        self.graph, self.prefix = model.graph, prefix
        self.nodes: list[NodeProto] = []
        self.products: dict[str, int] = {}
        self.opset = next(entry.version for entry in model.opset_import if not entry.domain)

    def keep(self, value: np.ndarray) -> str:
        return add_constant(self.graph, f"{self.prefix}:constant{len(self.graph.initializer)}", np.atleast_1d(value))

    def apply(
        self, op: str, *inputs: str | np.ndarray | np.float32, output: str = "", **attributes: float | list[int]
    ) -> str:
        """Name of the result of an operator on tensors and constants."""
        tensors = [each if isinstance(each, str) else self.keep(np.asarray(each)) for each in inputs]
        name = f"{self.prefix}:{op}{len(self.nodes)}"
        node = helper.make_node(op, tensors, [output or name], name)
        write_attributes(node, dict(sorted(attributes.items())))
        self.nodes.append(node)
        return output or name

    def excess(self, products: str, pairs: int) -> str:
        """The effect of saturation on a tensor of products: clip(p) - p."""
        self.products[products] = pairs
        if self.opset < CLIP_INPUTS:
            clipped = self.apply("Clip", products, min=LOW, max=HIGH)
        else:
            clipped = self.apply("Clip", products, np.float32(LOW), np.float32(HIGH))
        return self.apply("Sub", clipped, products)

    def join(self, parts: list[str], axis: int) -> str:
        return parts[0] if len(parts) == 1 else self.apply("Concat", *parts, axis=axis)


def _change_conv(writer: _Writer, sums: Sums, conv: NodeProto, pairs: np.ndarray) -> str:
    """The effect of saturation on a Conv, by a Conv that has a group for the two inputs of each pair.

    It reads the inputs less their zero point, as it pads with 0, and adds the zero point's share as a bias.
    """
    outputs, channels, *window = sums.weight_shape
    relative = writer.apply("Cast", sums.source, to=TensorProto.FLOAT)
    if sums.zero_point:
        relative = writer.apply("Sub", relative, np.float32(sums.zero_point))
    groups = attribute_of(conv, "group", 1)
    kept = [each for each in conv.attribute if each.name != "group"]
    parts = []
    for start, end, part in _split(pairs, outputs):
        weights, numbers = _weights(sums.rows, part)
        taps, sources = np.divmod(numbers, channels)
        sources += (part[:, :1] * groups // outputs) * channels
        filters = np.zeros((len(part), 2, int(np.prod(window))), np.float32)
        np.put_along_axis(filters, taps[..., None], weights[..., None], axis=2)
        inputs = writer.apply("Gather", relative, sources.reshape(-1), axis=1)
        bias = np.float32(sums.zero_point + sums.shift) * weights.sum(axis=1)
        products = writer.apply("Conv", inputs, filters.reshape(-1, 2, *window), bias, group=len(part))
        writer.nodes[-1].attribute.extend(kept)
        excess = writer.excess(products, len(part))
        summing = _summing(sums, part, start, end).T
        parts.append(writer.apply("Conv", excess, summing.reshape(*summing.shape, *[1] * len(window))))
    return writer.join(parts, 1)


def _change_matrix(writer: _Writer, sums: Sums, pairs: np.ndarray) -> str:
    """The effect of saturation on a matrix product, of which the inputs of every pair are gathered and multiplied."""
    source = writer.apply("Cast", sums.source, to=TensorProto.FLOAT)
    if sums.shift:
        source = writer.apply("Add", source, np.float32(sums.shift))
    if sums.transposed:
        source = writer.apply("Transpose", source, perm=[1, 0])
    parts = []
    for start, end, part in _split(pairs, len(sums.rows)):
        weights, numbers = _weights(sums.rows, part)
        one, other = (
            writer.apply("Mul", writer.apply("Gather", source, numbers[:, side], axis=-1), weights[:, side])
            for side in (0, 1)
        )
        products = writer.apply("Add", one, other)
        excess = writer.excess(products, len(part))
        parts.append(writer.apply("MatMul", excess, _summing(sums, part, start, end)))
    return writer.join(parts, -1)


def _split(pairs: np.ndarray, rows: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """All rows in parts of at most PART pairs, or of one row: the first row, the row behind the last, and the pairs."""
    counts = np.bincount(pairs[:, 0], minlength=rows)
    start = held = done = 0
    for row, count in enumerate(counts):
        if held and held + count > PART:
            yield start, row, pairs[done : done + held]
            start, done, held = row, done + held, 0
        held += count
    yield start, rows, pairs[done:]


def _weights(rows: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both weights of each pair, float32 (n, 2), and their numbers in the row."""
    numbers = 2 * pairs[:, 1:] + np.arange(2)
    return rows[pairs[:, :1], numbers].astype(np.float32), numbers


def _summing(sums: Sums, pairs: np.ndarray, start: int, end: int) -> np.ndarray:
    """The matrix (pairs, rows) that adds up the pairs of each row from ``start`` to before ``end``, times its scale."""
    matrix = np.zeros((len(pairs), end - start), np.float32)
    matrix[np.arange(len(pairs)), pairs[:, 0] - start] = 1 if sums.scales is None else sums.scales[pairs[:, 0]]
    return matrix
