"""Choose one candidate for every set within the budgets, and check the choice on the assembled model.

The losses of the sets are measured one set at a time. They may not add up: the loss of the assembled model tells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..errors import ConfigError
from ..spec import BitSet
from .bits import Bits
from .program import Budgets, Prediction, Program, Solution

# Losses are measured again around a choice whose predicted and measured loss differ by more than this factor.
MISMATCH = 1.1
# The program is solved at most this often. Around every choice but the last, all choices that differ in one set are
# measured.
ROUNDS = 3
TINY = 1e-300
# Halvings of the range of sizes that holds the smallest file of the wanted agreement.
HALVINGS = 7


@dataclass(frozen=True)
class Allocation:
    """The chosen bits, the loss of the assembled model as predicted and as measured, and the rounds taken.

    bound: proven lower bound of the objective of the first program, which predicts by the sum of the sets' losses; the
    objective is bytes where the loss is limited. predicted_loss: by the program that found the choice; equal to
    ``measured_loss`` where the choice was measured as a neighbour of another.
    """

    bits: Bits
    bound: float
    predicted_loss: float
    measured_loss: float
    rounds: int


def allocate(
    sets: Sequence[BitSet],
    budgets: Budgets,
    *,
    size_of: Callable[[Bits], int],
    loss_of: Callable[[Bits], float],
    around: bool = True,
) -> Allocation:
    """Solve the program; while the measured loss differs from the predicted, measure around the choice and repeat.

    around: False measures no neighbours of a choice, and takes the predictions times a factor in their place.

    size_of and loss_of give the bytes and the divergence of the model assembled at these bits. The best of all measured
    choices within the budgets is returned. Raises ConfigError for budgets that no choice meets.
    """
    program = Program(sets, size_of)
    choices = _MeasuredChoices(program, budgets, loss_of)
    prediction = Prediction.by_sum(sets)
    first = solution = program.solve(prediction, budgets)
    rounds = 1
    while not choices.confirm(solution.bits, prediction) and rounds < ROUNDS:
        if not around and budgets.loss is None:  # the factor would change nothing
            break
        prediction = choices.predict_around(solution.bits) if around else choices.rescale(solution.bits, prediction)
        try:
            solution = program.solve(prediction, budgets)
        except ConfigError:
            if choices.find_best() is None:
                raise
            break
        rounds += 1
    best = choices.find_best()
    if best is None:
        least = min(choices.losses.values())
        raise ConfigError(f"max_loss: found {budgets.loss:.4g}; the smallest that was reached is {least:.4g}; raise it")
    measured = choices.losses[best]
    return Allocation(best, first.bound, choices.predicted.get(best, measured), measured, rounds)


def allocate_for_agreement(
    sets: Sequence[BitSet],
    budgets: Budgets,
    least: float,
    *,
    size_of: Callable[[Bits], int],
    agreement_of: Callable[[Bits], float],
) -> Solution:
    """The smallest choice found whose agreement, in %, is at least ``least``, and the bound of its program.

    The size is bisected: at each size the program of least loss is solved, and its choice is measured. Raises
    ConfigError where no choice meets the budgets, or where the largest one agrees too little.
    """
    bisection = _SizeBisection(Program(sets, size_of), budgets, agreement_of)
    bisection.start(least)
    bisection.try_size(bisection.low, least)
    for _ in range(HALVINGS):
        bisection.try_size((bisection.low + bisection.high) / 2, least)
    return bisection.chosen


def solve_once(sets: Sequence[BitSet], budgets: Budgets, size_of: Callable[[Bits], int]) -> Bits:
    """The choice of the least sum of the sets' losses within the budgets; no loss is measured. Raises ConfigError."""
    return Program(sets, size_of).solve(Prediction.by_sum(sets), budgets).bits


class _SizeBisection:
    """The range of sizes that holds the smallest file of the wanted agreement.

    A file of ``low`` bytes is too small, as far as is known; ``chosen``, of at most ``high`` bytes, agrees enough.
    """

    def __init__(self, program: Program, budgets: Budgets, agreement_of: Callable[[Bits], float]) -> None:
        """Raises ConfigError for budgets that no choice meets."""
        self.program, self.budgets, self.agreement_of = program, budgets, agreement_of
        self.prediction = Prediction.by_sum(program.sets)
        self.chosen = program.solve(self.prediction, budgets)
        most = program.size(program.largest) if budgets.bytes is None else budgets.bytes
        self.low = float(program.size(program.smallest))
        self.high = min(most, program.size(self.chosen.bits))

    def start(self, least: float) -> None:
        """Raise ConfigError where the choice of the user's own budgets agrees less than ``least``."""
        best = self.agreement_of(self.chosen.bits)
        if best < least:
            raise ConfigError(
                f"max_disagreement: found {100 - least:.4g}; within the other budgets the smallest that was reached is"
                f" {100 - best:.4g}; raise it, or allow more candidates"
            )

    def try_size(self, size: float, least: float) -> None:
        """Solve for files of at most ``size`` bytes, and move the end of the range on which the choice lies."""
        if self.low >= self.high:
            return
        try:
            solution = self.program.solve(self.prediction, replace(self.budgets, bytes=size))
        except ConfigError:
            self.low = size
            return
        if self.agreement_of(solution.bits) >= least:
            self.chosen, self.high = solution, min(self.high, self.program.size(solution.bits))
        else:
            self.low = size


class _MeasuredChoices:
    """Losses of the assembled models that were measured, and those predicted for the choices of the programs."""

    def __init__(self, program: Program, budgets: Budgets, loss_of: Callable[[Bits], float]) -> None:
        self.program, self.budgets, self._loss_of = program, budgets, loss_of
        self.losses: dict[Bits, float] = {}
        self.predicted: dict[Bits, float] = {}

    def confirm(self, bits: Bits, prediction: Prediction) -> bool:
        """Whether the loss of the assembled model is about as predicted."""
        predicted, measured = prediction.predict(bits), self._measure(bits)
        self.predicted.setdefault(bits, predicted)
        return max(predicted, measured) <= MISMATCH * min(predicted, measured)

    def predict_around(self, bits: Bits) -> Prediction:
        """Predict from this choice, and from all choices that differ from it in one set, which are measured."""
        base = self._measure(bits)
        added = [
            {
                candidate: self._measure((*bits[:index], candidate, *bits[index + 1 :])) - base
                for candidate in candidates
            }
            for index, candidates in enumerate(self.program.candidates)
        ]
        return Prediction(base, added)

    def rescale(self, bits: Bits, prediction: Prediction) -> Prediction:
        """The prediction times the factor at which it holds for this choice."""
        factor = self._measure(bits) / max(prediction.predict(bits), TINY)
        added = [{c: factor * loss for c, loss in of_set.items()} for of_set in prediction.added]
        return Prediction(factor * prediction.base, added)

    def find_best(self) -> Bits | None:
        """The measured choice of least loss within the budgets, or the smallest one where the loss is limited."""
        if self.budgets.loss is None:
            order = sorted(self.losses, key=self.losses.__getitem__)
        else:
            order = sorted(self.losses, key=lambda bits: (self.program.size(bits), self.losses[bits]))
        return next((bits for bits in order if self._is_within_budgets(bits)), None)

    def _is_within_budgets(self, bits: Bits) -> bool:
        limit = self.budgets.loss
        return self.program.affords(bits, self.budgets) and (limit is None or self.losses[bits] <= limit)

    def _measure(self, bits: Bits) -> float:
        if bits not in self.losses:
            self.losses[bits] = self._loss_of(bits)
        return self.losses[bits]
