"""How long sets of layers take at their candidates: by onnxruntime's profiler on this machine, or by a user's file."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from ..errors import ConfigError
from ..runtime.session import Session
from ..spec import BitSet, Candidate
from .latency_table import FLOAT, read_latencies
from .sensitivity import Survey

# Runs of which the median counts, after one that allocates.
RUNS = 15


@dataclass(frozen=True)
class Latencies:
    """Milliseconds of one run: of what belongs to no set, and of the whole float model, None where unknown."""

    rest: float
    of_float: float | None


def time_sets(
    survey: Survey, sets: Sequence[BitSet], assemble: Callable[[tuple[Candidate, ...]], ModelProto]
) -> tuple[tuple[BitSet, ...], Latencies]:
    """The sets with each candidate's times, in the assembled model with this candidate wherever it can be.

    Times are those of kernels, which go by their layers' names, in a run of as few samples as the model takes.
    """
    layers = {layer.name: layer for layer in next(iter(survey.uniform.values())).scheme.layers}
    one, threads = survey.batches.one, survey.config.threads or 0
    readers = {layer.input: name for name, layer in layers.items()}
    profiles, owned = {}, {}
    for candidate in survey.uniform:
        bits = tuple(candidate if candidate in each.costs else max(each.costs) for each in sets)
        profiles[candidate] = profile(assemble(bits), one, threads=threads)
        owned[candidate] = dict.fromkeys(layers, 0.0)
        for kernel, milliseconds in profiles[candidate].items():
            owner = _find_owner(kernel, layers) or readers.get(_find_owner(kernel, readers))
            if owner is not None:
                owned[candidate][owner] += milliseconds
    found = [_with_times(each, {c: sum(owned[c][name] for name in each.layers) for c in each.costs}) for each in sets]
    widest = max(profiles)
    total = sum(each.costs[max(each.costs)].milliseconds for each in found)
    rest = max(0.0, sum(profiles[widest].values()) - total)
    return tuple(found), Latencies(rest, sum(profile(survey.model, one, threads=threads).values()))


def _find_owner(kernel: str, names: Iterable[str]) -> str | None:
    """The longest name that the kernel's begins with: onnxruntime puts ``_token_4``, ``_nchwc`` and such behind it.

    What puts a tensor on its grid is named after it in the same way.
    """
    return max((name for name in names if kernel == name or kernel.startswith(f"{name}_")), key=len, default=None)


def profile(model: ModelProto, feeds: Mapping[str, Any], *, threads: int) -> dict[str, float]:
    """Milliseconds of each kernel, the median of RUNS, by the name of its node."""
    with tempfile.TemporaryDirectory(prefix="onnxcalib-") as folder:
        session = Session(model, deployed=True, threads=threads, profile=Path(folder) / "profile")
        for _ in range(RUNS + 1):
            session.run(feeds)
        times = session.end_profile()
    return {name: statistics.median(runs[1:]) for name, runs in times.items()}


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
