"""Pair the layers of a quantized model with the float model's tensors and names, or say why that is not possible."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from onnx import GraphProto, ModelProto, NodeProto

from ..graph.dynamic_lstm import DYNAMIC_LSTM
from ..graph.edit import copy_model
from ..graph.emit import PER_CHANNEL_OPSET
from ..graph.index import Index, is_op, reads, walk_back
from ..graph.inspect.integers import is_linear
from ..graph.inspect.quantized_layers import (
    QuantizedLayer,
    QuantizedProduct,
    find_quantized_layers,
    find_quantized_products,
)
from ..graph.ops import DYNAMIC_LAYERS, INTEGER_PRODUCT, LAYERS, PACKED_LAYERS, QLINEAR_LAYERS, RECURRENT
from ..graph.passes.batchnorm import fold_affine, fold_batchnorm
from ..graph.passes.branches import take_branches
from ..graph.passes.einsum import einsum_as_matmul
from ..graph.passes.normalise import inline_functions, lift_constants, name_nodes, normalise, spell_domain, tidy
from ..graph.passes.opset import opset_of
from ..graph.passes.ort_fusions import split_fusions
from ..graph.passes.products import products_as_layers
from ..graph.passes.transposed import write_as_convolutions

# Operators that clip, for which tools substitute a grid with the same ends, in front of a QuantizeLinear.
CLIPS = ("Relu", "Clip", "Max", "Min", "HardSigmoid")
# Operators of float layers, whose weight is input 1.
FLOAT = ("Attention", "FusedConv", "FusedGemm", "FusedMatMul")
WEIGHT_INPUTS = dict.fromkeys((*LAYERS, *RECURRENT, *DYNAMIC_LAYERS, *PACKED_LAYERS, *FLOAT), 1) | dict.fromkeys(
    QLINEAR_LAYERS, 3
)
# Operators that quantize puts in front of a layer to rescale its input.
RESCALERS = ("Pad", "Mul", "Add")
MOST_LINES, FIRST = 10, 3
Reached = tuple[str, tuple[NodeProto, ...]]  # a tensor, and the nodes on the way to it


@dataclass(frozen=True)
class Pair:
    """A quantized layer, or a product of activations, and its counterpart in the float model.

    name: the float layer's, as ``quantize`` names it, or None where not exactly one layer leads to the output. output:
    the tensor of the float model that the layer computes. path: the nodes that put the quantized layer's output on a
    grid, where that grid clips in place of an operator of the float model; otherwise empty.
    """

    layer: QuantizedLayer | QuantizedProduct
    name: str | None
    output: str
    path: tuple[NodeProto, ...] = ()


def name_float_nodes(
    model: ModelProto, *, as_layers: bool = False, on_integers: bool = False
) -> tuple[ModelProto, dict[str, str]]:
    """``tidy`` of a float model, and a map from its nodes' names to the names that ``quantize`` gives them.

    as_layers: its products are layers, as in a model that ``quantize`` made, where the opset has their operators.
    on_integers: in that model layers read integers, for which transposed convolutions are written as others.
    """
    tagged = copy_model(model)
    inline_functions(tagged)
    if as_layers:
        for settle in (spell_domain, lift_constants, name_nodes, take_branches):  # as ``quantize`` does
            settle(tagged)
    for number, node in enumerate(tagged.graph.node):
        node.doc_string = str(number)
    tidied = tidy(tagged)
    if as_layers and opset_of(tidied) >= PER_CHANNEL_OPSET:
        for rewrite in (split_fusions, einsum_as_matmul, products_as_layers):
            rewrite(tidied)
        if on_integers and any(is_op(node, "ConvTranspose") for node in tidied.graph.node):
            for rewrite in (fold_batchnorm, fold_affine, write_as_convolutions):  # norms, as that reads what they give
                rewrite(tidied)
    normalise(tagged)
    names = {node.doc_string: node.name for node in tagged.graph.node}
    return tidied, {node.name: names[node.doc_string] for node in tidied.graph.node if node.doc_string in names}


def pair_layers(
    original: ModelProto, quantized: ModelProto, names: dict[str, str]
) -> tuple[list[Pair], tuple[str, ...]]:
    """The layers and products whose inputs and output the float model has too, and one line for every other one.

    Both models are tidy. names: from ``name_float_nodes``.
    """
    index, other = Index(original.graph), Index(quantized.graph)
    known = {*index.inputs, *index.producer}
    found = find_quantized_layers(quantized)
    pairs: list[Pair] = []
    unmatched: list[str] = []
    layers: tuple[QuantizedLayer | QuantizedProduct, ...] = (
        *(_behind_bias(other, _before_rescaling(other, layer, known), known) for layer in found),
        *find_quantized_products(quantized),
    )
    for layer in sorted(layers, key=lambda each: other.position.get(each.name, 0)):
        reached: Iterator[Reached] = (each for each in _follow(other, layer.output) if each[0] in known)
        output, path = next(reached, ("", ()))
        what = "product" if isinstance(layer, QuantizedProduct) else "layer"
        if unknown := [operand.source for operand in layer.operands if operand.source not in known]:
            unmatched.append(f"{layer.name}: the float model has no tensor {unknown[0]}, the {what}'s input")
        elif not output:
            unmatched.append(f"{layer.name}: the float model has no tensor {layer.output}, the {what}'s output")
        else:
            node, clipped = _find_float_layer(index, output)
            if layer.op in (DYNAMIC_LSTM, *RECURRENT):
                node = index.producer.get(output)
            if not path or is_op(path[-1], "Relu"):  # which leaves the upper end to the grid
                path = (*path, *_path_to_grid(other, path[-1].output[0] if path else layer.output))
            path = path if clipped else ()
            pairs.append(Pair(layer, names.get(node.name) if node else None, output, path))
    return pairs, (*unmatched, *list_unread(quantized, {layer.name for layer in found}))


def _before_rescaling(index: Index, layer: QuantizedLayer, known: set[str]) -> QuantizedLayer:
    """The layer with the tensor of the float model as its source, where Pad, Mul and Add of constants rescale that.

    The layer's grid is then dropped, as it holds for the rescaled values.
    """
    source, entries = layer.source, layer.entries
    while source not in known:
        node = index.producer.get(source)
        if node is None or not is_op(node, *RESCALERS) or not index.initializers.keys() >= {*node.input[1:]} - {""}:
            return layer
        source, entries = node.input[0], (node.name,)
    return layer if source == layer.source else replace(layer, source=source, entries=entries, grid=None)


def _behind_bias(index: Index, layer: QuantizedLayer, known: set[str]) -> QuantizedLayer:
    """The layer with what the Add of its bias gives as its output, where a Gemm became a product and that Add."""
    readers = index.readers(layer.output)
    if (
        layer.op not in (INTEGER_PRODUCT, "MatMul")
        or layer.output in known
        or len(readers) != 1
        or not is_op(readers[0], "Add")
    ):
        return layer
    adds_constant = any(name in index.initializers for name in readers[0].input)
    return replace(layer, output=readers[0].output[0]) if adds_constant else layer


def _follow(index: Index, tensor: str, path: tuple[NodeProto, ...] = ()) -> Iterator[Reached]:
    """The tensor, and the tensors that Relu, Clip and Q/DQ nodes make of it, each with the nodes on the way there."""
    yield tensor, path
    for node in index.readers(tensor):
        if is_op(node, "Relu", "Clip") or is_linear(node, "QuantizeLinear", "DequantizeLinear"):
            yield from _follow(index, node.output[0], (*path, node))


def _path_to_grid(index: Index, tensor: str) -> tuple[NodeProto, ...]:
    """The nodes that quantize and dequantize a tensor, if it is read in no other way."""
    if tensor in index.outputs or not all(is_linear(node, "QuantizeLinear") for node in index.readers(tensor)):
        return ()
    return next((path for _, path in _follow(index, tensor) if path and is_linear(path[-1], "DequantizeLinear")), ())


def _find_float_layer(index: Index, tensor: str) -> tuple[NodeProto | None, bool]:
    """The layer that leads to a float tensor, if there is exactly one, and whether an operator on the way clips."""
    nodes = list(walk_back(index, [tensor], lambda node: is_op(node, *LAYERS)))
    layers = [node for node in nodes if is_op(node, *LAYERS)]
    clipped = any(is_op(node, *CLIPS) for node in nodes)
    return (layers[0] if len(layers) == 1 else None), clipped


def list_unread(quantized: ModelProto, found: set[str]) -> tuple[str, ...]:
    """One line for each node with a constant weight that is not in ``found``, or for each operator if they are many."""
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
    """Every node with a constant weight, and why it would not be judged as a layer."""
    fixed = set(index.initializers)
    for node in graph.node:
        if all(name in fixed for name in reads(node)):
            fixed.update(node.output)
        if _weight_of(node) in fixed:
            yield node, _explain_unread(index, node)


def _weight_of(node: NodeProto) -> str:
    """The tensor that is a node's weight, or an empty text."""
    position = WEIGHT_INPUTS.get(node.op_type, len(node.input))
    return node.input[position] if position < len(node.input) else ""


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
