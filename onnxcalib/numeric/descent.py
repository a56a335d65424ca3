"""Coordinate descent on a layer's integers, and scales refitted to them.

The loss, and the shapes and units, are those of ``integer_search``.
"""

from __future__ import annotations

import torch

from ..spec import QuantSpec
from .integer_search import Levels, Metric, lazy_batches, round_batch, split_scale


class Descent:
    """Integers of rows that go down to a local minimum of their loss, and the loss's gradient with respect to them.

    Work is done in the type of the metric. The inputs are the second axis, (G, K, R).
    """

    def __init__(
        self,
        metric: Metric,
        rows: torch.Tensor,
        integers: torch.Tensor,
        scale: torch.Tensor,
        spec: QuantSpec,
        *,
        zero: torch.Tensor | None = None,
    ) -> None:
        """rows: the optimum w* (G, R, K); integers (G, R, K) to begin with; scale (G, R), or (G, R, K).

        zero: points (G, R, K) from which integers are counted.
        """
        gram = self.gram = metric.gram
        self.power, self.spec = metric.power, spec
        self.curvature = gram.diagonal(dim1=1, dim2=2).unsqueeze(2)
        self.unit, input_scale = split_scale(scale)
        self.goal = (rows / self.unit[..., None]).to(gram).mT.contiguous()
        self.input_scale = None if input_scale is None else input_scale.to(gram).mT.contiguous()
        self.zero = None if zero is None else zero.to(gram).mT.contiguous()
        self.levels = integers.to(gram).mT.clone(memory_format=torch.contiguous_format)
        if self.input_scale is not None:
            self.levels *= self.input_scale
        self.gradient = gram @ (self.levels - self.goal)
        self.pull: torch.Tensor | None = None  # A w*, where scales are refitted

    def sweep(self) -> bool:
        """One pass over the inputs: each takes its best integer, the others being fixed. Whether any has changed.

        The loss is least at ``v_j = q_j - ((q - w*) A)_j / A_jj``. It is the compensated weight of input j here.
        A change of q_j by d moves v_k by ``-d A_jk / A_kk``.
        """
        changed = False
        for batch in lazy_batches(self.levels.shape[1]):
            feedback = self.gram[:, batch, batch] / -self.curvature[:, batch].mT
            levels = self.levels[:, batch]
            current = levels - self.gradient[:, batch] / self.curvature[:, batch]
            grid = Levels.of(self.spec, batch, self.input_scale, self.zero)
            self.levels[:, batch], changes = round_batch(current, levels, feedback, grid, waiting=levels)
            if changes.any():
                self.gradient.baddbmm_(self.gram[:, :, batch], changes)
                changed = True
        return changed

    def keep_best(self, losses: torch.Tensor) -> None:
        """Keep one of the copies of each row, the one of least loss; losses (copies, G, R)."""
        best = losses.argmin(0).unsqueeze(1)

        def pick(values: torch.Tensor) -> torch.Tensor:
            parts = values.unflatten(2, losses.shape[::2])
            found: torch.Tensor = parts.gather(2, best.unsqueeze(1).expand(-1, values.shape[1], -1, -1)).squeeze(2)
            return found

        if len(losses) > 1:
            self.levels, self.goal, self.gradient = map(pick, (self.levels, self.goal, self.gradient))
            self.zero = None if self.zero is None else pick(self.zero)
            self.unit = pick(self.unit.unsqueeze(1)).squeeze(1)

    def refit(self, *, together: bool = False) -> None:
        """Give each row the scale of least loss for its integers, ``s = q A w*^T / q A q^T``, if that is positive.

        together: the rows of all groups have one scale.
        """
        if self.pull is None:
            self.pull = self.gram @ self.goal
        along, power = (
            (self.levels * x).sum(1, dtype=torch.float64) * self.power for x in (self.pull, self.pull + self.gradient)
        )
        if together:
            along, power = along.sum().expand(along.shape), power.sum().expand(along.shape)
        factor = along / power.clamp_min(torch.finfo(torch.float64).tiny)
        factor = torch.where((factor > 0) & (power > 0), factor, 1.0).to(self.unit)
        self.unit = self.unit * factor
        factor = factor.to(self.gram).unsqueeze(1)
        self.goal /= factor
        self.gradient.addcmul_(self.pull, 1 - 1 / factor)
        self.pull /= factor

    def loss(self) -> torch.Tensor:
        """The loss of each row above that of w*, (G, R)."""
        own = ((self.levels - self.goal) * self.gradient).sum(1, dtype=torch.float64)
        loss: torch.Tensor = own * self.power * self.unit.square()
        return loss

    def integers(self) -> torch.Tensor:
        """The integers (G, R, K) as they stand."""
        levels = self.levels if self.input_scale is None else (self.levels / self.input_scale).round_()
        return levels.mT
