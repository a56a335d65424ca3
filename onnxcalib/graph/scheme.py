"""Decide which tensors get a QuantSpec, so that onnxruntime fuses the result into integer kernels.

An activation is uint8 and has one grid, a weight is int8 and has one scale an output channel. Each tensor has one
QuantizeLinear and DequantizeLinear, which all its consumers read. Nothing stands between a layer, its Relu and the
QuantizeLinear. Both sides of an operator that only moves values have equal grids.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from ..config import FULL_BITS, WIDE_BITS, LayerConfig
from ..errors import ConfigError, ModelError
from ..spec import FLOAT_BITS, INT16_MAX, Around, LayerScheme, QuantScheme, QuantSpec, Requirements
from .activation_bits import assign_bits, find_fixed, list_fixed, widen_layers
from .around import fit_around
from .blocks_of_inputs import give_blocks
from .bodies import list_bodies
from .embeddings import find_embeddings
from .float_weights import spell_holders
from .fusion import (
    carried_outputs,
    data_inputs,
    has_integer_kernel,
    moved_outputs,
    moves_values,
    scale_of_joined,
    upper_bound,
)
from .groups import place_groups
from .index import Index, is_op
from .layer_inputs import place_in_front
from .layers import end_layers, find_layers, layers_behind_first
from .layout import adds_pairs
from .names import Selection
from .norm_sums import widen_sums
from .ops import FLOAT_OUTPUT_LAYERS, MATRIX_LAYERS, RECURRENT, SHAPE_READERS
from .patterns import whole_nodes
from .recurrent import find_recurrent, refuse_settings
from .shapes import infer_graph
from .sharing import share_grids
from .unfuse import find_barred

# Bits of weights that gain by half steps; 4 would need a wider type, and gain less than .1 dB.
HALF_STEP_BITS = (3, 2)


def make_scheme(
    model: ModelProto,
    *,
    weight_bits: int = 8,
    activation_bits: int = 8,
    first_last_bits: int = 8,
    block_size: int | str | None = None,
    symmetric: bool = True,
    embedding_bits: int = FLOAT_BITS,
    tied: Mapping[str, str] | None = None,
    pair_limits: bool = True,
    dynamic: bool = False,
    selection: Selection | None = None,
    tensors: Mapping[str, int] | None = None,
    requirements: Requirements | None = None,
    around: Around | None = None,
) -> QuantScheme:
    """Decide the quantization of every weighted layer and of the tensors between them.

    activation_bits: of the inputs of weighted layers, and of all other activations where they are 16. A tensor that an
    Add, a pool or a float operator reads too has 8 bits at least, and is requantized for the layers that need fewer.
    Layers of 32 bits read float tensors. first_last_bits: of the weight of layers that no other precedes or follows, at
    least of their input, and see ``_widen_behind_first``. block_size, symmetric: of those that read float, see
    ``give_blocks``. tied: see ``find_embeddings``. pair_limits: choose integers of weights with which no kernel's sums
    can saturate. dynamic: a MatMul or Gemm quantizes its input as it runs, and products are float. selection: settings
    of single layers, which override the others. tensors: more bits of single activations, and of the layers that read
    them. requirements: of the target, by default onnxruntime's. Raises ModelError where no layer can be quantized, and
    ConfigError where ``selection`` gives others bits, or excludes all, or block_size or zero points have no use.
    """
    index = Index(model.graph)
    selection, requirements = selection or Selection(), requirements or Requirements()
    cells = find_recurrent(model, index, weight_bits, selection, requirements, dynamic=dynamic, limits=pair_limits)
    found = (*find_layers(model, index, weight_bits, activation_bits, requirements), *cells)
    end_bits = dict.fromkeys(_list_ends(model, found, around), first_last_bits)
    chosen = _choose_layers(model, _widen_behind_first(model, found, first_last_bits, around), selection, end_bits)
    blocks = (block_size, symmetric) if _has_own_blocks(model, chosen, around) else (None, True)
    chosen = give_blocks(chosen, blocks[0], requirements, symmetric=blocks[1], selection=selection)
    layers, recurrent = _split(chosen, dynamic)
    placed = _place(model, index, layers, selection.excluded | whole_nodes(model), requirements)
    on_grids = quantized, float_reads = placed.quantized, placed.float_reads
    nonnegative = {t: bound for t in quantized if (bound := upper_bound(index, t)) is not None}
    nodes, own = [n for n in model.graph.node if n.name not in placed.in_float], list_fixed(index, requirements)
    shared, nonnegative = share_grids(index, nodes, quantized, nonnegative, requirements.aligned, own=own)
    tensors = {**(tensors or {}), **(widen_sums(index, shared, layers, tensors) if requirements.wide_sums else {})}
    layers = widen_layers(layers, shared, tensors)
    spec = replace(requirements.activation, bits=WIDE_BITS if activation_bits == WIDE_BITS else FULL_BITS)
    activations, requantized = assign_bits(index, layers, on_grids, shared, spec=spec, tensor_bits=tensors)
    layers = tuple(_limit_pairs(layer, index, requantized) for layer in layers) if pair_limits else layers
    layers = tuple(_balance(layer, requirements) for layer in layers)
    scheme = QuantScheme(
        *(layers, activations, requantized, shared, nonnegative, float_reads),
        embeddings=find_embeddings(model, embedding_bits, selection, layers, tied),
        recurrent=recurrent,
        barred=placed.barred,
        gates=placed.gates,
        constants=placed.constants,
        requirements=requirements,
        fixed=find_fixed(index, activations, shared, requirements),
    )
    return fit_around(scheme, index, around)


class _Placed(NamedTuple):
    """The tensors that get a grid, in graph order, and the nodes left in float; the others as in QuantScheme."""

    quantized: list[str]
    in_float: frozenset[str]
    float_reads: dict[str, frozenset[str]]
    barred: frozenset[str] = frozenset()
    gates: frozenset[str] = frozenset()
    constants: frozenset[str] = frozenset()


def _place(
    model: ModelProto,
    index: Index,
    layers: tuple[LayerScheme, ...],
    excluded: frozenset[str],
    requirements: Requirements,
) -> _Placed:
    """Where the target wants grids; ``excluded`` nodes stay in float."""
    graph = model.graph
    on_grids = tuple(layer for layer in layers if layer.on_grid)
    if any(layer.dynamic for layer in layers):
        excluded = excluded.union(_products(model, index))
    if requirements.placing == "inputs":
        products = set(_products(model, index)) - excluded if on_grids else set()
        return _Placed(*place_in_front(graph, index, {layer.name for layer in on_grids}, products, excluded))
    if requirements.placing == "groups":
        alone = (layer.name for layer in layers if layer.reads_float)
        groups = place_groups(model, index, on_grids, excluded.union(alone), requirements)
        float_reads = _float_reads(index, groups.tensors, groups.outputs) | groups.constant_reads
        return _Placed(groups.tensors, excluded, float_reads, constants=frozenset(groups.constant_reads))
    quantized, integer_outputs, in_float = _quantized_tensors(model, index, on_grids, excluded)
    float_reads = _float_reads(index, quantized, integer_outputs)
    if not requirements.for_onnxruntime:
        return _Placed(quantized, in_float, float_reads)
    barred = find_barred(graph, index, quantized, float_reads, integer_outputs)
    gates = frozenset(n.name for n in graph.node if is_op(n, "HardSigmoid") and n.name in integer_outputs)
    return _Placed(quantized, in_float, float_reads, barred, gates)


def _list_ends(model: ModelProto, layers: tuple[LayerScheme, ...], around: Around | None) -> set[str]:
    owners = {body.owner for body in list_bodies(model)}
    return end_layers(model.graph, {layer.name for layer in layers}, owners=owners, around=around)


def _has_own_blocks(model: ModelProto, layers: tuple[LayerScheme, ...], around: Around | None) -> bool:
    """Whether settings of blocks are for this graph; those that no layer takes may be meant for bodies, or around."""
    taken = any(layer.reads_float and layer.op in MATRIX_LAYERS for layer in layers)
    return taken or not (around or list_bodies(model))


def _choose_layers(
    model: ModelProto, found: tuple[LayerScheme, ...], selection: Selection, end_bits: Mapping[str, int]
) -> tuple[LayerScheme, ...]:
    """The layers that are not excluded, with the bits that the settings give them; ``end_bits``: of first and last."""
    layers = _select(model, found, selection)
    layers = tuple(_set_end_bits(k, end_bits[k.name]) if k.name in end_bits else k for k in layers)
    return tuple(_override(layer, selection.settings(layer.name)) for layer in layers)


def _split(layers: tuple[LayerScheme, ...], dynamic: bool) -> tuple[tuple[LayerScheme, ...], tuple[LayerScheme, ...]]:
    """The layers, and the recurrent ones. dynamic: the first round their inputs as they run, if there is a kernel."""
    others, recurrent = (tuple(k for k in layers if (k.op in RECURRENT) is kind) for kind in (False, True))
    if dynamic:
        others = tuple(replace(k, dynamic=k.op in MATRIX_LAYERS and not k.reads_float) for k in others)
    return others, recurrent


def _select(model: ModelProto, layers: tuple[LayerScheme, ...], selection: Selection) -> tuple[LayerScheme, ...]:
    """The layers that are not excluded. Raises ModelError and ConfigError where there are none."""
    inner = bool(list_bodies(model))  # whose layers are quantized on their own
    if not layers and not inner:
        holders = spell_holders(model)
        raise ModelError(
            f"graph: no quantizable layer found{holders and f', as {holders}'}; a Conv, ConvTranspose, Gemm or MatMul"
            " with a constant float weight is needed; nothing can be gained by quantizing this model"
        )
    recurrent = [layer for layer in layers if layer.op in RECURRENT]
    others = [layer for layer in layers if layer.op not in RECURRENT]
    tables = {table.name for table in find_embeddings(model, FULL_BITS, layers=others)} if selection.layers else set()
    _refuse_bits_without_effect(selection, {layer.name for layer in layers} | tables)
    refuse_settings(selection, recurrent)
    kept = tuple(layer for layer in layers if layer.name not in selection.excluded)
    if not kept and not inner:
        raise ConfigError("exclude: no layer is left to quantize; exclude fewer nodes")
    return kept


def _widen_behind_first(
    model: ModelProto, layers: tuple[LayerScheme, ...], bits: int, around: Around | None
) -> tuple[LayerScheme, ...]:
    """Let layers of several groups right behind first ones read at least so many bits.

    Their sums of few values average no error of rounding. (The code of BRECQ, Li et al. 2021, has it so for all layers
    there.)
    """
    behind = layers_behind_first(model.graph, {layer.name for layer in layers}, around)
    return tuple(
        replace(k, activation_spec=replace(k.activation_spec, bits=max(bits, k.activation_spec.bits)))
        if k.name in behind and k.groups > 1 and not k.dynamic
        else k
        for k in layers
    )


def _set_end_bits(layer: LayerScheme, bits: int) -> LayerScheme:
    if layer.dynamic:  # whose operator has 8 alone
        return layer
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


def _limit_pairs(layer: LayerScheme, index: Index, requantized: Mapping[str, QuantSpec]) -> LayerScheme:
    """The layer with the pair_limit that its kernel needs, if integers of its bits can exceed it.

    A requantized tensor may use the highest values of uint8 (see ``emit``).
    """
    spec, shape = layer.weight_spec, tuple(index.initializers[layer.weight].dims)
    if layer.activation_spec.bits > FULL_BITS or not adds_pairs(layer.op, shape, layer.groups):
        return layer
    highest = (
        replace(layer.activation_spec, bits=FULL_BITS).qmax
        if layer.input in requantized
        else layer.activation_spec.qmax
    )
    limit = INT16_MAX // highest
    return layer if limit >= -2 * spec.qmin else replace(layer, weight_spec=replace(spec, pair_limit=limit))


def _balance(layer: LayerScheme, requirements: Requirements) -> LayerScheme:
    """The layer with signed scales, where the target takes them, if its weight has few levels and a scale a channel.

    Beside integers 3 and 2 bits have half steps too.
    """
    spec, few = layer.weight_spec, layer.weight_spec.bits < FULL_BITS
    if not (requirements.negative_scales and few and spec.symmetric) or spec.axis is None or spec.power_of_two:
        return layer
    halves = requirements.for_onnxruntime and spec.bits in HALF_STEP_BITS and not layer.reads_float
    return replace(layer, weight_spec=replace(spec, signed_scale=True, half_steps=halves))


def _refuse_bits_without_effect(selection: Selection, quantizable: set[str]) -> None:
    for name, settings in selection.layers:
        if name not in quantizable and not settings.exclude:
            raise ConfigError(
                f"layers: {name!r}: the node stays in float; a Conv, ConvTranspose, Gemm or MatMul with a constant"
                " float weight has bits; take its entry out"
            )


def _quantized_tensors(
    model: ModelProto, index: Index, layers: tuple[LayerScheme, ...], excluded: frozenset[str]
) -> tuple[list[str], dict[str, list[str]], frozenset[str]]:
    """What gets a grid, in graph order; the nodes on integers, each with its integer outputs; the nodes left in float.

    A tensor gets a grid if a layer reads it, if a layer writes it and has no kernel with float output, or if it lies on
    a path of operators with integer kernels to a layer. Nodes of ``excluded`` stay in float, and movers that carry a
    float value to float readers.
    """
    graph, names = model.graph, {layer.name for layer in layers}
    products = set(_products(model, index)) - excluded if layers else set()
    layer_inputs = {layer.input for layer in layers}.union(*(n.input for n in graph.node if n.name in products))
    while True:
        wanted = set(layer_inputs)
        integer_outputs: dict[str, list[str]] = {}
        for node, outputs in reversed(_integer_candidates(graph, index, wanted, names, excluded | products)):
            if not wanted.isdisjoint(outputs):
                integer_outputs[node.name] = outputs
                wanted.update(data_inputs(node))
                wanted.update(outputs)
        for node in graph.node:
            if node.name in names and node.op_type not in FLOAT_OUTPUT_LAYERS:
                wanted.update(carried_outputs(index, node))
            if node.name in names or node.name in products:
                integer_outputs[node.name] = carried_outputs(index, node)
        carriers = _float_carriers(graph, index, integer_outputs)
        if not carriers:
            break
        excluded |= carriers
    order = [*index.inputs, *(t for node in graph.node for t in node.output)]
    return [t for t in order if t in wanted], integer_outputs, excluded


def _float_carriers(graph: GraphProto, index: Index, integer_outputs: dict[str, list[str]]) -> frozenset[str]:
    """Movers on integers that carry a value which float operators make, or a graph input, to float readers as well.

    Their output is quantized instead of their input, so that those readers get it unrounded.
    """
    made = {t for outputs in integer_outputs.values() for t in outputs}
    carriers = []
    for node in graph.node:
        if node.name in integer_outputs and moves_values(index, node) and node.input[0] not in made:
            carriers.append(node)
            made.difference_update(moved_outputs(node))
    found: set[str] = set()
    for node in reversed(carriers):
        on_integers = integer_outputs.keys() - found
        if any(t in index.outputs or _in_float(index.readers(t), on_integers) for t in moved_outputs(node)):
            found.add(node.name)
    return frozenset(found)


def _in_float(readers: list[NodeProto], on_integers: Collection[str]) -> frozenset[str]:
    """Names of the nodes that read values, and not on integers."""
    return frozenset(n.name for n in readers if n.name not in on_integers and not is_op(n, *SHAPE_READERS))


def _integer_candidates(
    graph: GraphProto, index: Index, layer_inputs: set[str], layers: set[str], skipped: set[str] | frozenset[str]
) -> list[tuple[NodeProto, list[str]]]:
    """Nodes between layers that could run on integers, in graph order, each with the outputs that would be integers.

    skipped: nodes that stay in float, and products. What a product gives is float unless a layer reads it: a mask of
    -1e38 that is added to it would leave a Softmax no grid.
    """
    on_integers = set(layer_inputs)
    found = []
    for node in graph.node:
        if node.name in layers:
            on_integers.update(carried_outputs(index, node))
        elif node.name in skipped:
            continue
        elif _joins_integers(index, node, on_integers):
            found.append((node, carried_outputs(index, node)))
            on_integers.update(found[-1][1])
        elif _alone_moves(index, node):
            found.append((node, carried_outputs(index, node)))
    return found


def _products(model: ModelProto, index: Index) -> list[str]:
    """Names of the MatMuls of two float activations, as those of attention: both operands get a grid."""
    nodes = [n for n in model.graph.node if is_op(n, "MatMul") and index.initializers.keys().isdisjoint(n.input)]
    graph = infer_graph(model) if nodes else None
    values = () if graph is None else (*graph.input, *graph.value_info, *graph.output)
    floats = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    return [n.name for n in nodes if floats.issuperset(n.input)]


def _float_reads(
    index: Index, quantized: list[str], integer_outputs: dict[str, list[str]]
) -> dict[str, frozenset[str]]:
    """Maps a quantized tensor that a float operator makes, or a graph input, to its float readers.

    See QuantScheme; tensors that the graph gives back are included. It keeps a residual unrounded that skips a layer
    behind a LayerNormalization, and the input where the network's output is added to it.
    """
    from_integers = {t for outputs in integer_outputs.values() for t in outputs}
    found = {}
    for tensor in quantized:
        if tensor not in from_integers and tensor not in index.initializers:
            names = _in_float(index.readers(tensor), integer_outputs)
            if names or tensor in index.outputs:
                found[tensor] = names
    return found


def _joins_integers(index: Index, node: NodeProto, on_integers: set[str]) -> bool:
    """Whether a node can run on integers and reads some; its other inputs get a QuantizeLinear then."""
    if not has_integer_kernel(index, node) and not moves_values(index, node):
        return False
    inputs = data_inputs(node)[:1] if scale_of_joined(index, node) else data_inputs(node)
    return not on_integers.isdisjoint(inputs) and index.initializers.keys().isdisjoint(inputs)


def _alone_moves(index: Index, node: NodeProto) -> bool:
    """Whether a node moves a float tensor that nobody else reads, which can be quantized before it as well as after."""
    if not moves_values(index, node) or node.input[0] in index.initializers or node.input[0] in index.outputs:
        return False
    return len(index.readers(node.input[0])) == 1
