"""Prepare: rewrite the model, open its samples, and find what follows from the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from ..bitplan import BitPlan
from ..config import FULL_BITS, WIDE_BITS, DataConfig, QuantizeConfig, find_nearest
from ..data import CalibrationSet, SampleSource
from ..errors import ConfigError, spell_value
from ..graph.bodies import tensors_in_bodies
from ..graph.draws import spell_draws
from ..graph.edit import copy_model
from ..graph.embeddings import find_tied
from ..graph.extract import needed_nodes
from ..graph.finite import explain_nan
from ..graph.index import Index, has_bodies
from ..graph.load import inputs_of, load_model
from ..graph.names import keep_selectors, resolve_names
from ..graph.packed import list_unpacked
from ..graph.passes.fix_inputs import fix_inputs, fix_specs
from ..graph.passes.normalise import name_nodes
from ..graph.states import mark_states
from ..graph.unfuse import list_ineffective
from ..graph.weightless import copy_without_weights
from ..report import name_some
from ..runtime.session import Session, is_float
from ..spec import InputSpec, QuantScheme
from .approximations import approximate
from .bottlenecks import mix_bottlenecks
from .channel_scales import even_channels
from .checkpoints import open_of_run
from .class_axes import find_class_axes
from .even_layers import even_layers
from .floor import check_memory
from .input_grid import find_lossless_grids
from .join_scales import even_joins, find_unlike_joins
from .outline import list_reasons, make_settings_scheme, take_own, with_bits
from .output_parts import find_parts
from .output_tally import lack_of_values
from .padding_mask import PaddingMask
from .placement import place_by_structure, place_by_values, place_spectra
from .prepared import Prepared
from .rewrite import Rewritten, rewrite
from .rotation import mix_channels
from .run import Run
from .run_samples import open_of_settings
from .shared_weights import identify_weights
from .structure_rules import keep_operators, list_named
from .target_settings import check_bits, check_opset, check_shapes
from .unchanged import check_unchanged

INSIDE = "it is in a body of an If, a Loop or a Scan: give bits to the layers that read it"
AHEAD = "in front of the device, it puts what the input holds on a grid without error"


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
    _drop_selectors(run, original)
    run.plan, config = plan, _take_bits(run, plan)
    check_shapes(inputs_of(original), run.target)
    check_opset(original, config, run.target)
    check_memory(run, original)
    run.weights.open_for(original)
    with run.stage("prepare"):
        samples, judges, measured_on = open_of_settings(run, original, calibration, test)
        run.checkpoints = open_of_run(run, original, samples)
        _warn_of_percentile(run)
        _warn_of_draws(run, original)
        feeds = samples.read(range(samples.fixed_batch or 1))
        wanted, rewritten = _rewrite(run, original, config, samples, feeds)

        def place(rewritten: Rewritten) -> Prepared:
            needs, model = run.target.requirements, rewritten.model
            config = _take_bits(run, plan, (model, original))
            reasons = list_reasons(plan, model)
            scheme = make_settings_scheme(model, config, original, needs, in_float=reasons, around=run.around)
            return _place(
                Prepared(
                    run=run,
                    config=config,
                    original=original,
                    model=model,
                    passes=rewritten.passes,
                    samples=samples,
                    test=judges,
                    measured_on=measured_on,
                    padding=PaddingMask(model),
                    scheme=scheme,
                    in_float=reasons,
                    parts=find_parts(model, feeds, run.threads),
                )
            )

        prepared = _fit_inputs(keep_operators(place, rewritten), planned=plan is not None or config.planned)
        model, tolerance = prepared.model, rewritten.tolerance
        reference, expected = approximate(original, wanted, feeds, run.target, warn=run.warn, threads=run.threads)
        found = check_unchanged(reference, model, expected, feeds, threads=run.threads, tolerance=tolerance)
        for line in found.lines():
            run.observer.note(line)
        axes = find_class_axes(config.class_axis, wanted, prepared.parts, batched=samples.batched, inputs=feeds)
        prepared = place_by_values(replace(prepared, class_axes=axes), feeds)
        _check_tensors(run.config, prepared.scheme, plan, tensors_in_bodies(model))
        _tell(prepared, plan)
        return prepared


def _place(prepared: Prepared) -> Prepared:
    """Identify the weights that graphs of the model may share, and leave in float what the structure tells to."""
    run, model = prepared.run, prepared.model
    if run.place or any(map(has_bodies, model.graph.node)):
        prepared = replace(prepared, sources=identify_weights(model, prepared.scheme))
    return place_by_structure(prepared)


def _drop_selectors(run: Run, model: ModelProto) -> None:
    """Leave those of nodes in the model's bodies, or around the body that the model is, out of the run's settings."""
    named = model
    if any(map(has_bodies, model.graph.node)):
        named = copy_without_weights(model)
        name_nodes(named)
    run.config = keep_selectors(run.given, named, inside=bool(run.place))


def _take_bits(run: Run, plan: BitPlan | None, among: tuple[ModelProto, ModelProto] | None = None) -> QuantizeConfig:
    """The settings with the bits of a plan, which may have been made for another target. Raises ConfigError.

    among: the graph behind and before preparation whose own layers are meant; None: those of all graphs.
    """
    config = run.config
    if plan is None:
        return config
    if config.activations == "dynamic":
        raise ConfigError(
            "activations: found 'dynamic' beside a plan, whose bits are for grids of the file; leave one of them out"
        )
    if config.activation_bits == WIDE_BITS:  # which tensors would have that the plan gives 8
        config = config.model_copy(update={"activation_bits": FULL_BITS})
    if plan.weight_symmetry is not None:
        if plan.weight_symmetry == "asymmetric" and not run.target.requirements.asymmetric_alone:
            raise ConfigError(
                f"plan: found asymmetric weights; target {run.target.name!r} takes weights without zero points; plan"
                " with weight_symmetry symmetric"
            )
        config = config.model_copy(update={"weight_symmetry": plan.weight_symmetry})
    layers = plan.settings() if among is None else take_own(plan, *among, inside=bool(run.place))
    config = with_bits(config, layers, plan.tensors)
    check_bits(config, run.target, where="plan: ")
    return config


def _rewrite(
    run: Run, original: ModelProto, config: QuantizeConfig, samples: CalibrationSet, feeds: Mapping[str, Any]
) -> tuple[dict[str, Any], Rewritten]:
    """The outputs of the original on one batch, and the model rewritten."""
    wanted, lacking = _run_original(original, samples, feeds, run.threads)
    rewritten = rewrite(copy_model(original), run.with_bodies(config), target=run.target)
    if lacking:  # after rewriting, which names a weight that is the cause
        raise explain_nan(rewritten.model, lacking[0]) or lack_of_values(lacking[0])
    return wanted, rewritten


def _fit_inputs(prepared: Prepared, *, planned: bool) -> Prepared:
    """Let layers read what the samples hold; changes the model, and tells of all that did.

    planned: whether bits are those of a plan, or are to be.
    """
    prepared = place_spectra(prepared)
    model, samples, run = prepared.model, prepared.samples, prepared.run
    # A plan may give a layer more bits than the settings. Whether an input is rescaled must not depend on that.
    scheme = prepared.widest_scheme
    given = {} if run.shared is None else run.shared.find_factors(prepared.sources)
    prepared, scheme = mix_channels(prepared, scheme, planned=planned, given=given)
    rotation, smoothing = prepared.rotation, prepared.smoothing
    rotated, smoothed = 0 if rotation is None else rotation.count, 0 if smoothing is None else len(smoothing.muls)
    # A Mul of its own grid in front of the layer would round the channels all the same.
    grouped = run.target.requirements.placing == "groups"
    done = set() if smoothing is None else {name for names in smoothing.layers.values() for name in names}
    known = {name: factor for name, factor in given.items() if factor is not None}
    unlike = {} if grouped else even_channels(model, scheme, samples, run.threads, smoothed=done, given=known)
    if unlike:
        scheme = prepared.make_widest_scheme()
    joins = even_joins(model, scheme, samples, run.threads)
    if joins:
        scheme = prepared.make_widest_scheme()
    for line in find_unlike_joins(model, scheme, samples, run.threads) if grouped else ():
        run.warn(line)
    # Weights that bodies and the graph around them share have the factors of all of them, or none.
    few_levels, solved = run.shared is None and not planned, prepared.config.does("reconstruct")
    mixed = mix_bottlenecks(model, scheme, samples, run.threads) if few_levels else {}
    evened = even_layers(model, scheme, samples, run.threads, few_levels=few_levels, solved=solved, but=mixed)
    if evened or mixed:
        scheme = prepared.make_widest_scheme()
    rescales = not grouped or run.target.rewrites.rescaled_inputs
    found = find_lossless_grids(model, scheme, samples, PaddingMask(model), run.threads, rescales=rescales)
    passes = {
        **prepared.passes,
        "even_channels": len(unlike),
        "even_joins": len(joins),
        "even_layers": len(evened),
        "mix_bottlenecks": len(mixed),
        "rotate": rotated,
        "smooth": smoothed,
        "rescale_input": len(found.rescaled),
    }
    for line in (
        *(f"{name}: {count}" for name, count in passes.items() if count),
        *(each.line for each in unlike.values()),
        *joins.values(),
    ):
        run.observer.note(line)
    fitted = replace(prepared, passes=passes, padding=PaddingMask(model), lossless=found.grids)
    factors = {} if smoothing is None else smoothing.by_layer
    factors |= {name: each.factor for name, each in unlike.items()}
    fitted = replace(fitted, tied=find_tied(model), factors=factors, evened=evened, mixed=mixed)
    if rotated or unlike or joins or evened or mixed or smoothed or found.rescaled or fitted.tied:
        fitted = replace(fitted, scheme=fitted.make_scheme())
    return fitted.leave(_find_ahead(model, found.rescaled)) if grouped else fitted


def _find_ahead(model: ModelProto, tensors: Sequence[str]) -> dict[str, str]:
    """The nodes that make these tensors of the model's inputs, and why they stay in float."""
    index = Index(model.graph)
    return dict.fromkeys(sorted(needed_nodes(index, index.inputs, tensors)), AHEAD)


def _check_tensors(config: QuantizeConfig, scheme: QuantScheme, plan: BitPlan | None, inside: Set[str]) -> None:
    """Raise ConfigError for bits of a tensor without a grid, or ``inside`` bodies, and for a plan of others."""
    if plan is not None:
        plan.check_layers(layer.name for layer in scheme.layers)
        plan.check_tensors(scheme.activations)
    for name in config.tensors:
        if name not in scheme.activations:
            near = find_nearest(name, tuple(scheme.activations))
            hint = INSIDE if name in inside else f"did you mean {near!r}" if near else "take it out"
            raise ConfigError(
                f"tensors: found bits of {spell_value(name)}; a tensor that is quantized has bits, such as"
                f" {next(iter(scheme.activations), 'none here')!r}; {hint}"
            )


def _tell(prepared: Prepared, plan: BitPlan | None) -> None:
    scheme = prepared.scheme
    _warn_of_replaced(prepared, plan)
    _tell_of_recurrent(prepared, planned=plan is not None or prepared.config.planned)
    _warn_of_ineffective(prepared)
    _warn_of_float(prepared)
    _warn_of_unpacked(prepared)
    left = f", {len(prepared.in_float)} nodes left in float" if prepared.in_float else ""
    layers = len(scheme.layers) + len(scheme.recurrent)
    prepared.run.observer.note(f"{layers} layers and {len(scheme.activations)} activations to quantize{left}")


def _warn_of_replaced(prepared: Prepared, plan: BitPlan | None) -> None:
    """Warn of bits and symmetry that the user gave and that a plan or a budget replaces."""
    run, config = prepared.run, prepared.run.config
    if run.place:  # said of the model around
        return
    bits = {"weight_bits"} if plan is None else {"activation_bits", "weight_bits"}
    if config.embedding_bits is None and prepared.scheme.embeddings and not config.planned_alone:
        bits -= {"weight_bits"}  # those of embeddings, of which the plan says nothing
    if any(layer.dynamic for layer in prepared.scheme.recurrent):
        bits -= {"weight_bits"}  # as of those
    names = sorted(config.model_fields_set & bits)
    names += [] if plan is None else plan.list_replaced(run.given.layers)
    if names and plan is not None:
        run.warn(f"{', '.join(names)}: found beside a plan, which gives the bits of every layer; leave one out")
    elif names and config.planned:
        run.warn("weight_bits: found beside a budget, within which those of every layer are chosen; leave it out")
    kind = None if plan is None else plan.weight_symmetry
    if kind is not None and "weight_symmetry" in config.model_fields_set and config.weight_symmetry != kind:
        run.warn(f"weight_symmetry: found {config.weight_symmetry} beside a plan of {kind} weights; leave it out")


def _tell_of_recurrent(prepared: Prepared, *, planned: bool) -> None:
    """Name the recurrent layers whose bits a plan does not choose; their bytes count all the same."""
    for layer in prepared.scheme.recurrent if planned else ():
        if layer.dynamic:
            bits = layer.weight_spec.bits
            prepared.run.observer.note(f"{layer.name}: {bits} bits, as its operator has no others; its bytes count")


def _warn_of_unpacked(prepared: Prepared) -> None:
    """Name the layers that are not written as the operator that was asked for."""
    layers = prepared.scheme.layers if prepared.config.encoding == "matmulnbits" else ()
    reasons: dict[str, list[str]] = {}
    for name, why in list_unpacked(prepared.model, layers).items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        prepared.run.warn(f"encoding: {name_some(names)}: written as QuantizeLinear and DequantizeLinear, as {why}")


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


def _warn_of_ineffective(prepared: Prepared) -> None:
    excluded = resolve_names(prepared.model, prepared.config, before=prepared.original).excluded
    if names := list_ineffective(prepared.model, prepared.scheme, excluded):
        prepared.run.warn(
            f"exclude: {name_some(names)}: found behind quantized nodes, which absorb them on integers all the same;"
            " a Relu or Clip is float where the node in front of it is; exclude that too"
        )


def _warn_of_float(prepared: Prepared) -> None:
    """Warn of bits that settings or a plan give to layers that stay in float all the same."""
    if names := [name for name in list_named(prepared) if name in prepared.in_float]:
        prepared.run.warn(
            f"layers: {name_some(names)}: found bits, which have no effect: {names[0]} stays in float, as"
            f" {prepared.in_float[names[0]]}; leave them out"
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


def load(model: str | Path | ModelProto, data: DataConfig) -> ModelProto:
    """A copy of the model, or the model of a file, its inputs of the shapes that are set.

    Raises ModelError, and ConfigError for shapes that do not fit.
    """
    loaded = load_model(model if isinstance(model, ModelProto) else Path(model))
    fix_inputs(loaded, data.input_shapes)
    return loaded


def list_inputs(model: str | Path | ModelProto | Sequence[InputSpec], data: DataConfig) -> tuple[InputSpec, ...]:
    """The inputs of a model, or those described, in the shapes that are set. Raises as ``load``."""
    if isinstance(model, (str, Path, ModelProto)):
        loaded = load(model, data)
        return mark_states(loaded, inputs_of(loaded), data.state)
    if data.state and not any(spec.state for spec in model):
        raise ConfigError("state: found descriptions of inputs, without outputs to pair them with; give the model")
    return fix_specs(model, data.input_shapes)
