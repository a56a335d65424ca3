"""Explain where a quantized model loses accuracy: layer by layer, with reasons and remedies for the worst."""

from __future__ import annotations

import json

import numpy as np
from onnx import ModelProto

from ..data import CalibrationSet
from ..errors import CONTROLS
from ..graph.passes.normalise import tidy
from ..runtime.store import Store
from ..verdict import Explanation, LayerLoss
from .pair import name_float_nodes, pair_layers
from .reasons import find_reasons
from .survey import Measured, Survey

# The layers that limit the outputs are the worst ones that make up this share of all layers' losses, WORST at most.
LIMITING, WORST = 0.9, 10
# SQNR of the outputs in dB from which on a layer of 8 bits stays as it is. There it changes the outputs by 1% of their
# size at most, which hardly ever changes a class, while float costs time and space.
HARMLESS = 40.0
SETTINGS_KEY = "onnxcalib.settings"


def explain(original: ModelProto, quantized: ModelProto, samples: CalibrationSet, threads: int = 0) -> Explanation:
    """Find the layers that limit the model's outputs, by the loss where they alone are quantized, and give the reasons.

    A layer has a quantized constant weight, and the float model has its input and its output under the same names;
    others are listed as unmatched. Layers have the names that ``quantize`` gives the float layers. The first SAMPLES
    samples are used. Both models stay as they are. Raises ModelError.
    """
    (original, names), quantized = name_float_nodes(original), tidy(quantized)
    pairs, unmatched = pair_layers(original, quantized, names)
    layers = [Measured(pair) for pair in pairs]
    notes = _read_notes(quantized)
    if not layers:
        return Explanation(0, (), unmatched, notes)
    with Store() as store:
        survey = Survey(original, quantized, layers, store, threads)
        done = survey.measure_layers(samples)
        unmatched = (*unmatched, *survey.drop_unmeasured())
        if fault := survey.measure_outputs():
            why = "some layers are ranked by the SQNR of their own output, as the graph behind them cannot be run alone"
            notes = (*notes, f"{why}: {fault}")
        losses = tuple(_describe(each, survey) for each in _choose_limiting(survey.layers))
    return Explanation(done, losses, unmatched, notes)


def _choose_limiting(layers: list[Measured]) -> list[Measured]:
    """The worst layers, the worst first, as far as they make up LIMITING of the sum of the layers' relative errors."""
    ranked = sorted(layers, key=lambda each: (each.ranked_db, each.alone.sqnr_db))
    with np.errstate(over="ignore"):  # the error of an output of zeros may have any size
        errors = np.power(10.0, [-each.ranked_db / 10 for each in ranked]).tolist()
    total, done = sum(errors), 0.0
    for number, error in enumerate(errors):
        if done >= LIMITING * total and error < np.inf:
            return ranked[: min(number, WORST)]
        done += error
    return ranked[:WORST]


def _read_notes(quantized: ModelProto) -> tuple[str, ...]:
    """Remarks on the settings that the model was quantized with; other tools store none."""
    entries = {entry.key: entry.value for entry in quantized.metadata_props}
    try:
        settings = json.loads(entries.get(SETTINGS_KEY, "{}"))
    except ValueError:
        return ()
    if isinstance(settings, dict) and settings.get("reconstruct") is False:
        return (
            "the weights of this model were rounded and not reconstructed; first quantize it with the default pipeline"
            " (reconstruct = true)",
        )
    return ()


def _describe(each: Measured, survey: Survey) -> LayerLoss:
    layer, name = each.pair.layer, each.pair.name
    remedy, lines = "raise it to 8 bits", "weight_bits = 8\nactivation_bits = 8"
    if layer.weight_bits >= 8 and layer.activation_bits >= 8:
        remedy, lines = "leave it in float", "exclude = true"
        if each.ranked_db >= HARMLESS:
            remedy, lines = "keep it as it is: its loss is small", ""
    return LayerLoss(
        name=name or layer.name,
        op=layer.op,
        weight_bits=layer.weight_bits,
        activation_bits=layer.activation_bits,
        alone_db=each.alone.sqnr_db,
        all_before_db=each.all_before.sqnr_db,
        at_output_db=None if np.isnan(each.at_output) else each.at_output,
        reasons=tuple(find_reasons(each, survey)),
        remedy=remedy,
        toml=f"[layers.{_quote(name)}]\n{lines}" if name and lines else "",
    )


def _quote(name: str) -> str:
    """A basic string of TOML, which is one of JSON with more characters escaped."""
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(name, ensure_ascii=False))
