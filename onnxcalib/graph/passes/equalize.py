"""Multiply the channels between layers by factors, which the layers on both sides take: the outputs stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, helper

from ...spec import LayerScheme
from ..edit import add_constant, take_name, write_operand
from ..fusion import BOUNDED, upper_bound
from ..index import Index, constant, is_op, known_constant, list_names, reads
from ..layers import channel_axis
from ..ops import AVERAGES, SHAPE_READERS
from ..shapes import Shape, infer_shapes
from .pads import read_padding
from .rescale import undo_scale

# In the metadata of a file: of how many sets of tensors channels were scaled for activations.
EVENED_KEY = "onnxcalib.even_layers"
# Of channels on axis 1, times positive factors, these give the same multiples.
KEEP_FACTORS = ("Relu", "LeakyRelu", "MaxPool", "GlobalMaxPool", *AVERAGES)
# Layers that have a bias of their own and channels on axis 1 on both sides.
TAKING = ("Conv", "Gemm")


@dataclass(frozen=True)
class Junction:
    """Tensors whose channels can be multiplied by the same factors, up to the layers around them.

    tensors: their names, with the channels of the junction that each has: a Pad may add channels. makers, readers: the
    layers that give and read some of them. clips: names of the Clips between them, all of the upper ``bound``; infinite
    without any. spatial: axes behind that of the channels.
    """

    tensors: Mapping[str, slice]
    makers: tuple[LayerScheme, ...]
    readers: tuple[LayerScheme, ...]
    clips: tuple[str, ...] = ()
    bound: float = np.inf
    spatial: int = 2


def find_junctions(
    model: ModelProto, layers: Mapping[str, LayerScheme]
) -> tuple[list[Junction], dict[str, dict[str, int]]]:
    """The junctions of a model, and of each layer those that read its output, with the first channel that they read.

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
            sets.join(node.output[0], read, _count_added(index, node))
        else:
            barred.update(read, node.output)
    closed = {sets.find(t)[0] for t in barred | sets.torn if t in sets.above}
    found: list[Junction] = []
    readers: dict[str, dict[str, int]] = {}
    for first, starts in sets.list().items():
        tensors = _place_channels(starts, shapes)
        makers = tuple(layer for layer in own.values() if layer.output in tensors)
        ahead = tuple(layer for layer in own.values() if layer.input in tensors)
        readers |= {
            layer.name: {each.name: starts[each.input] - starts[layer.output] for each in ahead} for layer in makers
        }
        clips = [node for node in model.graph.node if is_op(node, "Clip") and node.output[0] in tensors]
        bounds = {upper_bound(index, node.output[0]) for node in clips} or {np.inf}
        (bound, *others) = (each or np.inf for each in bounds)
        if makers and ahead and tensors and first not in closed and not others:
            spatial = len(index.initializers[makers[0].weight].dims) - 2
            found.append(Junction(tensors, makers, ahead, tuple(node.name for node in clips), bound, spatial))
    return found, readers


def scale_junction(model: ModelProto, junction: Junction, factors: np.ndarray, common: float | None = None) -> None:
    """Multiply the channels of a junction; mutates ``model``.

    factors: (channels,), all positive. common: what the bounds of Clips are multiplied by, the factor of those channels
    that reach them; None: each channel's bound has its factor, as a Relu behind a Min, which ``emit`` drops where the
    grid ends below the least bound.
    """
    index = Index(model.graph)
    for layer in junction.makers:
        node = index.nodes[layer.name]
        weight, own = known_constant(index, node.input[1]), factors[junction.tensors[layer.output]]
        shape = [1] * weight.ndim
        shape[channel_axis(node)] = -1
        write_operand(model.graph, index, node, 1, (weight * own.reshape(shape)).astype(np.float32))
        if layer.bias:
            write_operand(model.graph, index, node, 2, (known_constant(index, layer.bias) * own).astype(np.float32))
    for name in junction.clips:
        node = index.nodes[name]
        if common is not None:
            write_operand(model.graph, index, node, 2, np.asarray(junction.bound * common, np.float32))
            continue
        own = junction.bound * factors[junction.tensors[node.output[0]]]
        _bound_channels(model, node, own.reshape(-1, *[1] * junction.spatial).astype(np.float32))
    for layer in junction.readers:
        undo_scale(model, index, layer, factors[junction.tensors[layer.input]])


def _bound_channels(model: ModelProto, clip: NodeProto, bounds: np.ndarray) -> None:
    """Make a Clip(0, c) a Min with the bound of each channel and a Relu."""
    taken = list_names(model)
    constant, bounded, name = (
        take_name(f"{clip.input[0]}_{end}", taken) for end in ("bounds", BOUNDED, f"{BOUNDED}_Min")
    )
    add_constant(model.graph, constant, bounds)
    minimum = helper.make_node("Min", [clip.input[0], constant], [bounded], name=name)
    place = next(i for i, node in enumerate(model.graph.node) if node.name == clip.name)
    clip.op_type = "Relu"
    clip.input[:] = [bounded]
    del clip.attribute[:]
    model.graph.node.insert(place, minimum)


class _Sets:
    """Sets of tensors that have channels in common, joined as they are found.

    torn: tensors of sets in which a channel would be another one too.
    """

    def __init__(self) -> None:
        self.above: dict[str, tuple[str, int]] = {}
        self.torn: set[str] = set()

    def find(self, tensor: str) -> tuple[str, int]:
        """The tensor that stands for a set, and which of its channels is the first; a new one is a set by itself."""
        start = 0
        while (above := self.above.setdefault(tensor, (tensor, 0)))[0] != tensor:
            tensor, start = above[0], start + above[1]
        return tensor, start

    def join(self, tensor: str, others: Sequence[str], first: int) -> None:
        """The first channel of each other tensor is this one's channel ``first``."""
        top, start = self.find(tensor)
        for other in others:
            below, own = self.find(other)
            if below != top:
                self.above[below] = (top, start + first - own)
            elif own != start + first:
                self.torn.add(top)

    def list(self) -> dict[str, dict[str, int]]:
        """All sets, by the tensor that stands for each: their tensors, with the channel that the first one is."""
        found: dict[str, dict[str, int]] = {}
        for tensor in self.above:
            top, start = self.find(tensor)
            found.setdefault(top, {})[tensor] = start
        return {top: {t: n - min(starts.values()) for t, n in starts.items()} for top, starts in found.items()}


def _place_channels(starts: Mapping[str, int], shapes: Mapping[str, Shape]) -> dict[str, slice]:
    """The channels of each tensor; none where they are not all the same, and some number is not known."""
    sizes = {tensor: (*shapes.get(tensor, ()), None, None)[1] for tensor in starts}
    if not any(starts.values()) and len({size for size in sizes.values() if size is not None}) < 2:
        return dict.fromkeys(starts, slice(None))
    if None in sizes.values():
        return {}
    return {tensor: slice(start, start + int(sizes[tensor] or 0)) for tensor, start in starts.items()}


def _count_added(index: Index, node: NodeProto) -> int:
    """The channels that a Pad adds in front."""
    padding = read_padding(index, node)
    return 0 if padding is None else int(padding.pads[1])


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
        return inner and padding is not None and not padding.pads.reshape(2, -1)[:, 0].any()
    if is_op(node, "Slice"):
        axes = constant(index, node.input[3]) if len(node.input) > 3 else None
        return axes is not None and bool((axes > 1).all())
    if is_op(node, "Flatten", "Reshape"):
        given, made = shapes.get(node.input[0], ()), shapes.get(node.output[0], ())
        return len(made) == 2 < len(given) and made[1] is not None and given[1] == made[1]
    return is_op(node, *KEEP_FACTORS) and len(node.output) == 1
