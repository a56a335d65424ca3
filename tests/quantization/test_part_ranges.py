"""Ranges are chosen for the parts of an output where they fall short, and checked on other runs."""

import numpy as np
import pytest

from onnxcalib import pipeline
from onnxcalib.config import QuantizeConfig
from onnxcalib.quantization import part_ranges
from onnxcalib.quantization.part_ranges import fit_ranges

PARTED = """g (float[N, 3, 8, 8] x) => (float[N, 5, 8, 8] y) {
    [first] a = Conv (x, w1)  [act] r = Relu (a)  [inner] c = Conv (r, w2)
    [boxes] b = Conv (c, wb)  [scores] s = Conv (c, ws)  [q] q = Sigmoid (s)  [y] y = Concat <axis = 1> (b, q) }"""


@pytest.fixture
def prepared(build, weigh, draw):
    weights = {"w1": weigh(4, 3, 1, 1), "w2": weigh(4, 4, 1, 1), "wb": weigh(2, 4, 1, 1), "ws": weigh(3, 4, 1, 1)}
    return pipeline.prepare(build(PARTED, **weights), draw(20, 3, 8, 8), QuantizeConfig(threads=1, placement="all"))


def fit(prepared):
    statistics = prepared.collect(prepared.scheme)
    grids = prepared.choose_grids(prepared.scheme, statistics)
    return grids, fit_ranges(prepared, grids, statistics.histograms), statistics.histograms


def test_ranges_of_parts_that_have_enough_stay_as_they_are(prepared):
    assert prepared.parts
    grids, fitted, _ = fit(prepared)
    assert fitted is grids


def test_whole_ranges_hold_the_largest_values_where_a_part_gains(prepared, monkeypatch):
    told = []
    monkeypatch.setattr(prepared.run.observer, "note", told.append)
    monkeypatch.setattr(
        part_ranges._Fit, "measure", lambda self, grids: 10 * sum(float(g.scale) for g in grids.activations.values())
    )
    monkeypatch.setattr(part_ranges, "ENOUGH_DB", np.inf)
    monkeypatch.setattr(part_ranges, "LEAST_GAIN_DB", 0.0)
    grids, fitted, histograms = fit(prepared)
    changed = [t for t in grids.activations if fitted.activations[t] is not grids.activations[t]]
    assert changed and prepared.lossless.keys().isdisjoint(changed)
    for tensor in changed:
        grid = fitted.activations[tensor]
        assert (255 - int(grid.zero_point)) * float(grid.scale) >= histograms[tensor].maximum - float(grid.scale)
    assert "whole ranges, as the parts of the outputs need the largest values" in told[-1]


def test_a_gain_that_other_runs_do_not_show_changes_nothing(prepared, monkeypatch):
    monkeypatch.setattr(part_ranges._Fit, "measure", lambda self, grids: 0.0)
    grids, fitted, _ = fit(prepared)
    assert fitted is grids


def test_an_output_without_parts_is_not_measured(residual, draw, monkeypatch):
    monkeypatch.setattr(part_ranges._Fit, "of", lambda _: pytest.fail("measured"))
    found = pipeline.prepare(residual, draw(20, 3, 8, 8), QuantizeConfig(threads=1, placement="all"))
    grids, fitted, _ = fit(found)
    assert fitted is grids
