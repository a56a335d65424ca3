"""The graphs whose layers are planned together: the model's own, and the bodies of If, Loop and Scan as models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
from onnx import ModelProto

from ..data import CalibrationSet
from ..errors import DataError, ModelError
from ..graph.bodies import Body, list_bodies
from ..graph.check import correct_shapes
from ..graph.emit import emit_qdq
from ..graph.index import Index
from ..graph.layer_params import LayerParams
from ..graph.scheme import make_scheme
from ..quantization.batches import Batches, batch_size
from ..quantization.bodies import explain_float, find_names, list_layers, open_bodies, spell_fault
from ..quantization.body_surroundings import describe_around
from ..quantization.compared import Compared
from ..quantization.placed_bodies import QuantizedBody, place_bodies
from ..quantization.prepare import prepare
from ..quantization.prepared import Prepared
from ..quantization.recurrent import round_recurrent
from ..quantization.run import Run
from ..quantization.shared_weights import SharedWeights
from ..quantization.solve import round_embeddings
from ..quantization.stages import Reconstruction
from ..runtime.session import Session
from ..runtime.store import Store
from ..spec import BitSet, Candidate, Grids, QuantScheme
from .bits import Bits
from .loss import LEAST_SAMPLES, LOSS_POSITIONS, LOSS_SAMPLES, LOSS_STEPS, Extent
from .schemes import Schemes
from .whole import Whole

Made = tuple[QuantScheme, Grids, Mapping[str, LayerParams]]  # a graph's scheme, grids, and parameters of its layers
Make = Callable[["PlannedGraph"], Made]


@dataclass(frozen=True)
class PlannedGraph:
    """The model's own graph, or a body as a model of its own.

    samples: its own, and in batches. whole: its place in the model. rate: how often it runs in one sample of the model.
    bodies: those in it that are planned; left: layers in the others -> why these stay in float, empty where that was
    asked for.
    """

    prepared: Prepared
    samples: CalibrationSet
    schemes: Schemes
    batches: Batches
    whole: Whole
    rate: float = 1.0
    body: Body | None = None
    range_of: Callable[[Body, str], tuple[float, float]] | None = None
    bodies: tuple[PlannedGraph, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Where the graph is in the model; empty for the model's own."""
        return self.prepared.run.place

    @property
    def run(self) -> Run:
        return self.prepared.run

    def walk(self) -> Iterator[PlannedGraph]:
        """The graph and those in it, in the order in which they are quantized."""
        yield self
        for inner in self.bodies:
            yield from inner.walk()

    def list_excluded(self, planned: Sequence[BitSet]) -> list[str]:
        """Layers of all graphs that none of the sets has: they stay in float."""
        return [name for graph in self.walk() for name in (*list_unplanned(graph.prepared, planned), *graph.left)]

    def list_in_float(self) -> dict[str, str]:
        """Nodes of all graphs that the tool leaves in float -> why."""
        found: dict[str, str] = {}
        for graph in self.walk():
            found |= {**graph.prepared.in_float, **{name: why for name, why in graph.left.items() if why}}
        return found

    def emit(self, make: Make) -> ModelProto:
        """The graph with its bodies; make: gives what each graph is made of."""
        return self._emit(make)[0]

    def _emit(self, make: Make) -> tuple[ModelProto, dict[str, str]]:
        """The same, and the bits of each layer in it."""
        prepared, (scheme, grids, layers) = self.prepared, make(self)
        model = prepared.emit(scheme, grids, layers)
        known = {layer.name: str(layer.bits) for layer in scheme.stored}
        for inner in self.bodies:
            assert inner.body is not None and inner.range_of is not None
            names = find_names(prepared.model, model, inner.body)
            given = Reconstruction(scheme, grids, {})
            inner.run.around = describe_around(prepared, given, (inner.body, names), inner.range_of)
            part, inside = inner._emit(make)
            place_bodies(model, [QuantizedBody(inner.body, part, names, frozenset(), bits=inside)])
            known |= inside
        if self.bodies:
            correct_shapes(model)
        return model, known


def make_chosen(
    graph: PlannedGraph, sets: Sequence[BitSet], bits: Bits, params: Mapping[str, Mapping[Candidate, LayerParams]]
) -> Made:
    """What a graph is made of at the bits of all sets; params: layer -> those at each candidate."""
    scheme = graph.schemes.mix(sets, bits)
    chosen = take_chosen(sets, bits, params)
    index = Index(graph.prepared.model.graph)
    fixed = replace(scheme, recurrent=tuple(k for k in scheme.recurrent if k.name not in chosen))
    found = round_embeddings(index, scheme) | round_recurrent(index, fixed)
    return scheme, graph.schemes.choose_grids(scheme), {k.name: (found | chosen)[k.name] for k in scheme.stored}


def take_chosen(
    sets: Sequence[BitSet], bits: Bits, params: Mapping[str, Mapping[Candidate, LayerParams]]
) -> dict[str, LayerParams]:
    """The parameters of each layer that has some at the candidate of its set."""
    chosen = zip(sets, bits, strict=True)
    return {name: params[name][c] for each, c in chosen for name in each.layers if c in params.get(name, {})}


@contextmanager
def open_graphs(prepared: Prepared, judged: CalibrationSet, compared: Compared | None = None) -> Iterator[PlannedGraph]:
    """The model's own graph with those in it.

    judged: the samples in the order in which losses are measured on them. compared: the outputs by which that is done,
    where these are not all.
    """
    run, most = prepared.run, LOSS_SAMPLES if judged.sequences is None else LOSS_STEPS
    extent = Extent(most, most if list_bodies(prepared.model) else LEAST_SAMPLES)
    if compared is not None:
        most = min(most, max(1, LOSS_POSITIONS // compared.positions))
    first = judged.take(range(min(most, len(judged))))
    size = batch_size(Session(prepared.model, threads=run.threads), first)
    threads = run.config.threads or 1
    batches = Batches(first, min(size, most))
    whole = Whole(prepared.model, (), batches, prepared.padding, prepared.parts, threads, extent, compared)
    with Store() as store:
        yield _open(PlannedGraph(prepared, *_describe(prepared, judged), whole), store)


def order_samples(prepared: Prepared) -> CalibrationSet:
    """The samples in the order in which losses are measured on the first of them.

    Those of a model with bodies are shuffled, so that the first hold some of all kinds, which take each branch. So are
    the steps of sequences.
    """
    samples = prepared.samples
    if samples.sequences is None and not list_bodies(prepared.model):
        return samples
    return samples.take(np.random.default_rng(0).permutation(len(samples)).tolist())


def _describe(prepared: Prepared, samples: CalibrationSet) -> tuple[CalibrationSet, Schemes, Batches]:
    session = Session(prepared.model, also=prepared.scheme.computed, threads=prepared.run.threads)
    batches = Batches(samples, batch_size(session, samples))
    return samples, Schemes(prepared, prepared.collect(prepared.scheme)), batches


def _open(graph: PlannedGraph, store: Store) -> PlannedGraph:
    """The graph with the bodies in it that are planned."""
    prepared, model = graph.prepared, graph.prepared.model
    bodies = list_bodies(model)
    if bodies and graph.body is None:
        graph.run.shared = SharedWeights()
    if graph.run.shared is not None:  # of which bodies have the factors of channels
        layers = [layer.name for layer in prepared.scheme.layers]
        graph.run.shared.keep_factors(prepared.sources, layers, prepared.factors)
    if not bodies:
        return graph
    eight = next(iter(graph.schemes.uniform.values()))
    around = emit_qdq(model, eight.scheme, eight.grids, {}, encoding=prepared.config.encoding, keep_outputs=False)
    found, reason = Reconstruction(eight.scheme, eight.grids, {}), explain_float(prepared)
    opened: list[PlannedGraph] = []
    left: dict[str, str] = {}
    for _, group in groupby(bodies, key=lambda body: body.owner):
        for body, each in open_bodies(prepared, found, around, (tuple(group), reason), store):
            why = each
            if not isinstance(each, str):
                try:
                    inner = prepare(each.run, each.part, each.samples, test=each.samples)
                    own = PlannedGraph(
                        inner,
                        *_describe(inner, inner.samples),
                        graph.whole.inside(model, body),
                        rate=graph.rate * each.rate,
                        body=body,
                        range_of=each.range_of,
                    )
                    opened.append(_open(own, store))
                    continue
                except (ModelError, DataError) as error:
                    why = spell_fault(error, body)
            left |= dict.fromkeys(sorted(list_layers(model, body)), f"{body.path} stays in float: {why}" if why else "")
    return replace(graph, bodies=tuple(opened), left=left)


def list_unplanned(prepared: Prepared, planned: Sequence[BitSet]) -> list[str]:
    """Layers of a graph that none of the sets has."""
    names, run = {name for each in planned for name in each.layers}, prepared.run
    scheme = make_scheme(prepared.model, requirements=run.target.requirements, around=run.around)
    return [layer.name for layer in scheme.layers if layer.name not in names]


def keep_unseen(graph: PlannedGraph, sets: Sequence[BitSet]) -> tuple[BitSet, ...]:
    """The sets of a body; those that change no output of the samples of losses keep the most bits, as a line says."""
    found = []
    for each in sets:
        if len(each.losses) > 1 and not any(each.losses.values()):
            most = max(each.losses)
            graph.run.observer.note(
                f"{', '.join(each.layers)}: {most}, as no output shows its bits in the samples by which losses are"
                " measured"
            )
            each = replace(each, losses={most: 0.0})
        found.append(each)
    return tuple(found)
