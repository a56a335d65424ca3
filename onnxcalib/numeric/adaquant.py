"""AdaQuant on one block: weights, weight scales, activation scales, zero points and biases are learned together.

Minimises ``|f(x) - f_q(x)|^2`` over the weight perturbation V, the scales of weights and activations and the biases
(Hubara et al. 2021, eq. 2; eq. 3 where x comes from quantized blocks), by Adam on straight-through gradients. Learning
rates are relative to the scales and decay by a cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import nn
from torch.autograd.function import FunctionCtx

from ..spec import QParams, QuantSpec
from .adam import Adam
from .learned_weight import LearnedWeight
from .pairs import keep_pairs
from .ranges import limit_scale, raise_scale
from .rounding import fake_quantize_rows, quantize

# Learning rates. The units are a scale for positions and zero points, a factor of e for scales, the output noise for
# biases. Higher rates only add noise to solved integers, which the decay cannot remove (ResNet-20 at W4A4).
WEIGHT_RATE = 0.01
WEIGHT_SCALE_RATE = 0.002
ACTIVATION_SCALE_RATE = 0.0005
ZERO_POINT_RATE = 0.005
BIAS_RATE = 0.01
SQUARE_DECAY = 0.99  # of Adam
# Evaluations on held-out batches while a block is learned.
EVALUATIONS = 8
# Least power of targets, so that the relative error of targets of zero is finite.
LEAST_POWER = 1e-12


class _Saved(Protocol):
    """What torch hands to ``backward``: its own annotations allow one tensor and one flag alone."""

    saved_tensors: tuple[torch.Tensor, ...]
    needs_input_grad: tuple[bool, ...]


class _FakeQuantize(torch.autograd.Function):
    """``fake_quantize``, straight-through to x, with LSQ's gradients to the tensor's one scale and its zero point.

    Scale: Esser et al. 2020, eq. 3; zero point: LSQ+, Bhalgat et al. 2020. Where ``mixed`` (0 or 1, in x's shape) is 0
    the value stays x, and moves neither.
    """

    # Memory traffic is what an iteration costs: work is done in place, and forward leaves all that backward needs.

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor,
        mixed: torch.Tensor | None,
        spec: QuantSpec,
    ) -> torch.Tensor:
        level = zero_point.round()
        ratio = x / scale
        rounded = ratio.round()
        integers = rounded.clamp(spec.qmin - level, spec.qmax - level)
        outside = rounded.ne_(integers)
        # d(output) / d(scale): the rounding error in units of the scale, or the end of the grid.
        slope = torch.sub(integers, ratio.addcmul_(ratio, outside, value=-1), out=ratio)
        quantized_values = integers.mul_(scale)
        if mixed is not None:
            quantized_values = torch.lerp(x, quantized_values, mixed)
            slope.mul_(mixed)
            outside.mul_(mixed)
        ctx.save_for_backward(slope, outside, scale)
        return quantized_values

    @staticmethod
    def backward(ctx: _Saved, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        slope, outside, scale = ctx.saved_tensors
        lost = gradient * outside
        to_scale = to_zero = None
        if ctx.needs_input_grad[1]:
            to_scale = torch.dot(gradient.flatten(), slope.flatten())
        if ctx.needs_input_grad[2]:
            to_zero = -scale * lost.sum()
        return torch.sub(gradient, lost, out=lost), to_scale, to_zero, None, None


def _toss(shape: torch.Size, like: torch.Tensor) -> torch.Tensor:
    """Fair coins, 0 or 1, of the type and on the device of ``like``."""
    # Drawn on the CPU, so that a seed gives the same coins on every device.
    size = math.prod(shape)
    drawn = torch.randint(0, 256, (-(-size // 8), 1), dtype=torch.uint8).to(like.device)
    bits = drawn & (1 << torch.arange(8, dtype=torch.uint8, device=like.device))
    return bits.ne(0).flatten()[:size].reshape(shape).to(like.dtype)


class ActivationQuantizer(nn.Module):
    """Puts an activation on a per-tensor grid whose scale and zero point are learned.

    In training a random half of the values stays float if ``mix`` (QDrop, Wei et al. 2022), and all of them if
    ``passing``. ``fixed``: the grid is not learned. A zero point that starts at qmin stays there, and so do that of a
    symmetric grid and powers of two.
    """

    start: torch.Tensor

    def __init__(self, grid: QParams, *, fixed: bool = False, mix: bool = True, passing: bool = False) -> None:
        super().__init__()
        self.spec = grid.spec
        self.mix, self.passing = mix, passing
        self.register_buffer("start", torch.tensor(float(grid.scale)))
        self.log_scale = nn.Parameter(torch.zeros(()), requires_grad=not (fixed or grid.spec.power_of_two))
        pinned = fixed or grid.spec.symmetric or int(grid.zero_point) == grid.spec.qmin
        self.zero_point = nn.Parameter(torch.tensor(float(grid.zero_point)), requires_grad=not pinned)

    @property
    def scale(self) -> torch.Tensor:
        return self.start * self.log_scale.exp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and self.passing:
            return x
        zero_point = self.zero_point.clamp(self.spec.qmin, self.spec.qmax)
        mixed = _toss(x.shape, x) if self.training and self.mix else None
        output: torch.Tensor = _FakeQuantize.apply(x, self.scale, zero_point, mixed, self.spec)
        return output

    def grid(self, bound: float | None = None) -> QParams:
        """The learned grid; with ``bound`` its range ends inside [0, bound], unless scales are powers of two."""
        scale = np.float32(self.scale.item())
        zero_point = np.clip(np.rint(self.zero_point.item()), self.spec.qmin, self.spec.qmax)
        if bound is not None and not self.spec.power_of_two:
            scale = limit_scale(scale, self.spec.qmax - int(zero_point), bound)
        return QParams(np.asarray(raise_scale(scale, self.spec)), np.asarray(zero_point, np.int32), self.spec)


class DynamicQuantizer(nn.Module):
    """Puts each row of an activation on a grid of its own, as a dynamic layer does in each run; gradients pass through.

    reach: the largest absolute value of the last run.
    """

    reach: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("reach", torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = x.detach()
        self.reach = values.abs().max()
        rounded: torch.Tensor = x + (fake_quantize_rows(values) - values)
        return rounded


class WeightQuantizer(nn.Module):
    """Gives a layer its weight as ``scale (clip(round(position)) - zero)``; a torch parametrization of its weight W.

    ``position`` is (W + V) / scale + zero, learned straight-through, so that a weight may move by more than one
    quantization step. ``scale`` is learned for the integers as they stand, with the exact gradient. LSQ's gradient
    counts that a scale moves integers too, which misleads once the integers are solved. Powers of two stay as they are.
    """

    start: torch.Tensor
    zero: torch.Tensor

    def __init__(
        self, position: torch.Tensor, scale: torch.Tensor, spec: QuantSpec, zero: torch.Tensor | None = None
    ) -> None:
        """position (channels, inputs, ...): in torch's shape of W; scale and zero point broadcast against it.

        Signs of scales stay, and so do zero points.
        """
        super().__init__()
        self.spec = spec
        self.register_buffer("start", scale.float())
        self.register_buffer("zero", torch.zeros_like(self.start) if zero is None else zero.float())
        self.position = nn.Parameter(position.float())
        self.log_scale = nn.Parameter(torch.zeros_like(self.start), requires_grad=not spec.power_of_two)

    @property
    def scale(self) -> torch.Tensor:
        return self.start * self.log_scale.exp()

    def forward(self, _weight: torch.Tensor) -> torch.Tensor:
        integers = self.position + (self.integers() - self.position).detach()
        return (integers - self.zero) * self.scale if self.spec.has_zeros else integers * self.scale

    def integers(self) -> torch.Tensor:
        """The integers as they stand, in W's shape, within the spec's pair_limit."""
        integers = quantize(self.position, 1.0, 0, self.spec)
        if self.spec.pair_limit is None:
            return integers
        channels_last = integers.movedim(1, -1)  # the order in which kernels sum
        kept = keep_pairs(channels_last.flatten(1), self.spec.pair_limit)
        return kept.reshape(channels_last.shape).movedim(-1, 1)


class Pace(NamedTuple):
    """By what the rates are multiplied: those of the positions that become integers, and all others."""

    integers: float = 1.0
    others: float = 1.0


ORDINARY = Pace()


@dataclass(frozen=True)
class Outcome:
    """Relative held-out loss before the first step and at the best iterate, and the number of that step (0: none)."""

    before: float
    after: float
    step: int


# Inputs of a block, and its float targets.
Batch = tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]
# (outputs, targets) -> (outputs, 2): the error of each output, and what it is relative to; both add up over batches.
Sums = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], torch.Tensor]


def error_sums(outputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> torch.Tensor:
    """Squared error of each floating-point output and power of its target, both summed, (outputs, 2)."""
    return torch.stack([torch.stack([(a - b).square().sum(), b.square().sum()]) for a, b in floating(outputs, targets)])


def relative_error(outputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> torch.Tensor:
    """Squared error over the target's power, averaged over the floating-point outputs."""
    return _mean_ratio(error_sums(outputs, targets))


def _mean_ratio(sums: torch.Tensor) -> torch.Tensor:
    return (sums[:, 0] / sums[:, 1].clamp_min(LEAST_POWER)).mean()


def floating(outputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, ...]]:
    """(output, target) of each floating-point target, in float32 or wider: sums of squares overflow float16."""
    pairs = [(a, b) for a, b in zip(outputs, targets, strict=True) if b.is_floating_point()]
    return [tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in pair) for pair in pairs]


def learn_block(
    module: nn.Module,
    draw: Callable[[], Batch],
    held_out: Callable[[], Iterable[Batch]],
    *,
    steps: int,
    bias_units: dict[nn.Parameter, torch.Tensor],
    pace: Pace = ORDINARY,
    sums: Sums = error_sums,
) -> Outcome:
    """Learn every quantizer that is not frozen and the biases; ``module`` ends at its best iterate on held-out batches.

    The module maps inputs to a tuple of outputs, of which at least one is of floating point.

    draw: gives one mini-batch; held_out: gives the batches that iterates are compared on; steps: iterations.
    bias_units: each learned bias with the output noise that its rate is relative to, a scalar tensor.
    sums: the loss is the ratio of its two columns, averaged over the outputs.

    Raises RuntimeError where torch fails, or where no floating-point output depends on what is learned.
    """
    adam = Adam(_list_rates(module, bias_units, pace), square_decay=SQUARE_DECAY)
    before = best = _evaluate(module, held_out(), sums)
    kept, best_step = _state(module), 0
    period = max(1, steps // EVALUATIONS)
    for step in range(1, steps + 1):
        inputs, targets = draw()
        module.train()
        loss = _mean_ratio(sums(module(*inputs), targets))
        if not loss.requires_grad:
            raise RuntimeError("nothing that is learned moves a floating-point output by a gradient")
        adam.step(loss)
        adam.scale_rates((1 + math.cos(math.pi * step / steps)) / (1 + math.cos(math.pi * (step - 1) / steps)))
        if step % period == 0 or step == steps:
            now = _evaluate(module, held_out(), sums)
            if now < best:
                best, kept, best_step = now, _state(module), step
    module.load_state_dict(kept, strict=False)
    module.eval()
    return Outcome(before, best, best_step)


def _list_rates(
    module: nn.Module, bias_units: dict[nn.Parameter, torch.Tensor], pace: Pace
) -> list[tuple[list[nn.Parameter], float]]:
    """What is learned, with the rates that fall to zero as half a cosine does."""
    groups: list[tuple[list[nn.Parameter], float]] = []
    for part in module.modules():
        if isinstance(part, WeightQuantizer):
            groups += [
                ([part.position], pace.integers * WEIGHT_RATE),
                ([part.log_scale], pace.others * WEIGHT_SCALE_RATE),
            ]
        elif isinstance(part, LearnedWeight):
            groups.append(([part.position, part.log_scale], part.rate))
        elif isinstance(part, ActivationQuantizer):
            groups += [
                ([part.log_scale], pace.others * ACTIVATION_SCALE_RATE),
                ([part.zero_point], pace.others * ZERO_POINT_RATE),
            ]
    groups += [([bias], pace.others * BIAS_RATE * float(unit)) for bias, unit in bias_units.items()]
    learned = [([each for each in variables if each.requires_grad], rate) for variables, rate in groups]
    return [(variables, rate) for variables, rate in learned if variables]


def _evaluate(module: nn.Module, batches: Iterable[Batch], sums: Sums) -> float:
    """The loss of all batches as one: sums are taken over batches before the ratio."""
    module.eval()
    with torch.no_grad():
        found = [sums(module(*inputs), targets).double().cpu() for inputs, targets in batches]
    return float(_mean_ratio(torch.stack(found).sum(0)))


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    """What changes while a block is learned: a language model has many weights that do not."""
    fixed = {name for name, value in module.named_parameters() if not value.requires_grad}
    return {name: value.detach().clone() for name, value in module.state_dict().items() if name not in fixed}
