"""Blocks of a row's inputs, each with a scale of its own: from block to input and back, and all scales fitted."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Of the mean curvature along a row's scales: what holds them near where they are, as blocks of zeros have none.
DAMPING = 1e-6


@dataclass(frozen=True)
class Blocks:
    """The block (groups, K) of each input, whatever the inputs' order."""

    of: torch.Tensor

    @property
    def count(self) -> int:
        return int(self.of.max()) + 1

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Values (groups, R, B) of blocks as those (groups, R, K) of their inputs."""
        return values.gather(2, self._index(values.shape[1]))

    def add(self, values: torch.Tensor) -> torch.Tensor:
        """Sums (groups, R, B) over each block's inputs."""
        sums = values.new_zeros(*values.shape[:2], self.count)
        return sums.scatter_add_(2, self._index(values.shape[1]), values)

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """Largest absolute value (groups, R, B) of each block, at least float32's least."""
        least = values.new_full((*values.shape[:2], self.count), torch.finfo(torch.float32).tiny)
        return least.scatter_reduce_(2, self._index(values.shape[1]), values.abs(), "amax")

    def refit(self, gram: torch.Tensor, optimum: torch.Tensor, integers: torch.Tensor, scale: torch.Tensor):
        """Scales (groups, R, B) of least loss for these integers, of all blocks at once; as before where not positive.

        With q_b the integers of block b and zeros elsewhere, ``sum_c (q_b A q_c^T) s_c = q_b A W*^T`` for every b.
        """
        rows = integers.shape[1]
        curvature = integers.new_zeros(len(integers), rows, self.count, self.count)
        for block in range(self.count):
            own = torch.where(self.of[:, None] == block, integers, 0.0)
            curvature[:, :, block] = self.add((own @ gram) * integers)
        slope = self.add(integers * (optimum @ gram))
        diagonal = curvature.diagonal(dim1=2, dim2=3)
        damping = DAMPING * diagonal.mean(2, keepdim=True) + torch.finfo(torch.float32).tiny
        diagonal.add_(damping)
        fitted = torch.linalg.solve(curvature, slope + damping * scale)
        return torch.where(fitted > 0, fitted, scale)

    def _index(self, rows: int) -> torch.Tensor:
        return self.of.unsqueeze(1).expand(-1, rows, -1)
