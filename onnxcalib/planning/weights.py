"""What weights alone lose and cost at each candidate: every layer that reads float, and every table, by itself.

The loss of a candidate is that of the rounded weights, by the mean square of each weight's gradient: see
``gradients``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256

import numpy as np
import torch
from onnx import ModelProto

from ..bitplan import settings_of
from ..graph.bodies import LEAST_SHARED_BYTES, identify
from ..graph.emit import emit_qdq
from ..graph.index import Index, known_constant
from ..graph.layer_params import LayerParams
from ..graph.layers import count_channels, count_macs
from ..graph.layout import count_inputs, to_rows
from ..graph.weight_file import FileIntegers
from ..graph.weightless import held_bytes
from ..numeric.solve import Solution, round_layer
from ..progress import track
from ..quantization.compared import Compared
from ..quantization.prepared import Prepared
from ..quantization.recurrent import round_recurrent
from ..quantization.solve import round_embeddings, round_layers
from ..quantization.speed import read_median
from ..quantization.state import FloatActivations, Problem, ReconstructionState
from ..quantization.tensor_shapes import measure_shapes
from ..quantization.trial import make_placeholders, make_zeros
from ..runtime.store import Store
from ..spec import BitSet, Candidate, Cost, Grids, LayerScheme, QuantScheme, QuantSpec
from .bits import Bits
from .gradients import measure_gradients
from .graphs import Made, PlannedGraph, take_chosen
from .whole import Whole

Set = Mapping[Candidate, LayerScheme]  # a layer or a table at each candidate that it may have
Params = Mapping[str, Mapping[Candidate, LayerParams]]


@dataclass(frozen=True)
class WeightLosses:
    """What outputs lose by weights alone.

    rounded: layer and candidate, as ``NAME W4A32`` -> divergence of the outputs with its weights alone rounded; solved:
    with these solved, as is told from what rounding loses. It is empty where that cannot be told.
    """

    rounded: dict[str, float]
    solved: dict[str, float]

    def scale(self, factor: float) -> WeightLosses:
        """All losses times a factor."""
        return WeightLosses(
            *({name: factor * loss for name, loss in each.items()} for each in (self.rounded, self.solved))
        )


@dataclass(frozen=True)
class PlannedWeights:
    """The layers and the tables of a model whose bits are planned.

    sets: each layer at each of its candidates; one candidate where the settings give its bits, or it reads no float. A
    table that several Gathers look up is one set, and one that the head has too is the head's. sharing: the layer or
    the Gather that stands for a set -> all of them.
    """

    prepared: Prepared
    sets: Mapping[str, Set]
    sharing: Mapping[str, tuple[str, ...]]
    rate: float = 1.0

    @classmethod
    def of(cls, graph: PlannedGraph) -> PlannedWeights:
        prepared = graph.prepared
        tables: dict[str, list[str]] = {}
        for table in prepared.scheme.embeddings:
            head = [table.tied_to] if table.tied_to else []
            tables.setdefault(table.tied_to or table.weight, head).append(table.name)
        sharing = {names[0]: tuple(names) for names in tables.values()}
        found: dict[str, dict[Candidate, LayerScheme]] = {}
        for uniform in graph.schemes.uniform.values():
            for layer in (*uniform.scheme.embeddings, *uniform.scheme.layers):
                if layer.op != "Gather" or (layer.name in sharing and layer.tied_to is None):
                    found.setdefault(layer.name, {})[layer.bits] = layer
        return cls(prepared, found, sharing, graph.rate)

    def measure_losses(self, compared: Compared) -> WeightLosses:
        """What the outputs lose, by gradients. Raises ConfigError where torch cannot run the model."""
        planned = {name: own for name, own in self.sets.items() if next(iter(own.values())).reads_float}
        gathers = {table.name: table for table in self.prepared.scheme.embeddings}
        layers = [next(iter(own.values())) for own in planned.values()]
        layers += [gathers[name] for names in self.sharing.values() for name in names[1:]]
        found = measure_gradients(self.prepared, layers, compared)
        losses = WeightLosses({}, {})
        self.prepared.run.observer.blocks(len(planned))
        for name in track(list(planned)):
            own = found.squares.pop(name)
            solved = own * found.remaining.get(name, 1.0)
            for other in self.sharing.get(name, ())[1:]:
                more = found.squares.pop(other)
                own, solved = own + more, solved + more
            for candidate, layer in planned[name].items():
                key = f"{name} {candidate}"
                losses.rounded[key], losses.solved[key] = self._find_losses(layer, own, solved)
            self.prepared.run.observer.planned(name)
        return losses

    def _find_losses(self, layer: LayerScheme, *squares: torch.Tensor) -> list[float]:
        """The sums over weights of the squared rounding error times mean squares of the gradient."""
        weight = known_constant(self.index, layer.weight)
        rows = torch.from_numpy(np.array(to_rows(weight, layer), order="C"))
        rounded = _dequantize(round_layer(rows, layer.weight_spec), layer.weight_spec)
        error = rounded.sub_(rows).square_()
        return [float((error * each).sum(dtype=torch.float64)) for each in squares]

    def make_sets(self, losses: Mapping[str, float]) -> tuple[BitSet, ...]:
        """The sets with their losses and costs; those whose bits are not planned lose nothing."""
        shapes = measure_shapes(self.prepared.model, read_median(self.prepared.samples), self.prepared.run.threads)
        per_run = self.prepared.samples.fixed_batch or 1
        found = []
        for name, own in self.sets.items():
            layer = next(iter(own.values()))
            macs = 0
            if layer.op != "Gather":
                node = self.index.nodes[name]
                count = count_macs(node, shapes[layer.weight], shapes[layer.input], shapes[layer.output])
                macs = round(self.rate * (count // per_run))
            found.append(
                BitSet(
                    self.sharing.get(name, (name,)),
                    macs,
                    {c: losses.get(f"{name} {c}", 0.0) for c in own},
                    {c: Cost(self._count_bytes(k), macs * c.weight_bits * c.activation_bits) for c, k in own.items()},
                )
            )
        return tuple(found)

    def _count_bytes(self, layer: LayerScheme) -> int:
        """Bytes of the integers, the scales and the zero points of a layer; those of a head hold for its table too."""
        grid, spec = make_zeros(layer, self.index).grid, layer.weight_spec
        zeros = 0 if spec.symmetric else -(-grid.scale.size * spec.stored_bits // 8)
        size = math.prod(self.index.initializers[layer.weight].dims)
        total = int(-(-size * spec.stored_bits // 8) + 4 * grid.scale.size + zeros)
        # Rows that blocks do not divide are stored for the table and for the head.
        inputs = count_inputs(self.index.initializers[layer.weight].dims, layer)
        tied = layer.op != "Gather" and layer.name in self.sharing
        return 2 * total if tied and inputs % (spec.block or 1) else total

    def measure_each(self, whole: Whole) -> WeightLosses:
        """What the whole model loses with each layer alone rounded, measured in turn."""
        planned, losses = (
            [own for own in self.sets.values() if next(iter(own.values())).reads_float],
            dict[str, float](),
        )
        self.prepared.run.observer.blocks(len(planned))
        for own in track(planned):
            for candidate, layer in own.items():
                names = self.sharing.get(layer.name, (layer.name,))
                losses[f"{layer.name} {candidate}"] = whole.measure(self._round({name: candidate for name in names}))
            self.prepared.run.observer.planned(next(iter(own.values())).name)
        return WeightLosses(losses, {})

    def measure_all(self, whole: Whole, candidate: Candidate) -> tuple[float, list[str]]:
        """What the whole model loses with all layers rounded near a candidate, and the names of their own losses."""
        chosen, names = dict[str, Candidate](), list[str]()
        for name, own in self.sets.items():
            if next(iter(own.values())).reads_float:
                found = min(own, key=lambda c: (abs(c.weight_bits - candidate.weight_bits), c != candidate))
                chosen |= dict.fromkeys(self.sharing.get(name, (name,)), found)
                names.append(f"{name} {found}")
        return whole.measure(self._round(chosen)), names

    def list_apart(self) -> set[str]:
        """Layers whose integers each graph stores by itself: see ``hoist_constants``."""
        packs = self.prepared.config.encoding == "matmulnbits"
        return set() if packs else {layer.name for layer in self.prepared.scheme.layers}

    def _round(self, chosen: Mapping[str, Candidate]) -> ModelProto:
        """The graph with these layers and tables alone rounded."""
        scheme = self.prepared.make_scheme({name: settings_of(c) for name, c in chosen.items()})
        scheme = replace(
            scheme,
            layers=tuple(k for k in scheme.layers if k.name in chosen),
            embeddings=tuple(k for k in scheme.embeddings if k.name in chosen),
            recurrent=(),
            activations={},
            requantized={},
        )
        params = self._round_scheme(scheme, Grids({}))
        return emit_qdq(self.prepared.model, scheme, Grids({}), params, encoding=self.prepared.config.encoding)

    def make(self, graph: PlannedGraph, sets: Sequence[BitSet], bits: Bits, recurrent: Params) -> Made:
        """What the file with rounded weights is made of. recurrent: parameters of such layers at each candidate."""
        scheme, given = self._make_scheme(sets, bits), take_chosen(sets, bits, recurrent)
        grids = graph.schemes.choose_grids(scheme)
        fixed = replace(scheme, recurrent=tuple(k for k in scheme.recurrent if k.name not in given))
        stored = self._round_scheme(scheme, grids) | round_recurrent(self.index, fixed) | given
        return scheme, grids, {k.name: stored[k.name] for k in scheme.stored}

    def _round_scheme(self, scheme: QuantScheme, grids: Grids) -> dict[str, LayerParams]:
        prepared = self.prepared
        problem = Problem.of(prepared.model, scheme, prepared.config, prepared.padding, parts=prepared.parts)
        with Store() as store:
            state = ReconstructionState(problem, FloatActivations(store, prepared.padding, problem.types), grids)
            round_layers(state)
            return round_embeddings(self.index, scheme) | state.layers

    def make_empty(self, sets: Sequence[BitSet], bits: Bits, recurrent: Params, *, marked: bool) -> Made:
        """As ``make``, of zeros, for a file of the same size. Layers that take a bias have one, as if they were solved.

        marked: weights of different values differ, as bodies store equal ones once.
        """
        scheme, given = self._make_scheme(sets, bits), take_chosen(sets, bits, recurrent)
        layers = {k.name: given.get(k.name) or self._make_zeros(k) for k in scheme.stored}
        if marked:
            layers |= {k.name: self._mark(k, layers[k.name]) for k in (*scheme.embeddings, *scheme.layers)}
        return scheme, make_placeholders(scheme), layers

    def _mark(self, layer: LayerScheme, zeros: LayerParams) -> LayerParams:
        """Zeros with a few ones that tell weights of other values apart, as their scales will be."""
        weight = self.index.initializers[layer.weight]
        if isinstance(zeros.integers, FileIntegers) or held_bytes(weight) < LEAST_SHARED_BYTES:
            return zeros
        if layer.weight not in self._digests:
            self._digests[layer.weight] = np.frombuffer(sha256(identify(weight).encode()).digest()[:4], np.uint8)
        ones, grid = np.unpackbits(self._digests[layer.weight]), zeros.grid
        integers, scale, zero = (np.array(each, order="C") for each in (zeros.integers, grid.scale, grid.zero_point))
        integers.flat[: len(ones)] = ones[: integers.size]
        scale.flat[: len(ones)] += ones[: scale.size]
        if not layer.weight_spec.symmetric:
            zero.flat[: len(ones)] = ones[: zero.size]
        return replace(zeros, integers=integers, grid=replace(grid, scale=scale, zero_point=zero))

    @cached_property
    def _digests(self) -> dict[str, np.ndarray]:
        return {}

    def _make_zeros(self, layer: LayerScheme) -> LayerParams:
        found = make_zeros(layer, self.index)
        if found.bias is not None or layer.op == "Gather" or not layer.takes_bias:
            return found
        channels = count_channels(self.index.nodes[layer.name], self.index.initializers[layer.weight].dims)
        return replace(found, bias=np.zeros(channels, np.float32))

    def _make_scheme(self, sets: Sequence[BitSet], bits: Bits) -> QuantScheme:
        """The scheme of the graph's own layers at these bits; sets may have layers of other graphs."""
        own = {layer.name for layer in self.prepared.scheme.stored}
        chosen = {name: c for each, c in zip(sets, bits, strict=True) for name in each.layers if name in own}
        return self.prepared.make_scheme({name: settings_of(c) for name, c in chosen.items()})

    @cached_property
    def index(self) -> Index:
        return Index(self.prepared.model.graph)


def _dequantize(found: Solution, spec: QuantSpec) -> torch.Tensor:
    """The rounded weights (G, C, K), float32."""
    values = found.integers.float()

    def expand(each: torch.Tensor) -> torch.Tensor:
        each = each.float() if each.dim() == values.dim() else each.float()[..., None]
        return each if each.shape[2] == 1 else each.repeat_interleave(spec.block or 1, 2)[..., : values.shape[2]]

    if found.zero is not None:
        values -= expand(found.zero)
    return values.mul_(expand(found.scale))
