"""Factors by channel that even out what one scale rounds: cross-layer equalization by the error that it leaves.

A positive factor s of a channel passes a Relu, so that ``s`` times one layer's row and ``1 / s`` times the next one's
column leave the network as it is (Nagel et al., Data-Free Quantization Through Weight Equalization, 2019). That work
sets the ranges of both layers equal, channel by channel. Here all factors are found at once, as those of least error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

# Levels on one side of zero, and the mean square of an error that is even over a step of 1.
LEVELS, EVEN = 127, 1 / 12
# The largest value stands as a norm of this power, which has a gradient for all that are nearly as large.
POWER = 16
TINY = float(np.finfo(np.float32).tiny)
# Steps of Adam, and its largest rate for logarithms of factors. Twice as many change no error by more than a hundredth.
STEPS, RATE = 200, 0.05
# The same where rows have scales of their own, and factors of channels less to weigh up: with these the error
# of ResNet-20 falls as far as with the others, up to a three-hundredth of what it falls by.
ROW_STEPS, ROW_RATE = 40, 0.1
MEAN_DECAY, SQUARE_DECAY, ADAM_EPSILON = 0.9, 0.999, 1e-8  # Kingma and Ba, Adam, 2015
# Steps of grids that are tried, as multiples of that which just reaches the largest magnitude.
STEPS_TRIED = 5.0 ** (np.arange(-35, 17) / 19)
# Shares of an octave that are tried as a common factor, and rounds over all junctions.
FINE, ROUNDS = 16, 4


@dataclass(frozen=True)
class Rounding:
    """The mean square of what grids of few levels leave of each channel, by their step.

    errors: (channels, len(STEPS_TRIED)). steps: (channels,), what STEPS_TRIED are multiples of.
    """

    errors: np.ndarray
    steps: np.ndarray


@dataclass(frozen=True)
class Gains:
    """The power of the change of the model's outputs, relative to theirs, by noise of unit power in each channel.

    inputs: of what a layer reads, through this layer alone, (channels,). outputs: of what it gives, (channels,).
    """

    inputs: np.ndarray
    outputs: np.ndarray


@dataclass(frozen=True)
class Equalized:
    """What one layer's error depends on, without its factors. Channels are those of g groups.

    peaks, squares: the largest magnitude and the sum of squares of the taps between two channels, (g, outputs, inputs).
    taps: their number. powers, reaches: mean square of each input, and the magnitude that its grid should reach,
    (g * inputs,). weights: how much the error of an output counts, (g * outputs,). before, after: the numbers of the
    junctions that it reads and writes; None for what has no factors. weight_levels, input_levels: on one side of zero.
    by_row: whether each output has a scale of its own, and not the weight one for all. rounding: of the inputs where
    they have few levels. gains: the error by noise of unit power in each input, (g * inputs,), where that is known
    better than by the weight and ``weights``. left: the share of the error of a rounded weight that stays.
    """

    peaks: np.ndarray
    squares: np.ndarray
    taps: int
    powers: np.ndarray
    reaches: np.ndarray
    weights: np.ndarray
    before: int | None = None
    after: int | None = None
    read: int = 0
    written: int = 0
    weight_levels: int = LEVELS
    input_levels: int = LEVELS
    by_row: bool = False
    rounding: Rounding | None = None
    gains: np.ndarray | None = None
    left: float = 1.0


@dataclass(frozen=True)
class Limits:
    """The channels of one junction: the most that each may be multiplied by, and those that share one factor.

    most: (channels,), relative to that of the ``tied`` ones, infinite without any. tied: bool (channels,). least: what
    each is multiplied by at least, one number or (channels,).
    """

    most: np.ndarray
    tied: np.ndarray
    least: np.ndarray | float = 0.0


@dataclass(frozen=True)
class Factors:
    """by_channel: (channels,), common included. common: what every channel of the junction is multiplied by."""

    by_channel: np.ndarray
    common: float


def choose_factors(
    layers: Sequence[Equalized], junctions: Sequence[Limits], *, power_of_two: bool = False
) -> list[Factors]:
    """The factors of each junction that leave the least error of weights and inputs in all layers.

    power_of_two: scales are powers of two; then a common factor brings ranges as near to them as both sides allow.
    """
    logs = [torch.zeros(each.most.size, dtype=torch.float64, requires_grad=True) for each in junctions]
    bounds = [(torch.tensor(np.log(each.most)), torch.tensor(each.tied)) for each in junctions]
    terms = [_Terms(layer) for layer in layers]

    def read() -> list[torch.Tensor]:
        pairs = zip(logs, bounds, strict=True)
        return [
            torch.exp(torch.where(tied, torch.zeros_like(log), torch.minimum(log, most))) for log, (most, tied) in pairs
        ]

    steps, rate = (ROW_STEPS, ROW_RATE) if any(each.by_row for each in layers) else (STEPS, RATE)
    adam = _Adam([*logs, *(each.log_step for each in terms if each.log_step is not None)])
    for step in range(steps if logs else 0):
        factors = read()
        # Layers that read nothing but zeros have no error, of which there is no logarithm.
        loss = torch.stack([each.errors(factors) for each in terms]).sum().clamp(min=TINY).log()
        adam.step(loss, rate * (1 + np.cos(np.pi * step / steps)) / 2)
        with torch.no_grad():
            for log, limits in zip(logs, junctions, strict=True):
                if np.any(limits.least):
                    torch.maximum(log, torch.as_tensor(np.log(limits.least)), out=log)
    with torch.no_grad():
        found = read()
        common = _fit_powers(layers, [each.steps_and_errors(found) for each in terms]) if power_of_two else {}
    return [
        Factors(each.numpy() * common.get(number, 1.0), common.get(number, 1.0)) for number, each in enumerate(found)
    ]


def measure_rounding(values: np.ndarray, levels: int) -> Rounding:
    """What grids with so many levels on one side of zero leave of each channel.

    values: (channels, any), float32.
    """
    steps = np.maximum(np.abs(values).max(1), TINY).astype(np.float64) / levels
    errors = np.empty((len(values), len(STEPS_TRIED)))
    for i, share in enumerate(STEPS_TRIED):
        step = np.maximum(share * steps, TINY).astype(np.float32)[:, None]
        error = np.rint(values / step)
        np.clip(error, -levels, levels, out=error)
        error *= step
        error -= values
        errors[:, i] = np.einsum("cx,cx->c", error, error) / values.shape[1]
    return Rounding(errors, steps)


class _Adam:
    """Adam with its usual constants. torch.optim loads torch's compiler, for 2 s, which leaves a temporary folder."""

    def __init__(self, variables: Sequence[torch.Tensor]) -> None:
        self.variables, self.steps = variables, 0
        self.moments = [(torch.zeros_like(each), torch.zeros_like(each)) for each in variables]

    def step(self, loss: torch.Tensor, rate: float) -> None:
        """Change the variables, of which the loss is a function, in place."""
        self.steps += 1
        gradients = torch.autograd.grad(loss, self.variables, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            for variable, gradient, (mean, square) in zip(self.variables, gradients, self.moments, strict=True):
                mean.lerp_(gradient, 1 - MEAN_DECAY)
                square.lerp_(gradient**2, 1 - SQUARE_DECAY)
                spread = (square / (1 - SQUARE_DECAY**self.steps)).sqrt() + ADAM_EPSILON
                variable -= rate / (1 - MEAN_DECAY**self.steps) * mean / spread


class _Terms:
    """The error of one layer as a function of factors; all but the norm of its weight are sums over channels."""

    def __init__(self, layer: Equalized) -> None:
        self.before, self.after, self.read, self.written = layer.before, layer.after, layer.read, layer.written
        groups, outputs, inputs = layer.peaks.shape
        self.weight_levels, self.input_levels, self.by_row = layer.weight_levels, layer.input_levels, layer.by_row
        self.peaks = layer.peaks
        self.largest = np.maximum(layer.peaks.max(axis=2 if layer.by_row else None, keepdims=True), TINY)
        # Sums of powers become products with vectors of factors.
        self.raised = torch.tensor((layer.peaks / self.largest) ** POWER)
        weights = layer.weights.reshape(groups, outputs)
        self.weights = torch.tensor(weights)
        self.columns = torch.tensor(np.einsum("goi,go->gi", layer.squares, weights) * EVEN)
        self.powers = torch.tensor(layer.powers.reshape(groups, inputs) * layer.taps * EVEN)
        self.reaches = torch.tensor(layer.reaches.reshape(groups, inputs))
        self.left = layer.left
        if layer.gains is not None:
            self.columns = torch.tensor(layer.gains.reshape(groups, inputs) * EVEN)
        self.log_step: torch.Tensor | None = None
        if layer.rounding is not None:
            self.rounded = torch.tensor(layer.rounding.errors) * self.columns.reshape(-1, 1) / EVEN
            self.log_ends = torch.tensor(np.log(layer.rounding.steps))
            tries = np.log(layer.rounding.steps.max() * STEPS_TRIED)
            costs = [float(self._round_inputs(torch.tensor(each), 0.0)) for each in tries]
            self.log_step = torch.tensor(tries[int(np.argmin(costs))], requires_grad=True)

    def _round_inputs(self, log_step: torch.Tensor, logs: torch.Tensor | float) -> torch.Tensor:
        """The error by inputs whose channels are multiplied by exp(logs), on a grid of this step.

        Between steps that were tried it is interpolated.
        """
        wide = np.log(STEPS_TRIED[1] / STEPS_TRIED[0])
        place = (log_step - logs - self.log_ends - np.log(STEPS_TRIED[0])) / wide
        place = place.clamp(0, len(STEPS_TRIED) - 1 - 1e-9)
        below = place.detach().floor()
        low, high = (self.rounded.gather(1, below.long()[:, None] + i)[:, 0] for i in (0, 1))
        return torch.lerp(low, high, place - below).sum()

    def errors(self, factors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The weighted squared error of the output by the rounding of weight and input, with norms as their steps."""
        given, made = self._of_channels(factors)
        by_weight, by_input = self._unit_errors(given, made)
        if self.log_step is None:
            by_input = by_input * (_norm(self.reaches * given) / self.input_levels) ** 2
        else:
            by_input = self._round_inputs(self.log_step, given.reshape(-1).log())
        if self.by_row:  # a row's scale takes the factor of its output, which leaves the row's error as it was
            total = torch.einsum("goi,gi->go", self.raised, given**-POWER).clamp_min(TINY)
            steps = torch.tensor(self.largest[:, :, 0]) * total ** (1 / POWER) / self.weight_levels
            by_row: torch.Tensor = ((given**2 * self.powers).sum(1) * (self.weights * steps**2).sum(1)).sum()
            return self.left * by_row + by_input
        total = torch.einsum("go,goi,gi->", made**POWER, self.raised, given**-POWER)
        weight_step = float(self.largest.max()) * total ** (1 / POWER) / self.weight_levels
        return self.left * by_weight * weight_step**2 + by_input

    def steps_and_errors(self, factors: Sequence[torch.Tensor]) -> tuple[float, float, float, float]:
        """The steps of weight and input, and the two errors that they leave."""
        given, made = self._of_channels(factors)
        weight = float((self.peaks * made[:, :, None].numpy() / given[:, None, :].numpy()).max()) / self.weight_levels
        step = float((self.reaches * given).max()) / self.input_levels
        by_weight, by_input = map(float, self._unit_errors(given, made))
        return max(weight, TINY), max(step, TINY), by_weight * weight**2, by_input * step**2

    def _of_channels(self, factors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The factors of inputs, (g, inputs), and of outputs, (g, outputs)."""
        given, made = torch.ones_like(self.reaches), torch.ones_like(self.weights)
        if self.before is not None:
            given = factors[self.before][self.read : self.read + given.numel()]
        if self.after is not None:
            made = factors[self.after][self.written : self.written + made.numel()]
        return given.reshape(self.reaches.shape), made.reshape(self.weights.shape)

    def _unit_errors(self, given: torch.Tensor, made: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The errors by weight and input for steps of 1."""
        by_weight = ((given**2 * self.powers).sum(1) * (self.weights / made**2).sum(1)).sum()
        return by_weight, (self.columns / given**2).sum()


def _norm(values: torch.Tensor) -> torch.Tensor:
    most = values.detach().max().clamp_min(TINY)
    return most * ((values / most) ** POWER).sum().clamp_min(TINY) ** (1 / POWER)  # the root of 0 has no gradient


def _fit_powers(layers: Sequence[Equalized], found: Sequence[tuple[float, float, float, float]]) -> dict[int, float]:
    """A common factor of each junction, in [2^-1/2, 2^1/2), with which steps that are powers of two cost least.

    A step that is rounded up to a power of two leaves up to four times the error. Factors of two junctions around a
    layer move its weight's range, so that one junction after the other is fitted, in rounds.
    """
    numbers = sorted({each for layer in layers for each in (layer.before, layer.after) if each is not None})
    octaves = dict.fromkeys(numbers, 0.0)
    touching = {
        number: [i for i, layer in enumerate(layers) if number in (layer.before, layer.after)] for number in numbers
    }

    def cost(i: int) -> float:
        weight_step, input_step, by_weight, by_input = found[i]
        given, made = (0.0 if each is None else octaves[each] for each in (layers[i].before, layers[i].after))
        return by_weight * _misfit(weight_step, made - given) + by_input * _misfit(input_step, given)

    shares = np.arange(FINE) / FINE - 0.5
    for _ in range(ROUNDS):
        for number in numbers:
            costs = []
            for share in shares:
                octaves[number] = float(share)
                costs.append(sum(map(cost, touching[number])))
            octaves[number] = float(shares[int(np.argmin(costs))])
    return {number: 2.0**share for number, share in octaves.items()}


def _misfit(step: float, octaves: float) -> float:
    """The error of the power of two at or above a step, as a multiple of the step's own."""
    exponent = np.log2(step) + octaves
    return float(4 ** (np.ceil(exponent - 1e-9) - exponent))
