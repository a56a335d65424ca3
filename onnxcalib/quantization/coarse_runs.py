"""Dynamic layers of which 256 levels do not hold the rows: a few channels of a row take its range.

Sums over all rows do not show that: in language models one token has values a thousand times as large as the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from onnx import ModelProto

from ..graph.index import Index, known_constant
from ..graph.layout import to_rows
from ..numeric.rounding import fake_quantize_rows
from ..runtime.session import Session
from ..spec import LayerScheme, QuantScheme
from .padding_mask import PaddingMask, find_real

# A layer reads float where half of its rows have less than so many dB. With one range for all tokens, SmolLM2-135M lost
# 0.26 nats a token where ``coarse_inputs`` alone decided, 0.06 without the 9 more layers below 17 dB, and 0.04 without
# the 42 below 22. With a range a token, and smoothed, none of its 211 layers is below.
LEAST_DB = 17.0
# Output channels of a layer that are computed, spread over all of them.
CHANNELS = 256


def find_coarse_runs(
    model: ModelProto,
    scheme: QuantScheme,
    batches: Iterable[Mapping[str, Any]],
    padding: PaddingMask,
    *,
    threads: int = 0,
) -> dict[str, str]:
    """Maps dynamic layers to why they should read float, by the median of |y - m|^2 / |y(x rounded) - y|^2.

    y: a row of the layer's output, where it is no padding. m: the median of all rows of a batch, which few cannot move.
    x is rounded row by row.
    """
    layers = [layer for layer in scheme.layers if layer.dynamic]
    if not layers:
        return {}
    index, inputs = Index(model.graph), sorted({layer.input for layer in layers})
    session = Session(model, also=inputs, name="the prepared model", threads=threads)
    made = [name for name in inputs if name in session.outputs]
    found: dict[str, list[np.ndarray]] = {layer.name: [] for layer in layers}
    for feeds in batches:
        values = {**feeds, **session.run(feeds, made)}
        for layer in layers:
            x = values[layer.input]
            if x.size and np.isfinite(x).all():
                mask = padding.mask_of(layer.input, x.shape, find_real(feeds))
                rows = _measure_rows(layer, index, x)
                found[layer.name].append(
                    rows if mask is None else rows[np.broadcast_to(mask, x.shape).reshape(len(rows), -1)[:, 0]]
                )
    coarse = {}
    for name, ratios in found.items():
        median = float(np.median(np.concatenate(ratios))) if ratios else np.inf
        if median < LEAST_DB:
            coarse[name] = (
                f"256 levels do not hold the rows of its input: half of all would have {median:.1f} dB or less"
            )
    return coarse


def _measure_rows(layer: LayerScheme, index: Index, x: np.ndarray) -> np.ndarray:
    """The ratio of each row in dB; infinite where rounding changes nothing, or where rows do not differ."""
    weight = to_rows(known_constant(index, layer.weight), layer)[0]
    weight = weight[:: -(-len(weight) // CHANNELS)].T
    rounded = fake_quantize_rows(torch.from_numpy(x)).numpy()
    y, error = (each.reshape(-1, each.shape[-1]) @ weight for each in (x, rounded - x))
    varies, lost = np.square(y - np.median(y, 0)).sum(1), np.square(error).sum(1)
    seen = (varies > 0) & (lost > 0)
    return np.where(seen, 10 * np.log10(np.where(seen, varies, 1) / np.where(seen, lost, 1)), np.inf)
