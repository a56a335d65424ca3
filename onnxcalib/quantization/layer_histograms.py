"""How the weight of each layer and what it reads lie on their grids, in few bins, for the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto

from ..graph.index import Index
from ..graph.inspect.quantized_layers import QuantizedLayer, find_layers
from ..graph.values import read_values
from ..layer_record import HistogramRecord, LayerRecord
from ..numeric.histogram import Histogram
from ..spec import LayerScheme, QuantSpec

if TYPE_CHECKING:
    from .prepared import Prepared

BINS = 64  # as many as one can tell apart in a small plot
# Values of a weight that are counted, about: more do not change what one sees.
MOST_VALUES = 2**16


def shorten(tensor: str, histogram: Histogram) -> HistogramRecord | None:
    """A histogram of calibration in BINS bins between its least and largest value; None where all are equal."""
    used, ends = np.flatnonzero(histogram.counts), (histogram.minimum, histogram.maximum)
    return _count(tensor, np.clip(histogram.centres[used], *ends), histogram.counts[used], ends)


def add_histograms(
    prepared: Prepared, quantized: ModelProto, schemes: Sequence[LayerScheme], layers: Iterable[LayerRecord]
) -> tuple[LayerRecord, ...]:
    """The layers with histograms of their float weights, and of what they read where calibration has seen it.

    Grids are those of the quantized model.
    """
    index = Index(prepared.model.graph)
    found = {each.name: each for each in find_layers(quantized.graph, Index(quantized.graph))}
    return tuple(
        _add(layer, scheme, index, found.get(scheme.name), prepared.run.histograms)
        for layer, scheme in zip(layers, schemes, strict=True)
    )


def _add(
    layer: LayerRecord,
    scheme: LayerScheme,
    index: Index,
    written: QuantizedLayer | None,
    read: Mapping[str, HistogramRecord],
) -> LayerRecord:
    if written is None:  # a table of embeddings
        return layer
    weight, given = index.initializers.get(scheme.weight), read.get(scheme.input)
    if weight is not None:
        values = read_values(weight).reshape(-1)
        values = values[:: max(values.size // MOST_VALUES, 1)].astype(np.float64)
        ends = (float(values.min(initial=0.0)), float(values.max(initial=0.0)))
        shown = _count(scheme.weight, values, None, ends)
        layer = replace(layer, weight=shown and replace(shown, grid=_find_ends(written, scheme.weight_spec)))
    if given is not None:
        layer = replace(layer, input=replace(given, grid=None if written.grid is None else written.grid[1:]))
    return layer


def _find_ends(layer: QuantizedLayer, spec: QuantSpec) -> tuple[float, float]:
    """The lowest and the highest value of the grids of all channels."""
    zero = 0 if spec.signed or layer.zero_point is None else layer.zero_point.astype(np.float64)
    ends = [(end - zero) * layer.scale.astype(np.float64) for end in (spec.qmin, spec.qmax)]
    return float(min(each.min() for each in ends)), float(max(each.max() for each in ends))


def _count(
    tensor: str, values: np.ndarray, times: np.ndarray | None, ends: tuple[float, float]
) -> HistogramRecord | None:
    low, high = ends
    if not values.size or not low < high or not np.isfinite(high - low):
        return None
    counts = np.histogram(values, BINS, (low, high), weights=times)[0]
    return HistogramRecord(tensor, low, high, tuple(counts.astype(np.int64).tolist()))
