"""Read settings from a TOML file, with options of the command line laid over them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from ..errors import ConfigError, escape_controls, spell_value
from ..files.reading import read_text
from .data import DataConfig
from .fields import Settings, hint_at, hint_at_table
from .quantize import QuantizeConfig
from .validate import ValidateConfig

Kind = TypeVar("Kind", bound=Settings)


SHOWN = 100  # letters of a key that messages show
# tomllib takes memory and time by the square of the parts of a key. Possessive, so that the search itself does not.
MOST_PARTS = 50
_DEEP_KEY = re.compile(rf"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){{{MOST_PARTS}}}""")
# Settings that run code: a metric is a Python function, and a Dask cluster hands over pickles.
CODE = {
    "metric": "it names Python code that is run",
    "scheduler": "a cluster sends pickles, which can run any code",
}


@overload
def load_config(
    path: str | Path | None = None, options: Mapping[str, Any] | None = None, *, allow_code: bool = False
) -> QuantizeConfig: ...


@overload
def load_config(
    path: str | Path | None, options: Mapping[str, Any] | None, kind: type[Kind], *, allow_code: bool = False
) -> Kind: ...


@overload
def load_config(
    path: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    kind: type[Kind],
    allow_code: bool = False,
) -> Kind: ...


def load_config(
    path: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    kind: type[Settings] = QuantizeConfig,
    *,
    allow_code: bool = False,
) -> Settings:
    """Settings of ``kind`` from a TOML file, command line options laid over them; an option that is None is not given.

    One file serves all commands: the settings of ``quantize`` and ``plan`` stand at the top, those of ``validate`` in
    the table [validate], those of samples in [data] or at the top. Option names are field names, those of DataConfig
    included. All of the file is checked, whatever ``kind`` is. A setting of CODE is taken from the file only with
    ``allow_code``, as files are handed on by people who cannot know what such a setting does on another machine.

    Raises ConfigError that names the file or the option.
    """
    settings = {} if path is None else _read_toml(Path(path))[kind]
    given = {key: value for key, value in (options or {}).items() if value is not None}
    for key, danger in CODE.items() if not allow_code else ():
        if settings.get(key) is not None and key not in given:
            raise ConfigError(
                f"{path}: {key}: found {spell_value(settings[key])}; {danger}; give --{key.replace('_', '-')} on the"
                " command line, or --allow-code (in Python allow_code=True) for a file that you trust"
            )
    try:
        return kind(**_nest({**settings, **given}))
    except ConfigError as error:
        key, _, fault = str(error).partition(": ")
        if key not in given:
            raise
        raise ConfigError(f"--{key.replace('_', '-')}: {fault}") from None


def read_toml(path: Path, *, give: str) -> dict[str, Any]:
    """The table of a TOML file, read with bounded memory and time. Raises ConfigError."""
    text = read_text(path, ConfigError, give=give)
    if _DEEP_KEY.search(text):
        raise ConfigError(f"{path}: found a key of more than {MOST_PARTS} parts; none needs so many; shorten it")
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{path}: not TOML: nested too deep; see https://toml.io") from None
    except ValueError as error:  # of integers with too many digits too
        raise ConfigError(f"{path}: not TOML: {escape_controls(str(error))}; see https://toml.io") from None
    return table


def _read_toml(path: Path) -> dict[type[Settings], dict[str, Any]]:
    """Checked settings of each kind by field name, with those of the [data] table beside the others."""
    table = read_toml(path, give="give --config a TOML file")
    data = _read_section(path, _take_table(path, table, "data"), _DATA_NAMES)
    gates = _read_section(path, _take_table(path, table, "validate"), _VALIDATE_NAMES)
    flat = _read_section(path, table, _QUANTIZE_NAMES + _DATA_NAMES)
    for key in flat.keys() & data.keys():
        raise ConfigError(f"{path}: {key}: given twice; keep one")
    data |= {key: flat[key] for key in flat if key in _DATA_NAMES}
    settings: dict[type[Settings], dict[str, Any]] = {QuantizeConfig: flat | data, ValidateConfig: gates | data}
    for kind, values in settings.items():
        try:
            kind(**_nest(values))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    return settings


def _take_table(path: Path, table: dict[str, Any], name: str) -> dict[str, Any]:
    found = table.pop(name, {})
    if not isinstance(found, dict):
        raise ConfigError(
            f"{path}: {name}: found {spell_value(found)}; it is a table; write [{name}] above its settings"
        )
    return found


def _read_section(path: Path, section: Mapping[str, Any], allowed: Sequence[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for key, value in section.items():
        name, shown = key.replace("-", "_"), escape_controls(key[:SHOWN])
        if name not in allowed and isinstance(value, dict):
            raise ConfigError(f"{path}: [{shown}]: unknown table;{hint_at_table(value)}")
        if name not in allowed:
            raise ConfigError(f"{path}: {shown}: unknown setting;{hint_at(name, allowed)}")
        if name in settings:
            raise ConfigError(f"{path}: {shown}: given twice; keep one")
        settings[name] = value
    return settings


def _nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings as the fields of QuantizeConfig or ValidateConfig."""
    nested = {key: value for key, value in settings.items() if key not in _DATA_NAMES}
    data = {key: value for key, value in settings.items() if key in _DATA_NAMES}
    return {**nested, "data": data} if data else nested


_DATA_NAMES = tuple(DataConfig.model_fields)
_QUANTIZE_NAMES = tuple(name for name in QuantizeConfig.model_fields if name != "data")
_VALIDATE_NAMES = tuple(name for name in ValidateConfig.model_fields if name != "data")
