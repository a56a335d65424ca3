"""What all settings share: how each is shown to users, and refusals in one line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ..errors import ConfigError, escape_controls, spell_value
from ..values import check_name, check_path, split_axes

# Panels of the help, in their order: what most people need comes first.
GATES, REPORTS, BITS, EFFORT, PLAN = "Gates", "Reports", "Bits", "Accuracy and time", "Bit plan"
IMAGES, TEXTS, SEQUENCES, EXPERT = "Image files", "Texts", "Sequences and audio", "Expert settings"
PANELS = (GATES, REPORTS, BITS, EFFORT, PLAN, IMAGES, TEXTS, SEQUENCES, EXPERT)
# Two limits on what is lost, of which one is easily taken for the other.
EASILY_CONFUSED = dict.fromkeys(
    ("max_drop", "max_disagreement"),
    "max_drop, a gate of validate, limits the accuracy lost, in points; max_disagreement, a budget of bit plans, limits"
    " the samples whose top class changes, in %",
)


LONGEST = 1000  # letters of a name for which the nearest is sought, which takes time by the square of them


@dataclass(frozen=True)
class Option:
    """How a setting is shown beside the description of its field.

    metavar: what stands for its value in the help; None is read off the type. form: the type in words, where the
    type itself does not tell how the value is written. bounds: its limits in words, where the type does not tell them
    either. unset: what holds where the default is None. plan: whether it
    bears on a bit plan, and so is an option of ``plan`` too. repeated: the option may be given again. file_only: there
    is no option. off: the name of the option that switches it off, where that is not ``no-`` and its own.
    """

    panel: str
    metavar: str | None = None
    form: str | None = None
    bounds: str | None = None
    unset: str | None = None
    plan: bool = True
    repeated: bool = False
    file_only: bool = False
    off: str | None = None


# No number of a setting is larger than MOST: what is counted beyond it does not fit into any machine.
MOST, MOST_THREADS = 10**9, 1024
Count = Annotated[int, Field(strict=True, ge=1, le=MOST)]
NaturalNumber = Annotated[int, Field(strict=True, ge=0, le=MOST)]
# More threads or processes than a machine has cores make it slower, and many thousands end it.
Workers = Annotated[int, Field(strict=True, ge=1, le=MOST_THREADS)]
Switch = Annotated[bool, Field(strict=True)]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Name = Annotated[str, AfterValidator(check_name)]
File = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value),
    AfterValidator(check_path),
]
Axes = Annotated[
    tuple[str, ...],
    BeforeValidator(split_axes),
    Field(
        description="Axis of the classes in outputs of three or more axes, for agreement: of all of them, or NAME=AXIS"
        " of one."
    ),
    Option(
        EXPERT,
        metavar="AXIS",
        form="an axis, NAME=AXIS, or a list of these",
        unset="that of probabilities",
        repeated=True,
    ),
]


class Settings(BaseModel):
    """Frozen, with no room for unknown keys, and refused by ConfigError in one line.

    table: where settings of the kind stand in a TOML file; empty for the top of the file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    table: ClassVar[str] = ""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_describe(error, tuple(type(self).model_fields))) from None

    @classmethod
    def take(cls, given: object) -> Self:
        """What a caller gave as ``config``, the defaults for None. Raises ConfigError for what is of another type."""
        if given is None:
            return cls()
        if isinstance(given, cls):
            return given
        advice = f"write {cls.__name__}(**...)" if isinstance(given, Mapping) else f"make one with {cls.__name__}(...)"
        raise ConfigError(f"config: found {type(given).__name__}; a {cls.__name__} is needed; {advice}")


def find_nearest(name: str, allowed: Sequence[str]) -> str | None:
    """The allowed name that is most like ``name``, whatever the case of its letters, or None where none is."""
    if len(name) > LONGEST:
        return None
    match = difflib.get_close_matches(name, allowed, n=1)
    if not match:
        folded = {each.lower(): each for each in allowed}
        match = [folded[each] for each in difflib.get_close_matches(name.lower(), folded, n=1)]
    return match[0] if match else None


def nearest(name: str, allowed: Sequence[str], *, prefix: str = "") -> str:
    """`` did you mean 'x'?`` with the allowed name that is most like ``name``, or nothing where none is."""
    match = find_nearest(name, allowed)
    return "" if match is None else f" did you mean {prefix + match!r}?"


def hint_at(name: str, allowed: Sequence[str]) -> str:
    """Where an unknown setting belongs in a TOML file and in Python, or the allowed name most like it, or all names."""
    kinds = sorted(Settings.__subclasses__(), key=lambda kind: kind.table)
    homes = [f"{_spell_table(kind)} ({kind.__name__})" for kind in kinds if name in kind.model_fields]
    if homes:
        confused = f"; {EASILY_CONFUSED[name]}" if name in EASILY_CONFUSED else ""
        return f" it belongs {' or '.join(homes)}{confused}"
    return nearest(name, allowed) or f" {spell_value(name)} is none of {', '.join(allowed)}"


def hint_at_table(settings: Mapping[str, Any]) -> str:
    """Where the settings of an unknown table of a TOML file belong."""
    for key in settings:
        name = key.replace("-", "_")
        homes = [kind for kind in Settings.__subclasses__() if name in kind.model_fields]
        if homes:
            return f" {key} belongs {' or '.join(sorted(map(_spell_table, homes)))}"
    return ' the tables are [data], [validate] for the gates, and [layers."NAME"]'


def _spell_table(kind: type[Settings]) -> str:
    return f"under [{kind.table}]" if kind.table else "at the top of the file"


def _describe(error: ValidationError, allowed: Sequence[str]) -> str:
    """The first fault of a pydantic error as ``setting: what was found; what is allowed``."""
    fault = error.errors(include_url=False)[0]
    key = escape_controls(str(fault["loc"][0]))[:LONGEST]
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown setting;{hint_at(key, allowed)}"
    return f"{key}: found {spell_value(fault['input'])}; {spell_allowed(fault)}"


def spell_allowed(fault: Mapping[str, Any]) -> str:
    """What one fault of a pydantic error would allow."""
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    if fault["type"] == "literal_error":
        return f"allowed: {fault['ctx']['expected']}"
    return str(fault["msg"][0].lower() + fault["msg"][1:])
