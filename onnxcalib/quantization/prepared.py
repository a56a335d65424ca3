"""A float model that is ready to be quantized, with its samples: what all later stages read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from ..bitplan import BitPlan
from ..config import BUDGETS, EFFORTS, EXECUTION, FULL_BITS, STAGES, QuantizeConfig
from ..data import CalibrationSet
from ..graph.emit import emit_qdq
from ..graph.index import Index
from ..graph.layer_params import LayerParams
from ..graph.passes.equalize import EVENED_KEY
from ..graph.passes.even_bits import even_bits
from ..graph.passes.even_joins import find_scaled, fold_scales
from ..graph.passes.joint_reads import join_reads
from ..graph.passes.mix import MIXED_KEY
from ..graph.passes.rescale import fold_integer_pads
from ..graph.squashed import find_squashed
from ..report import MeasuredOn
from ..spec import VERSION, VERSION_KEY, Around, Grids, QParams, QuantScheme
from ..targets import Target
from .calibrate import Statistics, choose_grids, choose_whole
from .input_grid import keep_lossless
from .kept_statistics import recall_statistics
from .layer_targets import TargetKeeper
from .masked_scores import MaskedScores, find_masked
from .outline import Outline, take_own, with_bits
from .padding_mask import PaddingMask
from .placed_bodies import BITS_KEY
from .rotatable import ROTATION_KEY
from .rotation import Rotation
from .run import Run
from .shifts import hold_shifts, hold_weights
from .smoothing import Smoothing

# The text of the settings is padded to a multiple of so many bytes, so that the file's size, which may be limited,
# hardly depends on it.
SETTINGS_BYTES = 256
# In the metadata of a file: what was chosen.
SMOOTHING_KEY = "onnxcalib.smoothing"
# Settings that are not written into the file: they name things of this machine, or entries of their own replace them.
_NOT_WRITTEN: dict[str, bool | set[str]] = {
    **dict.fromkeys(
        (*EXECUTION, *BUDGETS, "candidates", "latencies", "threads", "device", "class_axis", "smoothing", "rotation"),
        True,
    ),
    "data": {"tokenizer"},
}


@dataclass(frozen=True, kw_only=True)
class Prepared(Outline):
    """A float model that was rewritten for quantization, with its samples.

    config: the settings, with the bits of the plan if there is one. passes: graph pass -> its number of rewrites.
    samples: those that the result is made from. test: those on which it is measured, of which ``measured_on`` says
    where they are from. lossless: grids that hold the first layers' inputs without error, as found in some of the
    samples. padding: the padding mask of ``model``. class_axes: see ``find_class_axes``. smoothing, rotation: what
    was chosen, None where none was tried. evened: activation -> the least and the greatest factor of its channels
    between layers, for one of each set. mixed: the same of the entries of what mixes channels. sources: see
    ``identify_weights``, before channels have factors, in a model with bodies and in bodies. factors: layer -> those
    (channels,) of what it reads.
    """

    run: Run
    passes: Mapping[str, int]
    samples: CalibrationSet
    test: CalibrationSet
    measured_on: MeasuredOn
    padding: PaddingMask
    lossless: Mapping[str, QParams] = field(default_factory=dict)
    class_axes: Mapping[str, int] = field(default_factory=dict)
    whole: frozenset[str] = frozenset()
    smoothing: Smoothing | None = field(default=None, repr=False)
    rotation: Rotation | None = field(default=None, repr=False)
    evened: Mapping[str, tuple[float, float]] = field(default_factory=dict, repr=False)
    mixed: Mapping[str, tuple[float, float]] = field(default_factory=dict, repr=False)
    statistics: Statistics | None = field(default=None, repr=False)
    sources: Mapping[str, str] = field(default_factory=dict, repr=False)
    factors: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def target(self) -> Target:
        return self.run.target

    @property
    def settings(self) -> QuantizeConfig:
        return self.run.with_bodies(self.config)

    @property
    def around(self) -> Around | None:
        return self.run.around

    @property
    def channel_factors(self) -> dict[str, tuple[float, float]]:
        """Activation -> the least and the greatest factor of its channels, where it was given factors."""
        return {**self.evened, **self.mixed, **({} if self.smoothing is None else self.smoothing.ends)}

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

    @property
    def distills(self) -> bool:
        """Whether the effort has a model distilled: one of image files, whose layers read few bits and are solved.

        None with layers of several groups: MobileNetV2 lost 0.8 dB by it, and took 586 float passes.
        """
        config, scheme = self.config, self.scheme
        wanted = config.distill is None and EFFORTS[config.effort].distills
        solved = config.does("reconstruct") and not config.parallel
        if not (wanted and solved and self.samples.images and scheme.reads_fewer_bits(FULL_BITS)):
            return False
        if scheme.has_groups:
            return False
        return config.count_views(scheme.least_weight_bits) > 0

    def does(self, stage: str) -> bool:
        """Whether one of STAGES is part of the run."""
        return self.config.does(stage) or (stage == "distill" and self.distills)

    def with_plan(self, plan: BitPlan) -> Prepared:
        """The same model with the plan's bits for every layer."""
        self.run.plan = plan
        planned = replace(self, config=with_bits(self.config, take_own(plan, self.model, self.original), plan.tensors))
        return replace(planned, scheme=planned.make_scheme())

    def leave(self, reasons: Mapping[str, str]) -> Prepared:
        """The same model with these nodes left in float, beside those that are already."""
        left = super().leave(reasons)
        if left is self:
            return self
        lossless = {tensor: grid for tensor, grid in left.lossless.items() if tensor in left.scheme.activations}
        return replace(left, lossless=lossless)

    def leave_out(self, what: str, reason: str) -> None:
        self.run.leave_out(what, reason)

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
        stages = {name: self.does(name) for name in STAGES}
        chosen = {**stages, "target": self.run.target.name}  # whose file may have a path of this machine
        settings = self.run.given.model_copy(update=chosen).model_dump_json(exclude=_NOT_WRITTEN)
        by_channel = any(layer.weight_spec.axis is not None for layer in scheme.layers)
        evened = len(self.evened) if by_channel else 0
        rotated = None if self.rotation is None else self.rotation.told
        entries = {
            VERSION_KEY: VERSION,
            "onnxcalib.settings": settings.ljust(-(-len(settings) // SETTINGS_BYTES) * SETTINGS_BYTES),
            **({} if self.smoothing is None or not self.smoothing.muls else {SMOOTHING_KEY: str(self.smoothing.name)}),
            **({} if rotated is None else {ROTATION_KEY: rotated}),
            **({EVENED_KEY: str(evened)} if evened else {}),
            **({MIXED_KEY: str(len(self.mixed))} if self.mixed else {}),
            BITS_KEY: json.dumps({k.name: str(k.bits) for k in scheme.stored}),
        }
        kept = {entry.key: entry.value for entry in quantized.metadata_props}  # a float model may have some of ours
        helper.set_model_props(quantized, {**kept, **entries})
        return quantized
