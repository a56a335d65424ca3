"""Multiply the channels between layers by factors, which the layers on both sides take: the outputs stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto

from ...spec import LayerScheme
from ..edit import write_operand
from ..fusion import upper_bound
from ..index import Index, constant, is_op, known_constant, reads
from ..layers import channel_axis
from ..ops import AVERAGES, SHAPE_READERS
from ..shapes import Shape, infer_shapes
from .pads import read_padding
from .rescale import undo_scale

# Of channels on axis 1, times positive factors, these give the same multiples.
KEEP_FACTORS = ("Relu", "LeakyRelu", "MaxPool", "GlobalMaxPool", *AVERAGES)
# Layers that have a bias of their own and channels on axis 1 on both sides.
TAKING = ("Conv", "Gemm")


@dataclass(frozen=True)
class Junction:
    """Tensors whose channels can be multiplied by the same factors, up to the layers around them.

    tensors: their names. makers, readers: the layers that give and read some of them. clips: names of the Clips between
    them, all of the upper ``bound``; infinite without any.
    """

    tensors: tuple[str, ...]
    makers: tuple[LayerScheme, ...]
    readers: tuple[LayerScheme, ...]
    clips: tuple[str, ...] = ()
    bound: float = np.inf


def find_junctions(model: ModelProto, layers: Mapping[str, LayerScheme]) -> tuple[list[Junction], dict[str, list[str]]]:
    """The junctions of a model, and for each layer the names of those that read what it gives.

    layers: all of them, by name. A layer may be read through operators that take no factors, which is in no junction.
    """
    index, shapes = Index(model.graph), infer_shapes(model)
    own = {name: layer for name, layer in layers.items() if _takes(index, layer)}
    sets = _Sets()
    barred = {*index.inputs, *index.outputs}
    for node in model.graph.node:
        if is_op(node, *SHAPE_READERS):
            continue
        read = [t for t in reads(node) if t not in index.initializers]
        if node.name in own and read == [own[node.name].input]:
            sets.find(node.input[0])
            sets.find(node.output[0])
        elif _keeps(index, node, shapes):
            sets.join([node.output[0], *read])
        else:
            barred.update(read, node.output)
    closed = {sets.find(t) for t in barred if t in sets.parent}
    found: list[Junction] = []
    readers: dict[str, list[str]] = {}
    for first, tensors in sets.list().items():
        makers = tuple(layer for layer in own.values() if layer.output in tensors)
        ahead = tuple(layer for layer in own.values() if layer.input in tensors)
        readers |= {layer.name: [each.name for each in ahead] for layer in makers}
        clips = [node for node in model.graph.node if is_op(node, "Clip") and node.output[0] in tensors]
        bounds = {upper_bound(index, node.output[0]) for node in clips} or {np.inf}
        (bound, *others) = (each or np.inf for each in bounds)
        if makers and ahead and first not in closed and not others:
            found.append(Junction(tuple(tensors), makers, ahead, tuple(node.name for node in clips), bound))
    return found, readers


def scale_junction(model: ModelProto, junction: Junction, factors: np.ndarray, common: float) -> None:
    """Multiply the channels of a junction; mutates ``model``.

    factors: (channels,), all positive. common: what the bounds of Clips are multiplied by, the factor of those channels
    that reach them.
    """
    index = Index(model.graph)
    for layer in junction.makers:
        node = index.nodes[layer.name]
        weight = known_constant(index, node.input[1])
        shape = [1] * weight.ndim
        shape[channel_axis(node)] = -1
        write_operand(model.graph, index, node, 1, (weight * factors.reshape(shape)).astype(np.float32))
        if layer.bias:
            write_operand(model.graph, index, node, 2, (known_constant(index, layer.bias) * factors).astype(np.float32))
    for name in junction.clips:
        bound = np.asarray(junction.bound * common, np.float32)
        write_operand(model.graph, index, index.nodes[name], 2, bound)
    for layer in junction.readers:
        undo_scale(model, index, layer, factors)


class _Sets:
    """Sets of tensors, joined as they are found."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}

    def find(self, tensor: str) -> str:
        """The tensor that stands for a set; one that is new is a set of its own."""
        while (above := self.parent.setdefault(tensor, tensor)) != tensor:
            tensor = above
        return tensor

    def join(self, tensors: Sequence[str]) -> None:
        first = self.find(tensors[0])
        for tensor in tensors[1:]:
            self.parent[self.find(tensor)] = first

    def list(self) -> dict[str, list[str]]:
        """All sets, by the tensor that stands for each."""
        found: dict[str, list[str]] = {}
        for tensor in self.parent:
            found.setdefault(self.find(tensor), []).append(tensor)
        return found


def _takes(index: Index, layer: LayerScheme) -> bool:
    """Whether rows and columns of the layer's weight, which it alone reads, can be multiplied, and its bias."""
    node = index.nodes[layer.name]
    alone = len(index.readers(layer.weight)) == 1 and layer.weight not in index.outputs
    return layer.op in TAKING and alone and list(node.input[:2]) == [layer.input, layer.weight]


def _keeps(index: Index, node: NodeProto, shapes: Mapping[str, Shape]) -> bool:
    """Whether a node gives factors times what it gave, where its inputs are multiplied by factors of channels."""
    if is_op(node, "Clip"):
        return upper_bound(index, node.output[0]) is not None
    if is_op(node, "Add"):
        first, second = (shapes.get(t, ()) for t in node.input)
        computed = index.initializers.keys().isdisjoint(node.input)
        return computed and 1 < len(first) == len(second) and first[1] == second[1] is not None
    if is_op(node, "Pad"):
        padding = read_padding(index, node)
        inner = padding is not None and padding.axes is None and not padding.fill
        return inner and padding is not None and not padding.pads.reshape(2, -1)[:, :2].any()
    if is_op(node, "Slice"):
        axes = constant(index, node.input[3]) if len(node.input) > 3 else None
        return axes is not None and bool((axes > 1).all())
    if is_op(node, "Flatten", "Reshape"):
        given, made = shapes.get(node.input[0], ()), shapes.get(node.output[0], ())
        return len(made) == 2 < len(given) and made[1] is not None and given[1] == made[1]
    return is_op(node, *KEEP_FACTORS) and len(node.output) == 1
