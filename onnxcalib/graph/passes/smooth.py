"""Multiply the channels of what layers read by factors, which the layers' weights undo: the outputs stay.

Where these layers alone read it, what makes the activation takes the factors: a norm by its scale and bias, a linear
layer by its columns. Elsewhere a Mul stands in front of the layers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, helper

from ...spec import LayerScheme, QuantScheme
from ..bodies import digest
from ..edit import add_constant, remove_at, rename, reroute, take_name, write_operand
from ..index import Index, attribute_of, constant, is_op, known_constant, list_names, reads, walk_back
from ..norm_sums import NORMS
from ..ops import ACTIVATIONS, LAYERS, SHAPE_READERS
from ..patterns import LAYER_NORM, RMS_NORM, find_patterns
from ..weight_readers import WeightReaders
from .rescale import can_scale, undo_scale

# Between a layer and the next one of a feed-forward: what gives channel j for channel j alone.
BY_CHANNEL = (*(op for op in ACTIVATIONS if op not in NORMS), "Pow", "Softsign", "Mish")
SMOOTHED = "smoothed"  # behind the name of a tensor that had no factors


# Bits of weights that have room for the range of activations.
ROOM = 8
# Neighbours of a float activation that onnxruntime rounds on one grid where weights have a scale a column.
BLOCK = 32


class Smoothable(NamedTuple):
    """An activation, and all layers that read it on its grid, on one of each row, or as float.

    Of float activations onnxruntime's kernel rounds each block of neighbours on a grid of its own.
    """

    tensor: str
    layers: tuple[LayerScheme, ...]

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the layers' weights; activations with the same ones have the same factors."""
        return tuple(layer.weight for layer in self.layers)

    @property
    def block(self) -> int | None:
        """The number of neighbours that are rounded on one grid where the layers read float; None elsewhere."""
        layer = self.layers[0]
        return (layer.weight_spec.block or BLOCK) if layer.reads_float else None

    @property
    def dynamic(self) -> bool:
        """Whether each row has a grid of its own."""
        return self.layers[0].dynamic


class Edit(NamedTuple):
    """A constant operand that is written anew, of the node of this name."""

    node: str
    number: int
    value: np.ndarray


def find_smoothable(
    model: ModelProto, scheme: QuantScheme, tied: Collection[str] = (), encoding: str = "runtime"
) -> list[Smoothable]:
    """Activations in the order of the graph that a norm gives, or a feed-forward makes of what a norm gives, or that
    layers with the weights of these read.

    Products with a matrix read them on 8 bits, and all of these can undo factors. Where all layers of the model read
    float, and have 8 bits, theirs are found, except for those of layers that are ``tied`` to a table, which have its
    integers. Of layers of one weight all are found, or none, as factors of some would make several weights of it.
    """
    index = Index(model.graph)
    found = find_products(model, scheme, tied)
    normed = _find_normed(model, index) if found else frozenset()
    several = WeightReaders.find(index, scheme, encoding)
    made = {each.weights for each in found if each.tensor in normed or _is_inside(index, each.tensor, normed)}
    return [each for each in found if each.weights in made and _takes_all(each, found, several)]


def find_products(model: ModelProto, scheme: QuantScheme, tied: Collection[str] = ()) -> list[Smoothable]:
    """The same, whatever the activations are: all that products with a matrix alone read so."""
    index = Index(model.graph)
    readers: dict[str, list[LayerScheme]] = {}
    alone = all(layer.reads_float and layer.weight_spec.bits == ROOM for layer in scheme.layers)
    for layer in scheme.layers:
        if not layer.reads_float or (alone and layer.name not in tied and _fits_blocks(index, layer)):
            readers.setdefault(layer.input, []).append(layer)
    found = []
    for tensor, layers in readers.items():
        taken = all(is_op(index.nodes[layer.name], "MatMul", "Gemm") and can_scale(index, layer) for layer in layers)
        on_grid = [n for n in index.readers(tensor) if n.name not in scheme.float_reads.get(tensor, ())]
        if tensor not in scheme.activations:  # which dynamic layers read; to all others it is float
            on_grid = []
        only = {layer.name for layer in layers}.issuperset(n.name for n in on_grid if not is_op(n, *SHAPE_READERS))
        single = scheme.members_of(tensor) == (tensor,) and tensor not in scheme.requantized
        if taken and only and single and tensor in index.producer:
            found.append(Smoothable(tensor, tuple(layers)))
    return found


def _takes_all(chosen: Smoothable, found: Sequence[Smoothable], several: WeightReaders) -> bool:
    """Whether all layers that have weights of these read activations that can have the same factors.

    Factors that are fitted to rows are each activation's own.
    """
    alike = sum(each.weights == chosen.weights for each in found)
    shared = [several.leaders.get(layer.name, layer).name for layer in chosen.layers if several.has(layer.name)]
    fitted = chosen.dynamic or chosen.block is not None
    return not shared or (not fitted and all(1 + len(several.first[name]) == alike for name in shared))


def rejoin_weights(model: ModelProto, readers: WeightReaders) -> None:
    """Let layers that had one weight read one again, where theirs are equal; mutates ``model``."""
    index, dropped = Index(model.graph), set[str]()
    for first, others in readers.first.items():
        kept = index.nodes[first].input[1]
        for node in (index.nodes[other.name] for other in others):
            old = node.input[1]
            if old != kept and digest(index.initializers[old]) == digest(index.initializers[kept]):
                node.input[1] = kept
                dropped.add(old)
    read = {name for node in model.graph.node for name in reads(node)}
    remove_at(model.graph.initializer, [i for i, t in enumerate(model.graph.initializer) if t.name in dropped - read])


def _fits_blocks(index: Index, layer: LayerScheme) -> bool:
    """Whether blocks divide the inputs of a product with a matrix."""
    weight = index.initializers.get(layer.weight)
    inputs = 1 if weight is None or len(weight.dims) != 2 else weight.dims[1 - layer.axis]
    return inputs % (layer.weight_spec.block or BLOCK) == 0


def _find_normed(model: ModelProto, index: Index) -> frozenset[str]:
    """What norms give along the last axis, also those that are written out as several nodes."""
    found = {n.output[0] for n in index.nodes.values() if is_op(n, *NORMS) and attribute_of(n, "axis", -1) == -1}
    written = find_patterns(model) if any(is_op(n, "ReduceMean") for n in index.nodes.values()) else ()
    kinds = (LAYER_NORM, RMS_NORM)
    return frozenset(found.union(p.output for p in written if p.function.kind in kinds and p.function.axes == (-1,)))


def _is_inside(index: Index, tensor: str, normed: frozenset[str]) -> bool:
    """Whether operators that go channel by channel make a tensor of what layers give that read a norm's output."""
    ends = 0
    for node in walk_back(index, [tensor], lambda node: is_op(node, *LAYERS)):
        if is_op(node, *LAYERS):
            ends += 1
            if node.input[0] not in normed or node.input[1] not in index.initializers:
                return False
        elif not is_op(node, *BY_CHANNEL) or not all(
            t in index.producer or t in index.initializers for t in node.input
        ):
            return False
    return ends > 0


def smooth(model: ModelProto, chosen: Smoothable, factor: np.ndarray) -> str | None:
    """Let layers read ``factor x`` by channel in place of x, and their weights undo it; mutates ``model``.

    Tensors that take factors have other names then, as they are no longer those of the model that was given.
    Returns the name of the Mul; None where what makes the activation takes the factors. factor: (channels,).
    """
    index = Index(model.graph)
    layers = {layer.name for layer in chosen.layers}
    readers = [node for node in index.readers(chosen.tensor) if not is_op(node, *SHAPE_READERS)]
    alone = chosen.tensor not in index.outputs and all(node.name in layers for node in readers)
    edits = [*_fold(index, chosen.tensor, factor)] if alone else []
    for layer in chosen.layers:
        undo_scale(model, index, layer, factor)
    for edit in edits:
        write_operand(model.graph, index, index.nodes[edit.node], edit.number, edit.value.astype(np.float32))
    if not edits:
        return _insert(model, chosen, factor)
    taken = list_names(model)
    scaled = _list_scaled(index, chosen.tensor, edits)
    rename(model.graph, {tensor: take_name(f"{tensor}_{SMOOTHED}", taken) for tensor in sorted(scaled)})
    return None


def _list_scaled(index: Index, tensor: str, edits: Sequence[Edit]) -> set[str]:
    """The tensor, and what has its factors on the way from the edited constants; each has one reader there."""
    found = {tensor}
    for edit in edits:
        made = index.nodes[edit.node].output[0]
        while made not in found:
            found.add(made)
            made = index.readers(made)[0].output[0]
    return found


def _fold(index: Index, tensor: str, factor: np.ndarray) -> Iterator[Edit]:
    """What lets a tensor, which has one use, be ``factor`` times as large; nothing where no constant can take it."""
    node = index.producer.get(tensor)
    if node is None:
        return
    if is_op(node, *NORMS) or is_op(node, "MatMul", "Gemm"):
        yield from _scale_operands(index, node, factor)
    elif is_op(node, "Relu"):
        yield from _fold_alone(index, node.input[0], factor)
    elif is_op(node, "Add", "Mul"):
        numbers = [number for number, name in enumerate(node.input) if name in index.initializers]
        if not numbers:
            sides = reads(node) if node.op_type == "Mul" else ()
            sides = sides if len(sides) > 1 else ()  # what is multiplied by itself would have the factors twice
            yield from next(filter(None, ([*_fold_alone(index, t, factor)] for t in reversed(sides))), ())
            return
        value = known_constant(index, node.input[numbers[0]])
        if len(numbers) > 1 or value.size != factor.size or value.shape[-1:] != factor.shape:
            return
        own = Edit(node.name, numbers[0], value * factor)
        if node.op_type == "Mul":
            yield own
        elif before := [*_fold_alone(index, node.input[1 - numbers[0]], factor)]:
            yield from (*before, own)


def _fold_alone(index: Index, tensor: str, factor: np.ndarray) -> Iterator[Edit]:
    if len(index.readers(tensor)) == 1 and tensor not in index.outputs:
        yield from _fold(index, tensor, factor)


def _scale_operands(index: Index, node: NodeProto, factor: np.ndarray) -> Iterator[Edit]:
    """The constants of a norm or a product times factors; nothing where one is no constant that can take them."""
    values = [(number, constant(index, name)) for number, name in enumerate(node.input) if number and name]
    by_row = node.op_type == "Gemm" and attribute_of(node, "transB", 0)
    if len(node.output) > 1 or any(value is None or not value.ndim for _, value in values):
        return
    known = [(number, value) for number, value in values if value is not None]
    if any(value.shape[0 if by_row and number == 1 else -1] != factor.size for number, value in known):
        return
    for number, value in known:
        yield Edit(node.name, number, value * (factor[:, None] if by_row and number == 1 else factor))


def _insert(model: ModelProto, chosen: Smoothable, factor: np.ndarray) -> str:
    """Put one Mul in front of the layers; returns its name."""
    taken = list_names(model)
    nodes = [node for node in model.graph.node if node.name in {layer.name for layer in chosen.layers}]
    name, operand, output = (
        take_name(f"{chosen.tensor}_{end}", taken) for end in (f"{SMOOTHED}_Mul", f"{SMOOTHED}_factor", SMOOTHED)
    )
    add_constant(model.graph, operand, factor.astype(np.float32))
    for node in nodes:
        reroute(node, chosen.tensor, output)
    position = next(i for i, node in enumerate(model.graph.node) if node.name == nodes[0].name)
    model.graph.node.insert(position, helper.make_node("Mul", [chosen.tensor, operand], [output], name=name))
    return name
