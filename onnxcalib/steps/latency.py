"""How long sets of layers take at their candidates: by onnxruntime's profiler on this machine, or by a user's file."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from ..errors import ConfigError
from ..latencies import FLOAT, read_latencies
from ..runtime.session import Session
from ..spec import BitSet, Candidate
from .calibrate import with_outputs
from .sensitivity import Measured, Survey, cut_set, emit_set

# Runs of which the median counts, after one that allocates.
RUNS = 15


@dataclass(frozen=True)
class Latencies:
    """Milliseconds of one run: of what belongs to no set, and of the whole float model, None where unknown."""

    rest: float
    of_float: float | None


def time_sets(survey: Survey, measured: Measured, widest: ModelProto) -> tuple[tuple[BitSet, ...], Latencies]:
    """The sets with each candidate's times; ``widest``: the model at eight bits, of which the rest is what is left.

    Times are those of kernels in a run of as few samples as the model takes.
    """
    layers = {layer.name: layer for layer in next(iter(survey.grids.values())).plan.layers}
    tensors = [layers[name].input for each in measured.sets for name in each.layers]
    threads = survey.config.threads or 0
    feeds = {
        **survey.batches.one,
        **Session(with_outputs(survey.model, tensors), threads=threads).run(survey.batches.one),
    }
    sets = []
    for each in measured.sets:
        times = {c: _time_set(survey, measured, each.layers, c, feeds) for c in each.costs}
        sets.append(_with_times(each, times))
    total = sum(each.costs[max(each.costs)].milliseconds for each in sets)
    rest = max(0.0, time_model(widest, survey.batches.one, threads=threads) - total)
    return tuple(sets), Latencies(rest, time_model(survey.model, survey.batches.one, threads=threads))


def _time_set(survey: Survey, measured: Measured, names: Sequence[str], candidate: Candidate, feeds) -> float:
    """Kernels of the set's layers, as they read and give integers: what turns these to float and back is not theirs."""
    grids = survey.grids[candidate]
    layers = [layer for layer in grids.plan.layers if layer.name in names]
    params = {layer.name: measured.params[layer.name][candidate] for layer in layers}
    cut, encoding = cut_set(survey.model, layers), survey.config.encoding
    model = emit_set(cut, layers, grids, params, encoding=encoding, closed=True)
    inputs, outputs = {i.name for i in model.graph.input}, {o.name for o in model.graph.output}
    borders = {n.name for n in model.graph.node if n.op_type == "QuantizeLinear" and inputs & set(n.input)}
    borders |= {n.name for n in model.graph.node if n.op_type == "DequantizeLinear" and outputs & set(n.output)}
    return time_model(model, feeds, threads=survey.config.threads or 0, without=borders)


def time_model(model: ModelProto, feeds: Mapping[str, Any], *, threads: int, without: set[str] = frozenset()) -> float:
    """Milliseconds of all kernels of a run, each the median of RUNS, but for those of the nodes ``without``."""
    with tempfile.TemporaryDirectory(prefix="onnxcalib-") as folder:
        session = Session(model, threads=threads, profile=Path(folder) / "profile")
        for _ in range(RUNS + 1):
            session.run(feeds)
        times = session.end_profile()
    return sum(statistics.median(runs[1:]) for name, runs in times.items() if name not in without)


def look_up_times(
    path: Path, sets: Sequence[BitSet], name_of: Callable[[str, Candidate], str]
) -> tuple[tuple[BitSet, ...], Latencies]:
    """The same from a user's file. ``name_of``: the bits that a layer has at a candidate. Raises ConfigError."""
    table = read_latencies(path)
    found = []
    for each in sets:
        keys = {c: [(layer, name_of(layer, c)) for layer in each.layers] for c in each.costs}
        missing = [key for of_candidate in keys.values() for key in of_candidate if key not in table]
        if missing:
            layer, bits = missing[0]
            raise ConfigError(
                f"{path}: found no time of {layer} at {bits}, nor {len(missing) - 1} more; every layer at each of its"
                " candidates and at W8A8 is needed; add it"
            )
        found.append(_with_times(each, {c: sum(table[key] for key in of) for c, of in keys.items()}))
    layers = [layer for each in sets for layer in each.layers]
    known = all((layer, FLOAT) in table for layer in layers)
    return tuple(found), Latencies(0.0, sum(table[layer, FLOAT] for layer in layers) if known else None)


def _with_times(each: BitSet, times: Mapping[Candidate, float]) -> BitSet:
    return replace(each, costs={c: replace(cost, milliseconds=times[c]) for c, cost in each.costs.items()})
