"""Distillation without labels: how far a quantized model's outputs are from the float model's, differentiable."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .adaquant import floating
from .metrics import scores_classes

# Temperature of the softmax (Hinton et al. 2015). At 1 a few samples near a tie of classes dominate the divergence.
TEMPERATURE = 4.0
# How far from 1 a sum of probabilities may lie, and the least probability that a logarithm is taken of.
SUM_TOLERANCE, LEAST_PROBABILITY = 1e-3, 1e-12


def sample_losses(outputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> torch.Tensor:
    """Loss of each floating-point output on each sample, and what it is relative to, (outputs, samples, 2).

    For class scores KL(p || q) in nats, with p and q the softmax of target and output at TEMPERATURE, and 1. For other
    outputs the squared error, and the power of the target. Where the outputs have different numbers of samples on axis
    0, the whole batch is one sample.
    """
    found = []
    for output, target in floating(outputs, targets):
        if scores_classes(tuple(target.shape)):
            p, q = (log_probabilities(x.flatten(1), like=target.flatten(1)) for x in (target, output))
            loss = (p.exp() * (p - q)).sum(1)
            found.append(torch.stack([loss, torch.ones_like(loss)], 1))
        else:
            error, power = ((x * x).reshape(len(x) if x.ndim else 1, -1).sum(1) for x in (output - target, target))
            found.append(torch.stack([error, power], 1))
    if len({len(each) for each in found}) > 1:
        found = [each.sum(0, keepdim=True) for each in found]
    return torch.stack(found)


def position_losses(output: torch.Tensor, target: torch.Tensor, axis: int) -> torch.Tensor:
    """KL(p || q) in nats of the distributions along ``axis``, summed over the positions of each sample, and their
    number, (samples, 2).

    Positions of which the target is all zeros, as padding is, do not count.
    """
    p, q = (
        log_probabilities(x.movedim(axis, -1), like=target.movedim(axis, -1), temperature=1.0) for x in (target, output)
    )
    real = target.movedim(axis, -1).any(-1).to(p)
    loss = (p.exp() * (p - q)).sum(-1) * real
    return torch.stack([each.reshape(len(each), -1).sum(1) for each in (loss, real)], 1)


def log_probabilities(scores: torch.Tensor, *, like: torch.Tensor, temperature: float = TEMPERATURE) -> torch.Tensor:
    """Logarithms of the softmax of scores (..., classes) at a temperature.

    Scores are probabilities, not logits, if the targets ``like`` are.
    """
    if (like >= 0).all() and ((like.sum(-1) - 1).abs() < SUM_TOLERANCE).all():
        scores = scores.clamp_min(LEAST_PROBABILITY).log()
    return torch.log_softmax(scores / temperature, -1)


def divergence_sums(outputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> torch.Tensor:
    """``sample_losses`` summed over samples, (outputs, 2), as ``learn_block`` takes it."""
    return sample_losses(outputs, targets).sum(1)
