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

from ..graph.kernel_times import Shapes
from ..graph.save import fingerprint
from ..progress import track
from ..spec import QuantScheme
from .coarse_inputs import find_coarse_inputs
from .coarse_products import find_coarse_products, find_coarse_spectra
from .coarse_runs import find_coarse_runs
from .coarse_steps import find_coarse_steps
from .cost_placement import choose_by_cost
from .measured_placement import choose_by_time
from .part_precision import fit_parts
from .prepared import Prepared
from .speed import read_median
from .structure_rules import apply_rules, let_read_float, list_named
from .tensor_shapes import measure_shapes
from .trial import Trial, emit_placeholders

# Samples on which layers are tried with their input on 256 levels: in all and in one run, and in a first look.
ROUNDED_SAMPLES, ROUNDED_AT_ONCE = 32, 8
LOOK_SAMPLES, LOOK_AT_ONCE = 8, 2


def place_by_structure(prepared: Prepared) -> Prepared:
    """Leave in float what the graph and the shapes of its tensors tell to."""
    shapes = measure_shapes(prepared.model, read_median(prepared.samples), prepared.run.threads)
    return apply_rules(prepared, shapes, _find_slow)


def place_spectra(prepared: Prepared) -> Prepared:
    """Let layers that a spectrum is made of read float where 256 levels do not hold it."""
    config = prepared.config
    if config.wide or not prepared.run.target.is_onnxruntime:
        return prepared
    return let_read_float(prepared, find_coarse_spectra(prepared, behind=prepared.samples.steps))


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
