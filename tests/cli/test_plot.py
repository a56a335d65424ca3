"""The plot of a frontier: what the legend explains, and that names stay inside the frame."""

import os
import subprocess
import sys

import pytest

from onnxcalib.bitplan import Frontier
from onnxcalib.cli.plot import make_figure
from tests.test_bitplan import FRONTIER, POINTS


def test_the_legend_explains_curve_and_crosses():
    (axes,) = make_figure(FRONTIER, "net.onnx").axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["planned", "one candidate everywhere"]
    assert axes.get_ylabel() == "predicted loss"


def test_names_of_candidates_stay_inside_the_frame():
    figure = make_figure(Frontier(**dict(FRONTIER, uniform={"W4A8": POINTS[0], "W8A8": POINTS[1]})), "net.onnx")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    frame = axes.get_window_extent()
    assert [text.get_text() for text in axes.texts] == ["W4A8", "W8A8"]
    for text in axes.texts:
        box = text.get_window_extent()
        assert frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1, text.get_text()


@pytest.mark.parametrize("loss", [None, float("inf")])
def test_a_candidate_without_a_finite_loss_has_no_name_in_the_plot(loss):
    point = POINTS[0].model_copy(update={"loss": loss})
    (axes,) = make_figure(FRONTIER.model_copy(update={"uniform": {"W4A8": point, "W8A8": POINTS[1]}}), "net.onnx").axes
    assert [text.get_text() for text in axes.texts] == ["W8A8"]


def test_a_backend_that_is_not_there_is_not_asked_for():
    code = "import os, onnxcalib.cli.plot; assert os.environ['MPLBACKEND'] == 'nowhere'"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "MPLBACKEND": "nowhere"}, check=True)
