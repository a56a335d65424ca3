"""AdaQuant on one block: weights, weight steps, activation steps, zero points and biases learned together.

``min |f(x) - f_q(x)|^2`` over V, the weight steps, the activation steps and the biases (Hubara et al. 2021, eq. 2;
sequential, eq. 3), by Adam on straight-through gradients, all rates relative to the steps, with cosine decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..spec import QParams, QuantSpec
from .rounding import quantize
from .saturation import keep_pairs

# Learning rates, none absolute: positions and zero points in steps, steps as logarithms, biases in output noise.
# From solved integers, higher ones only add noise that the cosine cannot take back (measured on ResNet-20 at W4A4).
WEIGHT_RATE = 0.01
WEIGHT_STEP_RATE = 0.002
ACTIVATION_STEP_RATE = 0.0005
ZERO_POINT_RATE = 0.005
BIAS_RATE = 0.01
EVALUATIONS = 8
# The power of targets that are all but zero, so that a relative error is finite.
LEAST_POWER = 1e-12


class _Snap(torch.autograd.Function):
    """``snap``, straight-through to x, with LSQ gradients (Esser et al. 2020) to a tensor's one scale and zero point.

    Where ``mixed`` (0 or 1, in x's shape) is 0 the value stays x. Written for few passes over memory, which are what a
    step on a block costs: all that the gradients need is left in place by the forward pass.
    """

    @staticmethod
    def forward(ctx, x, scale, zero_point, mixed, spec: QuantSpec):
        level = zero_point.round()
        ratio = x / scale
        rounded = ratio.round()
        integers = rounded.clamp(spec.qmin - level, spec.qmax - level)
        outside = rounded.ne_(integers)
        # d(snapped) / d(scale): the rounding error in steps, or the end of the grid.
        slope = torch.sub(integers, ratio.addcmul_(ratio, outside, value=-1), out=ratio)
        quantized_values = integers.mul_(scale)
        if mixed is not None:
            quantized_values = torch.lerp(x, quantized_values, mixed)
            slope.mul_(mixed)
            outside.mul_(mixed)
        ctx.save_for_backward(slope, outside, scale)
        return quantized_values

    @staticmethod
    def backward(ctx, gradient):
        slope, outside, scale = ctx.saved_tensors
        lost = gradient * outside
        to_scale = to_zero = None
        if ctx.needs_input_grad[1]:
            to_scale = torch.dot(gradient.flatten(), slope.flatten())
        if ctx.needs_input_grad[2]:
            to_zero = -scale * lost.sum()
        return torch.sub(gradient, lost, out=lost), to_scale, to_zero, None, None


def _toss(shape: torch.Size, like: torch.Tensor) -> torch.Tensor:
    """Fair coins, 0 or 1, as ``like`` is; drawn on the CPU, so that a seed stands for the same on every device."""
    size = math.prod(shape)
    drawn = torch.randint(0, 256, (-(-size // 8), 1), dtype=torch.uint8).to(like.device)
    bits = drawn & (1 << torch.arange(8, dtype=torch.uint8, device=like.device))
    return bits.ne(0).flatten()[:size].reshape(shape).to(like.dtype)


class ActivationQuantizer(nn.Module):
    """Learned per-tensor grid of an activation; if ``mix``, half of the values, drawn anew, stay float in training.

    Mixing is QDrop's (Wei et al. 2022).
    """

    def __init__(self, grid: QParams, *, fixed: bool = False, mix: bool = True):
        super().__init__()
        self.spec = grid.spec
        self.mix = mix
        self.register_buffer("start", torch.tensor(float(grid.scale)))
        self.log_step = nn.Parameter(torch.zeros(()), requires_grad=not fixed)
        pinned = fixed or int(grid.zero_point) == grid.spec.qmin
        self.zero_point = nn.Parameter(torch.tensor(float(grid.zero_point)), requires_grad=not pinned)

    @property
    def scale(self) -> torch.Tensor:
        return self.start * self.log_step.exp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        zero_point = self.zero_point.clamp(self.spec.qmin, self.spec.qmax)
        mixed = _toss(x.shape, x) if self.training and self.mix else None
        return _Snap.apply(x, self.scale, zero_point, mixed, self.spec)

    def grid(self, bound: float | None = None) -> QParams:
        """The learned grid; with ``bound`` its range is kept inside [0, bound]."""
        scale = np.float32(self.scale.item())
        if bound is not None:
            levels = self.spec.qmax - self.spec.qmin
            while float(scale) * levels > bound:
                scale = np.nextafter(min(scale, np.float32(bound / levels)), np.float32(0))
        zero_point = np.clip(np.rint(self.zero_point.item()), self.spec.qmin, self.spec.qmax)
        return QParams(np.asarray(scale), np.asarray(zero_point, np.int32), self.spec)


class WeightQuantizer(nn.Module):
    """A layer's weight as ``step * round(clip(position))``; a parametrization of the float weight W.

    ``position`` is (W + V) / step, learned straight-through, so that a weight may move by more than one step. The step
    scales the integers that stand: its gradient is exact, where that of LSQ (which moves integers too) misleads once
    the integers are solved.
    """

    def __init__(self, position: torch.Tensor, step: torch.Tensor, spec: QuantSpec):
        """position: in W's shape, as torch has it: (channels, inputs, ...); step: positive, broadcasting against it."""
        super().__init__()
        self.spec = spec
        self.register_buffer("start", step.float())
        self.position = nn.Parameter(position.float())
        self.log_step = nn.Parameter(torch.zeros_like(self.start))

    @property
    def step(self) -> torch.Tensor:
        return self.start * self.log_step.exp()

    def forward(self, _weight: torch.Tensor) -> torch.Tensor:
        integers = self.position + (self.integers() - self.position).detach()
        return integers * self.step

    def integers(self) -> torch.Tensor:
        integers = quantize(self.position, 1.0, 0, self.spec)
        if self.spec.pair_limit is None:
            return integers
        channels_last = integers.movedim(1, -1)  # as kernels add
        kept = keep_pairs(channels_last.flatten(1), self.spec.pair_limit)
        return kept.reshape(channels_last.shape).movedim(-1, 1)


@dataclass(frozen=True)
class Outcome:
    """Relative held-out loss before the first step and at the best iterate, and which step that was."""

    before: float
    after: float
    step: int


Batch = tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]


# Of each output that counts, (outputs, 2): what is wrong with it, and what that is relative to.
Sums = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], torch.Tensor]


def error_sums(outputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> torch.Tensor:
    """Squared error and the targets' power of each floating-point output."""
    return torch.stack([torch.stack([(a - b).square().sum(), b.square().sum()]) for a, b in floating(outputs, targets)])


def relative_error(outputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> torch.Tensor:
    """Squared error over the targets' power, averaged over the block's floating-point outputs."""
    return _mean_ratio(error_sums(outputs, targets))


def _mean_ratio(sums: torch.Tensor) -> torch.Tensor:
    return (sums[:, 0] / sums[:, 1].clamp_min(LEAST_POWER)).mean()


def floating(outputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, ...]]:
    """Pairs of those outputs that are of floating point, in float32 at least: sums of squares outgrow float16."""
    pairs = [(a, b) for a, b in zip(outputs, targets, strict=True) if b.is_floating_point()]
    return [tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in pair) for pair in pairs]


def learn_block(
    module: nn.Module,
    draw: Callable[[], Batch],
    held_out: Callable[[], Sequence[Batch]],
    *,
    steps: int,
    bias_units: dict[nn.Parameter, torch.Tensor],
    bias_rate: float = BIAS_RATE,
    sums: Sums = error_sums,
) -> Outcome:
    """Learn every quantizer that is not frozen and every bias; ``module`` ends at its best iterate on held-out batches.

    draw: gives one mini-batch of (inputs, float targets); held_out: the batches that judge. The module maps inputs to
    a tuple of outputs, one of floating point at least. ``bias_units``: each trained bias with the output noise that
    ``bias_rate`` is relative to. sums: what is to be least, as a ratio of each output's two. Raises RuntimeError where
    torch fails, or where nothing that is learned moves these outputs.
    """
    optimizer = torch.optim.Adam(_rates(module, bias_units, bias_rate), betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    before = best = _evaluate(module, held_out(), sums)
    kept, best_step = _state(module), 0
    period = max(1, steps // EVALUATIONS)
    for step in range(1, steps + 1):
        inputs, targets = draw()
        module.train()
        loss = _mean_ratio(sums(module(*inputs), targets))
        if not loss.requires_grad:
            raise RuntimeError("nothing that is learned moves a floating-point output by a gradient")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % period == 0 or step == steps:
            now = _evaluate(module, held_out(), sums)
            if now < best:
                best, kept, best_step = now, _state(module), step
    module.load_state_dict(kept)
    module.eval()
    return Outcome(before, best, best_step)


def _rates(module: nn.Module, bias_units: dict[nn.Parameter, torch.Tensor], bias_rate: float) -> list[dict]:
    groups = []
    for part in module.modules():
        if isinstance(part, WeightQuantizer):
            groups.append({"params": [p for p in (part.position,) if p.requires_grad], "lr": WEIGHT_RATE})
            groups.append({"params": [p for p in (part.log_step,) if p.requires_grad], "lr": WEIGHT_STEP_RATE})
        elif isinstance(part, ActivationQuantizer):
            groups.append({"params": [p for p in (part.log_step,) if p.requires_grad], "lr": ACTIVATION_STEP_RATE})
            groups.append({"params": [p for p in (part.zero_point,) if p.requires_grad], "lr": ZERO_POINT_RATE})
    groups += [{"params": [bias], "lr": bias_rate * float(unit)} for bias, unit in bias_units.items()]
    return [g for g in groups if g["params"]]


def _evaluate(module: nn.Module, batches: Sequence[Batch], sums: Sums) -> float:
    """The loss of all batches as one: each output's two are summed before the ratio."""
    module.eval()
    with torch.no_grad():
        found = [sums(module(*inputs), targets).double().cpu() for inputs, targets in batches]
    return float(_mean_ratio(torch.stack(found).sum(0)))


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
