"""Adam (Kingma and Ba, 2015) without torch.optim's class, which loads torch's compiler, for 2 s."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.optim.adam import adam

MEAN_DECAY, EPSILON = 0.9, 1e-8


class _Group:
    """Variables that have one rate, with the moments of their gradients and the number of their steps."""

    def __init__(self, variables: Sequence[torch.Tensor], rate: float) -> None:
        self.rate = rate
        self.states = [(each, torch.zeros_like(each), torch.zeros_like(each), torch.tensor(0.0)) for each in variables]

    def step(self, square_decay: float) -> None:
        moved = [(each.grad, *state) for state in self.states if (each := state[0]).grad is not None]
        if not moved:
            return
        gradients, variables, means, squares, steps = map(list, zip(*moved, strict=True))
        adam(
            variables,
            gradients,
            means,
            squares,
            [],
            steps,
            amsgrad=False,
            beta1=MEAN_DECAY,
            beta2=square_decay,
            lr=self.rate,
            weight_decay=0.0,
            eps=EPSILON,
            maximize=False,
        )


class Adam:
    """Lessens losses step by step, to the last bit as torch.optim.Adam does."""

    def __init__(self, groups: Sequence[tuple[Sequence[torch.Tensor], float]], *, square_decay: float = 0.999) -> None:
        """groups: variables with the rate that they begin with."""
        self._groups = [_Group(*each) for each in groups]
        self._square_decay = square_decay

    def step(self, loss: torch.Tensor) -> None:
        """Change the variables in place; one that the loss does not depend on stays as it is."""
        for group in self._groups:
            for variable, *_ in group.states:
                variable.grad = None
        loss.backward()
        with torch.no_grad():
            for group in self._groups:
                group.step(self._square_decay)

    def scale_rates(self, factor: float) -> None:
        for group in self._groups:
            group.rate *= factor
