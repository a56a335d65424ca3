"""The output-aware metric of a layer, made of its probes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Columns per input at which the output-aware metric weighs as much as the layer's own.
EQUAL_COLUMNS = 2


@dataclass(frozen=True)
class OutputMetric:
    """The output-aware metric: how errors of the layer's weights change the model's outputs.

    gram (1, K, K): ``sum p p^T`` over ``columns`` vectors p. Each p is the layer's input in one sample, weighted by a
    probe (how each position of the layer's output changes the model's outputs) and summed over positions. trust: from 0
    to 1, by which its share is multiplied.
    """

    gram: torch.Tensor
    columns: int
    trust: float = 1.0

    def pooled(self, other: OutputMetric) -> OutputMetric:
        """The metric of these vectors and the other's."""
        return OutputMetric(self.gram + other.gram, self.columns + other.columns, self.trust)

    def measure(self, changes: torch.Tensor) -> float:
        """The error of the model's outputs by changes (1, C, K) of the weight, up to a factor."""
        return float(((changes @ self.gram) * changes).sum())

    def blend(self, gram: torch.Tensor) -> torch.Tensor:
        """The layer's own Gram matrix (1, K, K) mixed with this one at the same trace, whose share grows with columns.

        The share is ``trust columns / (columns + EQUAL_COLUMNS K)``, and 0 where this metric is zero.
        """
        trace, own_trace = gram.diagonal(dim1=1, dim2=2).sum(), self.gram.diagonal(dim1=1, dim2=2).sum()
        if not own_trace > 0:
            return gram
        share = self.trust * self.columns / (self.columns + EQUAL_COLUMNS * gram.shape[1])
        return (1 - share) * gram + (share * trace / own_trace) * self.gram
