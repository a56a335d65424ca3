"""Plots of how the weights and the input of each layer lie on their grids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .content import Chart, Data

HEIGHTS = 1000  # levels of a bar's height in a page


def draw_histograms(layers: Iterable[Data]) -> Mapping[str, tuple[Chart, ...]]:
    """Layer -> its plots; without those of which nothing is known."""
    found: dict[str, tuple[Chart, ...]] = {}
    for number, layer in enumerate(layers):
        charts = [
            Chart(f"{short}{number}", "histogram", (_shorten(layer[key]),), _describe(title, layer[key]))
            for short, key, title in (("w", "weight", "Weights"), ("x", "input", "Input"))
            if layer[key] is not None
        ]
        if charts:
            found[layer["name"]] = tuple(charts)
    return found


def _describe(title: str, histogram: Data) -> str:
    text = f"{title} {histogram['tensor']}: {histogram['low']:.4g} to {histogram['high']:.4g}"
    grid = histogram["grid"]
    return text if grid is None else f"{text}; grid {grid[0]:.4g} to {grid[1]:.4g}"


def _shorten(histogram: Data) -> dict[str, Any]:
    """Heights as shares of the largest, as a page has hundreds of plots; what is not empty stays so."""
    most = max(histogram["counts"], default=1) or 1
    heights = [max(round(HEIGHTS * each / most), 1) if each else 0 for each in histogram["counts"]]
    ends = {name: float(f"{histogram[name]:.5g}") for name in ("low", "high")}
    return {**ends, "counts": heights, "grid": [float(f"{end:.5g}") for end in histogram["grid"] or ()]}
