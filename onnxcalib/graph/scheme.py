"""Decide which tensors get a QuantSpec, so that onnxruntime fuses the result into integer kernels.

uint8 activations with one grid a tensor, int8 weights with one scale an output channel, one QuantizeLinear /
DequantizeLinear pair a tensor read by all its consumers, nothing between a layer, its Relu and the QuantizeLinear, and
equal grids on both sides of an operator that only moves values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from ..config import FLOAT_BITS, FULL_BITS, LayerConfig
from ..errors import ConfigError, ModelError
from ..spec import INT16_MAX, LayerScheme, QuantScheme, QuantSpec
from .embeddings import find_embeddings
from .fusion import carried_outputs, data_inputs, moves_values, upper_bound
from .index import Index, attribute_of, is_op, reads
from .layout import adds_pairs
from .names import Selection
from .ops import FLOAT_OUTPUT_LAYERS, INTEGER_OPS, LAYERS, MATRIX_LAYERS, SHAPE_READERS
from .shapes import Shape, infer_graph, infer_shapes

# Inputs with one scale in 4-bit weights that float activations meet: of 384 correlated normal ones the error is 2.4 dB
# less than with 128, for a fifth more bytes.
FLOAT_INPUT_BLOCK = 32


def make_scheme(
    model: ModelProto,
    *,
    weight_bits: int = 8,
    activation_bits: int = 8,
    first_last_bits: int = 8,
    block_size: int | None = None,
    embedding_bits: int = FLOAT_BITS,
    pair_limits: bool = True,
    selection: Selection | None = None,
) -> QuantScheme:
    """Plan the quantization of every weighted layer and of the tensors between them.

    ``activation_bits`` are those of the inputs of weighted layers; a tensor that an Add, a pool or a float operator
    reads too is kept at 8 bits and narrowed for the layers alone. Layers that no other layer precedes or follows get
    ``first_last_bits`` for their weight, and at least these for their input. What ``selection`` says of a layer stands
    above both. Layers of 32 ``activation_bits`` read float tensors, and those that are a MatMul or a Gemm have a scale
    for each ``block_size`` inputs, with 4 bits for each FLOAT_INPUT_BLOCK if that is None. With ``pair_limits`` the
    integers of weights are to be such that no kernel's sums can saturate. Raises ModelError where the
    graph has no quantizable layer, ConfigError where ``selection`` gives bits to one that is not, or where no layer
    could have blocks.
    """
    index = Index(model.graph)
    selection = selection or Selection()
    layers = tuple(_layers(model, index, weight_bits, activation_bits))
    if not layers:
        raise ModelError(
            "graph: no quantizable layer found; a Conv, ConvTranspose, Gemm or MatMul with a constant float weight is"
            " needed; nothing can be gained by quantizing this model"
        )
    _refuse_bits_without_effect(selection, {layer.name for layer in layers})
    ends = _end_layers(model.graph, {layer.name for layer in layers})
    layers = tuple(layer for layer in layers if layer.name not in selection.excluded)
    if not layers:
        raise ConfigError("exclude: no layer is left to quantize; exclude fewer nodes")
    layers = tuple(_widen(layer, first_last_bits) if layer.name in ends else layer for layer in layers)
    layers = tuple(_override(layer, selection.settings(layer.name)) for layer in layers)
    layers = _give_blocks(layers, block_size)
    on_grids = tuple(layer for layer in layers if not layer.reads_float)
    quantized, made = _quantized_tensors(model, index, on_grids, selection.excluded)
    nonnegative = {t: c for t in quantized if (c := upper_bound(index, t)) is not None}
    shared = _sharing_sets(model.graph, index, quantized, nonnegative, selection.excluded)
    float_reads = _float_reads(index, quantized, made)
    activations, requantized = _assign_bits(index, on_grids, (quantized, float_reads), shared)
    if pair_limits:
        layers = tuple(_limit_pairs(layer, index.initializers[layer.weight].dims, requantized) for layer in layers)
    embeddings = find_embeddings(model, embedding_bits, selection.excluded, {layer.name for layer in layers})
    return QuantScheme(layers, activations, requantized, shared, nonnegative, float_reads, embeddings)


def _widen(layer: LayerScheme, bits: int) -> LayerScheme:
    return replace(
        layer,
        weight_spec=replace(layer.weight_spec, bits=bits),
        activation_spec=replace(layer.activation_spec, bits=max(bits, layer.activation_spec.bits)),
    )


def _override(layer: LayerScheme, settings: LayerConfig) -> LayerScheme:
    weight_bits = settings.weight_bits or layer.weight_spec.bits
    activation_bits = settings.activation_bits or layer.activation_spec.bits
    return replace(
        layer,
        weight_spec=replace(layer.weight_spec, bits=weight_bits),
        activation_spec=replace(layer.activation_spec, bits=activation_bits),
    )


def _limit_pairs(layer: LayerScheme, shape: Sequence[int], requantized: Mapping[str, QuantSpec]) -> LayerScheme:
    """The layer with the pair_limit that its kernel needs, where integers of its bits can be beyond it.

    A narrowed tensor may stand at the top of uint8 (``emit``).
    """
    spec = layer.weight_spec
    if layer.reads_float or not adds_pairs(layer.op, tuple(shape), layer.groups):
        return layer
    highest = QuantSpec(FULL_BITS).qmax if layer.input in requantized else layer.activation_spec.qmax
    limit = INT16_MAX // highest
    return layer if limit >= -2 * spec.qmin else replace(layer, weight_spec=replace(spec, pair_limit=limit))


def _give_blocks(layers: tuple[LayerScheme, ...], block_size: int | None) -> tuple[LayerScheme, ...]:
    """Blocks of inputs for the layers that onnxruntime has a kernel of blocks for."""
    fit = {layer.name for layer in layers if layer.reads_float and layer.op in MATRIX_LAYERS}
    if block_size is not None and not fit:
        raise ConfigError(
            f"block_size: found {block_size}, and no layer to use it; those of a MatMul or Gemm with activation_bits 32"
            " have blocks; leave it out"
        )
    return tuple(
        replace(layer, weight_spec=replace(layer.weight_spec, block=block))
        if layer.name in fit
        and (block := block_size or (FLOAT_INPUT_BLOCK if layer.weight_spec.bits < FULL_BITS else None))
        else layer
        for layer in layers
    )


def _refuse_bits_without_effect(selection: Selection, quantizable: set[str]) -> None:
    for name, settings in selection.layers:
        if name not in quantizable and not settings.exclude:
            raise ConfigError(
                f"layers: {name!r}: the node stays in float; a Conv, ConvTranspose, Gemm or MatMul with a constant"
                " float weight has bits; take its entry out"
            )


def _layers(model: ModelProto, index: Index, weight_bits: int, activation_bits: int) -> Iterator[LayerScheme]:
    shapes = cache(partial(infer_shapes, model))
    for node in model.graph.node:
        if not is_op(node, *LAYERS) or not _quantizable(index, node):
            continue
        axis = channel_axis(node)
        bias_add = _find_bias_add(index, node, shapes)
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        yield LayerScheme(
            name=node.name,
            op=node.op_type,
            input=node.input[0],
            weight=node.input[1],
            bias=bias if bias_add is None else next(t for t in bias_add.input if t != node.output[0]),
            output=(bias_add or node).output[0],
            bias_add=bias_add and bias_add.name,
            weight_spec=QuantSpec(weight_bits, signed=True, symmetric=True, axis=axis),
            activation_spec=QuantSpec(activation_bits),
            groups=attribute_of(node, "group", 1),
        )


def _quantizable(index: Index, node: NodeProto) -> bool:
    """Whether weight and bias are float32 constants of the plain form, none of them empty, and the input is not."""
    weight = index.initializers.get(node.input[1])
    if weight is None or weight.data_type != TensorProto.FLOAT or node.input[0] in index.initializers:
        return False
    if 0 in weight.dims or (node.op_type == "MatMul" and len(weight.dims) != 2):
        return False
    if node.op_type == "Gemm":
        factors = attribute_of(node, "alpha", 1.0), attribute_of(node, "beta", 1.0)
        if attribute_of(node, "transA", 0) or factors != (1.0, 1.0):
            return False
    if len(node.input) < 3 or not node.input[2]:
        return True
    bias = index.initializers.get(node.input[2])
    groups = attribute_of(node, "group", 1) if node.op_type == "ConvTranspose" else 1
    return bias is not None and list(bias.dims) == [weight.dims[channel_axis(node)] * groups]


def _find_bias_add(index: Index, node: NodeProto, shapes: Callable[[], Mapping[str, Shape]]) -> NodeProto | None:
    """The Add of a constant a column that alone reads a MatMul; of no more axes than the product is known to have."""
    made, readers = node.output[0], index.readers(node.output[0])
    if node.op_type != "MatMul" or len(readers) != 1 or not is_op(readers[0], "Add") or made in index.outputs:
        return None
    bias = index.initializers.get(next((t for t in readers[0].input if t != made), ""))
    columns = index.initializers[node.input[1]].dims[1]
    if bias is None or not bias.dims or not bias.dims[-1] == columns == math.prod(bias.dims):
        return None
    return readers[0] if len(bias.dims) == 1 or len(bias.dims) <= len(shapes().get(made, ())) else None


def channel_axis(node: NodeProto) -> int:
    """The axis of a layer's output channels (of one group, for a ConvTranspose) in its weight."""
    return 0 if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute_of(node, "transB", 0)) else 1


def _end_layers(graph: GraphProto, names: set[str]) -> set[str]:
    """Names of the layers that no other layer precedes, or that no other layer follows."""
    seen: set[str] = set()
    first: set[str] = set()
    for node in graph.node:
        preceded = not seen.isdisjoint(reads(node))
        if node.name in names and not preceded:
            first.add(node.name)
        if preceded or node.name in names:
            seen.update(t for t in node.output if t)
    last: set[str] = set()
    seen = set()
    for node in reversed(graph.node):
        followed = not seen.isdisjoint(node.output)
        if node.name in names and not followed:
            last.add(node.name)
        if followed or node.name in names:
            seen.update(reads(node))
    return first | last


def _quantized_tensors(
    model: ModelProto, index: Index, layers: tuple[LayerScheme, ...], excluded: frozenset[str]
) -> tuple[list[str], dict[str, list[str]]]:
    """Tensors that get a grid, in graph order: what layers read and write, and what passes between them on integers.

    Nodes of ``excluded`` stay in float, whatever they could run on. The second of both: the nodes that run on integers,
    layers included, each with those of its outputs that do.
    """
    graph, names = model.graph, {layer.name for layer in layers}
    products = set(_products(model, index)) - excluded if layers else set()
    wanted = {layer.input for layer in layers}.union(*(n.input for n in graph.node if n.name in products))
    on_integers = set(wanted)
    chosen: list[tuple[NodeProto, list[str]]] = []
    for node in graph.node:
        if node.name in names:
            on_integers.update(carried_outputs(index, node))
        elif node.name in excluded or node.name in products:
            # What a product gives is float unless a layer reads it: a mask of -1e38 would leave a Softmax no grid.
            continue
        elif _joins_integers(index, node, on_integers):
            chosen.append((node, carried_outputs(index, node)))
            on_integers.update(chosen[-1][1])
        elif _alone_moves(index, node):
            chosen.append((node, carried_outputs(index, node)))
    made = {}
    for node, outputs in reversed(chosen):
        if not wanted.isdisjoint(outputs):
            made[node.name] = outputs
            wanted.update(data_inputs(node))
            wanted.update(outputs)
    for node in graph.node:
        if node.name in names and node.op_type not in FLOAT_OUTPUT_LAYERS:
            wanted.update(carried_outputs(index, node))
        if node.name in names or node.name in products:
            made[node.name] = carried_outputs(index, node)
    order = [*index.inputs, *(t for node in graph.node for t in node.output)]
    return [t for t in order if t in wanted], made


def _products(model: ModelProto, index: Index) -> list[str]:
    """Names of the MatMuls of two float activations, as those of attention: both operands get a grid."""
    nodes = [n for n in model.graph.node if is_op(n, "MatMul") and index.initializers.keys().isdisjoint(n.input)]
    graph = infer_graph(model) if nodes else None
    values = () if graph is None else (*graph.input, *graph.value_info, *graph.output)
    floats = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    return [n.name for n in nodes if floats.issuperset(n.input)]


def _float_reads(index: Index, quantized: list[str], made: dict[str, list[str]]) -> dict[str, frozenset[str]]:
    """For each planned tensor that a float operator makes, its readers that are float operators; see QuantPlan.

    So a residual that skips a layer behind a LayerNormalization has no rounding at all.
    """
    from_integers = {t for outputs in made.values() for t in outputs}
    found = {}
    for tensor in quantized:
        if tensor in index.producer and tensor not in from_integers:
            readers = {n.name for n in index.readers(tensor) if n.name not in made and not is_op(n, *SHAPE_READERS)}
            if readers or tensor in index.outputs:
                found[tensor] = frozenset(readers)
    return found


def _joins_integers(index: Index, node: NodeProto, on_integers: set[str]) -> bool:
    """Whether a node can run on integers, some of its inputs being so; the others get a QuantizeLinear for its sake."""
    if not is_op(node, *INTEGER_OPS) and not moves_values(index, node):
        return False
    inputs = data_inputs(node)
    return not on_integers.isdisjoint(inputs) and index.initializers.keys().isdisjoint(inputs)


def _alone_moves(index: Index, node: NodeProto) -> bool:
    """Whether a node moves a float tensor that nobody else reads: it may as well be quantized before it."""
    if not moves_values(index, node) or node.input[0] in index.initializers or node.input[0] in index.outputs:
        return False
    return len(index.readers(node.input[0])) == 1


def _sharing_sets(
    graph: GraphProto,
    index: Index,
    quantized: list[str],
    nonnegative: dict[str, float],
    excluded: frozenset[str],
) -> tuple[tuple[str, ...], ...]:
    """Sets of tensors with one grid: both sides of a mover, and a Concat with the inputs that it alone reads."""
    nodes = [node for node in graph.node if node.name not in excluded]
    parent = {t: t for t in quantized}
    bound = {t: nonnegative.get(t) for t in quantized}

    def find(t: str) -> str:
        while parent[t] != t:
            t = parent[t]
        return t

    def join(tensors: list[str]) -> None:
        for t in tensors[1:]:
            a, b = find(tensors[0]), find(t)
            if a != b:
                parent[b] = a
                bound[a] = min((c for c in (bound[a], bound[b]) if c is not None), default=None)

    for node in nodes:
        if moves_values(index, node):
            join([t for t in (node.input[0], *carried_outputs(index, node)) if t in parent])
    for node in nodes:
        if not is_op(node, "Concat") or not parent.keys() >= {*node.input, *carried_outputs(index, node)}:
            continue
        (output,) = carried_outputs(index, node)
        # A grid without negative values must not spread to a tensor that has them, nor one bound to another's.
        bounds = {bound[find(t)] for t in node.input}
        if len(bounds) == 1 and bound[find(output)] in {*bounds, None}:
            join([output, *(t for t in node.input if len(index.readers(t)) == 1)])
    sets: dict[str, list[str]] = {}
    for t in quantized:
        sets.setdefault(find(t), []).append(t)
    return tuple(tuple(s) for s in sets.values() if len(s) > 1)


def _assign_bits(
    index: Index,
    layers: tuple[LayerScheme, ...],
    tensors: tuple[list[str], dict[str, frozenset[str]]],
    shared: tuple[tuple[str, ...], ...],
) -> tuple[dict[str, QuantSpec], dict[str, QuantSpec]]:
    """Grids by tensor: the layers' bits where only layers read the set, else 8, with narrower ones for the layers.

    tensors: those that are quantized, and who reads them in float.
    """
    quantized, float_reads = tensors
    bits_of = {layer.name: layer.activation_spec.bits for layer in layers}
    set_of = {t: members for members in shared for t in members}
    activations: dict[str, QuantSpec] = {}
    requantized: dict[str, QuantSpec] = {}
    for tensor in quantized:
        if tensor not in activations:
            members = set_of.get(tensor, (tensor,))
            needs = _bits_needed(index, members, bits_of, float_reads)
            bits = needs.pop() if len(needs) == 1 else FULL_BITS
            activations |= {t: QuantSpec(bits) for t in members}
        bits = activations[tensor].bits
        narrower = {bits_of[n.name] for n in index.readers(tensor) if bits_of.get(n.name, bits) < bits}
        if narrower:
            requantized[tensor] = QuantSpec(min(narrower))
    return {t: activations[t] for t in quantized}, requantized


def _bits_needed(
    index: Index, members: tuple[str, ...], bits_of: dict[str, int], float_reads: dict[str, frozenset[str]]
) -> set[int]:
    """Bits at which the readers of a set of tensors want them, those apart that pass values on inside the set."""
    needs = {FULL_BITS for t in members if t in index.outputs and t not in float_reads}
    for tensor, node in ((t, n) for t in members for n in index.readers(t)):
        if node.name in bits_of:
            needs.add(bits_of[node.name])
        elif is_op(node, *SHAPE_READERS) or node.name in float_reads.get(tensor, ()):
            continue
        elif not (is_op(node, "Concat") or moves_values(index, node)) or not set(members) & set(
            carried_outputs(index, node)
        ):
            needs.add(FULL_BITS)
    return needs
