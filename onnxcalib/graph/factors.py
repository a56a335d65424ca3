"""A model in which each run gives the factors of activations' channels, their grids, and the weights that undo them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from ..spec import QParams
from .dynamic import round_rows
from .edit import add_constant, drop_dead
from .layers import channel_axis
from .ops import DEQUANTIZE, QUANTIZE
from .structure import STANDARD
from .weightless import copy_without_initializers

# The inputs of an activation and of a layer, behind their names.
FACTOR, SCALE, ZERO_POINT, LAST, INTEGERS, STEPS = ":factor", ":scale", ":zero_point", ":last", ":integers", ":steps"
WEIGHT = ":weight"


def add_factors(
    model: ModelProto,
    readers: Mapping[str, Sequence[str]],
    dynamic: Collection[str] = (),
    blocks: Mapping[str, int] | None = None,
) -> ModelProto:
    """A copy of the model that reads the factors, the grid and the weights of some activations; see ``feed_factors``.

    readers: activation -> the names of the products with a matrix that read it. dynamic: those of the activations that
    have no grid, as each row is rounded by its own range. blocks: activation -> the number of neighbours that are
    rounded so by theirs; the layers' weights are read as float.
    """
    blocks = blocks or {}
    copy = copy_without_initializers(model)
    copy.graph.initializer.extend(model.graph.initializer)
    source_of = {name: tensor for tensor, names in readers.items() for name in names}
    nodes: list[NodeProto] = []
    written: set[str] = set()
    for node in copy.graph.node:
        tensor = source_of.get(node.name)
        if tensor is not None:
            if tensor not in written:
                by_row = tensor in dynamic or tensor in blocks
                nodes += _round_rows(copy, tensor, blocks.get(tensor)) if by_row else _round(tensor)
                written.add(tensor)
            if tensor not in blocks:
                nodes.append(_weigh(node))
            node.input[0], node.input[1] = f"{tensor}:rounded", f"{node.name}{WEIGHT}"
        nodes.append(node)
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del copy.graph.node[:]
    copy.graph.node.extend(copies)
    kinds = {FACTOR: (TensorProto.FLOAT, [None]), SCALE: (TensorProto.FLOAT, [])}
    kinds |= dict.fromkeys((ZERO_POINT, LAST), (TensorProto.UINT8, []))
    on_grids = [tensor for tensor in readers if tensor not in dynamic and tensor not in blocks]
    _add_inputs(copy, on_grids, kinds)
    _add_inputs(copy, (tensor for tensor in readers if tensor not in on_grids), {FACTOR: kinds[FACTOR]})
    integers = [name for name, tensor in source_of.items() if tensor not in blocks]
    _add_inputs(copy, integers, {INTEGERS: (TensorProto.INT8, [None, None]), STEPS: (TensorProto.FLOAT, [None])})
    in_float = (name for name, tensor in source_of.items() if tensor in blocks)
    _add_inputs(copy, in_float, {WEIGHT: (TensorProto.FLOAT, [None, None])})
    drop_dead(copy)
    return copy


def feed_factors(tensor: str, factor: np.ndarray, grid: QParams | None) -> dict[str, np.ndarray]:
    """What a run reads for an activation: factors (channels,), and the grid of what they make of it, if it has one."""
    factors = {f"{tensor}{FACTOR}": factor.astype(np.float32)}
    if grid is None:
        return factors
    return {
        **factors,
        f"{tensor}{SCALE}": np.asarray(grid.scale, np.float32),
        f"{tensor}{ZERO_POINT}": np.asarray(grid.zero_point, np.uint8),
        f"{tensor}{LAST}": np.asarray(grid.spec.qmax, np.uint8),
    }


def feed_weight(layer: str, integers: np.ndarray, steps: np.ndarray) -> dict[str, np.ndarray]:
    """What a run reads for a layer: the weight as int8, of the layer's own form, and the scale of each output."""
    return {f"{layer}{INTEGERS}": integers.astype(np.int8), f"{layer}{STEPS}": steps.astype(np.float32)}


def feed_float_weight(layer: str, weight: np.ndarray) -> dict[str, np.ndarray]:
    """What a run reads for a layer of an activation with blocks: the weight, of the layer's own form."""
    return {f"{layer}{WEIGHT}": weight.astype(np.float32)}


def _round(tensor: str) -> Iterable[NodeProto]:
    grid = [f"{tensor}{SCALE}", f"{tensor}{ZERO_POINT}"]
    yield helper.make_node("Mul", [tensor, f"{tensor}{FACTOR}"], [f"{tensor}:scaled"])
    yield helper.make_node(QUANTIZE, [f"{tensor}:scaled", *grid], [f"{tensor}:wide"])
    yield helper.make_node("Clip", [f"{tensor}:wide", "", f"{tensor}{LAST}"], [f"{tensor}:on_grid"])
    yield helper.make_node(DEQUANTIZE, [f"{tensor}:on_grid", *grid], [f"{tensor}:rounded"])


def _round_rows(model: ModelProto, tensor: str, block: int | None) -> Iterable[NodeProto]:
    """block: the number of neighbours that count as a row; None for all."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in STANDARD)
    scaled, rounded = f"{tensor}:scaled", f"{tensor}:rounded"
    yield helper.make_node("Mul", [tensor, f"{tensor}{FACTOR}"], [scaled])
    given, made = (scaled, rounded) if block is None else (f"{scaled}:blocks", f"{rounded}:blocks")
    if block is not None:
        sides = add_constant(model.graph, f"{scaled}:sides", np.array([-1, block], np.int64))
        yield helper.make_node("Reshape", [scaled, sides], [given])
    nodes, rows, peaks = round_rows(
        given,
        lambda end: f"{scaled}:{end}",
        lambda end, value: add_constant(model.graph, f"{scaled}:{end}", value),
        opset,
    )
    yield from nodes
    yield helper.make_node("Mul", [rows, peaks], [made])
    if block is not None:
        yield helper.make_node("Shape", [scaled], [f"{scaled}:shape"])
        yield helper.make_node("Reshape", [made, f"{scaled}:shape"], [rounded])


def _weigh(node: NodeProto) -> NodeProto:
    given = [f"{node.name}{INTEGERS}", f"{node.name}{STEPS}"]
    return helper.make_node(DEQUANTIZE, given, [f"{node.name}{WEIGHT}"], axis=channel_axis(node))


def _add_inputs(model: ModelProto, names: Iterable[str], kinds: Mapping[str, tuple[int, list[None]]]) -> None:
    for name in names:
        for end, (kind, shape) in kinds.items():
            model.graph.input.append(helper.make_tensor_value_info(f"{name}{end}", kind, shape))
