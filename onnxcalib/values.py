"""Turn values of settings as users write them (text, numbers, lists, budgets) into one form, or refuse them."""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple


class Limit(NamedTuple):
    """A budget: ``number`` itself, a share of what the float or the all-8-bit model has (``of``), or bits a weight."""

    number: float
    of: Literal["float", "8-bit", "weight"] | None

    def resolve(self, *, of_float: float, of_eight: float) -> float:
        """The budget in the unit in which the two models are measured; not of bits a weight."""
        return self.number * {"float": of_float, "8-bit": of_eight}.get(self.of or "", 1.0)


class Units(NamedTuple):
    """The units that a kind of budget may be written in.

    factors: unit in lower case -> its size in the unit that the tool computes in. example: a budget with a unit.
    default: the unit of a number above 1 that is written without one; None where a unit must be written. most: the
    largest budget, in words and in the unit that the tool computes in.
    """

    factors: dict[str, float]
    example: str
    default: str | None
    most: tuple[str, float]


COUNT = Units({"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "k": 1e3, "m": 1e6, "g": 1e9}, "300KB", "b", ("1e18", 1e18))
# Of a file: COUNT, and bits a weight.
SIZE = Units(COUNT.factors | {"bpw": 1.0}, "300KB or 4.25bpw", "b", ("1e18 bytes", 1e18))
LATENCY = Units({"ms": 1.0, "us": 1e-3, "s": 1e3}, "12ms", None, ("1e6s", 1e9))
MOST_SHARE = 1e6
LONGEST = 100  # letters of a budget or a number; the time of a search grows with their square
LONGEST_STATE = 2000  # letters of the names of an output and an input
LONGEST_PATH = 4096  # Linux takes no longer ones
_LIMIT = re.compile(
    r"(?P<number>\d*\.?\d+(?:e[+-]?\d+)?) *(?P<unit>[a-z]*)(?P<eight>@8-bit)?", re.IGNORECASE | re.ASCII
)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
_AXIS = re.compile(r"-?\d{1,2}", re.ASCII)
_SIDE = re.compile(r"\d{1,9}", re.ASCII)
MOST_AXES = 16  # of an input's shape: onnxruntime's own operators take at most eight
_WHOLE = re.compile(r"\d+", re.ASCII)  # Python's own functions take the digits of all scripts, and 1_000


def read_limit(value: Any, units: Units = COUNT) -> Limit:
    """Read ``0.15`` (of the float model), ``0.6@8-bit`` (of the all-8-bit one), ``300KB`` or ``2e6``.

    Raises ValueError for anything else.
    """
    text = str(value).strip() if isinstance(value, (str, int, float)) and _is_short(value) else ""
    match = _LIMIT.fullmatch(text)
    number = float(match["number"]) if match else 0.0
    unit = match["unit"].lower() if match else ""
    share = not unit and match is not None and (match["eight"] or number <= 1)
    unit = unit or (units.default or "")
    if (
        match is None
        or not 0 < number
        or (match["eight"] and match["unit"])
        or (not share and unit not in units.factors)
    ):
        raise ValueError(
            f"must be a share of the float model such as 0.15, of the 8-bit one as 0.6@8-bit, or {units.example}"
        )
    found = number if share else number * units.factors[unit]
    if found > (MOST_SHARE if share else units.most[1]):
        raise ValueError(f"must be {spell_most(units)}")
    if unit == "bpw":
        return Limit(found, "weight")
    return Limit(found, ("8-bit" if match["eight"] else "float") if share else None)


def spell_most(units: Units = COUNT) -> str:
    """The largest budgets in words."""
    return f"a share of at most {MOST_SHARE:g}, or at most {units.most[0]}"


def _is_short(value: str | int | float) -> bool:
    return len(value) <= LONGEST if isinstance(value, str) else abs(value) < 10**LONGEST


def split_numbers(value: Any) -> Any:
    """Turn ``'r,g,b'`` or one number into a tuple; anything else is left for pydantic to read or refuse."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return (value,)
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
        if len(value) > LONGEST or not all(map(NUMBER.fullmatch, parts)):
            raise ValueError("must be one number, or three as 'r,g,b'")
        return tuple(map(float, parts))
    return value


def split_size(value: Any) -> Any:
    """Turn ``224``, ``'224'`` or ``'HxW'`` into (height, width); anything else is left for pydantic."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    if isinstance(value, str):
        sides = value.lower().split("x")
        if len(sides) > 2 or len(value) > LONGEST or not all(_WHOLE.fullmatch(side.strip()) for side in sides):
            raise ValueError("must be a size such as 224, or 'HxW'")
        return (int(sides[0]), int(sides[-1]))
    return value


def split_sides(value: Any) -> Any:
    """Turn ``256`` or ``'256'`` into a tuple of one side, and ``'HxW'`` into (height, width)."""
    sizes = split_size(value)
    one = isinstance(value, int) or (isinstance(value, str) and "x" not in value.lower())
    return sizes[:1] if one and isinstance(sizes, tuple) else sizes


def split_names(value: Any) -> Any:
    """Turn one name into a tuple of one."""
    return (value,) if isinstance(value, str) else value


def split_axes(value: Any) -> Any:
    """Turn an axis, ``NAME=AXIS`` or a list of these into a tuple of texts. Raises as ``read_axis``."""
    listed = value if isinstance(value, (list, tuple)) else (value,)
    texts = [str(each) if isinstance(each, int) and not isinstance(each, bool) else each for each in listed]
    names = [read_axis(text)[0] for text in texts]
    if len(set(names)) < len(names):
        raise ValueError("has two axes for one output, or two for all of them; give one, and others as NAME=AXIS")
    return tuple(texts)


def read_axis(text: Any) -> tuple[str, int]:
    """The name of an output, empty for all of them, and the number of an axis. Raises ValueError for other texts."""
    name, mark, number = text.rpartition("=") if isinstance(text, str) else ("", "", "")
    if not _AXIS.fullmatch(number.strip()) or (mark and not name.strip()):
        raise ValueError("must be an axis such as -1, or NAME=AXIS with the name of an output")
    return name.strip(), int(number)


def split_shapes(value: Any) -> Any:
    """Turn a shape, ``NAME=SHAPE`` or a list of these into a tuple of texts. Raises as ``read_shape``."""
    listed = value if isinstance(value, (list, tuple)) else (value,)
    names = [read_shape(text)[0] for text in listed]
    if len(set(names)) < len(names):
        raise ValueError("has two shapes for one input, or two for all of them; give one, and others as NAME=SHAPE")
    return tuple(listed)


def read_shape(text: Any) -> tuple[str, tuple[int, ...]]:
    """The name of an input, empty for all of them, and its dimensions. Raises ValueError for other texts."""
    name, mark, numbers = text.rpartition("=") if isinstance(text, str) else ("", "", "")
    sides = [side.strip() for side in numbers.split(",", MOST_AXES)]
    dimensions = tuple(int(side) for side in sides if _SIDE.fullmatch(side))
    if (
        len(dimensions) < len(sides)
        or not 0 < len(sides) <= MOST_AXES
        or 0 in dimensions
        or (mark and not name.strip())
    ):
        raise ValueError(
            "must be a shape such as 1,3,224,224, of numbers from 1 on, or NAME=SHAPE with the name of an input"
        )
    return name.strip(), dimensions


def split_states(value: Any) -> Any:
    """Turn ``OUT:IN`` or a list of these into a tuple of texts. Raises ValueError for other texts."""
    listed = value if isinstance(value, (list, tuple)) else (value,)
    for text in listed:
        if not isinstance(text, str) or len(text) > LONGEST_STATE or not re.fullmatch(r"(?s).+:.+", text):
            raise ValueError("must be OUT:IN, an output and the input that its value is in the next step")
        check_name(text)
    return tuple(listed)


def split_columns(value: Any) -> Any:
    """Turn ``'a,b'``, a number, or a list of names and numbers into a tuple of texts. Raises as ``check_name``."""
    if isinstance(value, str):
        return tuple(check_name(part.strip()) for part in value.split(","))
    listed = value if isinstance(value, (list, tuple)) else (value,)
    listed = tuple(check_name(each) if isinstance(each, str) else each for each in listed)
    numbers = [isinstance(each, int) and not isinstance(each, bool) and _is_short(each) for each in listed]
    return tuple(str(each) if number else each for each, number in zip(listed, numbers, strict=True))


def check_limit(value: Any) -> str:
    """Return a budget as text. Raises ValueError where ``read_limit`` does."""
    read_limit(value)
    return str(value).strip()


def check_size(value: Any) -> str:
    """Return a budget of a file's size as text. Raises ValueError where ``read_limit`` does."""
    read_limit(value, SIZE)
    return str(value).strip()


def check_latency(value: Any) -> str:
    """Return a budget of time as text. Raises ValueError where ``read_limit`` does."""
    read_limit(value, LATENCY)
    return str(value).strip()


def split_candidates(value: Any) -> Any:
    """Turn ``'w8a8,W4A32g32'`` into a tuple of names as they are written; anything else is left for pydantic."""
    return (
        tuple(part.strip().upper().replace("G", "g") for part in value.split(",")) if isinstance(value, str) else value
    )


def check_whole(value: Any) -> Any:
    """Return a value. Raises ValueError for 8.0, which Python takes for 8."""
    if isinstance(value, float):
        raise ValueError("must be a whole number, written without a point")
    return value


def read_number_or_word(value: Any) -> Any:
    """Turn digits, as of the command line, into a number; a word is left for pydantic. Raises as ``check_whole``."""
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value) else check_whole(value)


def check_name(value: Any) -> str:
    """Return a name. Raises ValueError for one without any letter, and for bytes that were no text."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must name something; leave it out where nothing is meant")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError("must be UTF-8 text")
    return value


def check_path(value: str) -> str:
    """Return the name of a file or folder. Raises ValueError for what can be none."""
    if not value.strip() or "\0" in value or len(value) > LONGEST_PATH:
        raise ValueError(f"must name a file or folder, in at most {LONGEST_PATH:,} letters without null bytes")
    return value


def check_percentage(value: float) -> float:
    """Return a percentage. Raises ValueError for what looks like a share of 1."""
    if 0 < value <= 1:
        raise ValueError("is in %, above 1 and at most 100; multiply it by 100")
    return value


def check_metric(value: str | None) -> str | None:
    """Return the name of a user's metric. Raises ValueError where it is not MODULE:FUNCTION."""
    if value is not None and not re.fullmatch(r"[\w.]+:[\w.]+", value):
        raise ValueError("must be MODULE:FUNCTION, such as scores:spearman for the function spearman of scores.py")
    return value
