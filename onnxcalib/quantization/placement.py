"""Placement: which nodes stay in float though they could be quantized, each with the reason that the report gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx import ModelProto

from ..errors import ModelError
from ..graph.index import Index
from ..graph.joins import find_parted_joins
from ..graph.places import find_placing
from ..graph.positions import find_positional
from ..graph.scheme import make_scheme
from .last_layers import find_last_layers
from .output_parts import Parts

PARTED = "it joins tensors that are taken apart again; on one grid the range of one would round the others"


def choose_float(model: ModelProto, parts: Parts, feeds: Mapping[str, Any], threads: int = 0) -> dict[str, str]:
    """Maps nodes of the prepared model that the tool itself leaves in float to the reasons.

    parts: of the model's outputs; feeds: one batch of samples.
    """
    index = Index(model.graph)
    joins = find_parted_joins(model, index)
    return (
        dict.fromkeys(sorted(joins), PARTED)
        | _keep_quantized(model, find_positional(model, index) | find_placing(model.graph, index))
        | find_last_layers(model, parts, feeds, threads)
    )


def _keep_quantized(model: ModelProto, chosen: Mapping[str, str]) -> dict[str, str]:
    """Those of the nodes that would have a grid on some side, without layers where no other layer would be left."""
    if not chosen:
        return {}
    try:
        scheme = make_scheme(model)
    except ModelError:  # nothing can be quantized, which is told elsewhere
        return dict(chosen)
    layers = {layer.name for layer in scheme.layers}
    kept = layers if layers <= chosen.keys() else set()
    return {
        node.name: chosen[node.name]
        for node in model.graph.node
        if node.name in chosen and node.name not in kept
        if any(t in scheme.activations for t in (*node.input, *node.output))
    }
