"""Scale blocks: groups of a row's inputs that share a scale.

Shapes: G groups, R rows (output channels) a group, K inputs, N scale blocks a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Of the mean curvature along a row's scales: it keeps the scales of blocks whose integers are all zero as they are.
DAMPING = 1e-6


@dataclass(frozen=True)
class ScaleBlocks:
    """Which scale block each input belongs to: ``numbers`` (G, K), from 0 on, for inputs in any order."""

    numbers: torch.Tensor

    @property
    def count(self) -> int:
        """Scale blocks a row, N."""
        return int(self.numbers.max()) + 1

    def expand(self, values: torch.Tensor) -> torch.Tensor:
        """Values of scale blocks (G, R, N) repeated for each of their inputs, (G, R, K)."""
        return values.gather(2, self._index(values.shape[1]))

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sums (G, R, N) of values (G, R, K) over the inputs of each scale block."""
        sums = values.new_zeros(*values.shape[:2], self.count)
        return sums.scatter_add_(2, self._index(values.shape[1]), values)

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """Largest absolute value (G, R, N) in each scale block, and at least float32's smallest positive value."""
        least = values.new_full((*values.shape[:2], self.count), torch.finfo(torch.float32).tiny)
        return least.scatter_reduce_(2, self._index(values.shape[1]), values.abs(), "amax")

    def refit(
        self, gram: torch.Tensor, optimum: torch.Tensor, integers: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        """Scales (G, R, N) of least loss for these integers, all of a row at once; as before where not positive.

        With q_b the integers of block b and zeros elsewhere, the loss ``(sum_b s_b q_b - w*) A (sum_b s_b q_b - w*)^T``
        is least where ``sum_c (q_b A q_c^T) s_c = q_b A w*^T`` for every b.

        gram A (G, K, K); optimum w* and integers (G, R, K).
        """
        rows = integers.shape[1]
        curvature = integers.new_zeros(len(integers), rows, self.count, self.count)
        for block in range(self.count):
            own = torch.where(self.numbers[:, None] == block, integers, 0.0)
            curvature[:, :, block] = self.sum((own @ gram) * integers)
        slope = self.sum(integers * (optimum @ gram))
        diagonal = curvature.diagonal(dim1=2, dim2=3)
        damping = DAMPING * diagonal.mean(2, keepdim=True) + torch.finfo(torch.float32).tiny
        diagonal.add_(damping)
        fitted = torch.linalg.solve(curvature, slope + damping * scale)
        return torch.where(fitted > 0, fitted, scale)

    def _index(self, rows: int) -> torch.Tensor:
        return self.numbers.unsqueeze(1).expand(-1, rows, -1)
