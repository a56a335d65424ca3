"""Choose the columns on which a layer is solved: rows of stored batches, and of images positions of the output."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..config import FULL_BITS
from ..graph.layout import transposed_window_of, window_of
from ..graph.ops import CONVOLUTIONS
from ..numeric.gram import Convolution, choose_positions, flatten_rows, gather_columns, output_sizes, unfold
from ..spec import LayerScheme
from .padding_mask import select
from .state import ReconstructionState

# One sample in so many is held out: on these the prior of a layer is chosen.
PRIOR_HOLDOUT = 4
# Columns that are read for each unknown of a row: neighbouring positions are much alike, and more changed nothing.
COLUMNS_PER_INPUT = 128
LEAST_COLUMNS = 2**15
# The share of them that 8-bit weights need: the outputs moved by less than with another seed.
FULL_BITS_SHARE = 1 / 4
# With more inputs a channel the Gram matrix takes too much memory and time: the layer is rounded, then learned.
MOST_INPUTS = 4608
# Between the seeds of two batches, so that no seed of a user's makes one batch like another.
SEEDS_APART = 2**32
# Bytes of unfolded input at once.
UNFOLD_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Chunk:
    """Columns of one stored batch whose unfolded input stays small; those of held-out rows are the last.

    rows: of the layer's output, in this order, of which the last ``held_out`` are held out. real: mask of these rows
    that is false at padding; None without padding. positions: flat indices (P,) of an image; None for a matrix product.
    """

    rows: np.ndarray
    held_out: int
    real: np.ndarray | None
    positions: torch.Tensor | None

    def take(self, values: np.ndarray) -> torch.Tensor:
        """The chunk's rows of a tensor that has those of the output; without padding, where there is any."""
        return torch.from_numpy(select(values[self.rows], self.real))

    def gather(self, values: torch.Tensor, groups: int) -> torch.Tensor:
        """Columns (G, C, P) of an output, of which ``values`` are the chunk's rows."""
        return flatten_rows(values) if self.positions is None else gather_columns(values, self.positions, groups)

    def part(self, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The columns (G, any, P) that are fitted, and those held out; of images as (G, any, positions, rows)."""
        fitted = len(self.rows) - self.held_out
        if self.positions is not None:
            columns = columns.unflatten(2, (columns.shape[2] // len(self.rows), len(self.rows)))
            return columns[..., :fitted], columns[..., fitted:]
        if self.real is None:
            fitted *= columns.shape[2] // len(self.rows)
        else:
            fitted = int(self.real[:fitted].sum())
        return columns[..., :fitted], columns[..., fitted:]


class ColumnChoice:
    """The columns of one layer; those of a stored batch depend on its number and on nothing read before it."""

    def __init__(self, state: ReconstructionState, layer: LayerScheme, shape: tuple[int, ...], bits: int):
        """shape: of the layer's weight; bits: the fewest for which it is solved."""
        self.stored, self.padding, self.layer, self.bits = state.stored, state.problem.padding, layer, bits
        self.is_conv = layer.op in CONVOLUTIONS
        # Inputs of an output channel; the groups of a ConvTranspose have rows in common.
        self.node, self.shape = state.problem.index.nodes[layer.name], shape
        self.inputs = math.prod(shape[1:] if layer.op != "ConvTranspose" else (shape[0] // layer.groups, *shape[2:]))
        self.seed, self.generator = state.problem.config.seed, torch.Generator()

    def split(self, number: int, first: int, shape: tuple[int, ...]) -> Iterator[Chunk]:
        """The chunks of stored batch ``number``, in which the layer's output has this shape of two axes or more.

        first: index of the batch's first sample in the calibration set.
        """
        self.generator.manual_seed(self.seed + number * SEEDS_APART)
        real = self._mask_rows(number, shape)
        by_sample = shape[0] == self.stored.sizes[number]
        for rows in self._spans(shape):
            if real is not None and not real[rows.start : rows.stop].any():
                continue
            indices = first + np.array(rows) if by_sample else np.full(len(rows), number)
            held = self.find_held_out(indices, by_sample=by_sample)
            chosen = choose_positions(shape[2:], self._positions_wanted(), self.generator) if self.is_conv else None
            order = np.array(rows)[held.argsort(kind="stable")]
            yield Chunk(order, int(held.sum()), None if real is None else real[order], chosen)

    def find_held_out(self, indices: np.ndarray, *, by_sample: bool = True) -> np.ndarray:
        """Mask of the samples of these indices in the calibration set, or of batches, that are held out.

        Views of a sample are held out with it.
        """
        found: np.ndarray = indices % self.stored.count(by_sample=by_sample) % PRIOR_HOLDOUT == PRIOR_HOLDOUT - 1
        return found

    def find_window(self, sizes: tuple[int, ...]) -> Convolution:
        """The window of a convolution whose input has these sides."""
        read = transposed_window_of if self.layer.op == "ConvTranspose" else window_of
        return Convolution(**read(self.node, self.shape[2:], tuple(sizes)), groups=self.layer.groups)

    def unfold(
        self,
        chunk: Chunk,
        inputs: torch.Tensor,
        shape: tuple[int, ...],
        change: Callable[[torch.Tensor], torch.Tensor] | None = None,
        *,
        fill: int = 0,
    ) -> torch.Tensor:
        """Columns (G, K, P) of a chunk's ``inputs``; none where an output_shape is above what they give.

        shape: of the layer's output. change, fill: as ``numeric.gram.unfold`` has them.
        """
        if chunk.positions is None:
            return flatten_rows(inputs if change is None else change(inputs))
        window, positions = self.find_window(inputs.shape[2:]), chunk.positions
        if output_sizes(window, inputs.shape[2:]) != shape[2:]:
            positions = positions[:0]
        return unfold(inputs, window, positions, change, fill=fill)

    def _mask_rows(self, number: int, shape: tuple[int, ...]) -> np.ndarray | None:
        """Mask of an output of this shape that is true where it is no padding; None without padding."""
        tokens = None if self.is_conv else self.stored.masks[number]
        mask = self.padding.mask_of(self.layer.output, shape, tokens, last=False)
        return None if mask is None else np.broadcast_to(mask, (shape[0], *mask.shape[1:]))

    def _spans(self, shape: tuple[int, ...]) -> list[range]:
        """Ranges of rows whose unfolded input stays below UNFOLD_BYTES."""
        positions = math.prod(shape[2:]) if self.is_conv else math.prod(shape[1:-1])
        read = min(positions, self._positions_wanted() or positions)
        size = 4 * self.inputs * self.layer.groups * read
        at_once = max(1, UNFOLD_BYTES // max(size, 1))
        return [range(start, min(start + at_once, shape[0])) for start in range(0, shape[0], at_once)]

    def _positions_wanted(self) -> int | None:
        """How many positions of an image are read; None for all of them."""
        if not self.is_conv:
            return None
        share = FULL_BITS_SHARE if self.bits == FULL_BITS else 1
        return -(-int(share * max(COLUMNS_PER_INPUT * self.inputs, LEAST_COLUMNS)) // sum(self.stored.sizes))
