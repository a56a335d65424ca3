"""Times of the sets at their candidates: measured by onnxruntime's profiler on this machine, or read from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from ..bitplan import FLOAT
from ..errors import ConfigError
from ..files.scratch import Scratch
from ..runtime.session import Session
from ..spec import BitSet, Candidate, LayerScheme
from .bits import Bits, find_uniform
from .graphs import PlannedGraph
from .latency_table import read_latencies

# Runs of which the median counts, after one that allocates.
RUNS = 15
# Samples that are timed of a model with bodies.
TIMED_SAMPLES = 8


@dataclass(frozen=True)
class Latencies:
    """The sets, whose costs have the times of their candidates, and two times in milliseconds of one run.

    rest: of the kernels that belong to no set. of_float: of the float model, None where it is unknown.
    """

    sets: tuple[BitSet, ...]
    rest: float
    of_float: float | None


@dataclass(frozen=True)
class Timed:
    """What is timed: the float model, the layers of all its graphs, and the runs of which the mean counts."""

    model: ModelProto
    layers: Sequence[LayerScheme]
    feeds: Sequence[Mapping[str, Any]]
    threads: int


def list_feeds(graph: PlannedGraph) -> list[Mapping[str, Any]]:
    """A run of the fewest samples that the model takes; some of a model with bodies, which these may take or leave."""
    if not graph.bodies:
        return [graph.batches.one]
    samples = graph.samples
    return [samples.read(run) for run in samples.split(1)[:TIMED_SAMPLES]]


def time_sets(
    timed: Timed, candidates: Sequence[Candidate], sets: Sequence[BitSet], assemble: Callable[[Bits], ModelProto]
) -> Latencies:
    """For each candidate, profile a model in which every set that was measured at the candidate has it.

    The time of a set is that of its layers' kernels, in a run on average.
    """
    feeds, threads = timed.feeds, timed.threads
    kernels = {c: profile(assemble(find_uniform(sets, c)), feeds, threads=threads) for c in candidates}
    by_layer = {c: _sum_by_layer(times, timed.layers) for c, times in kernels.items()}
    found = tuple(
        _with_times(each, {c: sum(by_layer[c][name] for name in each.layers) for c in each.costs}) for each in sets
    )
    in_sets = sum(each.costs[max(each.costs)].milliseconds for each in found)
    rest = max(0.0, sum(kernels[max(kernels)].values()) - in_sets)
    return Latencies(found, rest, sum(profile(timed.model, feeds, threads=threads).values()))


def _sum_by_layer(kernels: Mapping[str, float], layers: Sequence[LayerScheme]) -> dict[str, float]:
    """Milliseconds of each layer: of its own kernels, and of those that quantize the tensor that it reads.

    Kernels that quantize a tensor are named after it. Of several layers that read it, the last one counts them.
    """
    readers = {layer.input: layer.name for layer in layers}
    totals = dict.fromkeys((layer.name for layer in layers), 0.0)
    for kernel, milliseconds in kernels.items():
        layer, tensor = _find_owner(kernel, totals), _find_owner(kernel, readers)
        if layer is not None:
            totals[layer] += milliseconds
        elif tensor is not None:
            totals[readers[tensor]] += milliseconds
    return totals


def _find_owner(kernel: str, names: Iterable[str]) -> str | None:
    """The longest of the names that the kernel's name begins with; onnxruntime appends ``_token_4`` or ``_nchwc``."""
    return max((name for name in names if kernel == name or kernel.startswith(f"{name}_")), key=len, default=None)


def profile(model: ModelProto, feeds: Sequence[Mapping[str, Any]], *, threads: int) -> dict[str, float]:
    """Milliseconds of each kernel in a run, the mean over the feeds, by the name of its node.

    Of all that it takes in one turn over the feeds the median of RUNS turns counts.
    """
    with Scratch() as folder:
        session = Session(model, deployed=True, threads=threads, profile=folder / "profile")
        for _ in range(RUNS + 1):
            for each in feeds:
                session.run(each)
        times = session.end_profile()
    found = {}
    for name, runs in times.items():
        turns = np.array_split(runs, RUNS + 1)  # of equal length: each turn takes the same branches
        found[name] = float(np.median([turn.sum() for turn in turns[1:]])) / len(feeds)
    return found


def look_up_times(path: Path, sets: Sequence[BitSet], name_of: Callable[[str, Candidate], str]) -> Latencies:
    """Read the times of the layers from a user's file; the time of a set is their sum, and no other time counts.

    ``name_of`` gives the bits that a layer has at a candidate. Raises ConfigError where a time is missing.
    """
    table = read_latencies(path)
    timed = []
    for each in sets:
        keys = {c: [(layer, name_of(layer, c)) for layer in each.layers] for c in each.costs}
        missing = [key for of_candidate in keys.values() for key in of_candidate if key not in table]
        if missing:
            layer, bits = missing[0]
            raise ConfigError(
                f"{path}: found no time of {layer} at {bits}, nor {len(missing) - 1} more; every layer at each of its"
                " candidates and at W8A8 is needed; add it"
            )
        timed.append(
            _with_times(each, {c: sum(table[key] for key in of_candidate) for c, of_candidate in keys.items()})
        )
    layers = [layer for each in sets for layer in each.layers]
    known = all((layer, FLOAT) in table for layer in layers)
    return Latencies(tuple(timed), 0.0, sum(table[layer, FLOAT] for layer in layers) if known else None)


def _with_times(each: BitSet, times: Mapping[Candidate, float]) -> BitSet:
    return replace(each, costs={c: replace(cost, milliseconds=times[c]) for c, cost in each.costs.items()})
