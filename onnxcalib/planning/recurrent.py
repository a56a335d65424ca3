"""What LSTM, GRU and RNN lose and cost at the weights' bits of each candidate, which both weights of a layer have."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from ..graph.emit import emit_qdq
from ..graph.extract import extract
from ..graph.index import Index
from ..graph.layer_params import LayerParams
from ..graph.recurrent import STATES, WEIGHT
from ..graph.stream import model_bytes
from ..quantization.recurrent import round_recurrent, solve_on_states
from ..quantization.tensor_shapes import measure_shapes
from ..runtime.cache import Cache
from ..spec import BitSet, Candidate, Cost, Grids, LayerScheme
from .graphs import PlannedGraph
from .sensitivity import Measured

Params = dict[str, dict[Candidate, LayerParams]]


def measure_recurrent(graph: PlannedGraph, cache: Cache) -> Measured:
    """Sets, losses and parameters of a graph's recurrent layers, without those that run on integers and have 8 bits."""
    if not any(not layer.dynamic for layer in graph.prepared.scheme.recurrent):
        return Measured((), {}, {"solve": 0.0, "evaluate": 0.0})
    solves = graph.prepared.config.does("reconstruct")
    name = f"{graph.path}recurrent layers, {'solved' if solves else 'rounded'}"
    known = cache.find(name, Measured)
    if known is not None:
        return known
    found = cache.keep(name, _measure(graph, solves=solves), Measured)
    return found


def _measure(graph: PlannedGraph, *, solves: bool) -> Measured:
    start = time.perf_counter()
    params = _solve(graph, solves=solves)
    solved = time.perf_counter()
    sets = tuple(_measure_set(graph, names, params) for names in _find_sets(graph))
    return Measured(sets, params, {"solve": solved - start, "evaluate": time.perf_counter() - solved})


def _solve(graph: PlannedGraph, *, solves: bool) -> Params:
    """Parameters at each candidate; candidates of the same weights are solved once."""
    prepared, params, known = graph.prepared, Params(), dict[tuple[LayerScheme, ...], dict[str, LayerParams]]()
    for candidate, uniform in graph.schemes.uniform.items():
        layers = tuple(layer for layer in uniform.scheme.recurrent if not layer.dynamic)
        if layers not in known:
            scheme = replace(uniform.scheme, recurrent=layers)
            own = replace(prepared, scheme=scheme)
            batch = graph.schemes.statistics.batch
            known[layers] = (
                solve_on_states(own, batch) if solves else round_recurrent(Index(prepared.model.graph), scheme)
            )
        for name, found in known[layers].items():
            params.setdefault(name, {})[candidate] = found
    return params


def _find_sets(graph: PlannedGraph) -> list[list[str]]:
    """Names of the layers that must have the same bits, as they have a weight in common, which is stored once."""
    index, sets = Index(graph.prepared.model.graph), list[tuple[set[str], list[str]]]()
    for layer in graph.prepared.scheme.recurrent:
        if layer.dynamic:
            continue
        weights, names = {index.nodes[layer.name].input[number] for number in (WEIGHT, STATES)}, [layer.name]
        for other in [each for each in sets if not each[0].isdisjoint(weights)]:
            sets.remove(other)
            weights, names = weights | other[0], [*other[1], *names]
        sets.append((weights, names))
    return [names for _, names in sets]


def _measure_set(
    graph: PlannedGraph, names: Sequence[str], params: Mapping[str, Mapping[Candidate, LayerParams]]
) -> BitSet:
    """The losses and costs of layers at each candidate; equal weights are measured once."""
    prepared, index = graph.prepared, Index(graph.prepared.model.graph)
    losses: dict[Candidate, float] = {}
    costs: dict[Candidate, Cost] = {}
    known: dict[tuple[LayerScheme, ...], Candidate] = {}
    shapes = measure_shapes(prepared.model, graph.batches.one, prepared.run.threads)
    macs = sum(_count_macs(graph, index, name, shapes) for name in names)
    for candidate, uniform in graph.schemes.uniform.items():
        layers = tuple(layer for layer in uniform.scheme.recurrent if layer.name in names)
        if (same := known.get(layers)) is not None:
            losses[candidate], costs[candidate] = losses[same], costs[same]
            continue
        known[layers] = candidate
        scheme = replace(uniform.scheme, layers=(), activations={}, requantized={}, recurrent=layers)
        own = {name: params[name][candidate] for name in names}
        quantize = partial(emit_qdq, scheme=scheme, grids=Grids({}), layers=own, encoding=prepared.config.encoding)
        losses[candidate] = graph.whole.measure(quantize(prepared.model))
        read = [name for each in names for name in index.nodes[each].input if name and name not in index.initializers]
        given = [name for each in names for name in index.nodes[each].output if name]
        alone = extract(prepared.model, {}, nodes=list(names), inputs=sorted(set(read)), outputs=given, index=index)
        bops = sum(macs * layer.weight_spec.bits * layer.activation_spec.bits for layer in layers) // len(layers)
        costs[candidate] = Cost(model_bytes(quantize(alone)), bops)
    return BitSet(tuple(names), macs, losses, costs)


def _count_macs(graph: PlannedGraph, index: Index, name: str, shapes: Mapping[str, Sequence[int]]) -> int:
    """Multiplications of one sample: both weights are multiplied in each step."""
    node = index.nodes[name]
    steps, count, inputs = shapes[node.input[0]]
    directions, channels, hidden = index.initializers[node.input[STATES]].dims
    total = math.prod((steps, count, directions, channels, inputs + hidden)) // graph.batches.per_run
    return round(graph.rate * total)
