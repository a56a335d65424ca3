"""Plots of what was planned."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
from collections.abc import Iterable
from io import BytesIO

from onnxcalib.bitplan import Frontier, Point

# matplotlib reads a matplotlibrc of the current folder, which is not the user's where a model's folder came from
# elsewhere. It finds its own here. Figures need no backend of windows, and a name that it does not know would end it.
_spec = importlib.util.find_spec("matplotlib")
assert _spec is not None and _spec.origin is not None
_backend = os.environ.pop("MPLBACKEND", None)
with contextlib.chdir(os.path.join(os.path.dirname(_spec.origin), "mpl-data")):
    from matplotlib.figure import Figure
if _backend is not None:
    os.environ["MPLBACKEND"] = _backend

SIZE, DOTS = (6.4, 4.0), 150  # inches, and dots in each
MARGIN = 0.15  # share of the x axis on both sides: the right one has room for the name of a candidate


def draw_frontier(frontier: Frontier, title: str) -> bytes:
    """Draw loss against size, and what one candidate everywhere loses, as PNG."""
    buffer = BytesIO()
    make_figure(frontier, title).savefig(buffer, format="png")
    return buffer.getvalue()


def make_figure(frontier: Frontier, title: str) -> Figure:
    figure = Figure(figsize=SIZE, dpi=DOTS, layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="file, share of the float model", ylabel="predicted loss")
    sizes, losses = _list_coordinates(frontier, frontier.points)
    axes.plot(sizes, losses, marker=".", label="planned")
    sizes, losses = _list_coordinates(frontier, frontier.uniform.values())
    axes.plot(sizes, losses, marker="x", color="black", linestyle="", label="one candidate everywhere")
    for name, size, loss in zip(frontier.uniform, sizes, losses, strict=True):
        if math.isfinite(loss):
            axes.annotate(name, (size, loss), xytext=(5, 5), textcoords="offset points")
    axes.set_yscale("log")
    axes.margins(x=MARGIN, y=0.1)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    return figure


def _list_coordinates(frontier: Frontier, points: Iterable[Point]) -> tuple[list[float], list[float]]:
    """The size of each point as a share of the float file, and its loss, NaN where there is none."""
    known = list(points)
    sizes = [point.bytes / frontier.float_bytes for point in known]
    return sizes, [math.nan if point.loss is None else point.loss for point in known]
