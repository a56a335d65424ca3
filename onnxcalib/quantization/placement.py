"""Placement: which nodes stay in float though they could be quantized, each with the reason that the report gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx import ModelProto

from ..graph.index import Index
from ..graph.joins import find_parted_joins
from .last_layers import find_last_layers
from .output_parts import Parts

PARTED = "it joins tensors that are taken apart again; on one grid the range of one would round the others"


def choose_float(model: ModelProto, parts: Parts, feeds: Mapping[str, Any], threads: int = 0) -> dict[str, str]:
    """Maps nodes of the prepared model that the tool itself leaves in float to the reasons.

    parts: of the model's outputs; feeds: one batch of samples.
    """
    joins = find_parted_joins(model, Index(model.graph))
    return dict.fromkeys(sorted(joins), PARTED) | find_last_layers(model, parts, feeds, threads)
