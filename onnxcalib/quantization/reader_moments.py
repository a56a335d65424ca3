"""What the later readers of a weight read in the float model: it is solved for them too, before they are quantized."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import Any

import torch

from ..data import CalibrationSet
from ..graph.layout import count_inputs
from ..numeric.reader_sums import ReaderSums
from ..runtime.session import Session
from ..runtime.store import Store
from ..spec import Grids, LayerScheme
from .column_choice import MOST_INPUTS, ColumnChoice
from .padding_mask import find_real
from .state import SHARE_SAMPLES, Problem, ReaderMoments, ReconstructionState, StoredActivations


def measure_readers(
    problem: Problem, samples: CalibrationSet, size: int, solved: Collection[str] = ()
) -> dict[str, ReaderMoments]:
    """First reader of a weight -> the moments of all later ones, of samples that are fitted and of those held out.

    They take one run of the float model. size: samples a batch at most. solved: first readers that need none any more.
    """
    wanted: dict[Hashable, tuple[LayerScheme, ReaderMoments]] = {}
    found: dict[str, ReaderMoments] = {}
    for name in problem.readers.first:
        layer = problem.layers[name]
        shape = problem.index.initializers[layer.weight].dims
        if name not in solved and count_inputs(shape, layer) <= MOST_INPUTS:
            key = _describe_reading(problem, layer)
            found[name] = wanted.setdefault(key, (layer, (ReaderSums(), ReaderSums())))[1]
    if not wanted:
        return found
    stored = StoredActivations(Store(), problem.padding, problem.types)
    state = ReconstructionState(problem, stored, Grids({}, {}))
    pairs = [
        (_Reader(state, other), sums) for layer, sums in wanted.values() for other in problem.readers.first[layer.name]
    ]
    tensors = {tensor for reader, _ in pairs for tensor in (reader.layer.input, reader.layer.output)}
    session = Session(problem.model, also=sorted(tensors), threads=problem.threads)
    size = samples.fixed_batch or min(size, SHARE_SAMPLES // 2)
    stored.sizes = [len(run) if samples.batched else 1 for run in samples.split(size)]
    for number, feeds in enumerate(samples.batches(size)):
        stored.masks.append(find_real(feeds))
        values = {**feeds, **session.run(feeds, [t for t in session.outputs if t in tensors])}
        for reader, sums in pairs:
            reader.add(sums, values, number)
    return found


def _describe_reading(problem: Problem, layer: LayerScheme) -> Hashable:
    """Equal for first readers whose later ones read the same columns."""
    node, shape = problem.index.nodes[layer.name], problem.index.initializers[layer.weight].dims
    attributes = tuple(sorted(each.SerializeToString(deterministic=True) for each in node.attribute))
    reading = (layer.op, layer.groups, attributes, count_inputs(shape, layer), tuple(shape[2:]), layer.weight_spec.bits)
    others = problem.readers.first[layer.name]
    return reading, tuple((each.input, problem.padding.axes.get(each.output)) for each in others)


class _Reader:
    """A later reader of a weight, and the columns that it reads."""

    def __init__(self, state: ReconstructionState, layer: LayerScheme) -> None:
        self.layer, self.stored = layer, state.stored
        shape = tuple(state.problem.index.initializers[layer.weight].dims)
        self.choice = ColumnChoice(state, layer, shape, layer.weight_spec.bits)
        self.device = state.problem.device

    def add(self, sums: ReaderMoments, values: Mapping[str, Any], number: int) -> None:
        """Add the columns of stored batch ``number``, whose values of the float model these are."""
        given, made = (torch.atleast_2d(torch.as_tensor(values[t])) for t in (self.layer.input, self.layer.output))
        first = sum(self.stored.sizes[:number])
        for chunk in self.choice.split(number, first, tuple(made.shape)):
            columns = self.choice.unfold(chunk, chunk.take(given.numpy()), tuple(made.shape)).to(self.device)
            for total, part in zip(sums, chunk.part(columns), strict=True):
                total.add(self.layer.name, part)
