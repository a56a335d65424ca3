"""Explain where a quantized model loses accuracy: layer by layer, with reasons and remedies for the worst."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
from onnx import ModelProto

from ..data import CalibrationSet
from ..errors import CONTROLS, ModelError
from ..graph.index import reads
from ..graph.inspect.quantized_layers import FLOAT_BITS, QuantizedLayer
from ..graph.passes.batchnorm import fold_affine, fold_batchnorm
from ..graph.passes.equalize import EVENED_KEY
from ..graph.passes.mix import MIXED_KEY
from ..graph.passes.normalise import tidy
from ..quantization.output_parts import Parts
from ..quantization.rotatable import rotate_alike
from ..report import name_some
from ..runtime.store import Store
from ..verdict import Explanation, LayerLoss
from .bodies import pair_bodies
from .pair import name_float_nodes, pair_layers
from .reasons import find_reasons
from .smoothed import mix_bottlenecks_alike, scale_evened, write_mixed, write_smoothed
from .survey import SAMPLES, Measured, Survey

# The layers that limit the outputs are the worst ones that make up this share of all layers' losses, WORST at most.
LIMITING, WORST = 0.9, 10
# SQNR of the outputs in dB from which on a layer of 8 bits stays as it is. There it changes the outputs by 1% of their
# size at most, which hardly ever changes a class, while float costs time and space.
HARMLESS = 40.0
SETTINGS_KEY = "onnxcalib.settings"


def explain(
    original: ModelProto,
    quantized: ModelProto,
    samples: CalibrationSet,
    threads: int = 0,
    *,
    parts: Parts | None = None,
) -> Explanation:
    """Find the layers that limit the model's outputs, by the loss where they alone are quantized, and give the reasons.

    A layer has a quantized constant weight, or is a product of two activations. The float model has its inputs and its
    output under the same names; others are listed as unmatched. Layers have the names that ``quantize`` gives the float
    layers. Bodies of If, Loop and Scan are compared as models of their own, on what they read in runs of the float
    model. The first SAMPLES samples are used. parts: of the outputs; each weighs as much as another output. Both models
    stay as they are. Raises ModelError.
    """
    settings, notes = _read_settings(quantized), _read_notes(quantized)
    with ExitStack() as stack:
        survey = _Surveys(settings, stack, threads)
        try:
            original = rotate_alike(original, quantized, settings, samples, threads)
        except ModelError as error:
            notes = (*notes, f"layers that read rotated channels are not judged: {error}")
        survey.measure(original, quantized, samples, parts=parts)
        notes = (*notes, *survey.notes)
        if survey.faults:
            why = "some layers are ranked by the SQNR of their own output, as the graph behind them cannot be run alone"
            notes = (*notes, f"{why}: {survey.faults[0]}")
        if survey.inside:
            notes = (*notes, "layers in bodies of If, Loop and Scan are ranked by the outputs of their body")
        limiting, solved = _choose_limiting([*survey.of]), settings.get("reconstruct") is True
        worse = [_find_worse(each, limiting, survey.of) if solved else None for each in limiting]
        losses = tuple(_describe(each, survey.of[each], name) for each, name in zip(limiting, worse, strict=True))
        others = tuple(_measure(each) for each in survey.of if each not in limiting)
    return Explanation(survey.done, losses, tuple(survey.unmatched), notes, others)


class _Surveys:
    """What was measured of a model's graph and of its bodies.

    of: each layer, with the survey that measured it. done: samples. unmatched: lines on what could not be measured.
    faults: why outputs were not measured for some layers. notes: remarks on layers. inside: whether some layers are in
    bodies.
    """

    def __init__(self, settings: Mapping[str, object], stack: ExitStack, threads: int) -> None:
        self._as_layers, self._stack, self._threads = bool(settings), stack, threads
        self._on_integers = settings.get("activation_bits") in (4, 8)
        self.of: dict[Measured, Survey] = {}
        self.done, self.inside = 0, False
        self.unmatched: list[str] = []
        self.faults: list[str] = []
        self.notes: list[str] = []

    def measure(
        self,
        original: ModelProto,
        quantized: ModelProto,
        samples: CalibrationSet,
        *,
        parts: Parts | None = None,
        path: str = "",
    ) -> None:
        """Measure the layers of a graph, and of its bodies on what these read in runs of the float model."""
        original, names = name_float_nodes(original, as_layers=self._as_layers, on_integers=self._on_integers)
        quantized, threads = tidy(quantized), self._threads
        untold = self._move_channels(original, quantized, samples)
        if untold:
            told = name_some(dict.fromkeys(path + names.get(each, each) for each in untold))
            self.notes.append(
                f"{told}: these seem worse than they are, as samples do not tell how channels between them are mixed"
            )
        write_smoothed(original, quantized, samples, SAMPLES, threads)
        write_mixed(original, quantized)
        pairs, unmatched = pair_layers(original, quantized, names)
        self.unmatched += [path + line for line in unmatched]
        layers = [Measured(pair) for pair in pairs]
        if layers:
            survey = Survey(original, quantized, layers, self._stack.enter_context(Store()), threads, parts=parts)
            done = survey.measure_layers(samples)
            self.unmatched += [path + line for line in survey.drop_unmeasured()]
            self.faults += filter(None, [survey.measure_outputs()])
            self.of |= dict.fromkeys(survey.layers, survey)
            self.inside |= bool(path and survey.layers)
            self.done = max(self.done, 0 if path else done)
        for body in pair_bodies(original, quantized, samples, self._stack, threads=threads):
            if isinstance(body, str):
                self.unmatched.append(path + body)
                continue
            where = f"{path}{body.original.path}/"
            try:
                self.measure(body.original.model, body.quantized, body.original.samples, path=where)
            except ModelError as error:
                self.unmatched.append(f"{where.removesuffix('/')}: {error}")

    def _move_channels(self, original: ModelProto, quantized: ModelProto, samples: CalibrationSet) -> list[str]:
        """Mix and scale channels between layers as in the quantized model; layers of which it cannot be told how."""
        keys, untold = {entry.key for entry in quantized.metadata_props}, list[str]()
        if not keys.isdisjoint((MIXED_KEY, EVENED_KEY)):
            fold_batchnorm(original)  # which is between layers
            fold_affine(original)
        if MIXED_KEY in keys:
            untold = mix_bottlenecks_alike(original, quantized, samples, SAMPLES, self._threads)
        if EVENED_KEY in keys:
            scale_evened(original, quantized, samples, SAMPLES, self._threads)
        return untold


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
    if _read_settings(quantized).get("reconstruct") is False:
        return (
            "the weights of this model were rounded and not reconstructed; first quantize it with the default pipeline"
            " (reconstruct = true)",
        )
    return ()


def _read_settings(quantized: ModelProto) -> dict[str, object]:
    entries = {entry.key: entry.value for entry in quantized.metadata_props}
    try:
        settings = json.loads(entries.get(SETTINGS_KEY, "{}"))
    except ValueError:
        return {}
    return settings if isinstance(settings, dict) else {}


def _find_worse(each: Measured, limiting: list[Measured], of: Mapping[Measured, Survey]) -> str | None:
    """The worst layer or product of the graph that a layer's input depends on, if that loses more than the layer."""
    before: set[str] = set()
    survey = of[each]
    waiting = [operand.source for operand in each.pair.layer.operands]
    while waiting:
        tensor = waiting.pop()
        if tensor not in before and tensor in survey.index.producer:
            waiting += reads(survey.index.producer[tensor])
        before.add(tensor)
    worse = [other for other in limiting[: limiting.index(each)] if of[other] is survey]
    return next((other.pair.name or other.pair.layer.name for other in worse if other.pair.output in before), None)


def _measure(each: Measured) -> LayerLoss:
    """What a layer loses, without reasons."""
    layer = each.pair.layer
    return LayerLoss(
        name=each.pair.name or layer.name,
        op=layer.op,
        weight_bits=layer.weight_bits if isinstance(layer, QuantizedLayer) else None,
        activation_bits=min(operand.bits for operand in layer.operands),
        alone_db=each.alone.sqnr_db,
        all_before_db=each.all_before.sqnr_db,
        at_output_db=None if np.isnan(each.at_output) else each.at_output,
    )


def _describe(each: Measured, survey: Survey, worse: str | None) -> LayerLoss:
    found, name = _measure(each), each.pair.name
    weight_bits, activation_bits = found.weight_bits, found.activation_bits
    reasons, fitted = find_reasons(each, survey, worse)
    lines = "weight_bits = 8" if activation_bits == FLOAT_BITS else "weight_bits = 8\nactivation_bits = 8"
    remedy = "raise it to 8 bits"
    if weight_bits is None or (weight_bits >= 8 and activation_bits >= 8):
        remedy, lines = "leave it in float", "exclude = true"
        if each.ranked_db >= HARMLESS:
            remedy, lines = "keep it as it is: its loss is small", ""
    if fitted:
        remedy, lines = f"mend {worse} first", ""
    toml = f"[layers.{_quote(name)}]\n{lines}" if name and lines else ""
    return replace(found, reasons=tuple(reasons), remedy=remedy, toml=toml)


def _quote(name: str) -> str:
    """A basic string of TOML, which is one of JSON with more characters escaped."""
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(name, ensure_ascii=False))
