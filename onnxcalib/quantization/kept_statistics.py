"""Statistics of activations are collected once for a model and its samples, and kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..data.digest import digest_samples
from ..graph.save import fingerprint
from ..runtime.cache import Cache
from ..runtime.cores import count_cores, describe_processor
from .calibrate import Statistics, collect_statistics

if TYPE_CHECKING:
    from .prepared import Prepared


def recall_statistics(prepared: Prepared, tensors: Sequence[str]) -> Statistics:
    """``collect_statistics`` of the prepared model, or what it gave before on this processor; a note tells of that."""
    run = prepared.run
    model, samples = fingerprint(prepared.model), digest_samples(prepared.samples)
    subject = f"statistics {model} {samples} {describe_processor()} {run.threads or count_cores()} threads"
    cache = Cache(subject, prepared.config.cache_dir, run.observer.note)
    name = hashlib.sha256(json.dumps(sorted(tensors)).encode()).hexdigest()
    found = cache.find(name, Statistics)
    if found is None:
        outputs = run.float_outputs if prepared.equals_original else None
        found = collect_statistics(
            prepared.model, tensors, prepared.samples, prepared.padding, threads=run.threads, outputs=outputs
        )
        return cache.keep(name, found, Statistics)
    run.observer.note(f"statistics of activations were collected before on these samples: taken from {cache.folder}")
    return replace(found, histograms={tensor: found.histograms[tensor] for tensor in tensors})
