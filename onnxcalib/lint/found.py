"""What a rule finds in a file, before it is told which rule and which source it has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ..targets.rules import Level


class Found(NamedTuple):
    """One place that breaks a rule.

    where, found and allowed: in words. type: of its grid, where it is one. level: where it is
    not that of the rule.
    """

    where: str
    found: str
    allowed: str
    type: str = ""
    level: Level | None = None


Faults = Iterator[Found]


def spell_list(names: Iterable[str]) -> str:
    return ", ".join(names)


def spell_values(values: np.ndarray | None) -> str:
    """The values of a scale or zero point in a few digits, the first of them where there are several."""
    if values is None:
        return "a computed tensor"
    if not values.size:
        return "no value"
    first = f"{values.reshape(-1)[0]:.6g}"
    return first if values.size == 1 else f"{first} and {values.size - 1} more"
