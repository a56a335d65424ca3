"""Placement: which nodes stay in float though they could be quantized, each with the reason that the report gives."""

from __future__ import annotations

from onnx import ModelProto


def choose_float(model: ModelProto) -> dict[str, str]:
    """Maps nodes of the prepared model that the tool itself leaves in float to the reasons."""
    del model
    return {}
