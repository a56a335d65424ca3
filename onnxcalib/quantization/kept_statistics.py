"""Statistics of activations are collected once for a model and its samples, and kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..graph.save import fingerprint
from ..runtime.cache import Cache
from ..runtime.cores import count_cores, describe_processor
from .calibrate import Statistics, collect_statistics
from .float_outputs import FloatOutputs, KeptOutputs

if TYPE_CHECKING:
    from .prepared import Prepared


@dataclass(frozen=True)
class _Kept:
    """Statistics, and the outputs of the same pass."""

    statistics: Statistics
    outputs: KeptOutputs


def recall_statistics(prepared: Prepared, tensors: Sequence[str]) -> Statistics:
    """``collect_statistics`` of the prepared model, or what it gave before on this processor; a note tells of that."""
    run = prepared.run
    model, samples = fingerprint(prepared.model), run.digest(prepared.samples)
    subject = f"statistics {model} {samples} {describe_processor()} {run.threads or count_cores()} threads"
    cache = Cache(subject, prepared.config.cache_dir, run.observer.note)
    name = hashlib.sha256(json.dumps([sorted(tensors), prepared.equals_original]).encode()).hexdigest()
    found = cache.find(name, _Kept)
    if found is None:
        found = _collect(prepared, tensors)
        cache.keep(name, found, _Kept)
    else:
        told = f"statistics of activations were collected before on these samples: taken from {cache.folder}"
        run.observer.note(told)
        if prepared.equals_original:
            run.float_outputs.take(found.outputs)
    statistics = found.statistics
    return replace(statistics, histograms={tensor: statistics.histograms[tensor] for tensor in tensors})


def _collect(prepared: Prepared, tensors: Sequence[str]) -> _Kept:
    run, outputs = prepared.run, prepared.run.float_outputs if prepared.equals_original else None
    statistics = collect_statistics(
        prepared.model, tensors, prepared.samples, prepared.padding, threads=run.threads, outputs=outputs
    )
    return _Kept(statistics, (outputs or FloatOutputs()).describe())
