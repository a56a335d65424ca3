"""Ranges of activations as a value and as a file: calibrated once, then saved, edited, loaded and given again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ..bitplan import SCHEMA, Number, Whole, make_record
from ..errors import ConfigError, escape_controls
from ..files.reading import read_json
from ..files.writing import write_file
from ..numeric.ranges import fix_grid, make_grid
from ..spec import Grids, QParams, QuantScheme, QuantSpec

# An end of a grid may lie half a step beyond the largest float32, 3.4e38.
MOST_END = 4e38
# Factors that differ by less come from the same samples: sums differ from processor to processor in their last bits.
LIKE = 1e-2


def _check_ends(ends: tuple[float, float]) -> tuple[float, float]:
    low, high = ends
    if not low <= 0 <= high or low == high:
        raise ValueError("the lowest value of a range comes first, and 0 lies between the two")
    if max(-low, high) > MOST_END:
        raise ValueError(f"values end at {MOST_END:g}")
    return ends


Range = Annotated[tuple[Number, Number], AfterValidator(_check_ends)]


class Ranges(BaseModel):
    """The range of each activation: the lowest and the highest value of its grid.

    model: SHA-256 of the float model. batch: the number of samples whose activations fit into memory together.
    activations: tensor -> the range in which its consumers read it. requantized: tensor -> the range in which weighted
    layers read it at fewer bits. smoothed: activation -> the least and the greatest factor of its channels, by
    smoothing or between layers, without any left out of the file. A file of ranges:

    >>> print(Ranges(model="9f86d081", batch=32, activations={"image": (-2.5, 2.5)}).to_json(), end="")
    {
     "schema": 1,
     "model": "9f86d081",
     "batch": 32,
     "activations": {
      "image": [
       -2.5,
       2.5
      ]
     },
     "requantized": {}
    }
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    model: str
    batch: Annotated[Whole, Field(ge=1)]
    activations: dict[str, Range]
    requantized: dict[str, Range] = {}
    smoothed: dict[str, tuple[Number, Number]] = {}

    @classmethod
    def of_grids(cls, grids: Grids, *, model: str, batch: int, factors: Mapping[str, Range] | None = None) -> Ranges:
        """The ranges of these grids, from which the method ``grids`` makes the same grids again.

        factors: ``smoothed``.
        """
        return cls(
            model=model,
            batch=batch,
            activations={tensor: ends_of(grid) for tensor, grid in grids.activations.items()},
            requantized={tensor: ends_of(grid) for tensor, grid in grids.requantized.items()},
            smoothed=dict(factors or {}),
        )

    def grids(self, scheme: QuantScheme) -> Grids:
        """Grids over the ranges, with the bits of the scheme.

        Tensors that share a grid share the union of their ranges, unless the target fixes the grid. Raises ConfigError
        for a tensor without a range.
        """

        def make(ranges: Mapping[str, Range], members: tuple[str, ...], spec: QuantSpec) -> QParams:
            if members[0] in scheme.fixed:
                return fix_grid(*scheme.fixed[members[0]], spec)
            found = [_find(ranges, tensor) for tensor in members]
            low, high = min(low for low, _ in found), max(high for _, high in found)
            return make_grid(low, high, spec, bound=scheme.bound_of(members))

        return Grids(
            {t: make(self.activations, scheme.members_of(t), spec) for t, spec in scheme.activations.items()},
            {t: make(self.requantized, (t,), spec) for t, spec in scheme.requantized.items()},
        )

    def check(self, model: str) -> None:
        """Raise ConfigError for a model with another fingerprint."""
        if self.model != model:
            raise ConfigError(
                f"ranges: found those of another model, {escape_controls(self.model[:12])}; this one is {model[:12]};"
                " calibrate it too, with the same shape"
            )

    def check_factors(self, own: Mapping[str, Range]) -> None:
        """Raise ConfigError where channels have other factors than in this run, ``own``."""
        if own.keys() == self.smoothed.keys() and all(
            np.allclose(ends, self.smoothed[tensor], rtol=LIKE, atol=0) for tensor, ends in own.items()
        ):
            return
        tensor = next((t for t in (*own, *self.smoothed) if own.get(t) != self.smoothed.get(t)), "")
        found, here = (
            "none" if ends is None else "{:.4g} to {:.4g}".format(*ends)
            for ends in (self.smoothed.get(tensor), own.get(tensor))
        )
        raise ConfigError(
            f"ranges: found {found} as factors of the channels of {tensor!r}, where this run has {here}; they follow"
            " from samples and settings; calibrate on the same samples with the same settings"
        )

    def to_json(self) -> str:
        """The text of the file that ``read_ranges`` reads."""
        left_out = None if self.smoothed else {"smoothed"}
        return json.dumps(self.model_dump(mode="json", by_alias=True, exclude=left_out), indent=1) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the file under another name, then rename it. Raises OutputError."""
        write_file(Path(path), self.to_json())


def ends_of(grid: QParams) -> Range:
    """The values of a grid's lowest and highest integer. They are exact, so that ``make_grid`` gives the grid again."""
    scale, zero_point = float(grid.scale), int(grid.zero_point)
    return (grid.spec.qmin - zero_point) * scale, (grid.spec.qmax - zero_point) * scale


def read_ranges(path: str | Path) -> Ranges:
    """Read the ranges of a file. Raises ConfigError that says what is wrong with the file."""
    data = read_json(Path(path), ConfigError, give="give --ranges a file of onnxcalib calibrate")
    return make_record(Ranges, data, where=path, again="calibrate the model again")


def _find(ranges: Mapping[str, Range], tensor: str) -> Range:
    if tensor not in ranges:
        raise ConfigError(
            f"ranges: found none of tensor {tensor!r}; every activation of the scheme needs one; calibrate with these"
            " settings"
        )
    return ranges[tensor]
