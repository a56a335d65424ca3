"""Solve the layers of a block one after the other, each on the input that the quantized layers before it give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from ..errors import DataError
from ..graph.emit import LayerParams
from ..graph.extract import needed_nodes
from ..graph.index import Index, constant
from ..graph.layout import from_rows, summing_order, to_rows, window_of
from ..numeric.gram import Moments, MomentSum, Window, choose_places, count_places, flatten_rows, pick, project, unfold
from ..numeric.rounding import fake_quantize
from ..numeric.solve import OutputMetric, Prior, Solution, choose_prior, round_layer, solve_layer
from ..spec import Block, LayerScheme, QParams, QuantScheme, QuantSpec
from .padding_mask import select
from .state import PROBE, ReconstructionState, SubgraphRunner

# One sample in so many chooses the prior of every layer.
HELD_OUT = 4
# Columns seen per unknown of a row: neighbouring places are much alike, and more did not change a decimal.
COLUMNS_PER_INPUT = 128
LEAST_COLUMNS = 2**15
# Beyond so many inputs a channel the Gram matrix outgrows memory and time: such a layer is rounded, then learned.
MOST_INPUTS = 4608
# Bytes of unfolded input at once.
UNFOLD_BYTES = 64 * 2**20
# Bytes of an embedding that are rounded at once, in float64 and with several copies.
TABLE_BYTES = 8 * 2**20
# int32 bias: the largest |bias| / (scale_x * scale_w) that a layer may have, a quarter of the type's range.
BIAS_LEVELS = 2.0**29
# Samples that are seen through probes at once.
ROWS = 8


def round_layers(state: ReconstructionState) -> None:
    """Give every layer its LayerParams by rounding alone, biases as they are."""
    for layer in state.scheme.layers:
        weight = constant(state.index, layer.weight)
        bias = constant(state.index, layer.bias).reshape(-1) if layer.bias else None
        rows, summing = torch.from_numpy(to_rows(weight, layer).copy()), _summing(layer, weight.shape)
        solution = round_layer(rows, layer.weight_spec, summing=summing)
        state.layers[layer.name] = _params(solution, layer, weight.shape, bias, state.input_grid(layer))


def _summing(layer: LayerScheme, shape: tuple[int, ...]) -> torch.Tensor | None:
    """``summing_order`` of a layer whose integers have a pair_limit."""
    return None if layer.weight_spec.pair_limit is None else torch.from_numpy(summing_order(layer, shape))


def round_embeddings(index: Index, scheme: QuantScheme) -> dict[str, LayerParams]:
    """LayerParams of every embedding: of each row, or block of it, the rounding of least squared error."""
    specs = {layer.weight: layer.weight_spec for layer in scheme.embeddings}  # several may look up one table
    tables = {name: _round_table(constant(index, name), spec) for name, spec in specs.items()}
    return {layer.name: tables[layer.weight] for layer in scheme.embeddings}


def _round_table(table: np.ndarray, spec: QuantSpec) -> LayerParams:
    integers, scales = [], []
    for rows in np.split(table, _cuts(table)):
        part = round_layer(torch.from_numpy(rows.copy())[None], spec)
        integers.append(part.integers[0].to(torch.int8).numpy())  # at once: in float64 they are twice the table
        scales.append(part.scale[0].float().numpy())
    scale = np.concatenate(scales)
    return LayerParams(np.concatenate(integers), QParams(scale, np.zeros(scale.shape, np.int32), spec), None)


def _cuts(table: np.ndarray) -> range:
    """Rows at which a table comes apart into parts of about TABLE_BYTES."""
    step = max(1, TABLE_BYTES // table[0].nbytes)
    return range(step, len(table), step)


def solve_block(state: ReconstructionState, block: Block) -> dict[str, str]:
    """Give every layer of the block its LayerParams, in order: solved on moments where it can be, else rounded.

    Returns the layers that were rounded, each with the reason.
    """
    reasons: dict[str, str] = {}
    for layer in (layer for layer in state.scheme.layers if layer.name in block.layers):
        (state.layers[layer.name],), reason = solve_widths(state, block, layer, [layer.weight_spec])
        if reason is not None:
            reasons[layer.name] = reason
    return reasons


def solve_widths(
    state: ReconstructionState, block: Block, layer: LayerScheme, specs: Sequence[QuantSpec]
) -> tuple[list[LayerParams], str | None]:
    """LayerParams of one layer for each weight spec, from the same moments; the reason where it was rounded instead."""
    weight = constant(state.index, layer.weight)
    rows = torch.from_numpy(to_rows(weight, layer).copy())
    bias = constant(state.index, layer.bias).reshape(-1) if layer.bias else None
    reason = solutions = None
    if layer.op == "ConvTranspose":
        reason = f"{layer.name}: a ConvTranspose has no columns to solve on"
    elif rows.shape[2] > MOST_INPUTS:
        reason = f"{layer.name}: {rows.shape[2]} inputs a channel are too many to solve, {MOST_INPUTS} the most"
    else:
        solutions = _Stream(state, block, layer, weight.shape).solve(rows, specs)
        if solutions is None:
            reason = f"{layer.name}: no sample gives it an input to solve on, or one whose squares float32 has"
    found = []
    for number, spec in enumerate(specs):
        own = replace(layer, weight_spec=spec)
        solution = solutions[number] if solutions else round_layer(rows, spec, summing=_summing(own, weight.shape))
        if solutions:
            bias = None if not layer.takes_bias else solution.bias.reshape(-1).numpy()
        found.append(_params(solution, own, weight.shape, bias, state.input_grid(layer)))
    return found, reason


def _params(solution: Solution, layer: LayerScheme, shape, bias, input_grid: QParams | None) -> LayerParams:
    integers = from_rows(solution.integers.numpy(), layer, shape)
    if layer.weight_spec.block is not None:
        scale = solution.scale[0].numpy().astype(np.float32)
        scale = scale if layer.weight_spec.axis == 0 else scale.T
        grid = QParams(scale, np.zeros(scale.shape, np.int32), layer.weight_spec)
        return LayerParams(integers.astype(np.int8), grid, bias)
    return make_params(layer, integers, solution.scale.reshape(-1).numpy(), bias, input_grid)


def make_params(
    layer: LayerScheme, integers: np.ndarray, scale: np.ndarray, bias, input_grid: QParams | None
) -> LayerParams:
    """What the layer became, on a scale that ``guard_scale`` allows; integers are in the weight's own shape."""
    allowed = guard_scale(scale, bias, input_grid)
    others = [i for i in range(integers.ndim) if i != layer.weight_spec.axis]
    integers = np.rint(integers * np.expand_dims(scale / allowed, others)).astype(np.int8)
    return LayerParams(integers, QParams(allowed, np.zeros(len(allowed), np.int32), layer.weight_spec), bias)


def guard_scale(scale: np.ndarray, bias: np.ndarray | None, input_grid: QParams | None) -> np.ndarray:
    """The scale, raised where the int32 bias of a channel with next to no weights would overflow.

    Of a layer that reads float, whose bias is so too, it is as it was.
    """
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    if input_grid is not None and bias is not None and len(bias) == len(scale):
        scale = np.maximum(scale, np.abs(bias) / (BIAS_LEVELS * float(input_grid.scale)))
    return scale.astype(np.float32)


class _Stream:
    """One layer's columns, batch by batch: its input from the quantized prefix, its target from the float model.

    Where the layer's output is the last to reach an Add, the target also makes up for the error of what it is added to.
    """

    def __init__(self, state: ReconstructionState, block: Block, layer: LayerScheme, shape: tuple[int, ...]):
        self.state, self.layer, self.shape = state, layer, shape
        self.node = next(n for n in state.model.graph.node if n.name == layer.name)
        self.other = _shortcut(state, block, layer)
        self.join = state.index.readers(layer.output)[0].name if self.other else None
        extra = [self.other] if self.other else []
        self.reference = SubgraphRunner(state, block, [layer.output, *extra], quantized=False)
        self.prefix = SubgraphRunner(state, block, [layer.input, *extra], quantized=True)
        self.generator = torch.Generator().manual_seed(state.config.seed)

    def solve(self, rows: torch.Tensor, specs: Sequence[QuantSpec]) -> list[Solution] | None:
        """Stream the whole set, let every HELD_OUT-th sample choose the prior, and solve on all of them for each spec.

        None where no sample has a column, or their products overflow. Raises DataError for values that are not finite.
        """
        measured, rows = self._measure(), rows.to(self.state.device)
        if not measured or not all(moments.finite for moments in measured):
            return None
        prior = choose_prior(*measured, rows) if len(measured) == 2 else Prior()
        moments = measured[0].pool(measured[1]) if len(measured) == 2 else measured[0]
        del measured  # the Gram matrices are most of the memory that solving takes
        seen, width = self._see(moments.input_mean), self.state.config.search_width
        summing = torch.from_numpy(summing_order(self.layer, self.shape)).to(self.state.device)
        return [
            solve_layer(moments, rows, spec, prior=prior, width=width(spec.bits), seen=seen, summing=summing).cpu()
            for spec in specs
        ]

    def _see(self, mean: torch.Tensor) -> OutputMetric | None:
        """What the model's outputs see of the input about ``mean`` (1, K), if it has probes; these go with it."""
        name, total, columns = PROBE + self.layer.output, 0.0, 0
        if name not in self.state.store:
            return None
        for number in range(len(self.state.sizes)):
            inputs = np.atleast_2d(self.prefix.run(number)[self.layer.input])
            probes = self.state.store.batch(name, number)
            window = self._window(inputs.shape[2:]) if self.layer.op == "Conv" else None
            if probes.shape[::2] != self._places(inputs, window):  # rows that only look like samples
                total = None
                break
            for start in range(0, len(inputs), ROWS):
                part, own = (self._move(x[start : start + ROWS]) for x in (inputs, probes))
                own = own.float()
                sums = project(self._snap_input(part), own, window) - mean.float().T * own.sum(2).flatten()
                total = total + (sums @ sums.T).double()
                columns += sums.shape[1]
        self.state.store.drop(name)
        return None if total is None else OutputMetric(total[None], columns)

    def _window(self, sizes: tuple[int, ...]) -> Window:
        return Window(**window_of(self.node, self.shape[2:], tuple(sizes)), groups=self.layer.groups)

    def _places(self, inputs: np.ndarray, window: Window | None) -> tuple[int, int]:
        """Rows of the input, and places of each row's output."""
        sizes = inputs.shape[1:-1] if window is None else count_places(window, inputs.shape[2:])
        return len(inputs), math.prod(sizes)

    def _measure(self) -> list[Moments]:
        """Moments of the samples that learn and of those that judge, if there are any."""
        learned, judged = MomentSum(), MomentSum()
        first = 0
        for number, size in enumerate(self.state.sizes):
            for part, judging in self._parts(number, first, size):
                (judged if judging else learned).add(*part)
            first += size
        seen = [total.centre() for total in (learned, judged) if total.columns]
        if not all(moments.seen_finite for moments in seen):
            raise DataError(
                f"tensor {self.layer.input}: layer {self.layer.name} reads or gives values that are not finite on the"
                " calibration set; finite values are needed; check the preprocessing, or the model on these samples"
            )
        return [moments.about_zero() for moments in seen] if not self.layer.takes_bias else seen

    def _parts(self, number: int, first: int, size: int):
        """The batch's columns of inputs and of targets, in parts of bounded size, and whether they judge."""
        cuts = (self.reference, self.prefix)
        wanted, given = ({t: np.atleast_2d(v) for t, v in cut.run(number).items()} for cut in cuts)
        by_sample = len(wanted[self.layer.output]) == size
        real = self._real(number, wanted[self.layer.output].shape)
        for start, end in self._spans(wanted[self.layer.output]):
            for judging in (False, True):
                places = ((first + i, i) if by_sample else (number, i) for i in range(start, end))
                kept = [i for place, i in places if self._judges(place, by_sample=by_sample) == judging]
                own = None if real is None else real[kept]
                if kept and (own is None or own.any()):
                    yield self._columns(wanted, given, kept, own), judging

    def _real(self, number: int, shape: tuple[int, ...]) -> np.ndarray | None:
        """Which places of the batch's output, of this shape, count; None where all do."""
        mask = self.state.masks[number] if self.layer.op != "Conv" else None
        kept = self.state.padding.places(self.layer.output, shape, mask, last=False)
        return None if kept is None else np.broadcast_to(kept, (shape[0], *kept.shape[1:]))

    def _judges(self, place: int, *, by_sample: bool) -> bool:
        """Whether sample (or batch) ``place`` judges; views do what their sample does."""
        return place % self.state.count(by_sample=by_sample) % HELD_OUT == HELD_OUT - 1

    def _spans(self, output: np.ndarray):
        """Ranges of rows whose unfolded input stays below UNFOLD_BYTES."""
        places = math.prod(output.shape[2:]) if self.layer.op == "Conv" else math.prod(output.shape[1:-1])
        row = 4 * math.prod(self.shape[1:]) * self.layer.groups * min(places, self._wanted() or places)
        step = max(1, UNFOLD_BYTES // max(row, 1))
        return [(start, min(start + step, len(output))) for start in range(0, len(output), step)]

    def _wanted(self) -> int | None:
        """Places an image that suffice; None for all of them."""
        if self.layer.op != "Conv":
            return None
        columns = max(COLUMNS_PER_INPUT * math.prod(self.shape[1:]), LEAST_COLUMNS)
        return -(-columns // sum(self.state.sizes))

    def _columns(self, wanted, given, kept: list[int], real) -> tuple[torch.Tensor, torch.Tensor]:
        def take(values: np.ndarray) -> torch.Tensor:
            return self._move(select(values[kept], real))

        target, inputs = take(wanted[self.layer.output]), take(given[self.layer.input])
        places, choose = None, flatten_rows
        if self.layer.op == "Conv":
            places = choose_places(target.shape[2:], self._wanted(), self.generator)
            choose = partial(pick, places=places, groups=self.layer.groups)
        columns, target = self._unfold(inputs, places), choose(target)
        if self.other and wanted[self.other].shape == wanted[self.layer.output].shape:
            shortcut = choose(take(given[self.other]))
            if self.join not in self.state.scheme.float_reads.get(self.other, ()):
                shortcut = self._on_grid(shortcut, self.state.activations.get(self.other))
            target = target + choose(take(wanted[self.other])) - shortcut
        return columns, target

    def _unfold(self, inputs: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
        """Columns of the input as the quantized layer reads it, a Conv's at ``places`` of its output."""
        if self.layer.op != "Conv":
            return flatten_rows(self._snap_input(inputs))
        return unfold(inputs, self._window(inputs.shape[2:]), places, self._snap_input)

    def _snap_input(self, x: torch.Tensor) -> torch.Tensor:
        """Input values as the quantized layer reads them."""
        grid = self.state.input_grid(self.layer)
        if grid is not None and grid is self.state.requantized.get(self.layer.input):
            x = self._on_grid(x, self.state.activations[self.layer.input])
        return self._on_grid(x, grid)

    def _move(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self.state.device)

    def _on_grid(self, x: torch.Tensor, grid: QParams | None) -> torch.Tensor:
        if grid is None:
            return x
        # Beside x, as a division by a number is a product with its reciprocal on CUDA.
        scale = torch.tensor(float(grid.scale), dtype=x.dtype).to(x.device)
        return fake_quantize(x, scale, float(grid.zero_point), grid.spec)


def _shortcut(state: ReconstructionState, block: Block, layer: LayerScheme) -> str | None:
    """The tensor that an Add joins to the layer's output, if this layer is the last on which the Add waits."""
    readers = state.index.consumers.get(layer.output, [])
    if len(readers) != 1 or readers[0].op_type != "Add" or readers[0].name not in block.nodes:
        return None
    other = next((t for t in readers[0].input if t != layer.output), None)
    if other is None or other in state.index.initializers:
        return None
    needed = needed_nodes(state.index, block.inputs, [other])
    waiting = set(block.layers) - set(state.layers)
    return other if needed <= set(block.nodes) and not needed & waiting else None
