"""Weights that several graphs of a model read, which are solved once: where the first with samples reads them.

Integers are the same then, so that the file stores them once; scales may still be tuned apart. For that later graphs
have the factors of the first one on the channels that the weight is multiplied with, and leave no such layer in float
because it is slow: the file would hold the weight twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from onnx import ModelProto

from ..graph.bodies import LEAST_SHARED_BYTES, identify
from ..graph.index import Index, known_constant
from ..graph.layer_params import LayerParams
from ..graph.weightless import held_bytes
from ..spec import LayerScheme, QuantScheme
from .params import give_scale
from .state import ReconstructionState

Factors = Mapping[str, np.ndarray | None]  # layer -> those of the channels that it reads, (channels,); None: all are 1


class SharedWeights:
    """What was found for the weights of the graphs that are done, by their values and the grid that they have.

    Factors are known by the values that a weight has without them.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], LayerParams] = {}
        self._factors: dict[str, np.ndarray | None] = {}

    def keep(self, model: ModelProto, scheme: QuantScheme, layers: Mapping[str, LayerParams]) -> None:
        """Offer the layers of a model to those that come after it."""
        for name, key in list_keys(model, scheme).items():
            self._known.setdefault(key, layers[name])

    def keep_factors(self, sources: Mapping[str, str], layers: Iterable[str], factors: Factors) -> None:
        """Offer the factors that these layers read; ``sources``: see ``identify_weights``."""
        for name in layers:
            if name in sources:
                self._factors.setdefault(sources[name], factors.get(name))

    def find(self, model: ModelProto, scheme: QuantScheme) -> dict[str, LayerParams]:
        """Layer -> what is known of its weight; other folded norms or factors make another weight of it."""
        return find_known(model, scheme, self._known)

    def find_factors(self, sources: Mapping[str, str]) -> dict[str, np.ndarray | None]:
        """The factors of the layers whose weight a graph before has as integers."""
        return {name: self._factors[source] for name, source in sources.items() if source in self._factors}


def find_known(
    model: ModelProto, scheme: QuantScheme, known: Mapping[tuple[str, str], LayerParams]
) -> dict[str, LayerParams]:
    """Layer -> what is known of its weight, by the keys of ``list_keys``.

    A bias makes up for the mean error of integers that were solved beside one: a layer without has none of those.
    """
    keys = list_keys(model, scheme) if known else {}
    found = {name: known[key] for name, key in keys.items() if key in known}
    biased = {layer.name: layer.takes_bias for layer in scheme.layers}
    return {name: params for name, params in found.items() if biased[name] or params.bias is None}


def identify_weights(model: ModelProto, scheme: QuantScheme) -> dict[str, str]:
    """Layer -> what is the same of equal weights, of those that are large enough to be shared."""
    index = Index(model.graph)
    weights = {layer.name: index.initializers[layer.weight] for layer in scheme.layers}
    return {name: identify(weight) for name, weight in weights.items() if held_bytes(weight) >= LEAST_SHARED_BYTES}


def fix_factors(index: Index, readers: Mapping[str, Sequence[LayerScheme]], factors: Factors) -> dict[str, np.ndarray]:
    """Activation -> the factors (channels,) of those of its readers that have known ones, where these are one."""
    fixed: dict[str, np.ndarray] = {}
    for tensor, layers in readers.items():
        channels = index.initializers[layers[0].weight].dims[1 - layers[0].axis]
        found = [factors[layer.name] for layer in layers if layer.name in factors]
        known = [np.ones(channels, np.float32) if each is None else each for each in found]
        if known and all(np.array_equal(known[0], each) for each in known):
            fixed[tensor] = known[0]
    return fixed


def give_weight(state: ReconstructionState, layer: LayerScheme, bias: np.ndarray | None = None) -> None:
    """Let a layer have the integers and scales that it is given, with a bias of its own, by default the float one."""
    given, index = state.given[layer.name], state.problem.index
    if bias is None and layer.bias:
        bias = known_constant(index, layer.bias).reshape(-1)
    spec = layer.weight_spec
    if spec.block is not None or not spec.symmetric:
        state.layers[layer.name] = replace(given, bias=bias)
    else:
        state.layers[layer.name] = give_scale(given, given.grid.scale, bias, state.input_grid(layer))


def list_keys(model: ModelProto, scheme: QuantScheme) -> dict[str, tuple[str, str]]:
    """Layer -> what is the same of weights with the same values, and its grid; small ones are left out."""
    specs = {layer.name: repr(layer.weight_spec) for layer in scheme.layers}
    return {name: (weight, specs[name]) for name, weight in identify_weights(model, scheme).items()}
