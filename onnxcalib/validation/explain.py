"""Explain where a quantized model loses: each layer alone, and with all before it, and what to do about the worst."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto

from ..data import CalibrationSet
from ..errors import ModelError
from ..graph.edit import reroute
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

# Samples on which the layers' own errors are measured: those of 64 were within a dB.
SAMPLES = 16
# What a layer alone does to the model's output is measured on one sample in so many, within these bounds: each layer
# costs half a pass of the float model on average.
SHARE, LEAST, MOST = 8, 4, 16
WORST = 10
BEHIND, ROUNDED = "behind:", "rounded:"
SETTINGS_KEY = "onnxcalib.settings"
# From where on a symptom is named as a reason.
WIDE_SPREAD, MANY_CLIPPED, UNLIKE_CHANNELS, MANY_DEAD, UNLIKE_PARTS = 4.0, 0.005, 8.0, 0.1, 4.0
CANCELLED = 6.0  # dB
ALIKE, WRONG_GAIN = 0.9, 0.25


@dataclass
class _Layer:
    """What was measured of a pair; grid: of the float output itself on the grid behind the layer, where that clips."""

    pair: Pair
    alone: Comparison = field(default_factory=Comparison)
    all_before: Comparison = field(default_factory=Comparison)
    grid: Comparison = field(default_factory=Comparison)
    at_output: float = float("nan")

    @property
    def made(self) -> str:
        """The tensor that stands for the float output: the layer's own output, or what it is behind the grid."""
        return f"{BEHIND}{self.pair.layer.output}" if self.pair.path else self.pair.layer.output


def explain(original: ModelProto, quantized: ModelProto, samples: CalibrationSet, threads: int = 0) -> Explanation:
    """Find the layers that lose most at the model's outputs, each quantized alone, and say what their numbers show.

    Layers are those with a quantized constant weight whose input and output the float model has under the same names;
    they have the names that ``quantize`` gives the float layers. Others are listed as unmatched. Works on the first
    SAMPLES samples; both models stay as they are. Raises ModelError.
    """
    (original, names), quantized = name_float_nodes(original), tidy(quantized)
    pairs, unmatched = pair_layers(original, quantized, names)
    layers = [_Layer(pair) for pair in pairs]
    notes = _read_notes(quantized)
    if not layers:
        return Explanation(0, (), unmatched, notes)
    with Store() as store:
        trail = _Trail(original, quantized, layers, store, threads)
        done = trail.walk(samples)
        trail.follow()
        worst = sorted(layers, key=lambda each: (_or(each.at_output, each.alone.sqnr_db), each.alone.sqnr_db))[:WORST]
        losses = tuple(_describe(each, trail) for each in worst)
    return Explanation(done, losses, unmatched, notes)


def _read_notes(quantized: ModelProto) -> tuple[str, ...]:
    """What the settings that the model was made with say; other tools write none."""
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


def _or(value: float, other: float) -> float:
    return other if np.isnan(value) else value


class _Trail:
    """Both models run over the samples, and what of the float one is kept on disk for the first few."""

    def __init__(
        self, original: ModelProto, quantized: ModelProto, layers: list[_Layer], store: Store, threads: int
    ) -> None:
        self.original, self.layers, self.store, self.threads = original, layers, store, threads
        self.index = Index(original.graph)
        self.live = find_live(original, [each.pair.output for each in layers])
        self.sources = {each.pair.layer.source for each in layers}
        parts = {part for source in self.sources for part in joined_parts(self.index, source)}
        outputs = {each.pair.output for each in layers}
        self.given = self.sources | {each.pair.output for each in layers if each.pair.path}
        kept = {*self.index.outputs, *self.sources, *parts, *(t for names in self.live.values() for t in names)}
        self.kept = sorted(kept)
        self.reference = Session(original, also=sorted(kept | outputs), threads=threads)
        self.made = list(dict.fromkeys(each.made for each in layers))
        extended = _extend(quantized, layers)
        self.alone = Session(_open_layers(extended, layers), threads=threads)
        self.chain = Session(extended, also=self.made, threads=threads)
        self.batches = 0

    def walk(self, samples: CalibrationSet) -> int:
        """Measure every layer's own error; the number of samples seen."""
        size = min(batch_size(self.reference, samples), SAMPLES)
        few = min(max(len(samples) // SHARE, LEAST), MOST)
        done = 0
        for feeds in samples.batches(size):
            floats = {**feeds, **self.reference.run(feeds)}
            alone = self.alone.run({f"{GIVEN}{name}": floats[name] for name in self.given})
            chain = self.chain.run(feeds, self.made)
            for each in self.layers:
                wanted, name = floats[each.pair.output], each.made
                if wanted.shape == alone[name].shape == chain[name].shape:
                    each.alone.add(wanted, alone[name])
                    each.all_before.add(wanted, chain[name])
                    if each.pair.path:
                        each.grid.add(wanted, alone[f"{ROUNDED}{name}"])
            if done < few:
                for name in self.kept:
                    self.store.append(name, floats[name])
                for name in self.made:
                    self.store.append(f"alone:{name}", alone[name])
                self.batches += 1
            done += samples.count(feeds)
            if done >= SAMPLES:
                break
        return done

    def follow(self) -> None:
        """Measure what each layer alone does to the float outputs, running what lies behind it."""
        types = infer_types(self.original)
        values = {name: self.store.batch(name, 0) for name in self.index.outputs}
        floats = [name for name, value in values.items() if is_float(value)]
        for each in self.layers:
            inputs = self.live.get(each.pair.output, ())
            wanted = [name for name in floats if name not in inputs]
            try:
                rest = extract(self.original, types, inputs=inputs, outputs=wanted) if wanted else None
                session = Session(rest, threads=self.threads) if rest else None
                each.at_output = self._follow(each, inputs, floats, session)
            except ModelError:  # a graph that onnxruntime cannot run in parts; the layer's own error ranks it
                continue

    def _follow(self, each: _Layer, inputs: tuple[str, ...], outputs: list[str], session: Session | None) -> float:
        """SQNR in dB of the outputs, the mean of their relative errors being the error."""
        found = {name: Comparison() for name in outputs}
        for number in range(self.batches):
            feeds = {name: self.store.batch(name, number) for name in inputs}
            feeds[each.pair.output] = self.store.batch(f"alone:{each.made}", number)
            given = {**feeds, **(session.run(feeds) if session else {})}
            for name, comparison in found.items():
                wanted = self.store.batch(name, number)
                if wanted.shape == given[name].shape:
                    comparison.add(wanted, given[name])
        errors = [comparison.relative_error for comparison in found.values() if comparison.samples]
        return mean_sqnr(errors) if errors else float("nan")

    def values(self, name: str) -> np.ndarray:
        """What was kept of a tensor, batches of unlike shapes flattened to the first one's channels."""
        batches = [self.store.batch(name, number) for number in range(self.batches)]
        same = [batch for batch in batches if batch.shape[1:] == batches[0].shape[1:]]
        return np.concatenate(same) if batches[0].ndim else np.array(batches)


def _extend(quantized: ModelProto, layers: list[_Layer]) -> ModelProto:
    """A copy that also makes what layers give behind their grids, by nodes of its own: those there may be cut off."""
    copy = ModelProto()
    copy.CopyFrom(quantized)
    for each in layers:
        _add_path(copy, each.pair.path, each.pair.layer.output, each.made)
    return copy


def _add_path(model: ModelProto, path: tuple[NodeProto, ...], tensor: str, end: str) -> None:
    """Append copies of the nodes, which lead from one tensor to another."""
    for place, node in enumerate(path, 1):
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.name = copy.output[0] = end if place == len(path) else f"{end}:{place}"
        copy.input[0], tensor = tensor, copy.output[0]
        model.graph.node.append(copy)


def _open_layers(extended: ModelProto, layers: list[_Layer]) -> ModelProto:
    """The layers and their grids, each reading a graph input, GIVEN + its source, in place of what lies before it.

    Where a grid clips, it is given the float output too, GIVEN + its name.
    """
    copy = ModelProto()
    copy.CopyFrom(extended)
    entries = {each.pair.layer.entry: each.pair.layer.source for each in layers}
    for node in copy.graph.node:
        if node.name in entries:
            reroute(node, entries[node.name], f"{GIVEN}{entries[node.name]}")
    clipped = [each for each in layers if each.pair.path]
    for each in clipped:
        _add_path(copy, each.pair.path, f"{GIVEN}{each.pair.output}", f"{ROUNDED}{each.made}")
    inputs = sorted({f"{GIVEN}{name}" for name in (*entries.values(), *(each.pair.output for each in clipped))})
    outputs = [*dict.fromkeys(each.made for each in layers), *(f"{ROUNDED}{each.made}" for each in clipped)]
    return extract(copy, {}, inputs=inputs, outputs=outputs)


def joined_parts(index: Index, tensor: str) -> tuple[str, ...]:
    """What the Concat joins that makes a tensor, operators apart that only move values; nothing where none does."""
    node = index.producer.get(tensor)
    while node is not None and moves_values(index, node):
        node = index.producer.get(node.input[0])
    joins = node is not None and is_op(node, "Concat")
    return tuple(t for t in node.input if t not in index.initializers) if joins else ()


def _describe(each: _Layer, trail: _Trail) -> LayerLoss:
    layer, name = each.pair.layer, each.pair.name
    wide = layer.weight_bits >= 8 and layer.activation_bits >= 8
    remedy, lines = "raise it to 8 bits", "weight_bits = 8\nactivation_bits = 8"
    if wide:
        remedy, lines = "leave it in float", "exclude = true"
    return LayerLoss(
        name=name or layer.name,
        op=layer.op,
        weight_bits=layer.weight_bits,
        activation_bits=layer.activation_bits,
        alone_db=each.alone.sqnr_db,
        all_before_db=each.all_before.sqnr_db,
        at_output_db=None if np.isnan(each.at_output) else each.at_output,
        reasons=tuple(_find_reasons(each, trail)),
        remedy=remedy,
        toml=f"[layers.{_quote(name)}]\n{lines}" if name else "",
    )


def _quote(name: str) -> str:
    """A basic string of TOML, which is one of JSON but for the delete character."""
    return json.dumps(name, ensure_ascii=False).replace("\x7f", "\\u007f")


def _find_reasons(each: _Layer, trail: _Trail) -> list[str]:
    layer = each.pair.layer
    weight = rounding_sqnr(layer.integers, layer.scale, layer.axis)
    if layer.grid is None:
        return [f"its {layer.weight_bits}-bit weights alone leave {weight:.1f} dB"]
    values = trail.values(layer.source)
    axis = values.ndim - 1 if layer.op == "MatMul" else min(1, values.ndim - 1)
    found = diagnose(values, *layer.grid, axis)
    parts = {name: float(np.abs(trail.values(name)).max()) for name in joined_parts(trail.index, layer.source)}
    parted = f"its {layer.weight_bits}-bit weights alone leave {weight:.1f} dB, its {layer.activation_bits}-bit input"
    parted += f" {found.sqnr_db:.1f} dB"
    kept = [weight, found.sqnr_db]
    if each.pair.path:
        kept.append(each.grid.sqnr_db)
        parted += f", the grid that clips its output {each.grid.sqnr_db:.1f} dB"
    return [
        parted,
        *(_name_gains(each, trail) or _name_cancelling(each.alone.sqnr_db, kept)),
        *_name_symptoms(found, layer.grid),
        *_name_parts(parts),
        *_name_channels(layer),
    ]


def _name_gains(each: _Layer, trail: _Trail) -> list[str]:
    """Channels that are a multiple of the float model's: rounding does not do that, a wrong scale or sign does."""
    wanted, given = trail.values(each.pair.output), trail.values(f"alone:{each.made}")
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
    """Sums that are far smaller than their terms keep the terms' errors."""
    expected = -10 * np.log10(sum(10 ** (-each / 10) for each in kept))
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
    """Output channels of the weight: some may be unlike the others on one scale, some hold nothing."""
    rows = np.abs(np.moveaxis(layer.integers, layer.axis, 0)).reshape(layer.integers.shape[layer.axis], -1).max(axis=1)
    alive = rows[rows > 0]
    reasons = []
    if layer.scale.size == 1 and alive.size and alive.max() > UNLIKE_CHANNELS * np.median(alive):
        reasons.append("the ranges of its weight's channels are very unlike, on one scale")
    if alive.size < (1 - MANY_DEAD) * rows.size:
        reasons.append(f"{rows.size - alive.size} of its {rows.size} output channels have weights of 0 alone")
    return reasons
