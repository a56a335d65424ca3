"""How far a quantized model's outputs are from the float model's, in torch, to be learned from without labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .adaquant import floating
from .metrics import scores_classes

# Of the softmax (Hinton et al. 2015): at 1 a handful of samples near a tie of classes make all of the divergence.
TEMPERATURE = 4.0
# Sums of probabilities may be off one by so much; smaller ones count as this.
PROBABLE, LEAST = 1e-3, 1e-12


def sample_losses(outputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of each floating-point output and each sample, (outputs, samples, 2): its loss, and what that is relative to.

    Where an output does not count samples as the others do, a whole batch is one.

    Of class scores KL(p || q), p the target's softmax at TEMPERATURE, and 1; of others the squared error and the power.
    """
    found = []
    for output, target in floating(outputs, targets):
        if scores_classes(tuple(target.shape)):
            p, q = (_log_probabilities(x.flatten(1), like=target.flatten(1)) for x in (target, output))
            loss = (p.exp() * (p - q)).sum(1)
            found.append(torch.stack([loss, torch.ones_like(loss)], 1))
        else:
            error, power = ((x * x).reshape(len(x) if x.ndim else 1, -1).sum(1) for x in (output - target, target))
            found.append(torch.stack([error, power], 1))
    if len({len(each) for each in found}) > 1:  # not all of them count samples
        found = [each.sum(0, keepdim=True) for each in found]
    return torch.stack(found)


def _log_probabilities(scores: torch.Tensor, *, like: torch.Tensor) -> torch.Tensor:
    """Logarithms of the softmax of scores, which are taken for probabilities where the targets ``like`` are."""
    if (like >= 0).all() and ((like.sum(1) - 1).abs() < PROBABLE).all():
        scores = scores.clamp_min(LEAST).log()
    return torch.log_softmax(scores / TEMPERATURE, 1)


def divergence_sums(outputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> torch.Tensor:
    """The same summed over samples, (outputs, 2), as ``learn_block`` takes it."""
    return sample_losses(outputs, targets).sum(1)
