"""Read the columns on which layers are solved, from both models, and solve them on their moments."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import cast

import numpy as np
import torch

from ..config import FULL_BITS
from ..errors import DataError, ModelError
from ..graph.finite import explain_nan
from ..graph.index import known_constant
from ..graph.layout import summing_order
from ..graph.ops import CONVOLUTIONS
from ..numeric.active_sums import ActiveColumns, ActiveSum, ChannelSum
from ..numeric.channel_solve import solve_channels
from ..numeric.gram import (
    Convolution,
    Moments,
    MomentSum,
    Unit,
    bias_of_groups,
    join_groups,
    output_sizes,
    project,
)
from ..numeric.metric_choice import choose_damping, choose_trust
from ..numeric.output_metric import OutputMetric
from ..numeric.prior import Prior, choose_prior
from ..numeric.products import UINT8_SHIFT, shift_to_int8
from ..numeric.reader_sums import ReaderSums, pool_readers
from ..numeric.rounding import dequantize, fake_quantize, fake_quantize_rows
from ..numeric.solve import Solution, solve_layer
from ..runtime.memory import release
from ..spec import Block, LayerScheme, QParams, QuantSpec
from .active_range import count_columns, find_active_end
from .column_choice import Chunk, ColumnChoice
from .layer_targets import KeptTargets, Target
from .shortcuts import find_shortcut
from .state import PROBE, ReconstructionState, SubgraphRunner, Sums

# Samples whose probes are projected at once.
PROJECTED_SAMPLES = 8
# Behind larger Gram matrices memory is given back, which takes some milliseconds.
RELEASED_BYTES = 2**24


def pool_sums(shares: Iterable[Sums]) -> Sums:
    """The sums of all shares, of which there is one at least, pooled in their order."""
    shares = iter(shares)
    total = next(shares)
    for sums in shares:
        for whole, part in zip(total, sums, strict=True):
            whole.merge(part)
        del sums, part  # before the next are made: there may be many, each of the size of a Gram matrix
    return total


class ColumnReader:
    """Reads the columns on which a layer, or siblings of one input, are solved, batch by batch, and solves them.

    A column holds the input values that one output position reads, from the quantized model; its target is that
    position's output in the float model, of all siblings. A matrix product has one position for each row of its input.
    Where an Add joins another tensor to the output, the target also makes up for that tensor's error.
    """

    def __init__(
        self,
        state: ReconstructionState,
        block: Block,
        layers: Sequence[LayerScheme],
        shape: tuple[int, ...],
        bits: int = 0,
    ):
        """shape: of the first layer's weight; bits: the fewest for which it is solved, by default those of the layer.

        layers: as ``find_siblings`` has them.
        """
        self.state, self.stored, self.layers, self.shape = state, state.stored, layers, shape
        self.layer = layer = layers[0]  # which reads its input as all of them do
        self.problem = state.problem
        self.is_conv = layer.op in CONVOLUTIONS
        self.choice = ColumnChoice(state, layer, shape, bits or layer.weight_spec.bits)
        self.unit = self._find_unit()
        self.shortcut = find_shortcut(state, block, layer) if len(layers) == 1 else None
        self.target = Target.of(self.problem, layers, self.shortcut)
        extra = [self.shortcut.tensor] if self.shortcut else []
        # The float model's side was kept, or is computed here.
        self.kept = KeptTargets(self.stored, layers) if KeptTargets.has(self.stored, layers) else None
        self.block, self.extra = block, extra
        alone = len(layers) == 1 and self.shortcut is None and not self.target.of_input
        self.active_end = find_active_end(state, layer, shape) if alone else None

    @cached_property
    def prefix(self) -> SubgraphRunner:
        """Computes what is read of the quantized model."""
        return SubgraphRunner(self.state, self.block, [self.layer.input, *self.extra], quantized=True)

    @cached_property
    def reference(self) -> SubgraphRunner:
        """Computes what is read of the float model."""
        wanted = [] if self.kept else self.target.tensors
        return SubgraphRunner(self.state, self.block, wanted, quantized=False)

    def _find_unit(self) -> Unit | None:
        """The grid of the int8 integers that columns hold; None where they hold values."""
        tensor, grid = self.layer.input, self.state.input_grid(self.layer)
        if grid is None or grid is not self.state.integer_grid(tensor) or not self.stored.holds_integers(tensor):
            return None
        return Unit(float(grid.scale), int(grid.zero_point) - (0 if grid.spec.signed else UINT8_SHIFT))

    def solve(
        self, rows: torch.Tensor, specs: Sequence[QuantSpec], *, with_added: bool = False
    ) -> list[Solution] | None:
        """Solve the weight ``rows`` for each spec on the moments of all samples; held-out samples choose the prior.

        rows (G, C, K): channels of all layers, in their order. with_added: see ``solve_layer``. None without any
        column, or where products of inputs overflow. Raises DataError for values that are not finite.
        """
        rows = rows.to(self.problem.device)
        width = self.problem.config.search_width
        summing = torch.from_numpy(summing_order(self.layer, self.shape)).to(self.problem.device)
        if self.active_end is not None:
            sums, widths = self._measure_channels(), [width(spec.bits) for spec in specs]
            apart = solve_channels(sums, rows, specs, widths=widths, summing=summing, with_added=with_added)
            return apart and [each.cpu() for each in apart]
        measured = self._measure()
        if not measured or not all(moments.finite for moments in measured):
            return None
        joined = join_groups if self.layer.op == "ConvTranspose" else lambda each: each
        prior, moments, others = Prior(), measured[0], self.state.others.get(self.layer.name)
        columns = sum(each.columns for each in measured)
        mean = torch.stack([each.input_mean * (each.columns / columns) for each in measured]).sum(0)
        metrics, trust, damping = self._measure_output_metrics(mean), 1.0, 0.0
        least = min(specs, key=lambda spec: spec.bits)
        for held_out in measured[1:]:
            both = (moments, held_out)
            if others is not None:
                both = self._pool(moments, others[0], rows), self._pool(held_out, others[1], rows)
            prior = choose_prior(joined(both[0]), joined(both[1]), rows)
            if metrics is not None:
                trust = choose_trust(metrics, both[0], rows, least, prior)
            elif self._is_damped(least):
                damping = choose_damping(joined(both[0]), joined(both[1]), rows, least, prior)
            moments = moments.pooled(held_out)
            del held_out, both
        for each in others or ():
            moments = self._pool(moments, each, rows)
        del measured  # large Gram matrices are most of the memory that solving takes
        if moments.gram.nbytes > RELEASED_BYTES:
            release()
        metric = None if metrics is None or not trust else replace(metrics[0].pooled(metrics[1]), trust=trust)
        whole = joined(moments)
        solve = partial(solve_layer, prior=prior, output_metric=metric, summing=summing, with_added=with_added)
        solved = [
            solve(whole, rows, spec, width=width(spec.bits), damping=damping if spec.bits < FULL_BITS else 0.0)
            for spec in specs
        ]
        if self.target.of_input and self.layer.takes_bias:
            bias = self._read_bias().to(self.problem.device)
            solved = [replace(each, bias=each.bias + bias) for each in solved]
        if whole is not moments:
            biases = [bias_of_groups(moments, each.weights) for each in solved]
            solved = [replace(each, bias=bias) for each, bias in zip(solved, biases, strict=True)]
        return [each.cpu() for each in solved]

    def _is_damped(self, spec: QuantSpec) -> bool:
        """Whether the metric of the layer's integers has a ridge that held-out samples choose.

        Convolutions of models with layers of several groups: ResNet-20 and MiniLM-L6 gain nothing.
        """
        grouped = self.problem.scheme.has_groups
        return grouped and self.is_conv and not self.layer.reads_float and spec.bits < FULL_BITS

    def _pool(self, moments: Moments, others: ReaderSums, rows: torch.Tensor) -> Moments:
        """The moments, and those of the weight's later readers."""
        return pool_readers(moments, others, rows, centred=self.layer.takes_bias)

    def fit_bias(self, rows: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor | None:
        """The bias (G, C) with which the mean output of a quantized weight is that of the target; None as in ``solve``.

        rows, quantized: the float weight and the quantized one, (G, C, K), float64.
        """
        measured = self._measure()
        if not measured or not all(moments.finite for moments in measured):
            return None
        moments, (rows, quantized) = measured[0], (each.to(self.problem.device) for each in (rows, quantized))
        for held_out in measured[1:]:
            moments = moments.pooled(held_out)
        if self.layer.op == "ConvTranspose":
            return bias_of_groups(moments, quantized).cpu()
        bias = moments.means_of_targets(rows) - (quantized @ moments.input_mean[..., None]).squeeze(-1)
        return (bias + self._read_bias().to(bias) if self.target.of_input else bias).cpu()

    def _measure_output_metrics(self, mean: torch.Tensor) -> tuple[OutputMetric, OutputMetric] | None:
        """How an error of the layer's weight changes the model's outputs, from the layer's probes.

        Of the samples that are fitted, and of those held out. mean: of the layer's input, (1, K). The probes are
        dropped from the store. None without probes, or where they do not belong to the samples of the stored batches.
        """
        name = PROBE + self.layer.output
        if name not in self.stored.store:
            return None
        grams, counts = [mean.new_zeros(1, *mean.shape[1:] * 2) for _ in range(2)], [0, 0]
        for number in range(len(self.stored.sizes)):
            inputs = self._round_whole(np.atleast_2d(self.prefix.run(number)[self.layer.input]))
            probes = self.stored.store.batch(name, number)
            window = self.choice.find_window(inputs.shape[2:]) if self.is_conv else None
            if probes.shape[::2] != self._count_positions(inputs, window):  # rows that only look like samples
                counts = [0, 0]
                break
            held_out = self.choice.find_held_out(sum(self.stored.sizes[:number]) + np.arange(len(inputs)))
            for part, rows in enumerate((~held_out, held_out)):
                chosen = np.flatnonzero(rows)
                for start in range(0, len(chosen), PROJECTED_SAMPLES):
                    at = chosen[start : start + PROJECTED_SAMPLES]
                    chunk, own = (self._move(torch.from_numpy(x[at])) for x in (inputs, probes))
                    own = own.float()
                    sums = project(self._read_input(chunk), own, window) - mean.float().T * own.sum(2).flatten()
                    grams[part] += sums @ sums.T
                    counts[part] += sums.shape[1]
        self.stored.store.drop(name)
        fitted, held = (OutputMetric(gram, count) for gram, count in zip(grams, counts, strict=True))
        return (fitted, held) if any(counts) else None

    def _read_bias(self) -> torch.Tensor:
        """The float bias (1, C) of all layers, which are products; float64."""
        index, parts = self.problem.index, []
        for layer in self.layers:
            count = index.initializers[layer.weight].dims[layer.axis]
            parts.append(np.zeros(count) if layer.bias is None else known_constant(index, layer.bias).reshape(-1))
        return torch.from_numpy(np.concatenate(parts).astype(np.float64))[None]

    def _count_positions(self, inputs: np.ndarray, window: Convolution | None) -> tuple[int, int]:
        """The number of rows of the input, and of output positions for each row."""
        sizes = inputs.shape[1:-1] if window is None else output_sizes(window, inputs.shape[2:])
        return len(inputs), math.prod(sizes)

    def _pool_sums(self) -> Sums:
        elsewhere = self.state.sum_elsewhere
        return elsewhere(self.layers) if elsewhere is not None else pool_sums(self.sum_shares())

    def _measure_channels(self) -> list[ChannelSum]:
        """As ``_measure``, where each channel has moments of its own."""
        seen = [cast(ChannelSum, total) for total in self._pool_sums() if total.columns]
        if not all(total.seen_finite() for total in seen):
            raise self._explain_not_finite()
        return seen

    def _measure(self) -> list[Moments]:
        """Moments of the samples that are fitted, then of the held-out ones; left out is what has no column."""
        sums = self._pool_sums()
        seen = [replace(total.centre(), of_input=self.target.of_input) for total in sums if total.columns]
        if not all(moments.seen_finite for moments in seen):
            raise self._explain_not_finite()
        return [moments.about_zero() for moments in seen] if not self.layer.takes_bias else seen

    def sum_shares(self) -> Iterator[Sums]:
        """The sums of one share of the stored batches after the other. The kept targets are dropped behind the last."""
        for share in self.stored.shares:
            yield self._sum(share)
        if self.kept:
            self.kept.drop()

    def _sum(self, numbers: range) -> Sums:
        end = self.active_end
        sums: Sums = (MomentSum(self.unit), MomentSum(self.unit))
        if end is not None:
            kind = ActiveColumns if self.layer.groups == 1 else ActiveSum
            sums = kind(end, self.unit), kind(end, self.unit)
        for number in numbers:
            for chunk, inputs, targets in self._read_columns(number, sum(self.stored.sizes[:number])):
                some = slice(None) if end is None else slice(None, None, self._count_apart(inputs, chunk))
                for total, *columns in zip(sums, chunk.part(inputs), chunk.part(targets), strict=True):
                    total.add(*(each[:, :, some] for each in columns))
        for total in sums:
            total.close()
        return sums

    def _count_apart(self, inputs: torch.Tensor, chunk: Chunk) -> int:
        """Of how many positions of an image one is read, so that all images have no more than ``count_columns``."""
        positions = inputs.shape[2] // len(chunk.rows)
        return max(1, -(-positions * sum(self.stored.sizes) // count_columns(self.problem.config, self.layer)))

    def _explain_not_finite(self) -> ModelError | DataError:
        for layer in self.layers:
            if (known := explain_nan(self.problem.model, layer.output)) is not None:
                return known
        names = [layer.name for layer in self.layers]
        who = f"layer {names[0]} reads or gives" if len(names) == 1 else f"layers {' and '.join(names)} read or give"
        return DataError(
            f"tensor {self.layer.input}: {who} values that are not finite on the calibration set; finite values are"
            " needed; check the preprocessing, or the model on these samples"
        )

    def _read_columns(self, number: int, first: int) -> Iterator[tuple[Chunk, torch.Tensor, torch.Tensor]]:
        """Columns of the input as the quantized layer reads it, and of the target, by chunks of a stored batch.

        Those of the input are int8 where there is a ``unit``. first: index of the batch's first sample in the
        calibration set.
        """
        wanted, given = (
            {t: np.atleast_2d(v) for t, v in runner.run(number).items()} for runner in (self.reference, self.prefix)
        )
        whole = self._round_whole(given[self.layer.input])
        shape, joined = self.kept.describe(number) if self.kept else self.target.describe(wanted)
        for chunk in self.choice.split(number, first, shape):
            if self.kept:
                target = self.kept.read()
            else:
                target = self.target.read(wanted, chunk, joined=joined)
            target = target.to(self.problem.device)
            if self.shortcut and joined:
                own = chunk.gather(self._move(chunk.take(given[self.shortcut.tensor])), self.layer.groups)
                grid = self.state.grids.activations.get(self.shortcut.tensor) if self.shortcut.on_grid else None
                target = target - self._on_grid(own, self.shortcut.tensor, grid)
            inputs = self._move(chunk.take(whole))
            read, fill = (self._read_input, 0) if self.unit is None else (shift_to_int8, int(self.unit.zero_point))
            columns = self.choice.unfold(chunk, inputs, shape, read, fill=fill)
            yield chunk, columns, target[..., : columns.shape[2]]

    def _round_whole(self, values: np.ndarray) -> np.ndarray:
        """The input of a dynamic layer as it reads that: each row on a grid of its own."""
        if not self.layer.dynamic:
            return values
        tensor = self.layer.input
        held = self.state.grids.activations.get(tensor)
        if self.layer.name in self.problem.scheme.float_reads.get(tensor, ()):
            held = None
        whole = self._on_grid(torch.from_numpy(values), tensor, held)
        return fake_quantize_rows(whole).numpy()

    def _read_input(self, x: torch.Tensor) -> torch.Tensor:
        """Input values as the quantized layer reads them; those of a dynamic layer are rounded already."""
        grids, tensor = self.state.grids, self.layer.input
        grid = grids.of_input(self.layer)
        if grid is not None and grid is grids.requantized.get(tensor):
            x = self._on_grid(x, tensor, grids.activations[tensor])
        return self._on_grid(x, tensor, grid)

    def _move(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self.problem.device)

    def _on_grid(self, x: torch.Tensor, tensor: str, grid: QParams | None) -> torch.Tensor:
        """Values of a tensor on the grid, on which integers are already; they have one where the layer has none."""
        if grid is None and not x.is_floating_point():
            grid = self.state.integer_grid(tensor)
        if grid is None:
            return x
        if not x.is_floating_point():
            return dequantize(x.float(), float(grid.scale), float(grid.zero_point))
        # A tensor on the device of x: on CUDA a division by a Python number is a product with its reciprocal.
        scale = torch.tensor(float(grid.scale), dtype=x.dtype).to(x.device)
        return fake_quantize(x, scale, float(grid.zero_point), grid.spec)
