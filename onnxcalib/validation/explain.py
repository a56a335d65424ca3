"""Explain where a quantized model loses accuracy: layer by layer, with reasons and remedies for the worst."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto

from ..data import CalibrationSet
from ..errors import CONTROLS, ModelError
from ..graph.edit import copy_model, reroute
from ..graph.extract import extract, infer_types
from ..graph.fusion import moves_values
from ..graph.index import Index, is_op
from ..graph.inspect.integers import GIVEN
from ..graph.inspect.quantized_layers import QuantizedLayer
from ..graph.liveness import find_live
from ..graph.passes.normalise import tidy
from ..numeric.diagnosis import Symptoms, channel_gains, diagnose, rounding_sqnr
from ..numeric.metrics import Comparison, mean_sqnr
from ..quantization.calibrate import batch_size
from ..runtime.session import Session, is_float
from ..runtime.store import Store
from ..verdict import Explanation, LayerLoss
from .pair import Pair, name_float_nodes, pair_layers

# Samples on which the layers' own errors are measured; on 64 they were within a dB of these.
SAMPLES = 16
# The effect of one layer on the model's outputs is measured on one sample in SHARE, within these bounds: each layer
# costs half a pass of the float model over them on average.
SHARE, LEAST, MOST = 8, 4, 16
# The layers that limit the outputs are the worst ones that make up this share of all layers' losses, WORST at most.
LIMITING, WORST = 0.9, 10
# SQNR of the outputs in dB from which on a layer of 8 bits stays as it is. There it changes the outputs by 1% of their
# size at most, which hardly ever changes a class, while float costs time and space.
HARMLESS = 40.0
BEHIND, ROUNDED = "behind:", "rounded:"
SETTINGS_KEY = "onnxcalib.settings"
# Thresholds above which a symptom is named as a reason.
WIDE_SPREAD, MANY_CLIPPED, UNLIKE_CHANNELS, MANY_DEAD, UNLIKE_PARTS = 4.0, 0.005, 8.0, 0.1, 4.0
CANCELLED, ABOUT_EQUAL = 6.0, 3.0  # dB
FLOAT_BITS = 32  # activation_bits of a layer that reads floats
ALIKE, WRONG_GAIN = 0.9, 0.25


@dataclass
class _Layer:
    """What was measured of a pair. grid: of the float output, rounded on the grid behind the layer where that clips."""

    pair: Pair
    alone: Comparison = field(default_factory=Comparison)
    all_before: Comparison = field(default_factory=Comparison)
    grid: Comparison = field(default_factory=Comparison)
    at_output: float = float("nan")

    @property
    def ranked_db(self) -> float:
        """SQNR of the model's outputs, or of the layer's own output where the model's were not measured."""
        return self.alone.sqnr_db if np.isnan(self.at_output) else self.at_output

    @property
    def result(self) -> str:
        """The tensor to compare with the float output: the layer's output, or that output behind the grid."""
        return f"{BEHIND}{self.pair.layer.output}" if self.pair.path else self.pair.layer.output


def explain(original: ModelProto, quantized: ModelProto, samples: CalibrationSet, threads: int = 0) -> Explanation:
    """Find the layers that limit the model's outputs, by the loss where they alone are quantized, and give the reasons.

    A layer has a quantized constant weight, and the float model has its input and its output under the same names;
    others are listed as unmatched. Layers have the names that ``quantize`` gives the float layers. The first SAMPLES
    samples are used. Both models stay as they are. Raises ModelError.
    """
    (original, names), quantized = name_float_nodes(original), tidy(quantized)
    pairs, unmatched = pair_layers(original, quantized, names)
    layers = [_Layer(pair) for pair in pairs]
    notes = _read_notes(quantized)
    if not layers:
        return Explanation(0, (), unmatched, notes)
    with Store() as store:
        survey = _Survey(original, quantized, layers, store, threads)
        done = survey.measure_layers(samples)
        unmatched = (*unmatched, *survey.drop_unmeasured())
        if fault := survey.measure_outputs():
            why = "some layers are ranked by the SQNR of their own output, as the graph behind them cannot be run alone"
            notes = (*notes, f"{why}: {fault}")
        losses = tuple(_describe(each, survey) for each in _choose_limiting(survey.layers))
    return Explanation(done, losses, unmatched, notes)


def _choose_limiting(layers: list[_Layer]) -> list[_Layer]:
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


class _Survey:
    """Runs both models on the samples, and keeps tensors of the float model on disk for the first few of them."""

    def __init__(
        self, original: ModelProto, quantized: ModelProto, layers: list[_Layer], store: Store, threads: int
    ) -> None:
        self.original, self.layers, self.store, self.threads = original, layers, store, threads
        self.index = Index(original.graph)
        self.live = find_live(original, [each.pair.output for each in layers], index=self.index)
        self.sources = {each.pair.layer.source for each in layers}
        parts = {part for source in self.sources for part in joined_parts(self.index, source)}
        outputs = {each.pair.output for each in layers}
        self.given = self.sources | {each.pair.output for each in layers if each.pair.path}
        kept = {*self.index.outputs, *self.sources, *parts, *(t for names in self.live.values() for t in names)}
        self.kept = sorted(kept)
        self.reference = Session(original, also=sorted(kept | outputs), threads=threads)
        self.results = list(dict.fromkeys(each.result for each in layers))
        extended = _extend(quantized, layers)
        self.alone = Session(_open_layers(extended, layers), threads=threads)
        self.chain = Session(extended, also=self.results, threads=threads)
        self.batches = 0

    def measure_layers(self, samples: CalibrationSet) -> int:
        """Measure every layer's own error, and return the number of samples."""
        size = min(batch_size(self.reference, samples), SAMPLES)
        few = min(max(len(samples) // SHARE, LEAST), MOST)
        done = 0
        for feeds in samples.batches(size):
            floats = {**feeds, **self.reference.run(feeds)}
            alone = self.alone.run({f"{GIVEN}{name}": floats[name] for name in self.given})
            chain = self.chain.run(feeds, self.results)
            for each in self.layers:
                wanted, name = floats[each.pair.output], each.result
                if wanted.shape == alone[name].shape == chain[name].shape:
                    each.alone.add(wanted, alone[name])
                    each.all_before.add(wanted, chain[name])
                    if each.pair.path:
                        each.grid.add(wanted, alone[f"{ROUNDED}{name}"])
            if done < few:
                for name in self.kept:
                    self.store.append(name, floats[name])
                for name in self.results:
                    self.store.append(f"alone:{name}", alone[name])
                self.batches += 1
            done += samples.count(feeds)
            if done >= SAMPLES:
                break
        return done

    def drop_unmeasured(self) -> list[str]:
        """Drop the layers whose outputs could not be compared; one line for each."""
        why = "its output has another shape than in the float model, or no finite value there"
        dropped = [each.pair for each in self.layers if not each.alone.values]
        self.layers = [each for each in self.layers if each.alone.values]
        return [f"{pair.name or pair.layer.name}: {why}" for pair in dropped]

    def measure_outputs(self) -> str:
        """Measure how each layer alone changes the model's float outputs, by a run of the graph behind it.

        Returns why the first layer could not be measured, or an empty text where all could.
        """
        fault = ""
        types = infer_types(self.original)
        values = {name: self.store.batch(name, 0) for name in self.index.outputs}
        floats = [name for name, value in values.items() if is_float(value)]
        for each in self.layers:
            inputs = self.live.get(each.pair.output, ())
            wanted = [name for name in floats if name not in inputs]
            try:
                rest = (
                    extract(self.original, types, inputs=inputs, outputs=wanted, index=self.index) if wanted else None
                )
                session = Session(rest, threads=self.threads) if rest else None
                each.at_output = self._compare_outputs(each, inputs, floats, session)
            except ModelError as error:  # a graph that onnxruntime cannot run in parts
                fault = fault or str(error)
        return fault

    def _compare_outputs(
        self, each: _Layer, inputs: tuple[str, ...], outputs: list[str], session: Session | None
    ) -> float:
        """SQNR in dB of the outputs, from the mean of their relative errors."""
        found = {name: Comparison() for name in outputs}
        for number in range(self.batches):
            feeds = {name: self.store.batch(name, number) for name in inputs}
            feeds[each.pair.output] = self.store.batch(f"alone:{each.result}", number)
            given = {**feeds, **(session.run(feeds) if session else {})}
            for name, comparison in found.items():
                wanted = self.store.batch(name, number)
                if wanted.shape == given[name].shape:
                    comparison.add(wanted, given[name])
        errors = [comparison.relative_error for comparison in found.values() if comparison.values]
        return mean_sqnr(errors) if errors else float("nan")

    def values(self, name: str) -> np.ndarray:
        """What was kept of a tensor, from the batches that have the first one's shape, as samples."""
        batches = [self.store.batch(name, number) for number in range(self.batches)]
        same = [batch for batch in batches if batch.shape[1:] == batches[0].shape[1:]]
        return np.concatenate(same) if batches[0].ndim else np.array(batches)


def _extend(quantized: ModelProto, layers: list[_Layer]) -> ModelProto:
    """A copy that also computes the layers' outputs behind their grids, by new nodes, as its own may be left out."""
    copy = copy_model(quantized)
    for each in layers:
        _add_path(copy, each.pair.path, each.pair.layer.output, each.result)
    return copy


def _add_path(model: ModelProto, path: tuple[NodeProto, ...], tensor: str, end: str) -> None:
    """Append copies of the nodes of ``path``, which compute ``end`` from ``tensor``."""
    for position, node in enumerate(path, 1):
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.name = copy.output[0] = end if position == len(path) else f"{end}:{position}"
        copy.input[0], tensor = tensor, copy.output[0]
        model.graph.node.append(copy)


def _open_layers(extended: ModelProto, layers: list[_Layer]) -> ModelProto:
    """A model of the layers and their grids alone, where each layer reads a graph input, GIVEN + its source.

    A grid that clips also reads the float output, from the graph input GIVEN + its name.
    """
    copy = copy_model(extended)
    entries = {each.pair.layer.entry: each.pair.layer.source for each in layers}
    for node in copy.graph.node:
        if node.name in entries:
            reroute(node, entries[node.name], f"{GIVEN}{entries[node.name]}")
    clipped = [each for each in layers if each.pair.path]
    for each in clipped:
        _add_path(copy, each.pair.path, f"{GIVEN}{each.pair.output}", f"{ROUNDED}{each.result}")
    inputs = sorted({f"{GIVEN}{name}" for name in (*entries.values(), *(each.pair.output for each in clipped))})
    outputs = [*dict.fromkeys(each.result for each in layers), *(f"{ROUNDED}{each.result}" for each in clipped)]
    return extract(copy, {}, inputs=inputs, outputs=outputs)


def joined_parts(index: Index, tensor: str) -> tuple[str, ...]:
    """The tensors that a Concat joins to ``tensor``, through operators that only move values; else an empty tuple."""
    node = index.producer.get(tensor)
    while node is not None and moves_values(index, node):
        node = index.producer.get(node.input[0])
    if node is None or not is_op(node, "Concat"):
        return ()
    return tuple(t for t in node.input if t not in index.initializers)


def _describe(each: _Layer, survey: _Survey) -> LayerLoss:
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
        reasons=tuple(_find_reasons(each, survey)),
        remedy=remedy,
        toml=f"[layers.{_quote(name)}]\n{lines}" if name and lines else "",
    )


def _quote(name: str) -> str:
    """A basic string of TOML, which is one of JSON with more characters escaped."""
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(name, ensure_ascii=False))


def _find_reasons(each: _Layer, survey: _Survey) -> list[str]:
    """What the numbers of a layer show, one line each."""
    layer = each.pair.layer
    kept = {f"{layer.weight_bits}-bit weights": rounding_sqnr(layer.integers, layer.scale, layer.axis)}
    gains = _name_gains(each, survey)
    if layer.grid is None:
        return [_list_parts(kept) if gains else _name_unknown_input(each, *kept.values()), *gains]
    values = survey.values(layer.source)
    axis = values.ndim - 1 if layer.op == "MatMul" else min(1, values.ndim - 1)
    found = diagnose(values, *layer.grid, axis)
    parts = {name: float(np.abs(survey.values(name)).max()) for name in joined_parts(survey.index, layer.source)}
    kept[f"{layer.activation_bits}-bit input"] = found.sqnr_db
    if each.pair.path:
        kept["grid that clips its output"] = each.grid.sqnr_db
    faults = gains or _name_cancelling(each.alone.sqnr_db, list(kept.values()))
    return [
        _list_parts(kept) if faults else _name_limit(kept),
        *faults,
        *_name_symptoms(found, layer.grid),
        *_name_parts(parts),
        *_name_channels(layer),
    ]


def _name_limit(kept: dict[str, float]) -> str:
    """Which parts of a layer lose most. kept: SQNR in dB with each part alone."""
    least = min(kept.values())
    limits = [part for part, sqnr in kept.items() if sqnr <= least + ABOUT_EQUAL]
    verb = "limits" if len(limits) == 1 and not limits[0].endswith("weights") else "limit"
    return f"its {' and its '.join(limits)} {verb} it: {_list_parts(kept)}"


def _list_parts(kept: dict[str, float]) -> str:
    """SQNR with each part of a layer alone, the worst first."""
    ordered = sorted(kept.items(), key=lambda each: each[1])
    return ", ".join(f"{sqnr:.1f} dB with the {part} alone" for part, sqnr in ordered)


def _name_unknown_input(each: _Layer, weight: float) -> str:
    """Which part limits a layer whose input's grid is not known."""
    layer, alone = each.pair.layer, each.alone.sqnr_db
    weights = f"{layer.weight_bits}-bit weights"
    if layer.activation_bits >= FLOAT_BITS or weight <= alone + ABOUT_EQUAL:
        return _name_limit({weights: weight})
    what = f"its {layer.activation_bits}-bit input limits it"
    return f"{what}: {alone:.1f} dB with both, {weight:.1f} dB with the {weights} alone"


def _name_gains(each: _Layer, survey: _Survey) -> list[str]:
    """Channels that are a multiple of the float model's, which no rounding causes, but a wrong scale or sign."""
    wanted, given = survey.values(each.pair.output), survey.values(f"alone:{each.result}")
    if wanted.shape != given.shape or wanted.ndim < 2:
        return []
    axis = wanted.ndim - 1 if each.pair.layer.op == "MatMul" else 1
    gains, correlations = channel_gains(wanted, given, axis)
    wrong = np.flatnonzero((np.abs(correlations) > ALIKE) & (np.abs(gains - 1) > WRONG_GAIN))
    if not wrong.size:
        return []
    which = f"{wrong.size} of its {gains.size} output channels, number {wrong[0]} first,"
    return [f"{which} are about {gains[wrong[0]]:.2g} times the float model's: a wrong scale or sign, or saturation"]


def _name_cancelling(alone: float, kept: list[float]) -> list[str]:
    """Whether sums are far smaller than their terms, whose errors they keep."""
    with np.errstate(divide="ignore", over="ignore"):  # nothing lost, or all
        expected = -10 * np.log10(np.power(10.0, [-each / 10 for each in kept]).sum())
    if not alone < expected - CANCELLED:
        return []
    return [f"its products cancel: its output keeps {alone:.1f} dB where these would leave {expected:.1f} dB"]


def _name_symptoms(found: Symptoms, grid: tuple[float, float, float]) -> list[str]:
    _, low, high = grid
    reasons = []
    if found.spread > WIDE_SPREAD:
        reasons.append(f"its input's grid, {low:.3g} to {high:.3g}, is {found.spread:.0f} times as wide as its bulk")
    if found.clipped > MANY_CLIPPED:
        reasons.append(f"{100 * found.clipped:.1f}% of its input saturate")
    if found.unlike > UNLIKE_CHANNELS:
        reasons.append(
            f"a channel of its input reaches {found.unlike:.0f} times as far as the middle one, on one scale"
        )
    if found.dead > MANY_DEAD:
        reasons.append(f"{100 * found.dead:.0f}% of its input's channels are dead")
    return reasons


def _name_parts(parts: Mapping[str, float]) -> list[str]:
    ranges = sorted((value, name) for name, value in parts.items() if value > 0)
    if len(ranges) < 2 or ranges[-1][0] <= UNLIKE_PARTS * ranges[0][0]:
        return []
    (least, one), (most, other) = ranges[0], ranges[-1]
    return [f"a Concat joins {one}, up to {least:.3g}, and {other}, up to {most:.3g}, on one scale"]


def _name_channels(layer: QuantizedLayer) -> list[str]:
    """Output channels of the weight with very different ranges on one scale, or with zeros only."""
    rows = np.abs(np.moveaxis(layer.integers, layer.axis, 0)).reshape(layer.integers.shape[layer.axis], -1).max(axis=1)
    alive = rows[rows > 0]
    reasons = []
    if layer.scale.size == 1 and alive.size and alive.max() > UNLIKE_CHANNELS * np.median(alive):
        reasons.append("the ranges of its weight's channels are very unlike, on one scale")
    if alive.size < (1 - MANY_DEAD) * rows.size:
        reasons.append(f"{rows.size - alive.size} of its {rows.size} output channels have weights of 0 alone")
    return reasons
