"""A float model that is ready to be quantized, with its samples: what all later stages read."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from ..bitplan import BitPlan
from ..config import BUDGETS, EXECUTION, FLOAT_BITS, FULL_BITS, STAGES, LayerConfig, QuantizeConfig
from ..data import CalibrationSet
from ..graph.emit import emit_qdq
from ..graph.index import Index, has_bodies
from ..graph.layer_params import LayerParams
from ..graph.names import Selection, resolve_names
from ..graph.passes.even_bits import even_bits
from ..graph.passes.even_joins import find_scaled, fold_scales
from ..graph.passes.joint_reads import join_reads
from ..graph.passes.rescale import fold_integer_pads
from ..graph.scheme import make_scheme
from ..graph.squashed import find_squashed
from ..report import MeasuredOn
from ..spec import VERSION, VERSION_KEY, Around, Candidate, Grids, QParams, QuantScheme, Requirements
from .calibrate import Statistics, choose_grids, choose_whole
from .input_grid import keep_lossless
from .kept_statistics import recall_statistics
from .layer_targets import TargetKeeper
from .masked_scores import MaskedScores, find_masked
from .output_parts import Parts
from .padding_mask import PaddingMask
from .placed_bodies import BITS_KEY
from .run import Run
from .shifts import hold_shifts, hold_weights
from .smoothing import Smoothing

# The text of the settings is padded to a multiple of so many bytes, so that the file's size, which may be limited,
# hardly depends on it.
SETTINGS_BYTES = 256
SMOOTHING_KEY = "onnxcalib.smoothing"  # in the metadata of a file: what was chosen
# Settings that are not written into the file: they name things of this machine, or entries of their own replace them.
_NOT_WRITTEN: dict[str, bool | set[str]] = {
    **dict.fromkeys(
        (*EXECUTION, *BUDGETS, "candidates", "latencies", "threads", "device", "class_axis", "smoothing"), True
    ),
    "data": {"tokenizer"},
}


@dataclass(frozen=True)
class Prepared:
    """A float model that was rewritten for quantization, with its samples.

    config: the settings, with the bits of the plan if there is one. original: the model as it was given. model: the
    rewritten model. passes: graph pass -> its number of rewrites. samples: those that the result is made from. test:
    those on which it is measured, of which ``measured_on`` says where they are from. lossless: grids that hold the
    first layers' inputs without error, as found in some of the samples. padding: the padding mask of ``model``. scheme:
    the scheme of the settings. in_float: node -> why the tool itself leaves it in float; no scheme of this model
    quantizes these. alone: layers that read float in place of what each run would round.
    parts: those of the outputs, which are judged apart. class_axes: see ``find_class_axes``. tied: see ``find_tied``.
    smoothing: what was chosen, None where none was tried. sources: see ``identify_weights``, before channels have
    factors, in a model with bodies and in bodies. factors: layer -> those (channels,) of what it reads.
    """

    run: Run
    config: QuantizeConfig
    original: ModelProto = field(repr=False)
    model: ModelProto = field(repr=False)
    passes: Mapping[str, int]
    samples: CalibrationSet
    test: CalibrationSet
    measured_on: MeasuredOn
    padding: PaddingMask
    scheme: QuantScheme
    lossless: Mapping[str, QParams] = field(default_factory=dict)
    in_float: Mapping[str, str] = field(default_factory=dict)
    alone: frozenset[str] = frozenset()
    parts: Parts = field(default_factory=dict)
    class_axes: Mapping[str, int] = field(default_factory=dict)
    whole: frozenset[str] = frozenset()
    tied: Mapping[str, str] = field(default_factory=dict)
    smoothing: Smoothing | None = field(default=None, repr=False)
    statistics: Statistics | None = field(default=None, repr=False)
    sources: Mapping[str, str] = field(default_factory=dict, repr=False)
    factors: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    @cached_property
    def squashed(self) -> Mapping[str, str]:
        """Tensors that an activation function alone reads, and that function."""
        return find_squashed(Index(self.model.graph))

    @cached_property
    def masked(self) -> MaskedScores:
        """The attention masks that run on integers, and the scores that they hide some of."""
        return find_masked(self.model, self.samples) if self.scheme.requirements.placing == "groups" else MaskedScores()

    @cached_property
    def original_padding(self) -> PaddingMask:
        """The padding mask of the original model."""
        return PaddingMask(self.original)

    def make_scheme(
        self,
        layers: Mapping[str, LayerConfig] | None = None,
        bits: Candidate | None = None,
        tensors: Mapping[str, int] | None = None,
    ) -> QuantScheme:
        """The scheme of the settings, or of ``bits`` for all layers; ``layers`` and ``tensors`` override both."""
        return make_settings_scheme(
            self.model,
            self.config,
            self.original,
            self.run.target.requirements,
            in_float=self.in_float,
            around=self.run.around,
            tied=self.tied,
            alone=self.alone,
            layers=layers,
            bits=bits,
            tensors=tensors,
        )

    @cached_property
    def widest_scheme(self) -> QuantScheme:
        """The scheme of the settings; where a plan will choose the bits, that of the most that it may give."""
        return self.make_widest_scheme() if self.config.planned else self.scheme

    def make_widest_scheme(self) -> QuantScheme:
        """The same, made anew of a model that has changed."""
        chosen = self.config.planned and not self.config.planned_alone
        bits = Candidate(self.config.weight_bits, FULL_BITS) if chosen else None
        return self.make_scheme(bits=bits)

    def with_plan(self, plan: BitPlan) -> Prepared:
        """The same model with the plan's bits for every layer."""
        self.run.plan = plan
        planned = replace(self, config=with_bits(self.config, take_own(plan, self.model, self.original), plan.tensors))
        return replace(planned, scheme=planned.make_scheme())

    def leave(self, reasons: Mapping[str, str]) -> Prepared:
        """The same model with these nodes left in float, beside those that are already."""
        if reasons.items() <= self.in_float.items():
            return self
        left = replace(self, in_float={**self.in_float, **reasons})
        scheme = left.make_scheme()
        lossless = {tensor: grid for tensor, grid in self.lossless.items() if tensor in scheme.activations}
        return replace(left, scheme=scheme, lossless=lossless)

    def read_float(self, layers: Collection[str]) -> Prepared:
        """The same model with the weights alone of these layers quantized."""
        found = replace(self, alone=self.alone.union(layers))
        return replace(found, scheme=found.make_scheme()) if layers else self

    def collect(self, scheme: QuantScheme, targets: TargetKeeper | None = None) -> Statistics:
        """Statistics of the scheme's activations over all samples, collected once for both.

        targets: keeps those of layers, if the float model runs.
        """
        if self.statistics is not None and scheme.activations.keys() <= self.statistics.histograms.keys():
            return self.statistics
        return recall_statistics(self, scheme, targets)

    @property
    def equals_original(self) -> bool:
        """Whether the model gives what the original gives: not by a device's operators, nor in another type."""
        return self.run.target.is_onnxruntime and not self.passes.get("widen_float16")

    def choose_grids(
        self, scheme: QuantScheme, statistics: Statistics, known: dict[Any, QParams] | None = None
    ) -> Grids:
        """Grids of the scheme's activations; lossless ones are kept where they hold the values of all samples."""
        grids = choose_grids(scheme, statistics.histograms, self.config, known, squashed=self.squashed)
        if self.whole:
            grids = grids.updated(choose_whole(scheme, statistics.histograms, self.whole))
        grids = grids.updated(self._share_scaled(scheme, grids))
        grids = grids.updated(self.masked.choose_grids(scheme, grids))
        fixed = {t: grid for t, grid in self.lossless.items() if scheme.activations[t] == grid.spec}
        grids = grids.updated(keep_lossless(fixed, statistics.histograms))
        return hold_shifts(self.model, scheme, grids, self.run.target.rules)

    def holds_shifts(self, grids: Grids) -> bool:
        """Whether grids of the scheme lie as near to each other as the target's shifts need."""
        return hold_shifts(self.model, self.scheme, grids, self.run.target.rules) is grids

    def _share_scaled(self, scheme: QuantScheme, grids: Grids) -> dict[str, QParams]:
        """Grids of what is scaled in front of a Concat: the Concat's, divided by the factor: rounded once.

        A tensor that shares a grid, or needs a zero point of 0 that the Concat's has not, keeps its own.
        """
        shared, given = {t for members in scheme.shared for t in members}, grids.activations
        found = {}
        for tensor, (scaled, factor) in find_scaled(Index(self.model.graph)).items():
            own, grid = given.get(tensor), given.get(scaled)
            if own is None or grid is None or own.spec != grid.spec or tensor in shared:
                continue
            if tensor not in scheme.nonnegative or not grid.zero_point.any():
                found[tensor] = replace(grid, scale=(grid.scale / factor).astype(np.float32))
        return found

    def emit_grids(self, scheme: QuantScheme, grids: Grids, part: ModelProto | None = None) -> ModelProto:
        """The model, or a part of it, with grids of the scheme's activations, and float weights."""
        alone = replace(scheme, layers=(), embeddings=(), shared=())
        return emit_qdq(part or self.model, alone, grids, {}, encoding=self.config.encoding, keep_outputs=False)

    def emit(self, scheme: QuantScheme, grids: Grids, layers: Mapping[str, LayerParams]) -> ModelProto:
        """The QDQ model; its metadata hold the tool's version, the settings, and the bits of every layer."""
        grids = hold_shifts(self.model, scheme, grids, self.run.target.rules, layers)
        layers = hold_weights(self.model, scheme, grids, self.run.target.rules, layers)
        quantized = emit_qdq(self.model, scheme, grids, layers, encoding=self.config.encoding, keep_outputs=False)
        if scheme.requirements.placing != "groups":
            fold_integer_pads(quantized)
            fold_scales(quantized)
        if scheme.requirements.for_onnxruntime:
            join_reads(quantized)
        even_bits(quantized, scheme.requirements.even_bits)
        # Every stage as yes or no: for a null, readers would have to know what each pipeline does.
        stages = {name: self.run.config.does(name) for name in STAGES}
        chosen = {**stages, "target": self.run.target.name}  # whose file may have a path of this machine
        settings = self.run.given.model_copy(update=chosen).model_dump_json(exclude=_NOT_WRITTEN)
        entries = {
            VERSION_KEY: VERSION,
            "onnxcalib.settings": settings.ljust(-(-len(settings) // SETTINGS_BYTES) * SETTINGS_BYTES),
            **({} if self.smoothing is None or not self.smoothing.muls else {SMOOTHING_KEY: str(self.smoothing.name)}),
            BITS_KEY: json.dumps({k.name: str(k.bits) for k in scheme.stored}),
        }
        kept = {entry.key: entry.value for entry in quantized.metadata_props}  # a float model may have some of ours
        helper.set_model_props(quantized, {**kept, **entries})
        return quantized


def make_settings_scheme(
    model: ModelProto,
    config: QuantizeConfig,
    original: ModelProto,
    requirements: Requirements,
    *,
    in_float: Mapping[str, str] | None = None,
    around: Around | None = None,
    tied: Mapping[str, str] | None = None,
    alone: Collection[str] = (),
    layers: Mapping[str, LayerConfig] | None = None,
    bits: Candidate | None = None,
    tensors: Mapping[str, int] | None = None,
) -> QuantScheme:
    """The scheme of the settings; see ``Prepared`` for ``in_float`` to ``alone``, its ``make_scheme`` for the rest."""
    chosen = resolve_names(model, config, before=original)
    # The last entry of a layer holds: it has the weights' bits that the settings give.
    own = {name: chosen.settings(name).model_copy(update={"activation_bits": FLOAT_BITS}) for name in alone}
    bits = bits or Candidate(config.weight_bits, config.activation_bits)
    if config.encoding == "standard":  # which has operators of ONNX alone
        requirements = replace(requirements, recurrent=False)
    if config.max_a16 is not None:  # what has 16 bits is chosen, and counts
        requirements = replace(requirements, wide_sums=False)
    return make_scheme(
        model,
        weight_bits=bits.weight_bits,
        activation_bits=bits.activation_bits,
        first_last_bits=config.first_last_bits,
        block_size=config.block_size,
        symmetric=config.weight_symmetry == "symmetric",
        embedding_bits=config.table_bits,
        tied=tied if config.embedding_bits is None else None,
        pair_limits=config.weight_range == "bounded",
        dynamic=config.activations == "dynamic",
        requirements=requirements,
        around=around,
        tensors={**config.tensors, **(tensors or {})},
        selection=Selection(
            chosen.excluded.union(in_float or ()), (*chosen.layers, *own.items(), *(layers or {}).items())
        ),
    )


def take_own(plan: BitPlan, model: ModelProto, original: ModelProto, *, inside: bool = False) -> dict[str, LayerConfig]:
    """The bits that a plan gives to layers of a graph's own, before or behind preparation.

    Without bodies all of the plan is for the graph, unless it is ``inside`` of another.
    """
    if not inside and not any(map(has_bodies, original.graph.node)):
        return plan.settings()
    names = {node.name for each in (model, original) for node in each.graph.node}
    return {name: each for name, each in plan.settings().items() if name in names}


def with_bits(
    config: QuantizeConfig, layers: Mapping[str, LayerConfig], tensors: Mapping[str, int] | None = None
) -> QuantizeConfig:
    """The settings with these bits for single layers and tensors."""
    others = {name: each for name, each in config.layers.items() if name not in layers}
    bits = {"layers": {**others, **layers}, "tensors": {**config.tensors, **(tensors or {})}}
    return config.model_copy(update=bits)  # the last entry that names a layer holds
