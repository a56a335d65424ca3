"""The bit plan as a record and as a JSON file that a person can read, edit and hand to ``quantize --plan``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .config import CANDIDATES, CandidateName, LayerConfig
from .errors import ConfigError
from .files.reading import read_json
from .spec import Candidate

SCHEMA: Literal[1] = 1
FLOAT: Literal["float"] = "float"
CANDIDATE_OF: dict[str, Candidate] = {name: Candidate(int(name[1]), int(name[3])) for name in CANDIDATES}
Record = TypeVar("Record", bound=BaseModel)
NAME_OF: dict[Candidate, CandidateName] = {CANDIDATE_OF[name]: name for name in CANDIDATES}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SetRecord(_Record):
    """Layers that must have the same bits, and what they lose and cost at each candidate.

    loss: divergence of the model's outputs with these layers alone quantized, null where an output is not finite.
    bytes: size in the file. bops: bit operations of a sample. milliseconds: time of a run, where it is limited.
    """

    layers: tuple[str, ...]
    macs: int
    loss: dict[CandidateName, float | None]
    bytes: dict[CandidateName, int]
    bops: dict[CandidateName, int]
    milliseconds: dict[CandidateName, float] = {}


class Totals(_Record):
    """What the whole model loses and costs.

    predicted_loss: sum of the losses of all sets. measured_loss: divergence of the outputs of the whole model. bytes:
    size of the file. bops: bit operations of a sample. milliseconds of one run, and agreement: samples in % whose top
    class stays; both are known where they are limited.
    """

    predicted_loss: float
    measured_loss: float
    bytes: int
    bops: int
    milliseconds: float | None = None
    agreement: float | None = None


class BitPlan(_Record):
    """Bits of every layer, and what they were chosen from.

    layers: candidate by node name, or float for layers that stay so; ``quantize --plan`` gives every layer these bits.
    model: fingerprint of the model that the plan is for. budgets: the limits, in their units. totals: of this plan.
    eight_bit: of the plan of W8A8 for every layer whose settings allow it. bound: proven lower bound of the sum of
    losses within the budgets; of the bytes, where max_loss was given; where max_disagreement was, of the sum of losses
    at the size of this plan. rounds: how often the losses were measured again.
    """

    schema_version: Annotated[Literal[1], Field(alias="schema")] = SCHEMA
    model: str
    budgets: dict[str, float]
    layers: dict[str, Literal[CandidateName, "float"]]
    totals: Totals
    eight_bit: Totals
    bound: float
    rounds: int
    sets: tuple[SetRecord, ...]

    def settings(self) -> dict[str, LayerConfig]:
        """The plan as settings of single layers."""
        return {name: _settings_of(bits) for name, bits in self.layers.items()}

    def check(self, model: str) -> None:
        """Raise ConfigError for a model of another fingerprint."""
        if self.model != model:
            raise ConfigError(
                f"plan: found one for the model {self.model[:12]}; this model is {model[:12]}; plan this one too"
            )

    def to_json(self) -> str:
        """The text of the file that ``read_plan`` reads."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1)


class Point(_Record):
    """One choice of bits for every layer: the sum of the losses, null if not finite, and what it costs."""

    bytes: int
    bops: int
    loss: float | None
    layers: dict[str, CandidateName]


class Frontier(_Record):
    """The choice of least loss for each size, smallest file first, and for comparison one candidate everywhere."""

    model: str
    float_bytes: int
    points: tuple[Point, ...]
    uniform: dict[CandidateName, Point]

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1)


def _settings_of(name: str) -> LayerConfig:
    if name == FLOAT:
        return LayerConfig(exclude=True)
    return LayerConfig(**CANDIDATE_OF[name]._asdict())


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
    if found != SCHEMA:
        raise ConfigError(f"{where}: schema: found {found!r}; this version reads {SCHEMA}; {again}")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = ".".join(map(str, fault["loc"]))
        text = fault["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{where}: {name}: found {fault['input']!r}; {text}; correct it") from None
