"""Weights that several graphs of a model read, which are solved once: where the first body that has samples reads them.

Integers are the same then, so that the file stores them once; scales may still be tuned apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from onnx import ModelProto

from ..graph.bodies import LEAST_SHARED_BYTES, identify
from ..graph.index import Index, known_constant
from ..graph.layer_params import LayerParams
from ..graph.weightless import held_bytes
from ..spec import LayerScheme, QuantScheme
from .params import give_scale
from .state import ReconstructionState


class SharedWeights:
    """What was found for the weights of the graphs that are done, by their values and the grid that they have."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], LayerParams] = {}

    def keep(self, model: ModelProto, scheme: QuantScheme, layers: Mapping[str, LayerParams]) -> None:
        """Offer the layers of a model to those that come after it."""
        for name, key in list_keys(model, scheme).items():
            self._known.setdefault(key, layers[name])

    def find(self, model: ModelProto, scheme: QuantScheme) -> dict[str, LayerParams]:
        """Layer -> what is known of its weight; folded norms and factors make another weight of it."""
        keys = list_keys(model, scheme) if self._known else {}
        return {name: self._known[key] for name, key in keys.items() if key in self._known}


def give_weight(state: ReconstructionState, layer: LayerScheme) -> None:
    """Let a layer have the integers and scales that it is given, with its own bias."""
    given, index = state.given[layer.name], state.problem.index
    bias = known_constant(index, layer.bias).reshape(-1) if layer.bias else None
    spec = layer.weight_spec
    if spec.block is not None or not spec.symmetric:
        state.layers[layer.name] = replace(given, bias=bias)
    else:
        state.layers[layer.name] = give_scale(given, given.grid.scale, bias, state.input_grid(layer))


def list_keys(model: ModelProto, scheme: QuantScheme) -> dict[str, tuple[str, str]]:
    """Layer -> what is the same of weights with the same values, and its grid; small ones are left out."""
    index, found = Index(model.graph), {}
    for layer in scheme.layers:
        weight = index.initializers[layer.weight]
        if held_bytes(weight) >= LEAST_SHARED_BYTES:
            found[layer.name] = identify(weight), repr(layer.weight_spec)
    return found
