"""Budgets as a user writes them: a share of the float or of the 8-bit model, or a number with its unit."""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple


class Limit(NamedTuple):
    """A budget: ``number`` as it is, or times what the float or the all-8-bit model has (``of``)."""

    number: float
    of: Literal["float", "8-bit"] | None

    def resolve(self, *, of_float: float, of_eight: float) -> float:
        """The budget in the unit of what the two models have."""
        return self.number * {"float": of_float, "8-bit": of_eight, None: 1.0}[self.of]


_LIMIT = re.compile(r"(?P<number>\d*\.?\d+(?:e[+-]?\d+)?) *(?P<unit>[kmg]?b?)(?P<eight>@8-bit)?", re.IGNORECASE)
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}


def read_limit(value: Any) -> Limit:
    """``0.15`` of the float model, ``0.6@8-bit`` of the all-8-bit one, or ``300KB``, ``2e6``. Raises ValueError."""
    match = _LIMIT.fullmatch(str(value).strip())
    number = float(match["number"]) if match else 0.0
    if match is None or not 0 < number or (match["unit"] and match["eight"]):
        raise ValueError("must be a share of the float model such as 0.15, of the 8-bit one as 0.6@8-bit, or 300KB")
    if match["eight"]:
        return Limit(number, "8-bit")
    if number <= 1 and not match["unit"]:
        return Limit(number, "float")
    return Limit(number * _UNITS[match["unit"].lower().removesuffix("b")], None)
