"""Measure what each set of layers loses and costs at each candidate's bits, all other layers left in float.

The layers are solved on the float model's own activations (parallel AdaQuant: Hubara et al. 2021, section 3.3), so that
candidates of different sets can be stitched together. Their loss is the divergence of the model's outputs with one set
swapped in: what lies before it is the float model's, and only what lies behind it is run again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from onnx import ModelProto

from ..config import QuantizeConfig
from ..errors import ConfigError
from ..graph.emit import LayerParams, emit_qdq
from ..graph.extract import extract, infer_types, needed_inputs, needed_nodes
from ..graph.index import Index, constant
from ..graph.liveness import find_live
from ..graph.save import MOST_BYTES, model_bytes
from ..numeric.divergence import Divergence
from ..quantization.calibrate import Batches
from ..quantization.padding_mask import PaddingMask
from ..quantization.solve import solve_widths
from ..quantization.state import FLOAT, Problem, ReconstructionState, StoredActivations
from ..runtime.cache import Cache
from ..runtime.device import computing
from ..runtime.session import Session, is_float
from ..runtime.store import Store
from ..runtime.workers import count_jobs, run_tasks
from ..spec import BitSet, Block, Candidate, Cost, Grids, LayerScheme, QuantScheme

# Samples on which the outputs' divergence is measured.
JUDGES = 64
# Standard error of a divergence, relative to it, at which no more samples are looked at.
TIGHT = 0.05
# A standard error of fewer samples says little.
LEAST_JUDGES = 16
# Each task runs the float model up to its sets anew, and a worker's loss costs one of them.
SETS_A_TASK = 4


@dataclass(frozen=True)
class UniformScheme:
    """A scheme whose free layers all have one candidate's bits, and the grids of what they read."""

    scheme: QuantScheme
    grids: Grids


@dataclass(frozen=True)
class Survey:
    """What is to be measured, as each worker gets it: the prepared model, its schemes and the samples.

    uniform: candidate -> the scheme in which all layers have it.
    """

    model: ModelProto
    padding: PaddingMask
    uniform: Mapping[Candidate, UniformScheme]
    batches: Batches
    config: QuantizeConfig
    device: torch.device


@dataclass(frozen=True)
class Measured:
    """Sets, and each layer's parameters at each of its candidates, solved on the float model's activations.

    seconds: what solving took, and swapping candidates in, summed over workers, without what the cache had.
    """

    sets: tuple[BitSet, ...]
    params: dict[str, dict[Candidate, LayerParams]]
    seconds: dict[str, float]


def judged_outputs(batches: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the outputs in which a loss can be seen. Raises ConfigError where there is none."""
    names = [name for name in batches[0] if all(_can_judge(batch[name]) for batch in batches)]
    names = [name for name in names if any(batch[name].any() for batch in batches)]
    if not names:
        raise ConfigError(
            f"plan: found no loss to see in the outputs {', '.join(batches[0])}; one of finite floating point numbers"
            " that are not all zero is needed; give the bits yourself"
        )
    return names


def _can_judge(value: Any) -> bool:
    return is_float(value) and bool(np.isfinite(value).all())


def divergence_of(session: Session, batches: Sequence[tuple[Mapping, Mapping, Any]], names: Sequence[str]) -> float:
    """Divergence of a model's outputs on (feeds, wanted outputs, blank), the mean over ``names``, where shapes agree.

    ``blank`` is told a name and a value, and makes its padding what it is in the wanted one. Infinite where shapes
    never agree. Batches that come after it is known to TIGHT are left out.
    """
    found = {name: Divergence() for name in names}
    for feeds, wanted, blank in batches:
        given = session.run(feeds, names)
        for name, divergence in found.items():
            if wanted[name].shape == given[name].shape:
                divergence.add(wanted[name], blank(name, given[name]))
        if all(each.samples >= LEAST_JUDGES and each.error <= TIGHT * each.value for each in found.values()):
            break
    values = [divergence.value for divergence in found.values() if divergence.samples]
    return float(np.mean(values)) if values else math.inf


class _FloatActivations(StoredActivations):
    """Activations of the float model alone, which the layers read in its place and in that of the quantized one."""

    def feeds(self, prefix: str, tensors: Iterable[str], number: int) -> dict[str, np.ndarray | list]:
        return super().feeds(FLOAT, tensors, number)


def find_sets(scheme: QuantScheme) -> list[list[str]]:
    """Layers by name that must have one candidate: those that read one tensor, or tensors of one grid."""
    members = {t: of_set for of_set in scheme.shared for t in of_set}
    sets: dict[tuple[str, ...], list[str]] = {}
    for layer in scheme.layers:
        sets.setdefault(members.get(layer.input, (layer.input,)), []).append(layer.name)
    return list(sets.values())


def measure_sets(
    survey: Survey, cache: Cache, *, tell: Callable[[str], None], warn: Callable[[str], None] = lambda text: None
) -> Measured:
    """Losses, costs and parameters of all sets; ``tell`` hears the name of each layer that is done.

    Neighbouring sets are one task, that of a worker; what the cache has is not measured again. A candidate under which
    a layer keeps other bits (the first and the last) is one of those bits.
    """
    sets, config = order_sets(survey), survey.config
    tasks = {f"sets {part[0]}": part for part in (sets[i : i + SETS_A_TASK] for i in range(0, len(sets), SETS_A_TASK))}
    parts: dict[str, Measured] = {}

    def take(name: str, part: Measured) -> None:
        parts[name] = cache.keep(name, part)
        for of_set in part.sets:
            for layer in of_set.layers:
                tell(layer)

    known = [name for name in tasks if name in cache]
    for name in known:
        take(name, cache.recall(name, partial(measure_part, survey, tasks[name])))
    seconds = {"solve": 0.0, "swap": 0.0}
    large = model_bytes(survey.model) > MOST_BYTES
    if large and (config.jobs or config.scheduler):
        warn("jobs: a model above 2 GB is planned in this process alone")
    jobs = 1 if large else config.jobs or (1 if survey.device.type == "cuda" else count_jobs(config.threads or 1))
    others = {name: part for name, part in tasks.items() if name not in known}
    if others:
        places = {"jobs": min(jobs, len(others)), "scheduler": None if large else config.scheduler}
        for name, part in run_tasks(measure_part, survey, others, **places, warn=warn):
            take(name, part)
            seconds = {what: seconds[what] + part.seconds[what] for what in seconds}
    found = [parts[name] for name in tasks]
    return Measured(
        tuple(each for part in found for each in part.sets),
        {layer: params for part in found for layer, params in part.params.items()},
        seconds,
    )


def order_sets(survey: Survey) -> list[list[str]]:
    """In the order in which what they read is made, so that activations are never needed again."""
    made = {t: place for place, node in enumerate(survey.model.graph.node) for t in node.output}
    scheme = next(iter(survey.uniform.values())).scheme
    layers = {layer.name: layer for layer in scheme.layers}
    return sorted(find_sets(scheme), key=lambda names: min(made.get(layers[name].input, -1) for name in names))


def measure_part(survey: Survey, sets: Sequence[Sequence[str]]) -> Measured:
    """The same of a few sets, on as many threads as the settings say, or on one: results must not depend on where."""
    threads = survey.config.threads or 1
    with Store() as store, computing(threads):
        start = time.perf_counter()
        sweep = _Sweep(survey, store, threads)
        sweep.seconds["swap"] += time.perf_counter() - start
        found = tuple(sweep.measure(names) for names in sets)
        return Measured(found, sweep.params, sweep.seconds)


class _Sweep:
    """The float model's activations where it stands now, moved on from set to set, and what was found so far."""

    def __init__(self, survey: Survey, store: Store, threads: int) -> None:
        model = survey.model
        self.model, self.uniform, self.config = model, survey.uniform, survey.config
        self.padding = survey.padding
        self.device, self.threads = survey.device, threads
        self.index, self.types = Index(model.graph), infer_types(model)
        self.made = {t: place for place, node in enumerate(model.graph.node) for t in node.output}
        self.stored = _FloatActivations(store, self.padding, self.types)
        self.scheme = next(iter(survey.uniform.values())).scheme
        self.params: dict[str, dict[Candidate, LayerParams]] = {}
        self.seconds = {"solve": 0.0, "swap": 0.0}
        self.outputs: list[dict[str, np.ndarray]] = []
        whole = Session(model, threads=threads)
        for feeds in survey.batches:
            self.stored.add_float(feeds, survey.batches.count(feeds))
            if sum(self.stored.sizes[:-1]) < JUDGES:
                blank = partial(self.padding.blank, real=self.stored.masks[-1])
                self.outputs.append({name: blank(name, value) for name, value in whole.run(feeds).items()})
        self.judged = judged_outputs(self.outputs)
        self.per_run, one = survey.batches.per_run, survey.batches.one
        shapes = {**one, **Session(model, also=self._tensors(), threads=threads).run(one)}
        self.shapes = {t: v.shape for t, v in shapes.items() if isinstance(v, np.ndarray)}

    def _tensors(self) -> list[str]:
        return [*self.scheme.activations, *(t for k in self.scheme.layers for t in (k.input, k.output))]

    def _made(self, tensor: str) -> int:
        return self.made.get(tensor, -1)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - start

    def measure(self, names: Sequence[str]) -> BitSet:
        """Solve the layers of a set at every candidate, and swap each candidate into the float model."""
        layers = {c: [k for k in each.scheme.layers if k.name in names] for c, each in self.uniform.items()}
        candidates = self._candidates(layers)
        with self._timed("swap"):
            inputs = self._move(layers[candidates[0]])
        block = self._block(layers[candidates[0]], inputs)
        with self._timed("solve"):
            self._solve(block, {c: layers[c] for c in candidates})
        with self._timed("swap"):
            losses = self._swap(inputs, {c: layers[c] for c in candidates})
        costs = {c: self._cost(layers[c], c) for c in candidates}
        return BitSet(tuple(names), sum(self._macs(k) for k in layers[candidates[0]]), losses, costs)

    def _candidates(self, layers: Mapping[Candidate, list[LayerScheme]]) -> list[Candidate]:
        """Those that are as they are called: first and last layers, and what settings name, have their own bits."""
        own = {c: {layer.bits for layer in of} for c, of in layers.items()}
        return [c for c in layers if own[c] == {c}] or list(layers)[:1]

    def _move(self, layers: list[LayerScheme]) -> list[str]:
        """Bring the stored activations to where the first of the layers reads; the tensors there."""
        tensor = min((layer.input for layer in layers), key=self._made)
        inputs = list(find_live(self.model, [tensor]).get(tensor, self.index.inputs))
        known = [name.partition(":")[2] for name in self.stored.store.names()]
        missing = [t for t in inputs if t not in known]
        if missing:
            read = needed_inputs(self.index, known, missing)
            session = Session(extract(self.model, self.types, inputs=read, outputs=missing), threads=self.threads)
            for number in range(len(self.stored.sizes)):
                given = session.run({t: self.stored.store.batch(f"{FLOAT}{t}", number) for t in read})
                for name, value in given.items():
                    self.stored.store.append(f"{FLOAT}{name}", value)
        for name in known:
            if name not in inputs:
                self.stored.store.drop(f"{FLOAT}{name}")
        return inputs

    def _block(self, layers: list[LayerScheme], inputs: list[str]) -> Block:
        outputs = [layer.output for layer in layers]
        wanted = needed_nodes(self.index, inputs, outputs)
        nodes = [node.name for node in self.model.graph.node if node.name in wanted]
        return Block(layers[0].name, tuple(nodes), tuple(inputs), tuple(outputs), tuple(k.name for k in layers))

    def _solve(self, block: Block, layers: Mapping[Candidate, list[LayerScheme]]) -> None:
        """Parameters of the block's layers: moments once for each activation width, on which all weights are solved."""
        by_width: dict[int, list[Candidate]] = {}
        for candidate in layers:
            by_width.setdefault(candidate.activation_bits, []).append(candidate)
        for candidates in by_width.values():
            uniform = self.uniform[candidates[0]]
            problem = Problem(self.model, uniform.scheme, self.config, self.padding, self.device)
            state = ReconstructionState(problem, self.stored, uniform.grids)
            for place, layer in enumerate(layers[candidates[0]]):
                specs = [layers[c][place].weight_spec for c in candidates]
                params, reason = solve_widths(state, block, layer, specs)
                if reason is not None and layer.takes_bias:  # AdaQuant gives such a layer a bias
                    params = [
                        each if each.bias is not None else replace(each, bias=self._no_bias(layer)) for each in params
                    ]
                self.params.setdefault(layer.name, {}).update(zip(candidates, params, strict=True))

    def _no_bias(self, layer: LayerScheme) -> np.ndarray:
        return np.zeros(self.shapes[layer.output][1 if layer.op in ("Conv", "ConvTranspose") else -1])

    def _swap(self, inputs: list[str], layers: Mapping[Candidate, list[LayerScheme]]) -> dict[Candidate, float]:
        """Divergence of the outputs with these layers alone quantized, at each candidate."""
        read = needed_inputs(self.index, inputs, self.judged)
        cut = extract(self.model, self.types, inputs=read, outputs=self.judged)
        feeds = [
            {t: self.stored.store.batch(f"{FLOAT}{t}", number) for t in read} for number in range(len(self.outputs))
        ]
        blanks = [partial(self.padding.blank, real=real) for real in self.stored.masks[: len(feeds)]]
        batches = list(zip(feeds, self.outputs, blanks, strict=True))
        losses = {}
        for candidate, own in layers.items():
            session = Session(self._emit(cut, own, candidate), threads=self.threads)
            losses[candidate] = divergence_of(session, batches, self.judged)
        return losses

    def _emit(self, cut: ModelProto, layers: list[LayerScheme], candidate: Candidate) -> ModelProto:
        """A part of the model in which these layers alone, and what they read, are on their grids."""
        uniform = self.uniform[candidate]
        tensors = {layer.input for layer in layers}
        activations = {t: spec for t, spec in uniform.scheme.activations.items() if t in tensors}
        requantized = {t: spec for t, spec in uniform.scheme.requantized.items() if t in tensors}
        scheme = replace(uniform.scheme, layers=tuple(layers), activations=activations, requantized=requantized)
        params = {layer.name: self.params[layer.name][candidate] for layer in layers}
        return emit_qdq(cut, scheme, uniform.grids, params, encoding=self.config.encoding)

    def _cost(self, layers: list[LayerScheme], candidate: Candidate) -> Cost:
        """Bytes of the layers and of what puts their inputs on their grids, and bit operations of one sample."""
        inputs, outputs = sorted({k.input for k in layers}), [k.output for k in layers]
        nodes = [name for k in layers for name in (k.name, k.bias_add) if name]
        cut = extract(self.model, {}, nodes=nodes, inputs=inputs, outputs=outputs)
        bops = sum(self._macs(k) * k.weight_spec.bits * k.activation_spec.bits for k in layers)
        return Cost(model_bytes(self._emit(cut, layers, candidate)), bops)

    def _macs(self, layer: LayerScheme) -> int:
        """Products of one sample: of a ConvTranspose each input is in as many as its weight has outputs."""
        weight = constant(self.index, layer.weight)
        if layer.op == "ConvTranspose":
            return math.prod(self.shapes.get(layer.input, ())) * math.prod(weight.shape[1:]) // self.per_run
        inputs = weight.size // weight.shape[layer.weight_spec.axis]
        return math.prod(self.shapes.get(layer.output, ())) * inputs // self.per_run
