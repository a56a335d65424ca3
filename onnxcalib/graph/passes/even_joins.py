"""Let a Concat join ``factor x`` for some of the tensors x that it joins, which the layers behind it undo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, helper

from ...spec import LayerScheme
from ..edit import add_constant, refill, rename, reroute, take_name
from ..fusion import moves_values, scale_of_joined
from ..index import Index, attribute_of, constant, is_op, known_constant, list_names, reads
from ..ops import AVERAGES, DEQUANTIZE, QUANTIZE, SHAPE_READERS
from .rescale import can_scale, undo_scale

# Of what they read channel by channel, times a positive factor, these give the same multiple.
KEEP_FACTORS = ("Relu", "LeakyRelu", "MaxPool", "Resize", "Identity", *AVERAGES)


class Ahead(NamedTuple):
    """Where what some Concats join goes, up to layers.

    leaves: what they join and none of them gives -> the numbers of its channels among those of all leaves.
    tensors: those up to layers, each with the numbers of its channels, or -1 for channels of others. layers: those that
    read such tensors, with the numbers of their input's channels.
    """

    leaves: Mapping[str, np.ndarray]
    tensors: Mapping[str, np.ndarray]
    layers: tuple[tuple[LayerScheme, np.ndarray], ...]

    def repeat(self, factors: Mapping[str, float]) -> np.ndarray:
        """The factors of leaves, by channel."""
        return np.repeat([factors[leaf] for leaf in self.leaves], [each.size for each in self.leaves.values()])


def group_joins(index: Index, names: Sequence[str]) -> list[list[str]]:
    """Names of Concats by group: those of a group join what others of it give."""
    group_of: dict[str, list[str]] = {}
    groups: list[list[str]] = []
    for node in index.nodes.values():
        if node.name in names:
            before = [group for t in node.input if (group := group_of.get(t)) is not None]
            merged = [*dict.fromkeys(name for group in before for name in group), node.name]
            groups = [group for group in groups if group not in before] + [merged]
            group_of = {t: merged if group in before else group for t, group in group_of.items()}
            group_of[node.output[0]] = merged
        elif is_op(node, *KEEP_FACTORS) and node.input[0] in group_of:
            group_of[node.output[0]] = group_of[node.input[0]]
    return groups


def look_ahead(
    index: Index,
    layers: Mapping[str, LayerScheme],
    names: Sequence[str],
    sizes: Mapping[str, int],
) -> Ahead | None:
    """Where what the Concats of these names join goes; None where something gives other than multiples of channels.

    layers: all, by name. sizes: channels of the tensors that Concats join.
    """
    (axis, *others) = {attribute_of(index.nodes[name], "axis", 0) for name in names}
    leaves: dict[str, np.ndarray] = {}
    tensors: dict[str, np.ndarray] = {}
    ends: list[tuple[LayerScheme, np.ndarray]] = []
    for node in () if others else index.nodes.values():
        if node.name in names:
            for t in node.input:
                if t not in tensors and t not in leaves:
                    leaves[t] = sum(sizes[leaf] for leaf in leaves) + np.arange(sizes[t])
            parts = [tensors[t] if t in tensors else leaves[t] for t in node.input]
            tensors[node.output[0]] = np.concatenate(parts)
            continue
        read = [t for t in reads(node) if t in tensors]
        if not read or is_op(node, *SHAPE_READERS):
            continue
        if node.name in layers:
            layer = layers[node.name]
            if read != [layer.input] or not _takes(index, layer, axis):
                return None
            ends.append((layer, tensors[layer.input]))
        elif (given := _carry(node, read, tensors, axis, sizes)) is not None:
            tensors[node.output[0]] = given
        else:
            return None
    return Ahead(leaves, tensors, tuple(ends)) if ends and tensors.keys().isdisjoint(index.outputs) else None


def _takes(index: Index, layer: LayerScheme, axis: int) -> bool:
    """Whether the layer sums over the axis, and its weight can undo factors."""
    sums_over = (1,) if layer.op == "Conv" else (1, -1) if layer.op == "Gemm" else (-1,)
    return axis in sums_over and can_scale(index, layer)


def _carry(
    node: NodeProto, read: Sequence[str], tensors: Mapping[str, np.ndarray], axis: int, sizes: Mapping[str, int]
) -> np.ndarray | None:
    """The numbers of the channels of what a node gives; None where it gives no multiples of those that it reads."""
    if is_op(node, *KEEP_FACTORS):
        crops = attribute_of(node, "coordinate_transformation_mode", b"") == b"tf_crop_and_resize"
        alone = read == [node.input[0]] and len([t for t in node.output if t]) == 1
        return tensors[node.input[0]] if alone and axis == 1 and not crops else None
    if is_op(node, "Mul") and len(read) == 1 and node.input[0] != node.input[1] and axis == 1:
        return tensors[read[0]]  # a Concat has several channels, which the other operand cannot repeat
    joins = is_op(node, "Concat") and attribute_of(node, "axis", 0) == axis
    if not joins or not sizes.keys() >= {t for t in node.input if t not in tensors}:
        return None
    return np.concatenate([tensors[t] if t in tensors else np.full(sizes[t], -1) for t in node.input])


def factors_of(channels: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """The factor of each channel, by the Concat's channel that it is; 1 for others."""
    return np.where(channels >= 0, factor[channels], 1.0)


def scale_joined(
    model: ModelProto, index: Index, names: Sequence[str], factors: Mapping[str, float], ahead: Ahead
) -> dict[str, str]:
    """Let the Concats join multiples of their leaves, and the layers undo that; mutates ``model``.

    The tensors between have other values then, and new names: old -> new is returned. factors: of each leaf. A Mul
    stands in front of the operators that only move a leaf, so that these keep their grids.
    """
    factor = ahead.repeat(factors)
    taken = list_names(model)
    for layer, channels in ahead.layers:
        undo_scale(model, index, layer, factors_of(channels, factor))
    renamed = {tensor: take_name(f"{tensor}_scaled", taken) for tensor in ahead.tensors}
    rename(model.graph, renamed)
    muls: dict[str, list[NodeProto]] = {}
    for leaf, times in factors.items():
        if times == 1:
            continue
        source, moved = _find_source(index, leaf)
        readers = [index.nodes[name] for name in names if source in index.nodes[name].input] or index.readers(source)
        output = take_name(f"{source}_scaled", taken)
        if (known := constant(index, source)) is not None:
            add_constant(model.graph, output, (known * times).astype(np.float32))
        else:
            operand = add_constant(model.graph, take_name(f"{source}_factor", taken), np.float32(times))
            mul = helper.make_node("Mul", [source, operand], [output], take_name(f"{source}_Mul", taken))
            first = next(name for name in index.nodes if name in {node.name for node in readers})
            muls.setdefault(first, []).append(mul)
        for node in readers:
            reroute(node, source, output)
        rename(model.graph, {tensor: take_name(f"{tensor}_scaled", taken) for tensor in moved})
    refill(model.graph.node, [each for node in model.graph.node for each in (*muls.get(node.name, ()), node)])
    return renamed


def _find_source(index: Index, leaf: str) -> tuple[str, list[str]]:
    """What operators that only move it make a leaf of, and what these give, the leaf last."""
    moved: list[str] = []
    while (node := index.producer.get(leaf)) is not None and moves_values(index, node) and len(node.output) == 1:
        if len(index.readers(leaf)) > 1 or leaf in index.outputs or node.input[0] in index.initializers:
            break
        moved.insert(0, leaf)
        leaf = node.input[0]
    return leaf, moved


def fold_scales(model: ModelProto) -> int:
    """Take a Mul by a power of two in front of a Concat into the scale of its DequantizeLinear; returns the count.

    What puts the Mul's output on a grid of its own goes: the Concat's output has one. For quantized graphs.
    """
    index, taken = Index(model.graph), list_names(model)
    made: dict[str, NodeProto] = {}
    gone: set[str] = set()
    for node in model.graph.node:
        found = _read_scaling(index, node)
        if found is None:
            continue
        dequantize, factor, end = found
        scale = take_name(f"{node.output[0]}_dequantized_scale", taken)
        add_constant(model.graph, scale, np.float32(factor) * known_constant(index, dequantize.input[1]))
        inputs = [dequantize.input[0], scale, *dequantize.input[2:]]
        made[node.name] = helper.make_node(DEQUANTIZE, inputs, [end[-1].output[0]], node.name)
        made[node.name].attribute.extend(dequantize.attribute)
        gone.update(each.name for each in end[1:])
        if len(index.readers(dequantize.output[0])) == 1:
            gone.add(dequantize.name)
    if made:
        kept = [made.get(node.name, node) for node in model.graph.node if node.name not in gone]
        refill(model.graph.node, kept)
    return len(made)


def _read_scaling(index: Index, node: NodeProto) -> tuple[NodeProto, float, list[NodeProto]] | None:
    """The DequantizeLinear that a scaling Mul reads, the factor, and the Mul with all up to its Concat."""
    factor = scale_of_joined(index, node)
    dequantize = index.producer.get(node.input[0]) if factor else None
    if not factor or dequantize is None or not is_op(dequantize, DEQUANTIZE):
        return None
    end = [node]
    for kind in (QUANTIZE, DEQUANTIZE):
        readers = index.readers(end[-1].output[0])
        if len(readers) != 1 or not is_op(readers[0], kind):
            return None
        end.append(readers[0])
    scale = constant(index, dequantize.input[1])
    if scale is None:
        return None
    (reader,) = index.readers(end[-1].output[0])
    return (
        (dequantize, factor, end) if is_op(reader, "Concat") or _are_equal(index, dequantize, end[1], factor) else None
    )


def _are_equal(index: Index, dequantize: NodeProto, quantize: NodeProto, factor: float) -> bool:
    """Whether the two have one grid but for the factor, which is what an operator that moves integers needs."""
    (scale, zero), (other, other_zero) = (
        [constant(index, name) for name in node.input[1:3]] for node in (dequantize, quantize)
    )
    return np.array_equal(np.float32(factor) * scale, other) and np.array_equal(zero, other_zero)  # type: ignore[operator, arg-type]


def find_scaled(index: Index) -> dict[str, tuple[str, float]]:
    """Tensors that such a Mul alone reads, in front of a Concat -> what it gives, and its factor."""
    found = {}
    for node in index.nodes.values():
        if factor := scale_of_joined(index, node):
            source = node.input[0]
            if len(index.readers(source)) == 1 and source not in index.outputs:
                found[source] = (node.output[0], factor)
    return found
