"""How far a quantized model's outputs are from the float model's, in torch, to be learned from without labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .adaquant import floating
from .divergence import TEMPERATURE
from .metrics import scores_classes


def sample_losses(outputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of each floating-point output and each sample, (outputs, samples, 2): its loss, and what that is relative to.

    Of class scores KL(p || q), p the target's softmax at TEMPERATURE, and 1; of others the squared error and the power.
    """
    found = []
    for output, target in floating(outputs, targets):
        if scores_classes(tuple(target.shape)):
            p, q = (torch.log_softmax(x.flatten(1) / TEMPERATURE, 1) for x in (target, output))
            loss = (p.exp() * (p - q)).sum(1)
            found.append(torch.stack([loss, torch.ones_like(loss)], 1))
        else:
            error, power = ((x * x).reshape(len(x), -1).sum(1) for x in (output - target, target))
            found.append(torch.stack([error, power], 1))
    return torch.stack(found)


def divergence_sums(outputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> torch.Tensor:
    """The same summed over samples, (outputs, 2), as ``learn_block`` takes it."""
    return sample_losses(outputs, targets).sum(1)
