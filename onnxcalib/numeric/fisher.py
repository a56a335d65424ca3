"""Random scores of a model's outputs, whose gradients tell what a small change of its weights does to these.

A change d of the weights moves the outputs by J d, with J the Jacobian. The loss of that is quadratic in J d, as long
as it is small:

- of a distribution p = softmax(z) it is ``KL = 1/2 (J d)^T F (J d)``, with ``F = E_y[s s^T]`` over classes y drawn
  from p, and s the gradient of ``log p_y`` with respect to z (the Fisher information: Amari 1998; Kunstner et al. 2019
  on why classes are drawn, and no labels taken);
- of other outputs it is ``|J d|^2 = E_v[(v^T J d)^2]`` over random normal v.

Both are ``E[(g^T d)^2]``, with g the gradient of a random score with respect to the weights. Rounding errors of single
weights are nearly independent of each other, so that it is ``sum_i E[g_i^2] d_i^2`` (Hassibi and Stork 1993, diagonal):
one number for each weight tells the loss at any bits.
"""

from __future__ import annotations

import torch

from .distill import TEMPERATURE, log_probabilities
from .metrics import scores_classes

# Of the distribution of a next token: its own.
OF_TOKENS = 1.0
# Of the mean moment, added to every one, as GPTQ has it.
DAMPING = 0.01


def draw_score(output: torch.Tensor, axis: int | None, generator: torch.Generator) -> torch.Tensor:
    """A random score (), the mean square of whose gradient along a change is the loss of this output.

    axis: of the classes, each position of which has a distribution of its own; positions of zeros alone do not count.
    None: the output has class scores on axis 1 if its shape is that of such, else it is compared by its relative
    squared error. The losses are those of ``Divergence``. generator: on the CPU.
    """
    if axis is None and not scores_classes(tuple(output.shape)):
        direction = torch.randn(output.shape, generator=generator).to(output)
        power = torch.linalg.vector_norm(output.detach().float()).clamp_min(torch.finfo(torch.float32).tiny)
        relative: torch.Tensor = (output * direction).float().sum() / power
        return relative
    rows = output.flatten(1) if axis is None else output.movedim(axis, -1).flatten(0, -2)
    rows = rows[rows.detach().any(1)]
    temperature = TEMPERATURE if axis is None else OF_TOKENS
    logs = log_probabilities(rows.float(), like=rows.detach(), temperature=temperature)
    drawn = torch.multinomial(logs.detach().exp().cpu(), 1, generator=generator).to(logs.device)
    score: torch.Tensor = logs.gather(1, drawn).sum() * (0.5 / max(len(rows), 1)) ** 0.5
    return score


def share_of_solved(moments: torch.Tensor) -> float:
    """The share of a layer's rounding error that is left where the integers of a row are solved one after the other.

    Rounding leaves ``sum_k A_kk`` times the variance of an error. Where each weight makes up for the errors of those
    before it, that is ``sum_k D_k`` with ``A = U D U^T`` (GPTQ: Frantar et al. 2023; as Babai's nearest plane:
    Chen et al. 2025). moments A (K, K): ``X^T X`` of the inputs.
    """
    order = moments.diagonal().argsort(descending=True)
    ordered = moments[order][:, order].double()
    mean = float(ordered.diagonal().mean())
    if not 0 < mean < float("inf"):
        return 1.0
    ordered.diagonal().add_(DAMPING * mean)
    # Errors are passed on from the first weight to the last, which is made up for by none.
    factor = torch.linalg.cholesky(ordered.flip(0, 1))
    return float(factor.diagonal().square().sum() / ordered.diagonal().sum())
