"""Pair the layers of a quantized model with the float model's tensors and names; say of others why they have none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from onnx import GraphProto, ModelProto, NodeProto

from ..graph.index import Index, all_nodes, is_op, reads, subgraphs
from ..graph.inspect.integers import is_linear
from ..graph.inspect.quantized_layers import QuantizedLayer, find_quantized_layers
from ..graph.ops import DYNAMIC_LAYERS, LAYERS, PACKED_LAYERS, QLINEAR_LAYERS
from ..graph.passes.normalise import normalise, tidy

# What a grid that ends where they clip can stand for: tools remove them in front of a QuantizeLinear.
CLIPS = ("Relu", "Clip", "Max", "Min")
# Layers that hold a weight as input number 1, that of QLINEAR_LAYERS being number 3.
FLOAT = ("LSTM", "GRU", "RNN", "Attention", "FusedConv", "FusedGemm", "FusedMatMul")
WEIGHT_PLACES = dict.fromkeys((*LAYERS, *DYNAMIC_LAYERS, *PACKED_LAYERS, *FLOAT), 1) | dict.fromkeys(QLINEAR_LAYERS, 3)
# What quantize puts in front of a layer that reads its input in other units.
RESCALERS = ("Pad", "Mul", "Add")
MOST_LINES, FIRST = 10, 3


@dataclass(frozen=True)
class Pair:
    """A quantized layer beside its float self.

    name: of the float layer as ``quantize`` names it, None where no single one leads to the tensor; output: its output
    in the float model. path: the nodes behind the quantized layer that put its output on a grid, where that grid clips
    what an operator clips in the float model; else none.
    """

    layer: QuantizedLayer
    name: str | None
    output: str
    path: tuple[NodeProto, ...] = ()


def name_float_nodes(model: ModelProto) -> tuple[ModelProto, dict[str, str]]:
    """``tidy`` of a float model, and its nodes' names -> those that ``quantize`` gives the nodes that it keeps."""
    tagged = ModelProto()
    tagged.CopyFrom(model)
    for place, node in enumerate(tagged.graph.node):
        node.doc_string = str(place)
    tidied = tidy(tagged)
    normalise(tagged)
    names = {node.doc_string: node.name for node in tagged.graph.node}
    return tidied, {node.name: names[node.doc_string] for node in tidied.graph.node if node.doc_string in names}


def pair_layers(
    original: ModelProto, quantized: ModelProto, names: dict[str, str]
) -> tuple[list[Pair], tuple[str, ...]]:
    """The layers whose input and output the float model has too, and a line for every other node with a weight.

    Both models are tidy; names: of the float nodes, as ``quantize`` has them.
    """
    index, other = Index(original.graph), Index(quantized.graph)
    known = {*index.inputs, *index.producer}
    found = find_quantized_layers(quantized)
    pairs, unmatched = [], []
    for layer in (_before_rescaling(other, layer, known) for layer in found):
        output, path = next((each for each in _follow(other, layer.output) if each[0] in known), ("", ()))
        if layer.source not in known:
            unmatched.append(f"{layer.name}: the float model has no tensor {layer.source}, which it reads")
        elif not output:
            unmatched.append(f"{layer.name}: the float model has no tensor {layer.output}, which it makes")
        else:
            node, clipped = _find_float_layer(index, output)
            path = (path or _path_to_grid(other, layer.output)) if clipped else ()
            pairs.append(Pair(layer, names.get(node.name) if node else None, output, path))
    return pairs, (*unmatched, *list_unread(quantized, {layer.name for layer in found}))


def _before_rescaling(index: Index, layer: QuantizedLayer, known: set[str]) -> QuantizedLayer:
    """The layer as it reads a tensor that the float model has, which Pad, Mul and Add of constants then rescale.

    Its grid is in the units that these make, so that it says nothing of that tensor.
    """
    source, entry = layer.source, layer.entry
    while source not in known:
        node = index.producer.get(source)
        if node is None or not is_op(node, *RESCALERS) or not index.initializers.keys() >= {*node.input[1:]} - {""}:
            return layer
        source, entry = node.input[0], node.name
    return layer if source == layer.source else replace(layer, source=source, entry=entry, grid=None)


def _follow(index: Index, tensor: str, path: tuple[NodeProto, ...] = ()) -> Iterator[tuple[str, tuple[NodeProto, ...]]]:
    """A tensor, and those that it becomes on grids, each with the nodes on the way there."""
    yield tensor, path
    for node in index.readers(tensor):
        if is_op(node, "Clip") or is_linear(node, "QuantizeLinear", "DequantizeLinear"):
            yield from _follow(index, node.output[0], (*path, node))


def _path_to_grid(index: Index, tensor: str) -> tuple[NodeProto, ...]:
    """The nodes to where a tensor is back in float, if nobody reads it but on a grid."""
    if tensor in index.outputs or not all(is_linear(node, "QuantizeLinear") for node in index.readers(tensor)):
        return ()
    return next((path for _, path in _follow(index, tensor) if path and is_linear(path[-1], "DequantizeLinear")), ())


def _find_float_layer(index: Index, tensor: str) -> tuple[NodeProto | None, bool]:
    """The one layer that leads to a float tensor, and whether anything on the way clips."""
    layers, clipped, seen, waiting = [], False, set(), [tensor]
    while waiting:
        node = index.producer.get(waiting.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if is_op(node, *LAYERS):
            layers.append(node)
        else:
            clipped |= is_op(node, *CLIPS)
            waiting += reads(node)
    return (layers[0] if len(layers) == 1 else None), clipped


def list_unread(quantized: ModelProto, found: set[str]) -> tuple[str, ...]:
    """Nodes with a constant weight that are not among those found, with the reason; many of a kind in one line."""
    index = Index(quantized.graph)
    missed = [(node, why) for node, why in _explain_weighted(index, quantized.graph) if node.name not in found]
    if len(missed) <= MOST_LINES:
        return tuple(f"{node.name} ({node.op_type}): {why}" for node, why in missed)
    groups: dict[tuple[str, str], list[str]] = {}
    for node, why in missed:
        groups.setdefault((node.op_type, why), []).append(node.name)
    return tuple(f"{_name_first(names)} ({op}): {why}" for (op, why), names in groups.items())


def _name_first(names: list[str]) -> str:
    first = ", ".join(names[:FIRST])
    return first if len(names) <= FIRST else f"{len(names)} nodes, {first}..."


def _explain_weighted(index: Index, graph: GraphProto) -> Iterator[tuple[NodeProto, str]]:
    """Nodes with a constant weight, each with what keeps it from being judged if it is none of ``LAYERS`` on a grid."""
    fixed = set(index.initializers)
    for node in graph.node:
        if all(name in fixed for name in reads(node)):
            fixed.update(node.output)
        if _weight_of(node) in fixed:
            yield node, _explain_unread(index, node)
        for inner in (inner for body in subgraphs(node) for inner in all_nodes(body)):
            if inner.op_type in WEIGHT_PLACES:
                yield inner, f"it is inside {node.name} ({node.op_type}), whose bodies are not looked into"


def _weight_of(node: NodeProto) -> str:
    """The tensor that is a node's weight, or an empty text."""
    place = WEIGHT_PLACES.get(node.op_type, len(node.input))
    return node.input[place] if place < len(node.input) else ""


def _explain_unread(index: Index, node: NodeProto) -> str:
    if node.op_type in QLINEAR_LAYERS:
        return "it computes on integers alone, in QOperator format; layers are judged in Q/DQ format"
    if node.op_type in DYNAMIC_LAYERS:
        return "its input is quantized at run time, without a grid in the file"
    if node.op_type in PACKED_LAYERS:
        return "its weight is packed in a format that is not read"
    if node.op_type in FLOAT:
        return "layers of this operator are not judged"
    maker = index.producer.get(node.input[1])
    if maker is None:
        return "its weight is float"
    if is_linear(maker, "DequantizeLinear"):
        return "its weight is quantized in the graph, not stored as integers"
    return f"its weight is made by {maker.op_type}, not by the DequantizeLinear of stored integers"
