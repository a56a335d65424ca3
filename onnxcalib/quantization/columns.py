"""Read the columns on which a layer is solved, from both models, and solve it on their moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from ..errors import DataError
from ..graph.extract import needed_nodes
from ..graph.finite import explain_nan
from ..graph.layout import summing_order, transposed_window_of, window_of
from ..graph.ops import CONVOLUTIONS
from ..numeric.gram import (
    Convolution,
    Moments,
    MomentSum,
    bias_of_groups,
    choose_positions,
    flatten_rows,
    gather_columns,
    join_groups,
    output_sizes,
    project,
    unfold,
)
from ..numeric.prior import Prior, choose_prior
from ..numeric.rounding import fake_quantize
from ..numeric.solve import OutputMetric, Solution, solve_layer
from ..spec import Block, LayerScheme, QParams, QuantSpec
from .padding_mask import select
from .state import PROBE, ReconstructionState, SubgraphRunner

# One sample in so many is held out: on these the prior of a layer is chosen.
PRIOR_HOLDOUT = 4
# Columns that are read for each unknown of a row: neighbouring positions are much alike, and more changed nothing.
COLUMNS_PER_INPUT = 128
LEAST_COLUMNS = 2**15
# The share of them that 8-bit weights need: the outputs moved by less than with another seed.
FULL_BITS_SHARE = 1 / 4
# Bytes of unfolded input at once.
UNFOLD_BYTES = 64 * 2**20
# Samples whose probes are projected at once.
PROJECTED_SAMPLES = 8


class ColumnReader:
    """Reads the columns on which one layer is solved, batch by batch, and solves it.

    A column holds the input values that one output position reads, from the quantized model; its target is that
    position's output in the float model. A matrix product has one position for each row of its input. Where an Add
    joins another tensor to the output, the target also makes up for that tensor's error.
    """

    def __init__(
        self,
        state: ReconstructionState,
        block: Block,
        layer: LayerScheme,
        shape: tuple[int, ...],
        *,
        full_bits: bool = False,
    ):
        """full_bits: the layer is solved for no fewer than FULL_BITS."""
        self.full_bits = full_bits
        self.state, self.stored, self.layer, self.shape = state, state.stored, layer, shape
        self.problem = state.problem
        self.is_conv = layer.op in CONVOLUTIONS
        # Inputs of an output channel; the groups of a ConvTranspose have rows in common.
        self.inputs = math.prod(shape[1:] if layer.op != "ConvTranspose" else (shape[0] // layer.groups, *shape[2:]))
        self.node = self.problem.index.nodes[layer.name]
        self.shortcut = _find_shortcut(state, block, layer)
        extra = [self.shortcut.tensor] if self.shortcut else []
        self.reference = SubgraphRunner(state, block, [layer.output, *extra], quantized=False)
        self.prefix = SubgraphRunner(state, block, [layer.input, *extra], quantized=True)
        self.generator = torch.Generator().manual_seed(self.problem.config.seed)

    def solve(self, rows: torch.Tensor, specs: Sequence[QuantSpec]) -> list[Solution] | None:
        """Solve the weight ``rows`` for each spec on the moments of all samples; held-out samples choose the prior.

        None without any column, or where products of inputs overflow. Raises DataError for values that are not finite.
        """
        measured, rows = self._measure(), rows.to(self.problem.device)
        if not measured or not all(moments.finite for moments in measured):
            return None
        joined = join_groups if self.layer.op == "ConvTranspose" else lambda each: each
        prior, moments = Prior(), measured[0]
        if len(measured) == 2:
            fitted, held_out = measured
            prior = choose_prior(joined(fitted), joined(held_out), rows)
            moments = fitted.pool(held_out)
            del fitted, held_out
        del measured  # the Gram matrices are most of the memory that solving takes
        metric, width = self._measure_output_metric(moments.input_mean), self.problem.config.search_width
        summing = torch.from_numpy(summing_order(self.layer, self.shape)).to(self.problem.device)
        whole = joined(moments)
        solved = [
            solve_layer(whole, rows, spec, prior=prior, width=width(spec.bits), output_metric=metric, summing=summing)
            for spec in specs
        ]
        if whole is not moments:
            weights = (each.integers * each.scale[..., None] for each in solved)
            biases = [bias_of_groups(moments, own) for own in weights]
            solved = [replace(each, bias=bias) for each, bias in zip(solved, biases, strict=True)]
        return [each.cpu() for each in solved]

    def _measure_output_metric(self, mean: torch.Tensor) -> OutputMetric | None:
        """How an error of the layer's weight changes the model's outputs, from the layer's probes.

        mean: of the layer's input, (1, K). The probes are dropped from the store. None without probes, or where they
        do not belong to the samples of the stored batches.
        """
        name = PROBE + self.layer.output
        if name not in self.stored.store:
            return None
        total, columns = torch.zeros((), dtype=torch.float64, device=mean.device), 0
        for number in range(len(self.stored.sizes)):
            inputs = np.atleast_2d(self.prefix.run(number)[self.layer.input])
            probes = self.stored.store.batch(name, number)
            window = self._window(inputs.shape[2:]) if self.is_conv else None
            if probes.shape[::2] != self._count_positions(inputs, window):  # rows that only look like samples
                columns = 0
                break
            for start in range(0, len(inputs), PROJECTED_SAMPLES):
                part, own = (self._move(x[start : start + PROJECTED_SAMPLES]) for x in (inputs, probes))
                own = own.float()
                sums = project(self._read_input(part), own, window) - mean.float().T * own.sum(2).flatten()
                total = total + (sums @ sums.T).double()
                columns += sums.shape[1]
        self.stored.store.drop(name)
        return OutputMetric(total[None], columns) if columns else None

    def _window(self, sizes: tuple[int, ...]) -> Convolution:
        read = transposed_window_of if self.layer.op == "ConvTranspose" else window_of
        window = read(self.node, self.shape[2:], tuple(sizes))
        return Convolution(**window, groups=self.layer.groups)

    def _count_positions(self, inputs: np.ndarray, window: Convolution | None) -> tuple[int, int]:
        """The number of rows of the input, and of output positions for each row."""
        sizes = inputs.shape[1:-1] if window is None else output_sizes(window, inputs.shape[2:])
        return len(inputs), math.prod(sizes)

    def _measure(self) -> list[Moments]:
        """Moments of the samples that are solved on, then of the held-out ones; a set without columns is left out."""
        learning, held_out = MomentSum(), MomentSum()
        first = 0
        for number, size in enumerate(self.stored.sizes):
            for batch, rows, held in self._read_parts(number, first):
                inputs, targets = self._read_columns(batch, rows)
                if not held.any():
                    learning.add(inputs, targets)
                    continue
                of_columns = self._repeat(held, batch.real, rows, inputs.shape[2])
                for total, chosen in ((learning, ~of_columns), (held_out, of_columns)):
                    index = chosen.nonzero()[:, 0].to(inputs.device)
                    total.add(inputs.index_select(2, index), targets.index_select(2, index))
            first += size
        seen = [total.centre() for total in (learning, held_out) if total.columns]
        if not all(moments.seen_finite for moments in seen):
            raise explain_nan(self.problem.model, self.layer.output) or DataError(
                f"tensor {self.layer.input}: layer {self.layer.name} reads or gives values that are not finite on the"
                " calibration set; finite values are needed; check the preprocessing, or the model on these samples"
            )
        return [moments.about_zero() for moments in seen] if not self.layer.takes_bias else seen

    def _repeat(self, held: np.ndarray, real: np.ndarray | None, rows: range, columns: int) -> torch.Tensor:
        """``held``, of these rows of a batch, for each of their columns, in the order of ``_read_columns``."""
        if self.is_conv:  # positions, and the rows within each
            return torch.from_numpy(held).repeat(columns // len(held))
        each = columns // len(held) if real is None else real[rows.start : rows.stop].reshape(len(held), -1).sum(1)
        return torch.from_numpy(np.repeat(held, each))

    def _read_parts(self, number: int, first: int) -> Iterator[tuple[_Batch, range, np.ndarray]]:
        """Stored batch ``number`` by rows whose unfolded input stays small: the batch, the rows, which are held out.

        first: index of the batch's first sample in the calibration set.
        """
        wanted, given = (
            {t: np.atleast_2d(v) for t, v in runner.run(number).items()} for runner in (self.reference, self.prefix)
        )
        output = wanted[self.layer.output]
        batch = _Batch(wanted, given, self._mask_rows(number, output.shape))
        by_sample = len(output) == self.stored.sizes[number]
        total = self.stored.count(by_sample=by_sample)
        for start, end in self._spans(output):
            rows = range(start, end)
            indices = first + np.arange(start, end) if by_sample else np.full(len(rows), number)
            if batch.real is None or batch.real[start:end].any():
                # Views of a sample are held out with it.
                yield batch, rows, indices % total % PRIOR_HOLDOUT == PRIOR_HOLDOUT - 1

    def _mask_rows(self, number: int, shape: tuple[int, ...]) -> np.ndarray | None:
        """Mask of the batch's output, of this shape, that is true where it is no padding; None without padding."""
        tokens = None if self.is_conv else self.stored.masks[number]
        mask = self.problem.padding.mask_of(self.layer.output, shape, tokens, last=False)
        return None if mask is None else np.broadcast_to(mask, (shape[0], *mask.shape[1:]))

    def _spans(self, output: np.ndarray) -> list[tuple[int, int]]:
        """Ranges of rows whose unfolded input stays below UNFOLD_BYTES."""
        positions = math.prod(output.shape[2:]) if self.is_conv else math.prod(output.shape[1:-1])
        read = min(positions, self._positions_wanted() or positions)
        size = 4 * self.inputs * self.layer.groups * read
        at_once = max(1, UNFOLD_BYTES // max(size, 1))
        return [(start, min(start + at_once, len(output))) for start in range(0, len(output), at_once)]

    def _positions_wanted(self) -> int | None:
        """How many positions of an image are read; None for all of them."""
        if not self.is_conv:
            return None
        columns = max(COLUMNS_PER_INPUT * self.inputs, LEAST_COLUMNS) * (FULL_BITS_SHARE if self.full_bits else 1)
        return -(-int(columns) // sum(self.stored.sizes))

    def _read_columns(self, batch: _Batch, rows: range) -> tuple[torch.Tensor, torch.Tensor]:
        """Columns of the input as the quantized layer reads it, and of the target, for these rows of the batch."""
        real = None if batch.real is None else batch.real[rows.start : rows.stop]

        def take(values: np.ndarray) -> torch.Tensor:
            return self._move(select(values[rows.start : rows.stop], real))

        inputs, target = take(batch.given[self.layer.input]), take(batch.wanted[self.layer.output])
        choose: Callable[[torch.Tensor], torch.Tensor]
        if self.is_conv:
            positions = choose_positions(target.shape[2:], self._positions_wanted(), self.generator)
            choose = partial(gather_columns, positions=positions, groups=self.layer.groups)
            window = self._window(inputs.shape[2:])
            if output_sizes(window, inputs.shape[2:]) != target.shape[2:]:  # of an output_shape above what there is
                positions = positions[:0]
            columns = unfold(inputs, window, positions, self._read_input)
        else:
            choose = flatten_rows
            columns = flatten_rows(self._read_input(inputs))
        target = choose(target)
        if self.shortcut and batch.wanted[self.shortcut.tensor].shape == batch.wanted[self.layer.output].shape:
            given = choose(take(batch.given[self.shortcut.tensor]))
            if self.shortcut.on_grid:
                given = self._on_grid(given, self.state.grids.activations.get(self.shortcut.tensor))
            target = target + choose(take(batch.wanted[self.shortcut.tensor])) - given
        return columns, target

    def _read_input(self, x: torch.Tensor) -> torch.Tensor:
        """Input values as the quantized layer reads them."""
        grids = self.state.grids
        grid = grids.of_input(self.layer)
        if grid is not None and grid is grids.requantized.get(self.layer.input):
            x = self._on_grid(x, grids.activations[self.layer.input])
        return self._on_grid(x, grid)

    def _move(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self.problem.device)

    def _on_grid(self, x: torch.Tensor, grid: QParams | None) -> torch.Tensor:
        if grid is None:
            return x
        # A tensor on the device of x: on CUDA a division by a Python number is a product with its reciprocal.
        scale = torch.tensor(float(grid.scale), dtype=x.dtype).to(x.device)
        return fake_quantize(x, scale, float(grid.zero_point), grid.spec)


@dataclass(frozen=True)
class _Batch:
    """A stored batch by tensor: ``wanted`` in the float model, ``given`` in the quantized one.

    real: mask of the rows of the layer's output that are no padding; None without padding.
    """

    wanted: Mapping[str, np.ndarray]
    given: Mapping[str, np.ndarray]
    real: np.ndarray | None


@dataclass(frozen=True)
class _Shortcut:
    """The tensor that an Add adds to a layer's output; on_grid: whether the Add reads it quantized."""

    tensor: str
    on_grid: bool


def _find_shortcut(state: ReconstructionState, block: Block, layer: LayerScheme) -> _Shortcut | None:
    """What an Add adds to the layer's output, if all other layers before the Add are solved already."""
    index = state.problem.index
    readers = index.readers(layer.output)
    if len(readers) != 1 or readers[0].op_type != "Add" or readers[0].name not in block.nodes:
        return None
    other = next((t for t in readers[0].input if t != layer.output), None)
    if other is None or other in index.initializers:
        return None
    needed = needed_nodes(index, block.inputs, [other])
    waiting = set(block.layers) - set(state.layers)
    if not needed <= set(block.nodes) or needed & waiting:
        return None
    return _Shortcut(other, readers[0].name not in state.problem.scheme.float_reads.get(other, ()))
