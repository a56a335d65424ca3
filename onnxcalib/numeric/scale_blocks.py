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

    def ends(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The least value (G, R, N) in each scale block, at most 0, and the largest, at least 0."""
        index = self._index(values.shape[1])
        low, high = (values.new_zeros(*values.shape[:2], self.count) for _ in range(2))
        return low.scatter_reduce_(2, index, values, "amin"), high.scatter_reduce_(2, index, values, "amax")

    def refit(
        self, gram: torch.Tensor, optimum: torch.Tensor, integers: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        """Scales (G, R, N) of least loss for these integers, all of a row at once; as before where a sign would turn.

        With q_b the integers of block b and zeros elsewhere, the loss ``(sum_b s_b q_b - w*) A (sum_b s_b q_b - w*)^T``
        is least where ``sum_c (q_b A q_c^T) s_c = q_b A w*^T`` for every b.

        gram A (G, K, K), in whose type work is done; optimum w* and integers (G, R, K).
        """
        places = self._places()
        unit = scale.abs().amax(2, keepdim=True)
        pull = _take(((optimum / unit).to(gram) @ gram), places)
        integers = _take(integers.to(gram), places)
        gram = _take(_take(gram, places).mT, places)
        slope = (integers * pull).unflatten(2, (self.count, -1)).sum(3, dtype=torch.float64) * unit
        curvature = slope.new_empty(*slope.shape, self.count)
        size = places.shape[1] // self.count
        for block in range(self.count):
            own, rest = slice(block * size, (block + 1) * size), slice(block * size, None)
            products = (integers[..., own] @ gram[:, own, rest]).mul_(integers[..., rest])
            sums = products.unflatten(2, (-1, size)).sum(3)
            curvature[:, :, block, block:], curvature[:, :, block:, block] = sums, sums
        diagonal = curvature.diagonal(dim1=2, dim2=3)
        damping = DAMPING * diagonal.mean(2, keepdim=True) + torch.finfo(torch.float32).tiny
        diagonal.add_(damping)
        fitted = torch.linalg.solve(curvature, slope + damping * scale)
        return torch.where(fitted * scale > 0, fitted, scale)

    def _places(self) -> torch.Tensor:
        """The inputs block by block, (G, N times the size of the largest block); K where a block has no more inputs."""
        groups, inputs = self.numbers.shape
        order = self.numbers.argsort(dim=1, stable=True)
        sizes = self.numbers[0].bincount(minlength=self.count)
        size, starts = int(sizes.max()), sizes.cumsum(0) - sizes
        block = self.numbers.gather(1, order)
        place = block * size + torch.arange(inputs, device=order.device) - starts[block]
        return order.new_full((groups, self.count * size), inputs).scatter_(1, place, order)

    def _index(self, rows: int) -> torch.Tensor:
        return self.numbers.unsqueeze(1).expand(-1, rows, -1)


def _take(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """values (G, R, K) of the inputs ``places`` (G, P), as (G, R, P); zero where a place is K."""
    padded: torch.Tensor = torch.nn.functional.pad(values, (0, 1))
    return padded.gather(2, places.unsqueeze(1).expand(-1, values.shape[1], -1))
