"""Measure the loss and the costs of every set of layers at each candidate's bits, while all other layers stay in float.

The layers are solved on the float model's own activations (parallel AdaQuant: Hubara et al. 2021, section 3.3), so that
candidates of different sets can be combined in one model. The loss of a candidate is the divergence of the model's
outputs with this set alone quantized. Only the part of the model behind the set is run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from onnx import ModelProto

from ..config import QuantizeConfig
from ..graph.emit import emit_qdq
from ..graph.extract import extract, needed_inputs, needed_nodes
from ..graph.layer_params import LayerParams
from ..graph.layers import count_macs
from ..graph.liveness import find_live
from ..graph.ops import CONVOLUTIONS
from ..graph.stream import model_bytes
from ..quantization.batches import Batches
from ..quantization.compared import find_comparable_outputs
from ..quantization.output_parts import Parts
from ..quantization.padding_mask import PaddingMask
from ..quantization.siblings import find_siblings
from ..quantization.solve import solve_layers, solve_widths
from ..quantization.spread import spread_tasks
from ..quantization.state import FLOAT, FloatActivations, Problem, ReconstructionState
from ..runtime.cache import Cache
from ..runtime.device import computing
from ..runtime.session import Session
from ..runtime.store import Store
from ..spec import BitSet, Block, Candidate, Cost, Grids, LayerScheme, QuantScheme
from .leaders import find_leaders, join_sets
from .loss import USUAL, Extent, ReferenceBatch, divergence_of
from .whole import Whole

# Every task runs the float model up to its sets anew, and a lost worker costs one task.
SETS_A_TASK = 4


@dataclass(frozen=True)
class UniformScheme:
    """The scheme in which all layers without bits of their own have one candidate, and the grids of their inputs."""

    scheme: QuantScheme
    grids: Grids


@dataclass(frozen=True)
class Survey:
    """What each worker gets: the prepared model, its schemes, the samples, the settings and the parts of the outputs.

    uniform: candidate -> the scheme in which all layers have it. whole: the model around, where this one is a body of
    it. rate: how often the model is run in one sample. given: layer and weight spec, as a text -> the integers and
    scales of a weight that an earlier graph has solved. extent: of the samples by which losses are measured.
    """

    model: ModelProto
    padding: PaddingMask
    uniform: Mapping[Candidate, UniformScheme]
    batches: Batches
    config: QuantizeConfig
    device: torch.device
    parts: Parts | None = None
    whole: Whole | None = None
    rate: float = 1.0
    given: Mapping[tuple[str, str], LayerParams] = field(default_factory=dict)
    extent: Extent = USUAL

    @property
    def scheme(self) -> QuantScheme:
        """The scheme of the first candidate: the layers and the tensors that they read are the same in all schemes."""
        return next(iter(self.uniform.values())).scheme


@dataclass(frozen=True)
class Measured:
    """Sets, and each layer's parameters at each of its candidates, solved on the float model's activations.

    seconds: time of solving ("solve") and of finding the losses ("evaluate"), summed over workers; results from the
    cache count as 0.
    """

    sets: tuple[BitSet, ...]
    params: dict[str, dict[Candidate, LayerParams]]
    seconds: dict[str, float]


def find_sets(scheme: QuantScheme) -> list[list[str]]:
    """Names of the layers that must have one candidate: they read the same tensor, or tensors that share a grid.

    A layer that reads float is a set of its own.
    """
    sets: dict[tuple[str, ...] | str, list[str]] = {}
    for layer in scheme.layers:
        key = layer.name if layer.reads_float else scheme.members_of(layer.input)
        sets.setdefault(key, []).append(layer.name)
    return list(sets.values())


def measure_sets(
    survey: Survey,
    cache: Cache,
    *,
    tell: Callable[[str], None],
    warn: Callable[[str], None] = lambda text: None,
    place: str = "",
) -> Measured:
    """Losses, costs and parameters of all sets; ``tell`` is called with the name of each layer that is done.

    place: of the graph in the model, with which names in the cache begin. Neighbouring sets are one task of a worker.
    Tasks in the cache are not measured again.
    """
    sets = order_sets(survey)
    tasks = {
        f"{place}sets {part[0]}": part for part in (sets[i : i + SETS_A_TASK] for i in range(0, len(sets), SETS_A_TASK))
    }
    parts: dict[str, Measured] = {}

    def take(name: str, part: Measured) -> None:
        parts[name] = part
        for of_set in part.sets:
            for layer in of_set.layers:
                tell(layer)

    for name in tasks:
        known = cache.find(name, Measured)
        if known is not None:
            take(name, known)
    seconds = {"solve": 0.0, "evaluate": 0.0}
    for name, part in _run_tasks(survey, {name: part for name, part in tasks.items() if name not in parts}, warn):
        take(name, cache.keep(name, part, Measured))
        seconds = {what: seconds[what] + part.seconds[what] for what in seconds}
    found = [parts[name] for name in tasks]
    return Measured(
        tuple(each for part in found for each in part.sets),
        {layer: params for part in found for layer, params in part.params.items()},
        seconds,
    )


def _run_tasks(
    survey: Survey, tasks: Mapping[Hashable, list[list[str]]], warn: Callable[[str], None]
) -> Iterator[tuple[str, Measured]]:
    """Run the tasks on the workers; in the order of their end."""
    largest = survey.model if survey.whole is None else survey.whole.model
    options: dict[str, Any] = {"model": largest, "device": survey.device, "warn": warn}
    for name, part in spread_tasks(measure_part, survey, tasks, survey.config, **options):
        yield str(name), part


def order_sets(survey: Survey) -> list[list[str]]:
    """The sets in the order in which the model computes their inputs: no activation is needed again later."""
    position = _find_positions(survey.model)
    layers = {layer.name: layer for layer in survey.scheme.layers}
    schemes = [each.scheme for each in survey.uniform.values()]
    sets = join_sets(find_sets(survey.scheme), find_leaders(survey.model, schemes, survey.config.encoding))
    return sorted(sets, key=lambda names: min(position.get(layers[name].input, -1) for name in names))


def _find_positions(model: ModelProto) -> dict[str, int]:
    """Tensor -> position in the graph of the node that computes it."""
    return {tensor: number for number, node in enumerate(model.graph.node) for tensor in node.output}


def measure_part(survey: Survey, sets: Sequence[Sequence[str]]) -> Measured:
    """Measure a few sets. One thread unless the settings say more: results must not depend on the machine."""
    threads = survey.config.threads or 1
    with Store() as store, computing():
        start = time.perf_counter()
        sweep = _Sweep(survey, store, threads)
        sweep.seconds["evaluate"] += time.perf_counter() - start
        found = tuple(sweep.measure(names) for names in sets)
        return Measured(found, sweep.params, sweep.seconds)


class _Sweep:
    """Measures sets one after the other in the order of the graph.

    The store holds the float model's activations at the set that is measured: later ones are not computed yet, earlier
    ones that no later node reads are dropped.
    """

    def __init__(self, survey: Survey, store: Store, threads: int) -> None:
        self.survey, self.threads = survey, threads
        self.model, self.uniform, self.padding = survey.model, survey.uniform, survey.padding
        self.problem = Problem.of(self.model, survey.scheme, survey.config, survey.padding, survey.device)
        self.index, self.types = self.problem.index, self.problem.types
        self.position = _find_positions(self.model)
        self.stored = FloatActivations(store, self.padding, self.types)
        self.params: dict[str, dict[Candidate, LayerParams]] = {}
        self.seconds = {"solve": 0.0, "evaluate": 0.0}
        self.references = self._store_inputs()
        self.compared = [] if survey.whole else find_comparable_outputs(self.references)
        self.shapes = self._find_shapes()

    def _store_inputs(self) -> list[dict[str, Any]]:
        """Store all samples, and run the float model on those of losses: its outputs with padding blanked.

        A body is judged by the outputs of the model around it.
        """
        references = []
        session = Session(self.model, threads=self.threads)
        for feeds in self.survey.batches:
            self.stored.add_float(feeds, self.survey.batches.count(feeds))
            if not self.survey.whole and sum(self.stored.sizes[:-1]) < self.survey.extent.most:
                blank = partial(self.padding.fill_padding, real=self.stored.masks[-1])
                references.append({name: blank(name, value) for name, value in session.run(feeds).items()})
        return references

    def _find_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the activations in a run of the fewest samples that the model takes."""
        scheme, feeds = self.survey.scheme, self.survey.batches.one
        tensors = [*scheme.computed, *(t for layer in scheme.layers for t in (layer.input, layer.output))]
        values = {**feeds, **Session(self.model, also=tensors, threads=self.threads).run(feeds)}
        return {name: value.shape for name, value in values.items() if isinstance(value, np.ndarray)}

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - start

    def measure(self, names: Sequence[str]) -> BitSet:
        """Solve the layers of a set at every candidate, and find the loss and the costs of each.

        Candidates that are the same for these layers are measured once.
        """
        uniform = {c: [k for k in each.scheme.layers if k.name in names] for c, each in self.uniform.items()}
        candidates = _find_candidates(uniform)
        first = {c: next(other for other in candidates if uniform[other] == uniform[c]) for c in candidates}
        layers = {c: uniform[c] for c in dict.fromkeys(first.values())}
        any_layers = next(iter(layers.values()))
        with self._timed("evaluate"):
            inputs = self._advance(any_layers)
        block = self._make_block(any_layers, inputs)
        with self._timed("solve"):
            self._solve(block, layers)
        with self._timed("evaluate"):
            losses = self._measure_losses(inputs, layers)
        costs = {c: self._cost(own, c) for c, own in layers.items()}
        for name in names:
            self.params[name] = {c: self.params[name][same] for c, same in first.items()}
        macs = sum(self._macs(k) for k in any_layers)
        every = {c: losses[same] for c, same in first.items()}
        return BitSet(tuple(names), macs, every, {c: costs[same] for c, same in first.items()})

    def _advance(self, layers: list[LayerScheme]) -> list[str]:
        """Compute the activations at the first of the layers from those that are stored, and drop the latter.

        Returns the tensors from which the rest of the model can be run.
        """
        tensor = min((layer.input for layer in layers), key=lambda name: self.position.get(name, -1))
        inputs = list(find_live(self.model, [tensor], index=self.index).get(tensor, self.index.inputs))
        known = [name.partition(":")[2] for name in self.stored.store.names()]
        missing = [t for t in inputs if t not in known]
        if missing:
            read = needed_inputs(self.index, known, missing)
            session = Session(self._extract(read, missing), threads=self.threads)
            for number in range(len(self.stored.sizes)):
                for name, value in session.run(self.stored.feeds(FLOAT, read, number)).items():
                    self.stored.store.append(f"{FLOAT}{name}", value)
        for name in known:
            if name not in inputs:
                self.stored.store.drop(f"{FLOAT}{name}")
        return inputs

    def _extract(self, inputs: Sequence[str], outputs: Sequence[str]) -> ModelProto:
        return extract(self.model, self.types, inputs=inputs, outputs=outputs, index=self.index)

    def _make_block(self, layers: list[LayerScheme], inputs: list[str]) -> Block:
        outputs = [layer.output for layer in layers]
        wanted = needed_nodes(self.index, inputs, outputs)
        nodes = [node.name for node in self.model.graph.node if node.name in wanted]
        return Block(layers[0].name, tuple(nodes), tuple(inputs), tuple(outputs), tuple(k.name for k in layers))

    def _solve(self, block: Block, layers: Mapping[Candidate, list[LayerScheme]]) -> None:
        """Parameters of the block's layers. Moments are taken once for each activation width, for all weight widths."""
        by_width: dict[int, list[Candidate]] = {}
        for candidate in layers:
            by_width.setdefault(candidate.activation_bits, []).append(candidate)
        for candidates in by_width.values():
            uniform = self.uniform[candidates[0]]
            problem = replace(self.problem, scheme=uniform.scheme)
            state = ReconstructionState(problem, self.stored, uniform.grids)
            specs = {
                layer.name: [layers[c][number].weight_spec for c in candidates]
                for number, layer in enumerate(layers[candidates[0]])
            }
            for together in find_siblings(state, block, specs):
                names = {layer.name for layer in together}
                own = {c: [layer for layer in layers[c] if layer.name in names] for c in candidates}
                given = {c: self._find_given(each, c, state.problem.readers.leaders) for c, each in own.items()}
                if any(given.values()):
                    for c, each in own.items():  # as they are solved where the bits are known
                        single = replace(state, layers={}, given=given[c])
                        self._keep(each, c, solve_layers(single, block, each), single.layers)
                    continue
                found = solve_widths(state, block, together, specs[together[0].name])
                for number, c in enumerate(candidates):
                    reasons = {k.name: one.reason for k, one in zip(together, found, strict=True) if one.reason}
                    params = {k.name: one.params[number] for k, one in zip(together, found, strict=True)}
                    self._keep(together, c, reasons, params)

    def _keep(
        self,
        layers: Sequence[LayerScheme],
        candidate: Candidate,
        reasons: Mapping[str, str],
        params: Mapping[str, LayerParams],
    ) -> None:
        """Keep parameters of layers; those that are rounded get a bias, as one that is solved, for its bytes."""
        for layer in layers:
            found = params[layer.name]
            if layer.name in reasons and layer.takes_bias and found.bias is None:
                found = replace(found, bias=self._zero_bias(layer))
            self.params.setdefault(layer.name, {})[candidate] = found

    def _find_given(
        self, layers: Sequence[LayerScheme], candidate: Candidate, leaders: Mapping[str, LayerScheme]
    ) -> dict[str, LayerParams]:
        """What earlier graphs, or the leaders in this one, have solved for the weights of these layers."""
        found = {layer.name: self.survey.given.get((layer.name, repr(layer.weight_spec))) for layer in layers}
        for name in found:
            if name in leaders and found[name] is None:
                found[name] = self.params.get(leaders[name].name, {}).get(candidate)
        return {name: params for name, params in found.items() if params is not None}

    def _zero_bias(self, layer: LayerScheme) -> np.ndarray:
        return np.zeros(self.shapes[layer.output][1 if layer.op in CONVOLUTIONS else -1])

    def _measure_losses(
        self, inputs: list[str], layers: Mapping[Candidate, list[LayerScheme]]
    ) -> dict[Candidate, float]:
        """Divergence of the outputs with these layers alone quantized, at each candidate."""
        if (whole := self.survey.whole) is not None:
            return {c: whole.measure(self._quantize(self.model, own, c)) for c, own in layers.items()}
        read = needed_inputs(self.index, inputs, self.compared)
        subgraph = self._extract(read, self.compared)
        batches = [
            ReferenceBatch(
                self.stored.feeds(FLOAT, read, number),
                outputs,
                partial(self.padding.fill_padding, real=self.stored.masks[number]),
                self.survey.parts,
            )
            for number, outputs in enumerate(self.references)
        ]
        losses = {}
        for candidate, own in layers.items():
            session = Session(self._quantize(subgraph, own, candidate), threads=self.threads)
            losses[candidate] = divergence_of(session, batches, self.compared, extent=self.survey.extent)
        return losses

    def _quantize(self, subgraph: ModelProto, layers: list[LayerScheme], candidate: Candidate) -> ModelProto:
        """The subgraph with these layers and their inputs alone quantized."""
        uniform = self.uniform[candidate]
        tensors = {layer.input for layer in layers if not layer.reads_float}
        activations = {t: spec for t, spec in uniform.scheme.activations.items() if t in tensors}
        requantized = {t: spec for t, spec in uniform.scheme.requantized.items() if t in tensors}
        scheme = replace(uniform.scheme, layers=tuple(layers), activations=activations, requantized=requantized)
        params = {layer.name: self.params[layer.name][candidate] for layer in layers}
        return emit_qdq(subgraph, scheme, uniform.grids, params, encoding=self.survey.config.encoding)

    def _cost(self, layers: list[LayerScheme], candidate: Candidate) -> Cost:
        """Bytes of the layers and of the nodes that quantize their inputs, and bit operations of one sample."""
        inputs, outputs = sorted({k.input for k in layers}), [k.output for k in layers]
        nodes = [name for k in layers for name in (k.name, k.bias_add) if name]
        subgraph = extract(self.model, {}, nodes=nodes, inputs=inputs, outputs=outputs, index=self.index)
        bops = sum(self._macs(k) * k.weight_spec.bits * k.activation_spec.bits for k in layers)
        return Cost(model_bytes(self._quantize(subgraph, layers, candidate)), bops)

    def _macs(self, layer: LayerScheme) -> int:
        """Multiplications of one sample."""
        weight = self.index.initializers[layer.weight].dims
        given, made = (self.shapes.get(tensor, ()) for tensor in (layer.input, layer.output))
        count = count_macs(self.index.nodes[layer.name], weight, given, made) // self.survey.batches.per_run
        return round(self.survey.rate * count)


def _find_candidates(layers: Mapping[Candidate, list[LayerScheme]]) -> list[Candidate]:
    """Candidates at which all layers have the candidate's own bits; of those that read float the weights have them.

    The first and the last layers, and layers that the settings name, keep their bits at every candidate. Where no
    candidate has these bits, the first one stands for them.
    """

    def fits(layer: LayerScheme, candidate: Candidate) -> bool:
        return layer.weight_spec.bits == candidate.weight_bits if layer.reads_float else layer.bits == candidate

    return [c for c, own in layers.items() if all(fits(layer, c) for layer in own)] or list(layers)[:1]
