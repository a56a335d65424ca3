"""Placement: which nodes stay in float though they could be quantized, each with the reason that the report gives.

These are the rules, in their order. Each sees the scheme without what those before it leave in float.

1. ``weights_alone``: what a target does not take beside float activations. Joins that are taken apart again, what is
   computed from positions, and pools that give places: ``joins``, ``positions`` and ``places`` of ``graph``.
2. ``last_layers``: small convolutions in front of the parts of an output, in a file for onnxruntime. ``patch_layers``:
   small first ones that give float operators what they make; their weights alone are quantized.
3. ``cost_placement``: what would be slower on integers, or ``measured_placement``, where the settings say so. Settings
   that name a layer win over this rule alone.
4. ``coarse_inputs``: layers whose input or last output 256 levels do not hold, and convolutions that give such inputs.
   ``coarse_runs``: dynamic layers of whose input they do not hold the rows; their weights alone are quantized.
5. ``coarse_products``: products of activations, and layers in front of a Log, whose operands they do not hold.
6. ``coarse_steps``: small parts in front of thresholds and their like, which they make jump.
7. ``part_precision``: what leaves too little of a part of an output; it chooses ranges, too.

   Rules 4 to 7 are left out where activations may have 16 bits.
8. ``trial``: what onnxruntime refuses. ``final_trial`` asks again when the layers are solved.

The first three look at nodes and shapes, so that the inputs of first layers are fitted to what is left. So does what
follows them: layers read float that make, or in sequences read, a magnitude that 256 levels do not hold
(``coarse_products``). The others look at values, which need the fitted inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from onnx import ModelProto

from ..data.padding import MASK
from ..graph.dynamic_lstm import DYNAMIC_LSTM, explain_slow
from ..graph.index import Index, is_op
from ..graph.joins import find_parted_joins
from ..graph.kernel_times import Shapes
from ..graph.names import resolve_names
from ..graph.ops import RECURRENT
from ..graph.places import find_placing
from ..graph.positions import find_positional
from ..graph.recurrent import LSTM, explain_all_float
from ..graph.save import fingerprint
from ..progress import track
from ..spec import QuantScheme
from .coarse_inputs import find_coarse_inputs
from .coarse_products import find_coarse_products, find_coarse_spectra
from .coarse_runs import find_coarse_runs
from .coarse_steps import find_coarse_steps
from .cost_placement import choose_by_cost
from .last_layers import find_last_layers
from .measured_placement import choose_by_time
from .part_precision import fit_parts
from .patch_layers import find_patch_layers
from .prepared import Prepared
from .speed import read_median
from .tensor_shapes import measure_shapes
from .trial import Trial, emit_placeholders
from .weights_alone import find_not_alone

PARTED = "it joins tensors that are taken apart again; on one grid the range of one would round the others"
NO_OPERATOR = "onnxruntime has an operator that rounds activations as it runs for LSTMs alone"
ENCODING_LACKS = f"encoding 'standard' has operators of ONNX alone, and {DYNAMIC_LSTM} is one of onnxruntime's own"
# Samples on which layers are tried with their input on 256 levels: in all and in one run, and in a first look.
ROUNDED_SAMPLES, ROUNDED_AT_ONCE = 32, 8
LOOK_SAMPLES, LOOK_AT_ONCE = 8, 2


def place_by_structure(prepared: Prepared) -> Prepared:
    """Leave in float what the graph and the shapes of its tensors tell to."""
    prepared = prepared.leave(find_not_alone(prepared))
    model = prepared.model
    index = Index(model.graph)
    prepared = _place_recurrent(prepared, index)
    # Where all else around them is on integers, masks are too: see masked_scores.
    masks = (MASK,) if prepared.scheme.requirements.placing == "groups" else ()
    found = _keep_layers(
        prepared,
        dict.fromkeys(sorted(find_parted_joins(model, index)), PARTED)
        | find_positional(model, index, masks)
        | find_placing(model.graph, index),
    )
    shapes = measure_shapes(model, read_median(prepared.samples), prepared.run.threads)
    if prepared.run.target.is_onnxruntime:
        found |= _find_on_grids(prepared, find_last_layers(model, prepared.parts, shapes))
    prepared = prepared.leave(found)
    if prepared.run.target.is_onnxruntime and prepared.config.placement != "all" and not prepared.config.wide:
        prepared = _let_read_float(prepared, find_patch_layers(model, prepared.widest_scheme, shapes))
    return prepared.leave(_find_slow(prepared, shapes))


def place_spectra(prepared: Prepared) -> Prepared:
    """Let layers that a spectrum is made of read float where 256 levels do not hold it."""
    config = prepared.config
    if config.wide or not prepared.run.target.is_onnxruntime:
        return prepared
    return _let_read_float(prepared, find_coarse_spectra(prepared, behind=prepared.samples.steps))


def _let_read_float(prepared: Prepared, chosen: Mapping[str, str]) -> Prepared:
    """Let layers to which the settings give no bits read float, and tell why."""
    named = list_named(prepared) if chosen else ()
    found = {name: reason for name, reason in chosen.items() if name not in named}
    for name, reason in found.items():
        prepared.run.leave_out(f"integer activations of {name}", f"{reason}; its weights alone are quantized")
    return prepared.read_float(found)


def place_by_values(prepared: Prepared, feeds: Mapping[str, Any]) -> Prepared:
    """Leave in float what rounding or onnxruntime tells to, as tried on some samples and on one batch.

    Raises ModelError where no layer would be left.
    """
    if not prepared.config.wide:  # 16 bits are what such nodes need
        prepared = prepared.leave(_find_coarse(prepared))
        prepared = _let_coarse_runs_read_float(prepared)
        prepared = prepared.leave(find_coarse_products(prepared))
        prepared = prepared.leave(find_coarse_steps(prepared))
        prepared = fit_parts(prepared, list_named(prepared))
    return prepared.leave(_find_refused(prepared, feeds))


def _place_recurrent(prepared: Prepared, index: Index) -> Prepared:
    """Leave in float recurrent layers that the file cannot have; where rounding is no gain, let them read float."""
    needs = prepared.scheme.requirements
    found = explain_all_float(prepared.model, index)
    if not needs.recurrent_weights:
        target = prepared.run.target.name
        lacks = f"target {target!r} is not known to take recurrent layers with integers as weights"
        found = {node.name: lacks for node in prepared.model.graph.node if is_op(node, *RECURRENT)}
    prepared = prepared.leave(found)
    named, reasons = list_named(prepared), dict[str, str]()
    for layer in prepared.scheme.recurrent:
        reason = None
        if layer.dynamic and prepared.config.placement != "all" and layer.name not in named:
            reason = explain_slow(layer, index)
        elif prepared.config.activations == "dynamic" and not layer.dynamic and layer.name not in named:
            reason = NO_OPERATOR if layer.op != LSTM else ENCODING_LACKS
        if reason is not None:
            reasons[layer.name] = reason
            prepared.run.leave_out(f"dynamic activations of {layer.name}", f"{reason}; its weights alone are quantized")
    return prepared.read_float(reasons)


def list_named(prepared: Prepared) -> list[str]:
    """Names of the layers to which the settings or a plan give bits."""
    layers = resolve_names(prepared.model, prepared.config, before=prepared.original).layers
    given = (name for name, each in layers if any((each.weight_bits, each.activation_bits, each.activations)))
    return list(dict.fromkeys(given))


def _find_on_grids(prepared: Prepared, chosen: Mapping[str, str]) -> dict[str, str]:
    """Those of the nodes that would have a grid on some side; to others it makes no difference."""
    grids = prepared.widest_scheme.activations
    return {
        node.name: chosen[node.name]
        for node in prepared.model.graph.node
        if node.name in chosen and any(t in grids for t in (*node.input, *node.output))
    }


def _keep_layers(prepared: Prepared, chosen: Mapping[str, str]) -> dict[str, str]:
    """The nodes with a grid on some side, but no layers where no other layer would be left."""
    layers = {layer.name for layer in prepared.scheme.layers}
    kept = layers if layers <= chosen.keys() else set()
    return {name: why for name, why in _find_on_grids(prepared, chosen).items() if name not in kept}


def _find_slow(prepared: Prepared, shapes: Shapes) -> dict[str, str]:
    if prepared.config.placement == "all":
        return {}
    shared = prepared.run.shared  # in float, their weights would be in the file twice
    wanted = [*list_named(prepared), *(shared.find_factors(prepared.sources) if shared else ())]
    if prepared.config.placement == "measured":
        name = f"placement-{fingerprint(prepared.model)[:16]}"  # times differ from run to run
        choose = partial(choose_by_time, prepared, shapes, wanted)
        return prepared.run.checkpoints.recall(name, choose, dict[str, str])
    return choose_by_cost(prepared.model, prepared.widest_scheme, shapes, wanted)


def _find_coarse(prepared: Prepared) -> dict[str, str]:
    samples = prepared.samples
    runs, first = samples.split(ROUNDED_AT_ONCE), samples.split(LOOK_AT_ONCE)
    some = (samples.read(run) for run in track(runs[: -(-ROUNDED_SAMPLES // len(runs[0]))], len))
    look = (samples.read(run) for run in first[: -(-LOOK_SAMPLES // len(first[0]))])
    model, scheme, threads = prepared.model, prepared.scheme, prepared.run.threads
    return find_coarse_inputs(model, scheme, prepared.lossless, look, some, threads=threads)


def _let_coarse_runs_read_float(prepared: Prepared) -> Prepared:
    samples = prepared.samples
    runs = samples.split(LOOK_AT_ONCE)
    look = (samples.read(run) for run in runs[: -(-LOOK_SAMPLES // len(runs[0]))])
    model, scheme, threads = prepared.model, prepared.scheme, prepared.run.threads
    found = find_coarse_runs(model, scheme, look, prepared.padding, threads=threads)
    for name, reason in found.items():
        prepared.run.leave_out(f"dynamic activations of {name}", reason)
    return prepared.read_float(found)


def _find_refused(prepared: Prepared, feeds: Mapping[str, Any]) -> dict[str, str]:
    def make(names: Mapping[str, str]) -> QuantScheme:
        return prepared.leave(names).scheme

    def emit(scheme: QuantScheme) -> ModelProto:
        return emit_placeholders(prepared.model, scheme, prepared.config.encoding)

    trial = Trial(prepared.model, make, emit, feeds, prepared.run.threads, prepared.run.target.is_onnxruntime)
    return trial.find_refused(prepared.in_float)
