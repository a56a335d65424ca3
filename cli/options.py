"""Options of the command line, made from the fields of the settings, and those that commands share."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from onnxcalib.config import (
    EASILY_CONFUSED,
    PANELS,
    PLAN,
    STAGES,
    QuantizeConfig,
    Setting,
    ValidateConfig,
    list_settings,
)
from onnxcalib.errors import spell_value
from onnxcalib.values import LONGEST, NUMBER

SAMPLES_HELP = (
    "a folder of images, one or a folder of .wav, .npy or .npz, texts (.txt, .csv, .tsv, .jsonl), or ONNX test data."
)
FLAG = ""  # metavar of an option without a value; without it the help shows <bool>
Config = Annotated[Path | None, typer.Option(help="TOML file with any of the settings; options win.")]
AllowCode = Annotated[
    bool,
    typer.Option("--allow-code", metavar=FLAG, help="Let the TOML file name code to run: a metric, a scheduler."),
]
HTML_HELP = "Write a page to look at to this file, or - for standard output; it needs no network."
Html = Annotated[Path | None, typer.Option(help=HTML_HELP)]
Quiet = Annotated[bool, typer.Option("--quiet", metavar=FLAG, help="Print warnings and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", metavar=FLAG, help="Show tracebacks.")]
# Values as typer reads them, by the type of the setting; whatever else a setting takes is text, which pydantic reads.
_TYPES: dict[str, type[int | float | bool]] = {"integer": int, "number": float, "boolean": bool}
_NO_NUMBERS = ("nan", "inf", "-inf")  # read all the same, and refused with the bounds of the setting
PERCENT = "PERCENT"  # metavar of shares in %
_MOST_CHOICES = 22  # letters of choices that stand beside an option's name; more widen the column of all others

# Settings of how layers are reconstructed and written.
_NOT_FOR_CALIBRATION = (
    *STAGES,
    "pipeline",
    "effort",
    "steps",
    "views",
    "device",
    "seed",
    "encoding",
    "weight_range",
    "class_axis",
    "work_dir",
    "resume",
)

Options = Mapping[str, Any]


def with_settings(
    settings: Sequence[Setting], *, first: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each setting, and hand those that were given to its parameter ``options``.

    The options stand in their panels of the help, behind the command's own; ``first`` is the panel that comes before
    the others, which are in the order of PANELS.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [each for name, each in signature.parameters.items() if name != "options"]
        parameters = sorted([*own, *map(_make_parameter, settings)], key=lambda each: _rank(each, first))
        names = [each.name for each in settings]

        @wraps(command)
        def run(**given: Any) -> None:
            values = {name: given.pop(name) for name in names}
            command(**given, options={name: value for name, value in values.items() if value not in (None, [])})

        # typer reads the one or the other.
        run.__dict__["__signature__"] = signature.replace(parameters=parameters)
        run.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": None}
        return run

    return decorate


def list_options(kind: type, *, planning: bool = False) -> tuple[Setting, ...]:
    """The settings of a kind that are options of a command; ``planning``: only those that bear on a bit plan."""
    return tuple(
        each for each in list_settings(kind) if not each.option.file_only and (each.option.plan or not planning)
    )


def list_calibration_options() -> tuple[Setting, ...]:
    """The settings on which the ranges of activations depend."""
    return tuple(
        each
        for each in list_options(QuantizeConfig)
        if each.option.panel != PLAN and each.name not in _NOT_FOR_CALIBRATION
    )


def find_owners(option: str) -> str | None:
    """Which commands have an option for a setting of this name, or None where none has."""
    name = option.lstrip("-").removeprefix("no-").replace("-", "_")
    commands = {
        "quantize": list_options(QuantizeConfig),
        "plan": list_options(QuantizeConfig, planning=True),
        "calibrate": list_calibration_options(),
        "validate": list_options(ValidateConfig),
    }
    owners = [command for command, settings in commands.items() if name in {each.name for each in settings}]
    if not owners:
        return None
    text = f"it belongs to onnxcalib {' and '.join(owners)}"
    return f"{text}; {EASILY_CONFUSED[name]}" if name in EASILY_CONFUSED else text


def _make_parameter(setting: Setting) -> inspect.Parameter:
    """An option that is None unless given, so that a configuration file can set it; its help shows the real default."""
    kind: Any = list[str] if setting.option.repeated else _TYPES.get(setting.json_type, str)
    reader = _read_percent if setting.option.metavar == PERCENT else _READERS.get(kind)
    option = typer.Option(
        setting.flag,
        parser=reader,
        help=_spell_help(setting).replace("[", r"\["),
        metavar=_choose_metavar(setting),
        show_default=False,
        rich_help_panel=setting.option.panel,
    )
    return inspect.Parameter(
        setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _read_integer(text: str) -> int:
    """A whole number in the digits 0 to 9; ``int`` reads 1_000 and the digits of all scripts too."""
    if not re.fullmatch(r"[+-]?[0-9]{1,30}", text.strip()):
        raise typer.BadParameter(f"found {spell_value(text)}; a whole number is needed, in the digits 0 to 9")
    return int(text)


def _read_number(text: str) -> float:
    """A number in the digits 0 to 9; ``float`` reads 1_000 and the digits of all scripts too."""
    if len(text) > LONGEST or not (NUMBER.fullmatch(text.strip()) or text.strip().lower() in _NO_NUMBERS):
        raise typer.BadParameter(f"found {spell_value(text)}; a number is needed, in the digits 0 to 9, as in 0.5")
    return float(text)


def _read_percent(text: str) -> float:
    """As ``_read_number``, with or without a percent sign."""
    return _read_number(text.strip().removesuffix("%"))


_READERS: dict[Any, Callable[[str], Any]] = {int: _read_integer, float: _read_number}


def _choose_metavar(setting: Setting) -> str | None:
    if setting.json_type == "boolean":
        return FLAG
    choices = "|".join(setting.choices)
    number = {"integer": "<int>", "number": "<float>"}.get(setting.json_type)
    return setting.option.metavar or (choices if 0 < len(choices) <= _MOST_CHOICES else number)


def _spell_help(setting: Setting) -> str:
    text = setting.text
    if setting.choices and _choose_metavar(setting) == setting.option.metavar:
        text += f" One of {', '.join(setting.choices)}."
    if setting.option.repeated:
        text += " May be given again."
    if setting.bounds:
        text += f" [{', '.join(setting.bounds)}]"
    return f"{text} [default: {setting.default}]" if setting.default else text


def _rank(parameter: inspect.Parameter, first: str | None) -> int:
    """Where the panel of a parameter stands; what has none comes before all panels."""
    options = (each for each in get_args(parameter.annotation) if hasattr(each, "rich_help_panel"))
    panel = next((each.rich_help_panel for each in options), None)
    if panel is None:
        return -2
    return -1 if panel == first else PANELS.index(panel)
