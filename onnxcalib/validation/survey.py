"""Measure what each layer of a quantized model loses: at its own output, and at the outputs of the model."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto

from ..data import CalibrationSet
from ..errors import ModelError
from ..graph.edit import copy_model, reroute
from ..graph.extract import extract, infer_types
from ..graph.fusion import moves_values
from ..graph.index import Index, is_op
from ..graph.inspect.integers import GIVEN
from ..graph.liveness import find_live
from ..numeric.metrics import Comparison, mean_sqnr
from ..progress import track
from ..quantization.batches import batch_size
from ..quantization.output_parts import Parts, take_parts
from ..runtime.session import Session, is_float
from ..runtime.store import Store
from .pair import Pair

# Samples on which the layers' own errors are measured; on 64 they were within a dB of these.
SAMPLES = 16
# The effect of one layer on the model's outputs is measured on one sample in SHARE, within these bounds: each layer
# costs half a pass of the float model over them on average.
SHARE, LEAST, MOST = 8, 4, 16
BEHIND, ROUNDED = "behind:", "rounded:"


@dataclass(eq=False)
class Measured:
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


class Survey:
    """Runs both models on the samples, and keeps tensors of the float model on disk for the first few of them."""

    def __init__(
        self,
        original: ModelProto,
        quantized: ModelProto,
        layers: list[Measured],
        store: Store,
        threads: int,
        *,
        parts: Parts | None = None,
    ) -> None:
        self.original, self.layers, self.store, self.threads = original, layers, store, threads
        self.parts = parts
        self.index = Index(original.graph)
        self.live = find_live(original, [each.pair.output for each in layers], index=self.index)
        self.sources = {operand.source for each in layers for operand in each.pair.layer.operands}
        joined = {part for source in self.sources for part in joined_parts(self.index, source)}
        outputs = {each.pair.output for each in layers}
        self.given = self.sources | {each.pair.output for each in layers if each.pair.path}
        kept = {*self.index.outputs, *self.sources, *joined, *(t for names in self.live.values() for t in names)}
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
        for each in track(self.layers):
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
        self, each: Measured, inputs: tuple[str, ...], outputs: list[str], session: Session | None
    ) -> float:
        """SQNR in dB of the outputs, from the mean of the relative errors of their parts."""
        found: dict[str, Comparison] = {}
        for number in range(self.batches):
            feeds = {name: self.store.batch(name, number) for name in inputs}
            feeds[each.pair.output] = self.store.batch(f"alone:{each.result}", number)
            given = {**feeds, **(session.run(feeds) if session else {})}
            for name in outputs:
                wanted = self.store.batch(name, number)
                if wanted.shape == given[name].shape:
                    for label, pair in take_parts(self.parts, name, wanted, given[name]):
                        found.setdefault(label, Comparison()).add(*pair)
        errors = [comparison.relative_error for comparison in found.values() if comparison.values]
        return mean_sqnr(errors) if errors else float("nan")

    def values(self, name: str) -> np.ndarray:
        """What was kept of a tensor, from the batches that have the first one's shape, as samples."""
        batches = [self.store.batch(name, number) for number in range(self.batches)]
        same = [batch for batch in batches if batch.shape[1:] == batches[0].shape[1:]]
        return np.concatenate(same) if batches[0].ndim else np.array(batches)


def _extend(quantized: ModelProto, layers: list[Measured]) -> ModelProto:
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


def _open_layers(extended: ModelProto, layers: list[Measured]) -> ModelProto:
    """A model of the layers and their grids alone, where each layer reads a graph input, GIVEN + its source.

    A grid that clips also reads the float output, from the graph input GIVEN + its name.
    """
    copy = copy_model(extended)
    entries: dict[str, set[str]] = {}
    for operand in (operand for each in layers for operand in each.pair.layer.operands):
        for entry in operand.entries:
            entries.setdefault(entry, set()).add(operand.source)
    for node in copy.graph.node:
        for source in entries.get(node.name, ()):
            reroute(node, source, f"{GIVEN}{source}")
    clipped = [each for each in layers if each.pair.path]
    for each in clipped:
        _add_path(copy, each.pair.path, f"{GIVEN}{each.pair.output}", f"{ROUNDED}{each.result}")
    inputs = sorted(
        {f"{GIVEN}{name}" for name in (*set().union(*entries.values()), *(each.pair.output for each in clipped))}
    )
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
