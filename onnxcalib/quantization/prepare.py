"""Prepare: rewrite the model, open its samples, and find what follows from the settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from ..bitplan import BitPlan
from ..config import BUDGETS, EXECUTION, FULL_BITS, STAGES, LayerConfig, QuantizeConfig
from ..data import CalibrationSet, SampleSource, open_calibration
from ..data.holdout import hold_out
from ..graph.draws import spell_draws
from ..graph.emit import LayerParams, emit_qdq
from ..graph.finite import explain_nan
from ..graph.index import Index
from ..graph.load import inputs_of, load_model
from ..graph.names import Selection, resolve_names
from ..graph.passes.joint_reads import join_reads
from ..graph.passes.rescale import fold_integer_pads
from ..graph.scheme import make_scheme
from ..graph.squashed import find_squashed
from ..graph.unfuse import list_ineffective
from ..report import MeasuredOn
from ..runtime.session import Session, is_float
from ..spec import VERSION, VERSION_KEY, Candidate, Grids, QParams, QuantScheme
from .calibrate import Statistics, choose_grids, collect_statistics
from .channel_scales import even_channels
from .coarse_inputs import find_coarse_inputs
from .coarse_products import Measured, find_coarse_products
from .cost_placement import choose_by_cost
from .input_grid import find_lossless_grids, keep_lossless
from .odd_samples import leave_out_odd
from .output_parts import Parts, find_parts
from .output_tally import lack_of_values
from .padding_mask import PaddingMask
from .placement import choose_float
from .rewrite import Rewritten, rewrite
from .run import Run
from .smoke_test import run_longest_texts
from .trial import Trial
from .unchanged import check_unchanged

# The text of the settings is padded to a multiple of so many bytes, so that the file's size, which may be limited,
# hardly depends on it.
SETTINGS_BYTES = 256
# With fewer samples than these, a few unusual ones decide the ranges.
FEW_SAMPLES = 16
# Samples on which layers are tried with their input on 256 levels, in all and in one run.
ROUNDED_SAMPLES, ROUNDED_AT_ONCE = 32, 8
# Settings that are not written into the file: they name things of this machine, or the layers' bits replace them.
_NOT_WRITTEN: dict[str, bool | set[str]] = {
    **dict.fromkeys((*EXECUTION, *BUDGETS, "candidates", "latencies", "threads", "device"), True),
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
    quantizes these.
    parts: those of the outputs, which are judged apart.
    """

    run: Run
    config: QuantizeConfig
    original: ModelProto = field(repr=False)
    model: ModelProto = field(repr=False)
    passes: Mapping[str, int]
    samples: CalibrationSet
    test: CalibrationSet
    measured_on: MeasuredOn
    lossless: Mapping[str, QParams]
    padding: PaddingMask
    scheme: QuantScheme
    in_float: Mapping[str, str] = field(default_factory=dict)
    parts: Parts = field(default_factory=dict)

    @cached_property
    def squashed(self) -> Mapping[str, str]:
        """Tensors that an activation function alone reads, and that function."""
        return find_squashed(Index(self.model.graph))

    @cached_property
    def original_padding(self) -> PaddingMask:
        """The padding mask of the original model."""
        return PaddingMask(self.original)

    def make_scheme(
        self, layers: Mapping[str, LayerConfig] | None = None, bits: Candidate | None = None
    ) -> QuantScheme:
        """The quantization scheme of the settings, or of ``bits`` for all layers; ``layers`` overrides both."""
        return _make_scheme(self.model, self.config, self.original, in_float=self.in_float, layers=layers, bits=bits)

    def with_plan(self, plan: BitPlan) -> Prepared:
        """The same model with the plan's bits for every layer."""
        config = with_bits(self.config, plan.settings())
        scheme = _make_scheme(self.model, config, self.original, in_float=self.in_float)
        return replace(self, config=config, scheme=scheme)

    def leave(self, reasons: Mapping[str, str]) -> Prepared:
        """The same model with these nodes left in float, beside those that are already."""
        if not reasons:
            return self
        in_float = {**self.in_float, **reasons}
        scheme = _make_scheme(self.model, self.config, self.original, in_float=in_float)
        lossless = {tensor: grid for tensor, grid in self.lossless.items() if tensor in scheme.activations}
        return replace(self, in_float=in_float, scheme=scheme, lossless=lossless)

    def collect(self, scheme: QuantScheme) -> Statistics:
        """Statistics of the scheme's activations over all samples."""
        return collect_statistics(
            self.model, list(scheme.activations), self.samples, self.padding, threads=self.run.threads
        )

    def choose_grids(
        self, scheme: QuantScheme, statistics: Statistics, known: dict[Any, QParams] | None = None
    ) -> Grids:
        """Grids of the scheme's activations; lossless ones are kept where they hold the values of all samples."""
        grids = choose_grids(scheme, statistics.histograms, self.config, known, squashed=self.squashed)
        fixed = {t: grid for t, grid in self.lossless.items() if scheme.activations[t].bits == grid.spec.bits}
        return grids.updated(keep_lossless(fixed, statistics.histograms))

    def emit(self, scheme: QuantScheme, grids: Grids, layers: Mapping[str, LayerParams]) -> ModelProto:
        """The QDQ model; its metadata hold the tool's version, the settings, and the bits of every layer."""
        quantized = emit_qdq(self.model, scheme, grids, layers, encoding=self.config.encoding, keep_outputs=False)
        fold_integer_pads(quantized)
        join_reads(quantized)
        # Every stage as yes or no: for a null, readers would have to know what each pipeline does.
        stages = {name: self.run.config.does(name) for name in STAGES}
        settings = self.run.config.model_copy(update=stages).model_dump_json(exclude=_NOT_WRITTEN)
        entries = {
            VERSION_KEY: VERSION,
            "onnxcalib.settings": settings.ljust(-(-len(settings) // SETTINGS_BYTES) * SETTINGS_BYTES),
            "onnxcalib.bits": json.dumps({k.name: str(k.bits) for k in (*scheme.embeddings, *scheme.layers)}),
        }
        kept = {entry.key: entry.value for entry in quantized.metadata_props}  # a float model may have some of ours
        helper.set_model_props(quantized, {**kept, **entries})
        return quantized


def prepare(
    run: Run,
    original: ModelProto,
    calibration: SampleSource,
    plan: BitPlan | None = None,
    *,
    test: SampleSource | None = None,
) -> Prepared:
    """Open the samples, rewrite a copy of the model, and check that the outputs have not changed.

    plan: the bits of every layer. test: samples on which the result is measured; without them, some of the others are
    held out for that. Raises ModelError, DataError or ConfigError.
    """
    config = run.config if plan is None else with_bits(run.config, plan.settings())
    with run.stage("prepare"):
        samples, judges, measured_on = _open_samples(run, original, calibration, test)
        _warn_of_percentile(run)
        _warn_of_draws(run, original)
        feeds = samples.read(range(samples.fixed_batch or 1))
        rewritten, wanted = _rewrite(original, config, samples, feeds, run.threads)
        model, passes = rewritten.model, dict(rewritten.passes)
        # A plan may give a layer more bits than the settings. Whether an input is rescaled must not depend on that.
        bits = Candidate(config.weight_bits, FULL_BITS) if config.planned else None
        parts = find_parts(model, feeds, run.threads)
        in_float = choose_float(model, parts, feeds, run.threads)
        make = partial(_make_scheme, model, config, original)
        in_float |= _find_slow(model, make(in_float=in_float, bits=bits), config, original, samples)
        make = partial(make, in_float=in_float)
        lossless, counts, lines = _fit_inputs(model, partial(make, bits=bits), samples, run.threads)
        passes |= counts
        for line in (*(f"{name}: {count}" for name, count in passes.items() if count), *lines):
            run.observer.note(line)
        found = check_unchanged(original, model, wanted, feeds, threads=run.threads, tolerance=rewritten.tolerance)
        for line in found.lines():
            run.observer.note(line)
        prepared = Prepared(
            run=run,
            config=config,
            original=original,
            model=model,
            passes=passes,
            samples=samples,
            test=judges,
            measured_on=measured_on,
            lossless=lossless,
            padding=PaddingMask(model),
            scheme=make(),
            in_float=in_float,
            parts=parts,
        )
        prepared = _leave_refused(_leave_products(_leave_coarse(prepared)), feeds)
        if plan is not None:
            plan.check_layers(layer.name for layer in prepared.scheme.layers)
        _tell(prepared)
        return prepared


def _rewrite(
    original: ModelProto, config: QuantizeConfig, samples: CalibrationSet, feeds: Mapping[str, Any], threads: int
) -> tuple[Rewritten, dict[str, Any]]:
    """The model rewritten, and the outputs of the original on one batch."""
    wanted, lacking = _run_original(original, samples, feeds, threads)
    rewritten = rewrite(load_model(original), config)
    if lacking:  # after rewriting, which names a weight that is the cause
        raise explain_nan(rewritten.model, lacking[0]) or lack_of_values(lacking[0])
    return rewritten, wanted


def _fit_inputs(
    model: ModelProto, make: Callable[[], QuantScheme], samples: CalibrationSet, threads: int
) -> tuple[Mapping[str, QParams], dict[str, int], list[str]]:
    """Let the first layers read what the samples hold; changes ``model``.

    Returns lossless grids of what they read, the number of rewrites by pass, and lines that tell of them.
    """
    scheme = make()
    unlike = even_channels(model, scheme, samples, threads)
    if unlike:
        scheme = make()
    found = find_lossless_grids(model, scheme, samples, PaddingMask(model), threads)
    return found.grids, {"even_channels": len(unlike), "rescale_input": found.rescaled}, list(unlike.values())


def _leave_coarse(prepared: Prepared) -> Prepared:
    """Leave in float the layers whose input 256 levels cannot hold."""
    samples = prepared.samples
    runs = samples.split(ROUNDED_AT_ONCE)
    some = (samples.read(run) for run in runs[: -(-ROUNDED_SAMPLES // len(runs[0]))])
    model, scheme, lossless = prepared.model, prepared.scheme, prepared.lossless
    return prepared.leave(find_coarse_inputs(model, scheme, lossless, some, prepared.run.threads))


def _leave_refused(prepared: Prepared, feeds: Mapping[str, Any]) -> Prepared:
    """Leave in float what onnxruntime refuses on integers."""

    def make(names: Mapping[str, str]) -> QuantScheme:
        return prepared.leave(names).scheme

    trial = Trial(prepared.model, make, feeds, prepared.config.encoding, prepared.run.threads)
    return prepared.leave(trial.find_refused(prepared.in_float))


def _leave_products(prepared: Prepared) -> Prepared:
    """Leave in float the products of activations that spoil an output by what 256 levels leave of their operands."""
    given = Measured(
        prepared.model,
        prepared.samples,
        prepared.padding,
        prepared.parts,
        config=prepared.config,
        threads=prepared.run.threads,
    )
    return prepared.leave(find_coarse_products(given, prepared.scheme))


def _tell(prepared: Prepared) -> None:
    scheme = prepared.scheme
    _warn_of_ineffective(prepared.run, prepared.model, scheme, prepared.config, prepared.original)
    prepared.run.observer.note(f"{len(scheme.layers)} layers and {len(scheme.activations)} activations to quantize")


def _open_samples(
    run: Run, original: ModelProto, calibration: SampleSource, test: SampleSource | None
) -> tuple[CalibrationSet, CalibrationSet, MeasuredOn]:
    """The samples to work with and those to measure on."""
    inputs, config = inputs_of(original), run.config
    samples = open_calibration(calibration, inputs, config.data, limit=config.samples)
    samples.tell(run.observer.note, run.warn)
    if len(samples) < FEW_SAMPLES:
        run.warn(
            f"samples: found {len(samples)}; ranges and layers follow these alone; thirty or more give a better model"
        )
    _check_longest_texts(original, samples, run.threads)
    if test is not None:
        others = open_calibration(test, inputs, config.data)
        others.tell(run.observer.note, run.warn)
        _check_longest_texts(original, others, run.threads)
        return leave_out_odd(samples, run.warn), others, MeasuredOn("test", len(others))
    used, held = hold_out(samples)
    used = leave_out_odd(used, run.warn)
    if held is None:
        return used, used, MeasuredOn("calibration", len(used))
    run.observer.note(f"{len(held)} of {len(samples)} samples are held out: the result is measured on these alone")
    return used, held, MeasuredOn("held out", len(held), tuple(map(int, held.indices)))


def _check_longest_texts(original: ModelProto, samples: CalibrationSet, threads: int) -> None:
    if samples.texts is not None:
        run_longest_texts(Session(original, threads=threads), samples)


def _find_slow(
    model: ModelProto, scheme: QuantScheme, config: QuantizeConfig, original: ModelProto, samples: CalibrationSet
) -> dict[str, str]:
    """Nodes that are left in float for speed, but for layers to which the settings give bits, and the reasons."""
    if config.placement == "all":
        return {}
    layers = resolve_names(model, config, before=original).layers
    wanted = {name for name, each in layers if each.weight_bits is not None or each.activation_bits is not None}
    return choose_by_cost(model, scheme, samples.read(samples.alike(samples.fixed_batch or 1)), wanted)


def _warn_of_percentile(run: Run) -> None:
    config = run.config
    if "percentile" in config.model_fields_set and config.range != "percentile":
        run.warn(
            f"percentile: found {config.percentile:g} beside range {config.range!r}, which has no use for it; give"
            " range 'percentile', or leave it out"
        )


def _warn_of_draws(run: Run, original: ModelProto) -> None:
    if drawing := spell_draws(original):
        run.warn(
            f"{drawing}; all that follows is made and measured with the same draws in both models; the file keeps the"
            " operators, whose draws differ from run to run"
        )


def _warn_of_ineffective(
    run: Run, model: ModelProto, scheme: QuantScheme, config: QuantizeConfig, original: ModelProto
) -> None:
    names = list_ineffective(model, scheme, resolve_names(model, config, before=original).excluded)
    if names:
        few = ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)
        run.warn(
            f"exclude: {few}: found behind quantized nodes, which absorb them on integers all the same; a Relu or Clip"
            " is float where the node in front of it is; exclude that too"
        )


def _run_original(
    original: ModelProto, samples: CalibrationSet, feeds: Mapping[str, Any], threads: int
) -> tuple[dict[str, Any], list[str]]:
    """Outputs on one batch, and the names of those that have a finite value for no sample.

    The session ends with this function, so that a large model is held once.
    """
    session = Session(original, threads=threads)
    outputs = session.run(feeds)
    lacking = _list_lacking(outputs)
    for others in samples.batches(1):
        if not lacking:
            break
        lacking = _list_lacking(session.run(others, lacking))
    return outputs, lacking


def _list_lacking(outputs: Mapping[str, Any]) -> list[str]:
    """The outputs of floats that have values, none of which is finite."""
    return [name for name, value in outputs.items() if is_float(value) and value.size and not np.isfinite(value).any()]


def _make_scheme(
    model: ModelProto,
    config: QuantizeConfig,
    original: ModelProto,
    *,
    in_float: Mapping[str, str],
    layers: Mapping[str, LayerConfig] | None = None,
    bits: Candidate | None = None,
) -> QuantScheme:
    chosen = resolve_names(model, config, before=original)
    bits = bits or Candidate(config.weight_bits, config.activation_bits)
    return make_scheme(
        model,
        weight_bits=bits.weight_bits,
        activation_bits=bits.activation_bits,
        first_last_bits=config.first_last_bits,
        block_size=config.block_size,
        embedding_bits=config.embedding_bits or config.weight_bits,
        pair_limits=config.weight_range == "bounded",
        selection=Selection(chosen.excluded | in_float.keys(), (*chosen.layers, *(layers or {}).items())),
    )


def load(model: str | Path | ModelProto) -> ModelProto:
    """A copy of the model, or the model of a file. Raises ModelError."""
    return load_model(model if isinstance(model, ModelProto) else Path(model))


def with_bits(config: QuantizeConfig, layers: Mapping[str, LayerConfig]) -> QuantizeConfig:
    """The settings with these bits for single layers."""
    others = {name: each for name, each in config.layers.items() if name not in layers}
    return config.model_copy(update={"layers": {**others, **layers}})  # the last entry that names a layer holds
