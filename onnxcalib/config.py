"""The settings of a run: names, types, defaults and allowed values, from Python, a TOML file or the command line."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from onnxcalib.errors import ConfigError

Bits = Literal[8, 4]
Count = Annotated[int, Field(strict=True, ge=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


def _split_numbers(value: Any) -> Any:
    """``'r,g,b'``, a list or one number, as a tuple; anything else is left for pydantic to refuse."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return (value,)
    if isinstance(value, str):
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            raise ValueError("must be one number, or three as 'r,g,b'") from None
    return value


def _split_size(value: Any) -> Any:
    """``224``, ``'224'``, ``'HxW'`` or ``[H, W]`` as (height, width)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    if isinstance(value, str):
        sides = value.lower().split("x")
        if len(sides) > 2 or not all(side.strip().isdecimal() for side in sides):
            raise ValueError("must be a size such as 224, or 'HxW'")
        return (int(sides[0]), int(sides[-1]))
    return value


class _Settings(BaseModel):
    """Frozen, with no room for unknown keys, and refused by ConfigError in one line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_describe(error, tuple(type(self).model_fields))) from None


class DataConfig(_Settings):
    """How image files become a model's input: x = (pixel / 255 - mean) / std, after resizing and cropping.

    mean and std: one number, or three in the order r, g, b whatever ``channels`` says.
    resize: shorter side; crop: (height, width) of the centre; layout and channels: None reads them off the model.
    """

    mean: Annotated[tuple[Finite, ...], BeforeValidator(_split_numbers)] = (0.0,)
    std: Annotated[tuple[Finite, ...], BeforeValidator(_split_numbers)] = (1.0,)
    resize: Count | None = None
    crop: Annotated[tuple[Count, Count] | None, BeforeValidator(_split_size)] = None
    layout: Literal["nchw", "nhwc"] | None = None
    channels: Literal["rgb", "bgr", "gray"] | None = None

    @field_validator("mean", "std")
    @classmethod
    def _check_length(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(value) not in (1, 3):
            raise ValueError(f"has {len(value)} numbers; must be one number, or three as 'r,g,b'")
        return value

    @field_validator("mean")
    @classmethod
    def _check_mean(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if max(abs(number) for number in value) > 1:
            raise ValueError("must be on the scale of pixel / 255, between -1 and 1; divide it by 255")
        return value

    @field_validator("std")
    @classmethod
    def _check_std(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if min(value) <= 0:
            raise ValueError("must be greater than 0")
        return value


class QuantizeConfig(_Settings):
    """All settings of ``quantize``.

    Bits are those of weighted layers: their weights and the activations they read. steps: AdaQuant steps a block;
    samples: use only the first so many; reconstruct: False calibrates and rounds only.
    """

    weight_bits: Bits = 8
    activation_bits: Bits = 8
    first_last_bits: Bits = 8
    range: Literal["min-max", "percentile", "squared-error", "entropy"] = "squared-error"
    percentile: float = Field(default=99.99, gt=50, le=100, allow_inf_nan=False)
    encoding: Literal["runtime", "standard"] = "runtime"
    reconstruct: bool = Field(default=True, strict=True)
    steps: Count = 100
    samples: Count | None = None
    seed: int = Field(default=0, strict=True, ge=0)
    threads: Count | None = None
    data: DataConfig = DataConfig()


def load_config(path: str | Path | None = None, options: Mapping[str, Any] | None = None) -> QuantizeConfig:
    """The settings of a TOML file with command line options laid over them; an option that is None was not given.

    Option names are field names, those of DataConfig included. Raises ConfigError that names the file or the option.
    """
    settings = {} if path is None else _read_toml(Path(path))
    for key, value in (options or {}).items():
        if value is None:
            continue
        try:
            QuantizeConfig(**_nest({key: value}))
        except ConfigError as error:
            raise ConfigError(f"--{key.replace('_', '-')}: {str(error).partition(': ')[2]}") from None
        settings[key] = value
    return QuantizeConfig(**_nest(settings))


def nearest(name: str, allowed: tuple[str, ...] | list[str]) -> str:
    """`` did you mean 'x'?`` with the allowed name that is most like ``name``, or nothing where none is."""
    match = difflib.get_close_matches(name, allowed, n=1)
    return f" did you mean {match[0]!r}?" if match else ""


def _read_toml(path: Path) -> dict[str, Any]:
    """Checked settings by field name, with those of the [data] table beside the others."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; give --config a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}; see https://toml.io") from None
    data = table.pop("data", {})
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: data: found {data!r}; it is a table; write [data] above its settings")
    settings: dict[str, Any] = {}
    for section, allowed in ((table, _FLAT_NAMES), (data, _DATA_NAMES)):
        for key, value in section.items():
            name = key.replace("-", "_")
            if name not in allowed:
                raise ConfigError(f"{path}: {key}: unknown setting;{_suggest(key, name, allowed)}")
            if name in settings:
                raise ConfigError(f"{path}: {key}: given twice; keep one")
            settings[name] = value
    try:
        QuantizeConfig(**_nest(settings))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return settings


def _nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings as the fields of QuantizeConfig."""
    nested = {key: value for key, value in settings.items() if key not in _DATA_NAMES}
    data = {key: value for key, value in settings.items() if key in _DATA_NAMES}
    return {**nested, "data": data} if data else nested


def _suggest(key: str, name: str, allowed: tuple[str, ...]) -> str:
    return nearest(name, allowed) or f" {key!r} is none of {', '.join(allowed)}"


def _describe(error: ValidationError, allowed: tuple[str, ...]) -> str:
    """The first fault of a pydantic error as ``setting: what was found; what is allowed``."""
    fault = error.errors(include_url=False)[0]
    key = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown setting;{_suggest(key, key, allowed)}"
    if fault["type"] == "value_error":
        allowed_text = str(fault["ctx"]["error"])
    elif fault["type"] == "literal_error":
        allowed_text = f"allowed: {fault['ctx']['expected']}"
    else:
        allowed_text = fault["msg"][0].lower() + fault["msg"][1:]
    return f"{key}: found {fault['input']!r}; {allowed_text}"


_DATA_NAMES = tuple(DataConfig.model_fields)
_FLAT_NAMES = tuple(name for name in QuantizeConfig.model_fields if name != "data") + _DATA_NAMES
