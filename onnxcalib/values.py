"""Settings as a user writes them: text, numbers and lists, brought into the form that a setting has, or refused."""

from __future__ import annotations

import re
from typing import Any

from onnxcalib.limits import LATENCY, read_limit


def split_numbers(value: Any) -> Any:
    """``'r,g,b'``, a list or one number, as a tuple; anything else is left for pydantic to refuse."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return (value,)
    if isinstance(value, str):
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            raise ValueError("must be one number, or three as 'r,g,b'") from None
    return value


def split_size(value: Any) -> Any:
    """``224``, ``'224'``, ``'HxW'`` or ``[H, W]`` as (height, width)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    if isinstance(value, str):
        sides = value.lower().split("x")
        if len(sides) > 2 or not all(side.strip().isdecimal() for side in sides):
            raise ValueError("must be a size such as 224, or 'HxW'")
        return (int(sides[0]), int(sides[-1]))
    return value


def split_names(value: Any) -> Any:
    """One name as a tuple of one."""
    return (value,) if isinstance(value, str) else value


def split_columns(value: Any) -> Any:
    """``'a,b'``, a number, or a list of names and numbers, as a tuple of texts."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    listed = value if isinstance(value, (list, tuple)) else (value,)
    numbers = [isinstance(each, int) and not isinstance(each, bool) for each in listed]
    return tuple(str(each) if number else each for each, number in zip(listed, numbers, strict=True))


def check_limit(value: Any) -> str:
    read_limit(value)
    return str(value).strip()


def check_latency(value: Any) -> str:
    read_limit(value, LATENCY)
    return str(value).strip()


def split_candidates(value: Any) -> Any:
    return tuple(part.strip().upper() for part in value.split(",")) if isinstance(value, str) else value


def check_percentage(value: float) -> float:
    if 0 < value <= 1:
        raise ValueError("is in %, above 1 and at most 100; multiply it by 100")
    return value


def check_metric(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"[\w.]+:[\w.]+", value):
        raise ValueError("must be MODULE:FUNCTION, such as scores:spearman for the function spearman of scores.py")
    return value
