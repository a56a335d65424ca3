"""Plots of what was planned."""

from __future__ import annotations

import math
from io import BytesIO

from matplotlib.figure import Figure

from onnxcalib.bitplan import Frontier

SIZE, DOTS = (6.4, 4.0), 150  # inches, and dots in each


def draw_frontier(frontier: Frontier, title: str) -> bytes:
    """Draw loss against size, and what one candidate everywhere loses, as PNG."""
    figure = Figure(figsize=SIZE, dpi=DOTS, layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="file, share of the float model", ylabel="sum of losses")
    sizes = [point.bytes / frontier.float_bytes for point in frontier.points]
    losses = [math.nan if point.loss is None else point.loss for point in frontier.points]
    axes.plot(sizes, losses, marker=".", label="planned")
    for name, point in frontier.uniform.items():
        if point.loss is None:
            continue
        at = (point.bytes / frontier.float_bytes, point.loss)
        axes.plot(*at, marker="x", color="black", linestyle="")
        axes.annotate(name, at, xytext=(4, 4), textcoords="offset points")
    axes.set_yscale("log")
    axes.margins(0.1)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
