"""Statistics of activations are collected once for a model and its samples, and kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..graph.index import Index
from ..graph.save import fingerprint
from ..runtime.cache import Cache
from ..runtime.cores import count_cores, describe_processor
from ..spec import QuantScheme
from .calibrate import Statistics, collect_statistics
from .float_outputs import FloatOutputs, KeptOutputs
from .layer_targets import TargetKeeper, list_float_tensors

if TYPE_CHECKING:
    from .prepared import Prepared


@dataclass(frozen=True)
class _Kept:
    """Statistics, and the outputs of the same pass."""

    statistics: Statistics
    outputs: KeptOutputs


def recall_statistics(prepared: Prepared, scheme: QuantScheme, targets: TargetKeeper | None = None) -> Statistics:
    """``collect_statistics`` of the scheme's activations in the prepared model, or what it gave before on this
    processor; a note tells of that.

    targets: keeps those of layers, if the float model runs.
    """
    run, tensors = prepared.run, list(scheme.activations)
    also = list_float_tensors(Index(prepared.model.graph), scheme)
    model, samples = fingerprint(prepared.model), run.digest(prepared.samples)
    subject = f"statistics {model} {samples} {describe_processor()} {run.threads or count_cores()} threads"
    cache = Cache(subject, prepared.config.cache_dir, run.observer.note)
    facts = [sorted(tensors), sorted({*tensors, *also}), prepared.equals_original]
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    found = cache.find(name, _Kept)
    if found is None:
        found = _collect(prepared, tensors, also, targets)
        cache.keep(name, found, _Kept)
    else:
        told = f"statistics of activations were collected before on these samples: taken from {cache.folder}"
        run.observer.note(told)
        if prepared.equals_original:
            run.float_outputs.take(found.outputs)
    statistics = found.statistics
    return replace(statistics, histograms={tensor: statistics.histograms[tensor] for tensor in tensors})


def _collect(prepared: Prepared, tensors: Sequence[str], also: Sequence[str], targets: TargetKeeper | None) -> _Kept:
    run, outputs = prepared.run, prepared.run.float_outputs if prepared.equals_original else None
    statistics = collect_statistics(
        prepared.model,
        tensors,
        prepared.samples,
        prepared.padding,
        threads=run.threads,
        also=also,
        outputs=outputs,
        targets=targets,
    )
    return _Kept(statistics, (outputs or FloatOutputs()).describe())
