"""What weights alone lose and cost at each candidate: every layer that reads float, and every table, by itself.

The loss of a candidate is that of the rounded weights, by the mean square of each weight's gradient: see
``gradients``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from onnx import ModelProto

from ..bitplan import CANDIDATE_OF, NAME_OF, settings_of
from ..config import CandidateName, LayerConfig
from ..graph.embeddings import TABLE_BITS
from ..graph.index import Index, known_constant
from ..graph.layer_params import LayerParams
from ..graph.layers import count_channels, count_macs, end_layers
from ..graph.layout import count_inputs, to_rows
from ..graph.names import resolve_names
from ..graph.ops import MATRIX_LAYERS
from ..numeric.solve import Solution, round_layer
from ..progress import track
from ..quantization.compared import Compared, find_compared
from ..quantization.prepared import Prepared
from ..quantization.recurrent import round_recurrent
from ..quantization.solve import round_embeddings, round_layers
from ..quantization.speed import read_median
from ..quantization.state import FloatActivations, Problem, ReconstructionState
from ..quantization.tensor_shapes import measure_shapes
from ..quantization.trial import make_placeholders, make_zeros
from ..runtime.session import Session
from ..runtime.store import Store
from ..spec import BitSet, Candidate, Cost, Grids, LayerScheme, QuantScheme, QuantSpec
from .bits import Bits
from .gradients import measure_gradients

Set = Mapping[Candidate, LayerScheme]  # a layer or a table at each candidate that it may have


@dataclass(frozen=True)
class PlannedWeights:
    """The layers and the tables of a model whose bits are planned.

    sets: each layer at each of its candidates; one candidate where the settings give its bits, or it reads no float. A
    table that several Gathers look up is one set, and one that the head has too is the head's. sharing: the layer or
    the Gather that stands for a set -> all of them. compared: the outputs by which losses are measured.
    """

    prepared: Prepared
    sets: Mapping[str, Set]
    sharing: Mapping[str, tuple[str, ...]]
    compared: Compared

    @classmethod
    def of(cls, prepared: Prepared) -> PlannedWeights:
        """Raises ConfigError where no output can be compared."""
        tables: dict[str, list[str]] = {}
        for table in prepared.scheme.embeddings:
            head = [table.tied_to] if table.tied_to else []
            tables.setdefault(table.tied_to or table.weight, head).append(table.name)
        sharing = {names[0]: tuple(names) for names in tables.values()}
        given = _list_given(prepared)
        free = [
            k for k in (*prepared.scheme.embeddings, *prepared.scheme.layers) if k.name not in given and k.reads_float
        ]
        found: dict[str, dict[Candidate, LayerScheme]] = {}
        for candidate in map(CANDIDATE_OF.__getitem__, prepared.config.candidates):
            fit = [k for k in free if k.op != "Gather" or candidate.weight_bits in TABLE_BITS]
            scheme = prepared.make_scheme({k.name: _fit(k, candidate) for k in fit})
            for layer in (*scheme.embeddings, *scheme.layers):
                if layer.op != "Gather" or (layer.name in sharing and layer.tied_to is None):
                    found.setdefault(layer.name, {})[layer.bits] = layer
        feeds = prepared.samples.read(range(prepared.samples.fixed_batch or 1))
        outputs = Session(prepared.model, threads=prepared.run.threads).run(feeds)
        return cls(prepared, found, sharing, find_compared(prepared, outputs))

    def measure_losses(self) -> dict[str, float]:
        """Layer and candidate, as ``NAME W4A32`` -> divergence of the outputs with its weights alone quantized.

        Rounded, or solved where the settings have layers solved.
        """
        planned = {name: own for name, own in self.sets.items() if next(iter(own.values())).reads_float}
        gathers = {table.name: table for table in self.prepared.scheme.embeddings}
        layers = [next(iter(own.values())) for own in planned.values()]
        layers += [gathers[name] for names in self.sharing.values() for name in names[1:]]
        found = measure_gradients(self.prepared, layers, self.compared)
        solves = self.prepared.config.does("reconstruct")
        losses = {}
        self.prepared.run.observer.blocks(len(planned))
        for name in track(list(planned)):
            own = found.squares.pop(name) * (found.remaining.get(name, 1.0) if solves else 1.0)
            for other in self.sharing.get(name, ())[1:]:
                own += found.squares.pop(other)
            for candidate, layer in planned[name].items():
                losses[f"{name} {candidate}"] = self._find_loss(layer, own)
            self.prepared.run.observer.planned(name)
        return losses

    def _find_loss(self, layer: LayerScheme, squares: torch.Tensor) -> float:
        """The sum over weights of the squared rounding error times the mean square of the gradient."""
        weight = known_constant(self.index, layer.weight)
        rows = torch.from_numpy(np.array(to_rows(weight, layer), order="C"))
        rounded = _dequantize(round_layer(rows, layer.weight_spec), layer.weight_spec)
        return float(rounded.sub_(rows).square_().mul_(squares).sum(dtype=torch.float64))

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
                macs = count_macs(node, shapes[layer.weight], shapes[layer.input], shapes[layer.output]) // per_run
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

    def name_of(self, layer: str, candidate: Candidate) -> CandidateName:
        """The bits that a layer has at a candidate."""
        return NAME_OF[candidate]

    def emit(self, sets: Sequence[BitSet], bits: Bits) -> ModelProto:
        """The file with rounded weights."""
        prepared, scheme = self.prepared, self._make_scheme(sets, bits)
        grids = prepared.choose_grids(scheme, prepared.collect(scheme)) if scheme.activations else Grids({})
        problem = Problem.of(prepared.model, scheme, prepared.config, prepared.padding, parts=prepared.parts)
        with Store() as store:
            state = ReconstructionState(problem, FloatActivations(store, prepared.padding, problem.types), grids)
            round_layers(state)
            stored = round_embeddings(self.index, scheme) | round_recurrent(self.index, scheme)
            return prepared.emit(scheme, grids, stored | state.layers)

    def emit_empty(self, sets: Sequence[BitSet], bits: Bits) -> ModelProto:
        """A file of the same size, of zeros. Layers that take a bias have one, as they get when they are solved."""
        prepared, scheme = self.prepared, self._make_scheme(sets, bits)
        layers = {k.name: self._make_zeros(k) for k in scheme.stored}
        return prepared.emit(scheme, make_placeholders(scheme), layers)

    def _make_zeros(self, layer: LayerScheme) -> LayerParams:
        found = make_zeros(layer, self.index)
        if found.bias is not None or layer.op == "Gather" or not layer.takes_bias:
            return found
        channels = count_channels(self.index.nodes[layer.name], self.index.initializers[layer.weight].dims)
        return replace(found, bias=np.zeros(channels, np.float32))

    def _make_scheme(self, sets: Sequence[BitSet], bits: Bits) -> QuantScheme:
        chosen = {name: c for each, c in zip(sets, bits, strict=True) for name in each.layers}
        return self.prepared.make_scheme({name: settings_of(c) for name, c in chosen.items()})

    @cached_property
    def index(self) -> Index:
        return Index(self.prepared.model.graph)


def _list_given(prepared: Prepared) -> set[str]:
    """Layers and tables whose bits the settings give: by name, as ends, or as tables."""
    config, given = prepared.config, prepared.config.model_fields_set
    named = resolve_names(prepared.model, config, before=prepared.original).layers
    found = {name for name, each in named if each.weight_bits or each.block_size}
    if "first_last_bits" in given:
        found |= end_layers(prepared.model.graph, {layer.name for layer in prepared.scheme.layers})
    if "embedding_bits" in given:
        found |= {table.name for table in prepared.scheme.embeddings}
    return found


def _fit(layer: LayerScheme, candidate: Candidate) -> LayerConfig:
    """A candidate as settings of a layer; a convolution has no blocks."""
    in_blocks = layer.op in (*MATRIX_LAYERS, "Gather")
    return settings_of(candidate if in_blocks else candidate._replace(block_size=0))


def _dequantize(found: Solution, spec: QuantSpec) -> torch.Tensor:
    """The rounded weights (G, C, K), float32."""
    values = found.integers.float()

    def expand(each: torch.Tensor) -> torch.Tensor:
        each = each.float() if each.dim() == values.dim() else each.float()[..., None]
        return each if each.shape[2] == 1 else each.repeat_interleave(spec.block or 1, 2)[..., : values.shape[2]]

    if found.zero is not None:
        values -= expand(found.zero)
    return values.mul_(expand(found.scale))
