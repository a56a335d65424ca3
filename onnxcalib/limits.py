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


class Scale(NamedTuple):
    """The units that a kind of budget may have, in lower case, as multiples of its own; ``example``: one such budget.

    unit: what a number above 1 has if it says none, None where it must say it.
    """

    units: dict[str, float]
    example: str
    unit: str | None


COUNT = Scale({"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "k": 1e3, "m": 1e6, "g": 1e9}, "300KB", "b")
LATENCY = Scale({"ms": 1.0, "us": 1e-3, "s": 1e3}, "12ms", None)
_LIMIT = re.compile(r"(?P<number>\d*\.?\d+(?:e[+-]?\d+)?) *(?P<unit>[a-z]*)(?P<eight>@8-bit)?", re.IGNORECASE)


def read_limit(value: Any, scale: Scale = COUNT) -> Limit:
    """``0.15`` of the float model, ``0.6@8-bit`` of the all-8-bit one, or ``300KB``, ``2e6``. Raises ValueError."""
    match = _LIMIT.fullmatch(str(value).strip())
    number = float(match["number"]) if match else 0.0
    unit = match["unit"].lower() if match else ""
    share = not unit and match is not None and (match["eight"] or number <= 1)
    unit = unit or (scale.unit or "")
    if match is None or not 0 < number or (match["eight"] and match["unit"]) or (not share and unit not in scale.units):
        raise ValueError(
            f"must be a share of the float model such as 0.15, of the 8-bit one as 0.6@8-bit, or {scale.example}"
        )
    if share:
        return Limit(number, "8-bit" if match["eight"] else "float")
    return Limit(number * scale.units[unit], None)
