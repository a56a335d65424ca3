"""The schemes of one graph whose layers are planned: one for each candidate, and mixtures of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..bitplan import CANDIDATE_OF, NAME_OF, settings_of
from ..config import WIDE_BITS, CandidateName
from ..quantization.calibrate import Statistics
from ..quantization.prepared import Prepared
from ..spec import BitSet, Candidate, Grids, QParams, QuantScheme
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
        wide = [WIDEST for name in prepared.config.candidates if CANDIDATE_OF[name].activation_bits == WIDE_BITS]
        names = dict.fromkeys(("W8A8", *prepared.config.candidates, *wide))
        self.uniform = {CANDIDATE_OF[name]: self._make(prepared.make_scheme(bits=CANDIDATE_OF[name])) for name in names}
        self._own = {
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
