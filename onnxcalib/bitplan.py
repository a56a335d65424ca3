"""The bit plan as a record and as a JSON file that a person can read, edit and hand to ``quantize --plan``."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from .config import BUDGETS, CANDIDATES, COLUMN, FULL_BITS, WIDE_BITS, CandidateName, LayerConfig
from .errors import ConfigError, escape_controls, spell_value
from .files.reading import read_json
from .spec import FLOAT_BITS, Candidate

SCHEMA: Literal[1] = 1
FLOAT: Literal["float"] = "float"
CANDIDATE_OF: dict[str, Candidate] = {name: Candidate(*map(int, re.findall(r"\d+", name))) for name in CANDIDATES}


def check_wide(bits: int) -> int:
    """The bits of a tensor in a plan. Raises ValueError for others."""
    if bits not in (FULL_BITS, WIDE_BITS):
        raise ValueError(f"a tensor has {WIDE_BITS} or {FULL_BITS}")
    return bits


Record = TypeVar("Record", bound=BaseModel)
NAME_OF: dict[Candidate, CandidateName] = {CANDIDATE_OF[name]: name for name in CANDIDATES}
# Of a set of tensors that no layer reads.
TensorBits = Literal["A8", "A16"]
TENSOR_BITS: dict[Candidate, TensorBits] = {Candidate(0, 8): "A8", Candidate(0, 16): "A16"}
WideBits = Annotated[int, Field(strict=True), AfterValidator(check_wide)]
SetBits = CandidateName | TensorBits
Budget = Annotated[str, Field(pattern=f"^({'|'.join(BUDGETS)})$")]
SHOWN = 500  # letters of a place in a file that messages show
# Numbers as they stand in a file: no text, no truth value, and no number that is not finite.
Whole = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[Number, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SetRecord(_Record):
    """Layers that must have the same bits, and what they lose and cost at each candidate.

    loss: divergence of the model's outputs with these layers alone quantized, null where an output is not finite; of
    activations alone where these alone are chosen, with weights in float. bytes: size in the file, where it is known.
    bops: bit operations of a sample. milliseconds: time of a run, where it is limited.
    tensors: those that share the grid of what the layers read, where activations may have 16 bits; elements: theirs,
    in a sample. A set without layers is of tensors that none reads.
    """

    layers: tuple[str, ...]
    macs: Whole
    loss: dict[SetBits, Number | None]
    bytes: dict[SetBits, Whole]
    bops: dict[SetBits, Whole]
    milliseconds: dict[SetBits, Positive] = {}
    tensors: tuple[str, ...] = ()
    elements: Whole = 0


class Totals(_Record):
    """What the whole model loses and costs.

    predicted_loss: sum of the losses of all sets. measured_loss: divergence of the outputs of the whole model. Both are
    null where an output is not finite. bytes: size of the file. bops: bit operations of a sample. milliseconds of one
    run, agreement: samples in % whose top class stays, and a16: elements of activations in % that have 16 bits; all
    three are known where they are limited. bits_per_weight: of the file of a plan of weights alone, as
    ``graph.constants`` counts them.
    """

    predicted_loss: Number | None
    measured_loss: Number | None
    bytes: Whole
    bops: Whole
    milliseconds: Positive | None = None
    agreement: Number | None = None
    a16: Positive | None = None
    bits_per_weight: Positive | None = None


class BitPlan(_Record):
    """Bits of every layer, and what they were chosen from.

    layers: candidate by node name, or float for layers that stay so; ``quantize --plan`` gives every layer these bits.
    tensors: 16 or 8 bits of activations that no layer reads, and of all that shares their grids.
    in_float: node that the tool itself left in float -> why; it has no effect on a layer that has bits.
    model: fingerprint of the model that the plan is for. budgets: the limits, in their units. totals: of this plan.
    eight_bit: of the plan of W8A8 for every layer whose settings allow it. bound: proven lower bound of the sum of
    losses within the budgets; of the bytes, where max_loss was given; where max_disagreement was, of the sum of losses
    at the size of this plan. rounds: how often the losses were measured again. weight_symmetry: whether weights alone
    have zero points, as they were measured; null for a plan of others.
    """

    schema_version: Annotated[Literal[1], Field(alias="schema")] = SCHEMA
    model: str
    budgets: dict[Budget, Positive]
    layers: Annotated[dict[str, Literal[CandidateName, "float"]], Field(min_length=1)]
    tensors: dict[str, WideBits] = {}
    in_float: dict[str, str] = {}
    weight_symmetry: Literal["symmetric", "asymmetric"] | None = None
    totals: Totals
    eight_bit: Totals
    bound: Number
    rounds: Whole
    sets: tuple[SetRecord, ...]

    def settings(self) -> dict[str, LayerConfig]:
        """The plan as settings of single layers."""
        return {name: _settings_of(bits) for name, bits in self.layers.items()}

    def list_replaced(self, layers: Mapping[str, LayerConfig]) -> list[str]:
        """Those settings of single layers, as they are written, in place of whose bits the plan has others."""
        planned, fields = self.settings(), ("weight_bits", "activation_bits", "block_size")
        return [
            f'layers."{name}"'
            for name, each in layers.items()
            if name in planned and any(getattr(each, f) not in (None, getattr(planned[name], f)) for f in fields)
        ]

    def reasons(self) -> dict[str, str]:
        """Nodes that stay in float by this plan, with the reasons that it knows."""
        return {name: why for name, why in self.in_float.items() if self.layers.get(name, FLOAT) == FLOAT}

    def check(self, model: str) -> None:
        """Raise ConfigError for a model of another fingerprint."""
        if self.model != model:
            raise ConfigError(
                f"plan: found one for the model {escape_controls(self.model[:12])}; this model is {model[:12]}; plan"
                " this one too, with the same shape"
            )

    def check_layers(self, names: Iterable[str]) -> None:
        """Raise ConfigError for a layer that is quantized and that the plan does not name."""
        missing = [name for name in names if name not in self.layers]
        if missing:
            raise ConfigError(
                f"plan: found no bits of layer {missing[0]!r}, nor of {len(missing) - 1} more; those of every layer are"
                " needed; plan again, or add them"
            )

    def check_tensors(self, names: Collection[str]) -> None:
        """Raise ConfigError for bits of a tensor that has no grid."""
        unknown = [name for name in self.tensors if name not in names]
        if unknown:
            raise ConfigError(
                f"plan: found bits of tensor {unknown[0]!r}, and of {len(unknown) - 1} more; with these settings they"
                " have no grid; plan again, or take them out"
            )

    def to_json(self) -> str:
        """The text of the file that ``read_plan`` reads."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1)


class Point(_Record):
    """One choice of bits for every layer: the sum of the losses, null if not finite, and what it costs."""

    bytes: Whole
    bops: Whole
    loss: Number | None
    layers: dict[str, CandidateName]


class Frontier(_Record):
    """The choice of least loss for each size, smallest file first, and for comparison one candidate everywhere."""

    model: str
    float_bytes: Whole
    points: tuple[Point, ...]
    uniform: dict[CandidateName, Point]

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1)


def _settings_of(name: str) -> LayerConfig:
    if name == FLOAT:
        return LayerConfig(exclude=True)
    return settings_of(CANDIDATE_OF[name])


def settings_of(candidate: Candidate) -> LayerConfig:
    """The bits of a candidate as settings of a layer."""
    values: dict[str, Any] = candidate._asdict()
    values["block_size"] = (candidate.block_size or COLUMN) if candidate.activation_bits == FLOAT_BITS else None
    return LayerConfig(**values)


def read_plan(path: Path) -> BitPlan:
    """Read a plan from a file. Raises ConfigError that says what is wrong with the file."""
    data = read_json(path, ConfigError, give="give --plan a file of onnxcalib plan")
    if isinstance(data, dict) and {"points", "uniform"} <= data.keys():
        raise ConfigError(
            f"{path}: is a frontier of onnxcalib plan --frontier, a curve without one plan; choose the bytes of a"
            " point, and give --plan the file of onnxcalib plan --max-size BYTES"
        )
    return make_record(BitPlan, data, where=path, again="plan the model again")


def make_record(kind: type[Record], data: Any, *, where: str | Path, again: str) -> Record:
    """The record of a file's content. Raises ConfigError for another schema, then for the first value that is wrong."""
    found = data.get("schema") if isinstance(data, dict) else None
    if type(found) is not int or found != SCHEMA:  # true == 1 in Python
        raise ConfigError(f"{where}: schema: found {spell_value(found)}; this version reads {SCHEMA}; {again}")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = escape_controls(".".join(map(str, fault["loc"])))[:SHOWN]
        text = fault["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{where}: {name}: found {spell_value(fault['input'])}; {text}; correct it") from None
