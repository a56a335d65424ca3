"""The settings of a run: names, types, defaults and allowed values, from Python, a TOML file or the command line."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from .errors import ConfigError
from .spec import FLOAT_BITS
from .values import (
    check_latency,
    check_limit,
    check_metric,
    check_percentage,
    split_candidates,
    split_columns,
    split_names,
    split_numbers,
    split_size,
)

Bits = Literal[8, 4]
# Of what layers read: 32 leaves it in float, and quantizes the weights alone.
ActivationBits = Literal[FLOAT_BITS, 8, 4]
Count = Annotated[int, Field(strict=True, ge=1)]
# What all efforts do equally well; they differ in what has less.
FULL_BITS = 8
MOST_VIEWS = 100  # beyond any use: each is one more pass over the samples
MOST_BATCH = 4096  # of samples in a run that is timed: more fit no memory
CANDIDATES = ("W8A8", "W4A8", "W4A4", "W8A4")
# Limits on the whole model within which bits are planned: of what it costs, and of what it loses.
COSTS = ("max_size", "max_bops", "max_latency")
BUDGETS = (*COSTS, "max_loss", "max_drop")
# What is done to the layers once they are calibrated, in this order, and which of it each pipeline does.
STEPS = ("reconstruct", "statistics", "biases")
PIPELINES = {"light": ("statistics",), "default": ("reconstruct",), "advanced": STEPS}
# Where and how fast a run computes, and what it keeps; none of these changes what it finds.
PLACES = ("jobs", "scheduler", "cache_dir")
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Effort(NamedTuple):
    """What an effort stands for.

    width: branches of the search for a layer's integers; views: of each image, beside itself; probes: directions of the
    model's outputs for which integers are chosen; all three where weights have less than 8 bits. steps: of AdaQuant, a
    block with a layer of several groups that reads less than 8 bits; rescue: the same for a block of which a layer
    could not be solved.
    """

    width: int
    views: int
    probes: int
    steps: int
    rescue: int


# Points on the curve of accuracy against time that the README shows.
EFFORTS = {"fast": Effort(8, 0, 0, 0, 0), "balanced": Effort(16, 1, 1, 0, 100), "best": Effort(32, 2, 4, 200, 200)}


class _Settings(BaseModel):
    """Frozen, with no room for unknown keys, and refused by ConfigError in one line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_describe(error, tuple(type(self).model_fields))) from None


File = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]


class DataConfig(_Settings):
    """How files become a model's input: images by x = (pixel / 255 - mean) / std, after resizing and cropping.

    mean and std: one number, or three in the order r, g, b whatever ``channels`` says.
    resize: shorter side; crop: (height, width) of the centre; layout and channels: None reads them off the model.
    tokenizer: the tokenizer.json that turns texts into tokens; text_column: names of the columns or keys that hold
    them, or numbers from 1 where the file has no header; each is a sample, or with ``pairs`` the two of a row are one.
    max_length: tokens to which texts are truncated; None is as the tokenizer says, or as the model fixes.
    """

    mean: Annotated[tuple[Finite, ...], BeforeValidator(split_numbers)] = (0.0,)
    std: Annotated[tuple[Finite, ...], BeforeValidator(split_numbers)] = (1.0,)
    resize: Count | None = None
    crop: Annotated[tuple[Count, Count] | None, BeforeValidator(split_size)] = None
    layout: Literal["nchw", "nhwc"] | None = None
    channels: Literal["rgb", "bgr", "gray"] | None = None
    tokenizer: File | None = None
    text_column: Annotated[tuple[str, ...], BeforeValidator(split_columns)] = ()
    pairs: Annotated[bool, Field(strict=True)] = False
    max_length: Count | None = None

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


# Of DataConfig, by the kind of samples that they are for.
TEXT_SETTINGS = ("tokenizer", "text_column", "pairs", "max_length")
IMAGE_SETTINGS = tuple(name for name in DataConfig.model_fields if name not in TEXT_SETTINGS)


class LayerConfig(_Settings):
    """What one layer has other than the rest: None leaves it as the rest is, ``exclude`` leaves the layer in float."""

    weight_bits: Bits | None = None
    activation_bits: ActivationBits | None = None
    exclude: bool = Field(default=False, strict=True)


def _read_layers(value: Any) -> Any:
    """Tables of LayerConfig by node name, their faults with the name in front."""
    if not isinstance(value, Mapping):
        raise ConfigError(
            f'layers: found {value!r}; it holds a table for each layer; write [layers."NAME"] above its bits'
        )
    return {name: _read_layer(name, settings) for name, settings in value.items()}


def _read_layer(name: str, settings: Any) -> LayerConfig:
    if isinstance(settings, LayerConfig):
        return settings
    if not isinstance(settings, Mapping):
        raise ConfigError(
            f"layers: {name!r}: found {settings!r}; it is a table; write [layers.{name!r}] above its bits"
        )
    try:
        return LayerConfig(**{str(key).replace("-", "_"): each for key, each in settings.items()})
    except ConfigError as error:
        raise ConfigError(f"layers: {name!r}: {error}") from None


class QuantizeConfig(_Settings):
    """All settings of ``quantize``.

    Bits are those of weighted layers: their weights and the activations they read; 32 of these leaves them in float.
    block_size: so many inputs of a MatMul or Gemm share a scale where its activations are float; None: 32 with 4-bit
    weights, all inputs with others. embedding_bits: of tables that a Gather looks up by row; None: those of the
    weights. weight_range: with bounded no sum of products saturates on x86 without VNNI, with full they may. effort:
    layers are solved at any; with more of it 4-bit weights by a wider search, on more views of image files. AdaQuant
    then learns blocks with a layer that could not be solved, at balanced and best, and at best those with a layer of
    several groups that reads 4 bits. ``steps``, of every block, and ``views``, also of arrays of images, win over that.
    pipeline: which of STEPS are done; each by its own name wins over that: reconstruct solves and learns layers,
    otherwise they are rounded; statistics tunes means and deviations of their outputs; biases trains
    these end to end. samples: use only the first so many. device: where layers are solved and blocks learned, CUDA
    by itself where torch sees it; onnxruntime stays on the CPU. max_size, max_bops and max_latency: budgets within
    which a bit plan of the candidates loses least, in place of the same bits everywhere; or max_loss, of the
    outputs' divergence, or max_drop, of the top class' agreement in points of 100, with which it is smallest.
    latencies: a CSV file of layers' times, in place of measuring them. jobs, scheduler: worker processes, or a Dask
    cluster, that plan; cache_dir: where what they measured is kept. exclude: nodes that stay in float; layers:
    settings of single layers. Both name nodes, or are regular expressions that match whole names.
    """

    weight_bits: Bits = 8
    activation_bits: ActivationBits = 8
    first_last_bits: Bits = 8
    block_size: Literal[32, 128] | None = None
    embedding_bits: Literal[32, 8, 4] | None = None
    range: Literal["min-max", "percentile", "squared-error", "entropy"] = "squared-error"
    percentile: float = Field(default=99.99, gt=50, le=100, allow_inf_nan=False)
    encoding: Literal["runtime", "standard"] = "runtime"
    weight_range: Literal["bounded", "full"] = "bounded"
    pipeline: Literal["light", "default", "advanced"] = "default"
    reconstruct: Annotated[bool, Field(strict=True)] | None = None
    statistics: Annotated[bool, Field(strict=True)] | None = None
    biases: Annotated[bool, Field(strict=True)] | None = None
    effort: Literal["fast", "balanced", "best"] = "balanced"
    steps: Annotated[int, Field(strict=True, ge=0)] | None = None
    views: Annotated[int, Field(strict=True, ge=0, le=MOST_VIEWS)] | None = None
    samples: Count | None = None
    seed: int = Field(default=0, strict=True, ge=0, lt=2**63)
    threads: Count | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    candidates: Annotated[tuple[Literal[CANDIDATES], ...], BeforeValidator(split_candidates), Field(min_length=1)] = (
        CANDIDATES
    )
    max_size: Annotated[str, BeforeValidator(check_limit)] | None = None
    max_bops: Annotated[str, BeforeValidator(check_limit)] | None = None
    max_latency: Annotated[str, BeforeValidator(check_latency)] | None = None
    max_loss: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    max_drop: Annotated[float, Field(gt=0, lt=100, allow_inf_nan=False)] | None = None
    latencies: File | None = None
    jobs: Count | None = None
    scheduler: Annotated[str, Field(pattern=r"^\w+://.+")] | None = None
    cache_dir: File | None = None
    exclude: Annotated[tuple[str, ...], BeforeValidator(split_names)] = ()
    layers: Annotated[dict[str, LayerConfig], BeforeValidator(_read_layers)] = {}
    data: DataConfig = DataConfig()

    @property
    def planned(self) -> bool:
        """Whether bits are chosen within a budget."""
        return any(getattr(self, name) is not None for name in BUDGETS)

    def does(self, step: str) -> bool:
        """Whether one of STEPS is done."""
        chosen = getattr(self, step)
        return step in PIPELINES[self.pipeline] if chosen is None else chosen

    @property
    def least_bits(self) -> int:
        """The fewest bits that anything may get."""
        bits = [self.weight_bits, self.activation_bits, self.first_last_bits, self.embedding_bits or 8]
        bits += [b for layer in self.layers.values() for b in (layer.weight_bits, layer.activation_bits) if b]
        bits += [int(digit) for name in self.candidates if self.planned for digit in re.findall(r"\d", name)]
        return min(bits)

    @property
    def float_activations(self) -> bool:
        """Whether any layer may read float activations."""
        return FLOAT_BITS in (self.activation_bits, *(layer.activation_bits for layer in self.layers.values()))

    def block_steps(self, *, solved: bool, hard: bool) -> int:
        """AdaQuant steps of a block: ``steps``, or what ``effort`` stands for.

        solved: whether all of its layers were; hard: whether one of several groups reads less than 8 bits. Its filters
        have few inputs to make up for the error of one; elsewhere the steps change nothing once the layers are solved.
        """
        if self.steps is not None:
            return self.steps
        effort = EFFORTS[self.effort]
        return max(effort.steps if hard else 0, 0 if solved else effort.rescue)

    def search_width(self, weight_bits: int) -> int:
        """Branches of the search for a layer's integers; at 8 bits the first one is as good as any."""
        return EFFORTS[self.effort].width if weight_bits < FULL_BITS else 1

    def image_views(self, weight_bits: int) -> int:
        """Views of each image beside itself, for a model whose weights have so many bits, or more.

        ``views``, or what ``effort`` stands for; at 8 bits they bring a layer no nearer to its optimum.
        """
        if self.views is not None:
            return self.views
        return EFFORTS[self.effort].views if weight_bits < FULL_BITS else 0


class ValidateConfig(_Settings):
    """All settings of ``validate``; a gate that is None is not asked for.

    max_drop: of top-1 accuracy in points of 100, or of the user's own metric in its unit; min_agreement: of the top
    class, in %; min_sqnr: of every output, in dB; max_size_ratio: bytes of the files, quantized / float; min_speedup:
    float time / quantized time; max_unfused: QuantizeLinear and DequantizeLinear that onnxruntime leaves standing;
    max_steps: largest difference of a layer between graph optimizations off and on, in quantization steps;
    max_saturating: integer kernels that can saturate on x86 without VNNI. confident: the whole 95% interval of a
    measure must clear its gate. metric: ``module:function`` of a user's own. batch: samples in a run that is timed.
    """

    max_drop: Annotated[float | None, Field(strict=True, allow_inf_nan=False)] = None
    min_agreement: Annotated[float, Field(ge=0, le=100), AfterValidator(check_percentage)] | None = None
    min_sqnr: Annotated[float | None, Field(strict=True, allow_inf_nan=False)] = None
    max_size_ratio: Annotated[float | None, Field(strict=True, gt=0, allow_inf_nan=False)] = None
    min_speedup: Annotated[float | None, Field(strict=True, gt=0, allow_inf_nan=False)] = None
    max_unfused: Annotated[int | None, Field(strict=True, ge=0)] = None
    max_steps: Annotated[int, Field(strict=True, ge=0)] = 1
    max_saturating: Annotated[int | None, Field(strict=True, ge=0)] = None
    confident: bool = Field(default=False, strict=True)
    metric: Annotated[str | None, AfterValidator(check_metric)] = None
    samples: Count | None = None
    batch: Annotated[int, Field(strict=True, ge=1, le=MOST_BATCH)] = 1
    threads: Count | None = None
    data: DataConfig = DataConfig()


Kind = TypeVar("Kind", QuantizeConfig, ValidateConfig)


def load_config(
    path: str | Path | None = None, options: Mapping[str, Any] | None = None, kind: type[Kind] = QuantizeConfig
) -> Kind:
    """Settings of ``kind`` from a TOML file, command line options laid over them; an option that is None is not given.

    One file serves both commands: those of ``quantize`` stand at the top, those of ``validate`` in the table
    [validate], those of samples in [data]. Option names are field names, those of DataConfig included. All of the file
    is checked. Raises ConfigError that names the file or the option.
    """
    settings = {} if path is None else _read_toml(Path(path))[kind]
    for key, value in (options or {}).items():
        if value is None:
            continue
        try:
            kind(**_nest({key: value}))
        except ConfigError as error:
            raise ConfigError(f"--{key.replace('_', '-')}: {str(error).partition(': ')[2]}") from None
        settings[key] = value
    return kind(**_nest(settings))


def nearest(name: str, allowed: tuple[str, ...] | list[str]) -> str:
    """`` did you mean 'x'?`` with the allowed name that is most like ``name``, or nothing where none is."""
    match = difflib.get_close_matches(name, allowed, n=1)
    return f" did you mean {match[0]!r}?" if match else ""


def _read_toml(path: Path) -> dict[type, dict[str, Any]]:
    """Checked settings of each kind by field name, with those of the [data] table beside the others."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; give --config a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}; see https://toml.io") from None
    data = _read_section(path, _take_table(path, table, "data"), _DATA_NAMES)
    gates = _read_section(path, _take_table(path, table, "validate"), _VALIDATE_NAMES)
    flat = _read_section(path, table, _QUANTIZE_NAMES + _DATA_NAMES)
    for key in flat.keys() & data.keys():
        raise ConfigError(f"{path}: {key}: given twice; keep one")
    data |= {key: flat[key] for key in flat if key in _DATA_NAMES}
    settings: dict[type, dict[str, Any]] = {QuantizeConfig: flat | data, ValidateConfig: gates | data}
    for kind, values in settings.items():
        try:
            kind(**_nest(values))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    return settings


def _take_table(path: Path, table: dict[str, Any], name: str) -> dict[str, Any]:
    found = table.pop(name, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: {name}: found {found!r}; it is a table; write [{name}] above its settings")
    return found


def _read_section(path: Path, section: Mapping[str, Any], allowed: tuple[str, ...]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for key, value in section.items():
        name = key.replace("-", "_")
        if name not in allowed:
            hint = " write it under [validate]" if name in _VALIDATE_NAMES else _suggest(key, name, allowed)
            raise ConfigError(f"{path}: {key}: unknown setting;{hint}")
        if name in settings:
            raise ConfigError(f"{path}: {key}: given twice; keep one")
        settings[name] = value
    return settings


def _nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings as the fields of QuantizeConfig or ValidateConfig."""
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
_QUANTIZE_NAMES = tuple(name for name in QuantizeConfig.model_fields if name != "data")
_VALIDATE_NAMES = tuple(name for name in ValidateConfig.model_fields if name != "data")
