"""The schemes of one graph whose layers are planned: one for each candidate, and mixtures of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from ..bitplan import CANDIDATE_OF, NAME_OF, settings_of
from ..config import WIDE_BITS, CandidateName, LayerConfig
from ..graph.bodies import list_bodies
from ..graph.embeddings import TABLE_BITS
from ..graph.layers import end_layers
from ..graph.names import resolve_names
from ..graph.ops import MATRIX_LAYERS, RECURRENT
from ..quantization.calibrate import Statistics
from ..quantization.prepared import Prepared
from ..spec import BitSet, Candidate, Grids, LayerScheme, QParams, QuantScheme
from .bits import Bits
from .sensitivity import UniformScheme

# The bits of ends and of other layers with bits of their own where activations may have 16.
WIDEST: CandidateName = "W8A16"


class Schemes:
    """The schemes in which all layers have one candidate, and mixtures of them; all grids are from the same statistics.

    uniform: candidate -> the scheme in which all layers have it.
    """

    def __init__(self, prepared: Prepared, statistics: Statistics) -> None:
        self.prepared, self.statistics = prepared, statistics
        self.known: dict[Any, QParams] = {}
        self.uniform: dict[Candidate, UniformScheme] = {}
        if prepared.config.planned_alone:
            free = list_free(prepared)
            for candidate in map(CANDIDATE_OF.__getitem__, prepared.config.candidates):
                self.uniform[candidate] = self._make(fit_alone(prepared, free, candidate))
            return
        wide = [WIDEST for name in prepared.config.candidates if CANDIDATE_OF[name].activation_bits == WIDE_BITS]
        names = dict.fromkeys(("W8A8", *prepared.config.candidates, *wide))
        for candidate in map(CANDIDATE_OF.__getitem__, names):
            self.uniform[candidate] = self._make(prepared.make_scheme(bits=candidate))

    @cached_property
    def _own(self) -> dict[Candidate, dict[str, Candidate]]:
        return {
            c: {layer.name: layer.bits for layer in (*each.scheme.layers, *each.scheme.recurrent)}
            for c, each in self.uniform.items()
        }

    def _make(self, scheme: QuantScheme) -> UniformScheme:
        return UniformScheme(scheme, self.choose_grids(scheme))

    def choose_grids(self, scheme: QuantScheme) -> Grids:
        return self.prepared.choose_grids(scheme, self.statistics, self.known)

    def mix(self, sets: Sequence[BitSet], bits: Bits) -> QuantScheme:
        """The scheme in which each set has its candidate of the bits; sets may have layers of other graphs."""
        chosen = list(zip(sets, bits, strict=True))
        layers = {
            name: settings_of(self._own[c][name]) for each, c in chosen for name in each.layers if name in self._own[c]
        }
        tensors = {each.tensors[0]: c.activation_bits for each, c in chosen if not each.layers}
        return self.prepared.make_scheme(layers, tensors=tensors)

    @property
    def layers(self) -> set[str]:
        """Names of the layers, recurrent ones too."""
        return {layer for own in self._own.values() for layer in own}

    def name_of(self, layer: str, candidate: Candidate) -> CandidateName:
        """The bits that a layer has at a candidate; a layer that the settings name keeps its own."""
        return NAME_OF[self._own[candidate][layer]]


def list_free(prepared: Prepared) -> list[LayerScheme]:
    """Layers and tables that read float, and whose bits the settings do not give: by name, as ends, or as tables."""
    config, given, scheme = prepared.config, prepared.config.model_fields_set, prepared.scheme
    named = resolve_names(prepared.model, config, before=prepared.original).layers
    own = {name for name, each in named if each.weight_bits or each.block_size}
    if "first_last_bits" in given:
        names = {layer.name for layer in (*scheme.layers, *scheme.recurrent)}
        owners = {body.owner for body in list_bodies(prepared.model)}
        own |= end_layers(prepared.model.graph, names, owners=owners, around=prepared.run.around)
    if "embedding_bits" in given:
        own |= {table.name for table in scheme.embeddings}
    return [k for k in scheme.stored if k.name not in own and k.reads_float]


def fit_alone(prepared: Prepared, free: Sequence[LayerScheme], candidate: Candidate) -> QuantScheme:
    """The scheme in which these layers and tables have a candidate of weights alone, as far as they may."""
    fit = [k for k in free if k.op != "Gather" or candidate.weight_bits in TABLE_BITS]
    return prepared.make_scheme({k.name: _fit(k, candidate) for k in fit})


def _fit(layer: LayerScheme, candidate: Candidate) -> LayerConfig:
    """A candidate as settings of a layer; a convolution has no blocks."""
    in_blocks = layer.op in (*MATRIX_LAYERS, *RECURRENT, "Gather")
    return settings_of(candidate if in_blocks else candidate._replace(block_size=0))
