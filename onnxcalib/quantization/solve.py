"""Solve the layers of a block one after the other, each on its input in the quantized model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from onnx import TensorProto

from ..graph.index import Index, known_constant
from ..graph.layer_params import LayerParams
from ..graph.layout import count_inputs, from_rows, summing_order, to_rows
from ..graph.values import read_rows
from ..graph.weight_file import put_integers, put_parts
from ..layer_record import LossRecord
from ..numeric.solve import Solution, round_layer
from ..runtime.memory import release
from ..spec import Block, LayerScheme, QParams, QuantScheme, QuantSpec
from .column_choice import MOST_INPUTS
from .columns import ColumnReader
from .params import dequantize_weight, make_params
from .shared_weights import give_weight
from .siblings import find_siblings
from .state import ReconstructionState

# Bytes of an embedding that are rounded at once. Rounding takes several copies in float64.
TABLE_BYTES = 4 * 2**20
# Behind so many parts of an embedding freed memory is given back: their scales stay, and the heap would grow with them.
PARTS = 16


def round_layers(state: ReconstructionState) -> None:
    """Give every layer its LayerParams by rounding alone; biases do not change."""
    for layer in state.problem.scheme.layers:
        state.take_first([layer])
        if layer.name in state.given:
            give_weight(state, layer)
        else:
            (state.layers[layer.name],) = _round(state, layer, [layer.weight_spec])
        release()


def _round(state: ReconstructionState, layer: LayerScheme, specs: Sequence[QuantSpec]) -> list[LayerParams]:
    """LayerParams of a layer that is rounded for each weight spec."""
    index, found = state.problem.index, []
    weight = known_constant(index, layer.weight)
    bias = known_constant(index, layer.bias).reshape(-1) if layer.bias else None
    rows = torch.from_numpy(to_rows(weight if weight.flags.writeable else weight.copy(), layer))
    for spec in specs:
        own = replace(layer, weight_spec=spec)
        solution = round_layer(rows, spec, summing=_summing(own, weight.shape))
        found.append(_params(solution, own, weight.shape, bias, state.input_grid(layer)))
    return found


def _summing(layer: LayerScheme, shape: tuple[int, ...]) -> torch.Tensor | None:
    """``summing_order`` of a layer whose integers have a pair_limit, None for other layers."""
    return None if layer.weight_spec.pair_limit is None else torch.from_numpy(summing_order(layer, shape))


def round_embeddings(index: Index, scheme: QuantScheme) -> dict[str, LayerParams]:
    """LayerParams of every embedding: each row, or each scale block in it, is rounded with the least squared error."""
    specs = {layer.weight: layer.weight_spec for layer in scheme.embeddings}  # several may look up one table
    tables = {name: _round_table(index.initializers[name], spec) for name, spec in specs.items()}
    return {layer.name: tables[layer.weight] for layer in scheme.embeddings}


def _round_table(table: TensorProto, spec: QuantSpec) -> LayerParams:
    scales: list[np.ndarray] = []
    zeros: list[np.ndarray] = []

    def round_parts() -> Iterator[np.ndarray]:
        for number, rows in enumerate(read_rows(table, TABLE_BYTES)):
            if number % PARTS == 0:
                release()
            part = round_layer(torch.from_numpy(rows.copy())[None], spec)
            scale = part.scale[0].float().numpy()
            scales.append(scale)
            zeros.append(
                np.zeros(scale.shape, np.int32) if part.zero is None else part.zero[0].numpy().astype(np.int32)
            )
            yield part.integers[0].numpy()

    integers = put_parts(round_parts(), table.dims, spec.bits)
    return LayerParams(integers, QParams(np.concatenate(scales), np.concatenate(zeros), spec), None)


class Solved(NamedTuple):
    """What was found for one layer: its LayerParams for each weight spec; why it was rounded, None if it was solved.

    losses: for each weight spec, where they were measured.
    """

    params: list[LayerParams]
    reason: str | None
    losses: Sequence[LossRecord] = ()


def solve_block(state: ReconstructionState, block: Block) -> dict[str, str]:
    """Give every layer of the block its LayerParams in order: solved on its moments if possible, otherwise rounded.

    Returns the layers that were rounded, each with the reason.
    """
    reasons: dict[str, str] = {}
    for layers in find_siblings(state, block):
        reasons |= solve_layers(state, block, layers)
    return reasons


def solve_layers(state: ReconstructionState, block: Block, layers: Sequence[LayerScheme]) -> dict[str, str]:
    """Give these layers, which ``find_siblings`` has together, their LayerParams; returns as ``solve_block``."""
    state.take_first(layers)
    given = {layer.name for layer in layers if layer.name in state.given}
    if len(given) == len(layers):
        for layer, bias in zip(layers, _fit_biases(state, block, layers), strict=True):
            give_weight(state, layer, bias)
        return {}
    if layers[0].takes_bias:
        given = set()  # theirs would need their own moments: these weights are stored apart
    reasons: dict[str, str] = {}
    found = solve_widths(state, block, layers, [layers[0].weight_spec], with_added=True)
    for layer, solved in zip(layers, found, strict=True):
        if layer.name in given:
            give_weight(state, layer)
            continue
        (state.layers[layer.name],) = solved.params
        state.losses |= {record.layer: record for record in solved.losses}
        if solved.reason is not None:
            reasons[layer.name] = solved.reason
    return reasons


def _fit_biases(state: ReconstructionState, block: Block, layers: Sequence[LayerScheme]) -> Sequence[np.ndarray | None]:
    """The biases that make up for the mean error of integers that were solved on what other layers read.

    They may have any, as the biases of those make up for theirs. None where layers take no bias, or read nothing.
    """
    shape = tuple(state.problem.index.initializers[layers[0].weight].dims)
    if not layers[0].takes_bias or count_inputs(shape, layers[0]) > MOST_INPUTS:
        return [None] * len(layers)
    weights = [known_constant(state.problem.index, layer.weight) for layer in layers]
    quantized = [dequantize_weight(state.given[layer.name]) for layer in layers]
    (rows, owned), (others, _) = (
        _stack_rows([to_rows(each, layer) for each, layer in zip(some, layers, strict=True)])
        for some in (weights, quantized)
    )
    bias = ColumnReader(state, block, layers, shape).fit_bias(rows.double(), others.double())
    return [None] * len(layers) if bias is None else [bias[:, own].reshape(-1).numpy() for own in owned]


def solve_widths(
    state: ReconstructionState,
    block: Block,
    layers: Sequence[LayerScheme],
    specs: Sequence[QuantSpec],
    *,
    with_added: bool = False,
) -> list[Solved]:
    """What is found for each of the layers, which ``find_siblings`` has together, at each weight spec.

    All is solved on the same moments. with_added: with what the integers add to the error of each layer.
    """
    shapes = [tuple(state.problem.index.initializers[layer.weight].dims) for layer in layers]
    inputs, solved = count_inputs(shapes[0], layers[0]), None
    if inputs > MOST_INPUTS:
        reason = f"{inputs} inputs a channel are too many to solve, {MOST_INPUTS} the most"
    else:
        solved = _solve_together(state, block, layers, specs, with_added=with_added)
        reason = "no sample gives it an input to solve on, or the squares of its inputs overflow"
    if solved is None:
        return [Solved(_round(state, layer, specs), f"{layer.name}: {reason}") for layer in layers]
    found = []
    for layer, shape, solutions in zip(layers, shapes, solved, strict=True):
        params, losses = [], []
        for spec, solution in zip(specs, solutions, strict=True):
            bias = solution.bias.reshape(-1).numpy() if layer.takes_bias else None
            own = replace(layer, weight_spec=spec)
            params.append(_params(solution, own, shape, bias, state.input_grid(layer)))
            shares = None if solution.added is None else solution.added.shares()
            losses += [] if shares is None else [LossRecord(layer.name, *shares)]
        found.append(Solved(params, None, losses))
    return found


def _solve_together(
    state: ReconstructionState,
    block: Block,
    layers: Sequence[LayerScheme],
    specs: Sequence[QuantSpec],
    *,
    with_added: bool,
) -> list[list[Solution]] | None:
    """The solutions of each layer for each weight spec; None without moments."""
    weights = [known_constant(state.problem.index, layer.weight) for layer in layers]
    stacked, owned = _stack_rows([to_rows(weight, layer) for weight, layer in zip(weights, layers, strict=True)])
    shape, bits = weights[0].shape, min(spec.bits for spec in specs)
    del weights
    solutions = ColumnReader(state, block, layers, shape, bits).solve(stacked, specs, with_added=with_added)
    return None if solutions is None else [[each.take(own) for each in solutions] for own in owned]


def _stack_rows(parts: Sequence[np.ndarray]) -> tuple[torch.Tensor, list[slice]]:
    """Rows (G, C, K) of several layers as those of one, and which of its channels each layer has."""
    ends = np.cumsum([part.shape[1] for part in parts]).tolist()
    stacked = np.empty((parts[0].shape[0], ends[-1], parts[0].shape[2]), parts[0].dtype)
    np.concatenate(parts, 1, out=stacked)
    return torch.from_numpy(stacked), [slice(end - part.shape[1], end) for end, part in zip(ends, parts, strict=True)]


def _params(
    solution: Solution,
    layer: LayerScheme,
    shape: tuple[int, ...],
    bias: np.ndarray | None,
    input_grid: QParams | None,
) -> LayerParams:
    integers = from_rows(solution.integers.numpy(), layer, shape)
    if layer.weight_spec.block is not None or not layer.weight_spec.symmetric:
        scale = solution.scale[0].numpy().astype(np.float32)
        zero = np.zeros(scale.shape, np.int32) if solution.zero is None else solution.zero[0].numpy().astype(np.int32)
        if layer.axis == 1:
            scale, zero = scale.T, zero.T
        grid = QParams(scale, zero, layer.weight_spec)
        return LayerParams(put_integers(integers.astype(np.int8), layer.weight_spec.bits), grid, bias)
    points = None if solution.zero is None else solution.zero.reshape(-1).numpy()
    return make_params(layer, integers, (solution.scale.reshape(-1).numpy(), points), bias, input_grid)
