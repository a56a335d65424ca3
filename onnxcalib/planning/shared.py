"""Weights that layers of several graphs read: solved in the first of these, stored once, of the same bits in all."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from ..graph.bodies import LEAST_SHARED_BYTES, identify
from ..graph.index import Index
from ..graph.layer_params import LayerParams
from ..graph.weightless import held_bytes
from ..quantization.shared_weights import find_known, list_keys
from ..spec import BitSet, Candidate, Cost, QuantSpec
from .graphs import PlannedGraph

Given = dict[tuple[str, str], LayerParams]


class SharedSets:
    """The sets of the graphs that are measured, and the weights that these have solved.

    links: a layer -> the layer of an earlier graph that has its weight.
    """

    def __init__(self) -> None:
        self.sets: list[BitSet] = []
        self.links: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        self._solved: dict[tuple[str, str], LayerParams] = {}
        self._first: dict[str, str] = {}

    def list_given(self, graph: PlannedGraph) -> Given:
        """Layer of the graph and weight spec, as a text -> what an earlier graph has solved for this weight."""
        found: Given = {}
        for uniform in graph.schemes.uniform.values():
            specs = {layer.name: repr(layer.weight_spec) for layer in uniform.scheme.layers}
            known = find_known(graph.prepared.model, uniform.scheme, self._solved)
            found |= {(layer, specs[layer]): params for layer, params in known.items()}
        return found

    def keep(
        self,
        graph: PlannedGraph,
        sets: Sequence[BitSet],
        params: Mapping[str, Mapping[Candidate, LayerParams]],
        *,
        apart: Collection[str] = (),
    ) -> None:
        """Take in all sets of a graph, behind those of earlier graphs, and its layers' parameters at each candidate.

        apart: layers whose integers each graph stores, others that read the same weight or not.
        """
        self.sets += sets
        index, own = Index(graph.prepared.model.graph), dict[str, str]()
        for candidate, uniform in graph.schemes.uniform.items():
            for layer, (identity, spec) in list_keys(graph.prepared.model, uniform.scheme).items():
                own[layer] = identity
                if candidate in params.get(layer, {}):
                    self._solved.setdefault((identity, spec), params[layer][candidate])
        for each in (*graph.prepared.scheme.embeddings, *graph.prepared.scheme.layers):
            weight = index.initializers[each.weight]
            if each.op == "Gather" and held_bytes(weight) >= LEAST_SHARED_BYTES:
                own[each.name] = identify(weight)
            self._sizes[each.name] = math.prod(weight.dims)
        own = {layer: identity for layer, identity in own.items() if layer not in apart}
        self.links |= {layer: self._first[identity] for layer, identity in own.items() if identity in self._first}
        for layer, identity in own.items():
            self._first.setdefault(identity, layer)

    def join(self) -> tuple[BitSet, ...]:
        """The sets, those of which have a weight in common as one: with the candidates that all of them may have."""
        found = list(self.sets)
        for layer, other in self.links.items():
            holders = [next((each for each in found if name in each.layers), None) for name in (other, layer)]
            first, second = holders
            if first is None or second is None or first is second:
                continue
            both = [c for c in first.losses if c in second.losses]
            if both:
                found[found.index(first)] = self._join(first, second, both, layer)
                found.remove(second)
        return tuple(found)

    def _join(self, first: BitSet, second: BitSet, candidates: Sequence[Candidate], shared: str) -> BitSet:
        """Both sets as one, the integers of ``shared`` counted once."""

        def add(c: Candidate) -> Cost:
            one, other = first.costs[c], second.costs[c]
            stored = self._sizes[shared] * QuantSpec(c.weight_bits, signed=True, symmetric=True).stored_bits
            return Cost(one.bytes + other.bytes - -(-stored // 8), one.bops + other.bops)

        return replace(
            first,
            layers=(*first.layers, *second.layers),
            macs=first.macs + second.macs,
            losses={c: first.losses[c] + second.losses[c] for c in candidates},
            costs={c: add(c) for c in candidates},
        )
