"""The bit plan as a value and as a file: JSON that a person can read, edit and hand to ``quantize --plan``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .config import CANDIDATES, CandidateName, LayerConfig
from .errors import ConfigError
from .spec import Candidate

SCHEMA: Literal[1] = 1
FLOAT: Literal["float"] = "float"
CANDIDATE_OF: dict[str, Candidate] = {name: Candidate(int(name[1]), int(name[3])) for name in CANDIDATES}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SetRecord(_Record):
    """Layers of one candidate; what each loses, and costs in the file, in BOPs and time.

    loss: divergence of the outputs, null where these are not finite.
    """

    layers: tuple[str, ...]
    macs: int
    loss: dict[CandidateName, float | None]
    bytes: dict[CandidateName, int]
    bops: dict[CandidateName, int]
    milliseconds: dict[CandidateName, float] = {}


class Totals(_Record):
    """Of the whole model: its divergence as predicted from its sets' and as measured, file size and BOPs.

    milliseconds of one run, and agreement of the top class in %, are known where they are limited.
    """

    predicted_loss: float
    measured_loss: float
    bytes: int
    bops: int
    milliseconds: float | None = None
    agreement: float | None = None


class BitPlan(_Record):
    """Bits of every layer, and what they were chosen from.

    layers: what ``quantize`` obeys, by node name; float for those left so. model: fingerprint of the model that it is
    for. totals, eight_bit: of this plan and of W8A8 where the settings allow it. bound: what no choice within the
    budgets has a smaller sum of losses than, or bytes where the loss was limited; where agreement was, the least
    sum at the size that was found.
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
        """The bits as ``quantize`` has settings of single layers."""
        return {name: _settings_of(bits) for name, bits in self.layers.items()}

    def check(self, model: str) -> None:
        """Refuse a model of another fingerprint, by ConfigError."""
        if self.model != model:
            raise ConfigError(
                f"plan: found one for another model, {self.model[:12]}; this one is {model[:12]}; plan it too"
            )

    def to_json(self) -> str:
        """What ``read_plan`` reads; numbers of a set stand on one line each."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1)


class Point(_Record):
    """One choice of every layer's bits: the sum of its sets' losses, null if not finite, and what it costs."""

    bytes: int
    bops: int
    loss: float | None
    layers: dict[str, CandidateName]


class Frontier(_Record):
    """Least losses by size, smallest file first, and the choices of one candidate everywhere, by its name."""

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
    """The plan of a file. Raises ConfigError that says what is wrong with it."""
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; give --plan a file of onnxcalib plan") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON: {error}; give --plan a file of onnxcalib plan") from None
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA:
        raise ConfigError(f"{path}: schema: found {found!r}; this version reads {SCHEMA}; plan the model again")
    try:
        return BitPlan.model_validate(data)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise ConfigError(f"{path}: {where}: found {fault['input']!r}; {fault['msg']}; mend it") from None
