"""Whole ranges and layers in float, where grids of activations leave too little of a part of an output."""

import numpy as np
import pytest

from onnxcalib import pipeline
from onnxcalib.config import QuantizeConfig
from onnxcalib.quantization import part_precision, placement, structure_rules
from onnxcalib.quantization.calibrate import MARGIN
from onnxcalib.quantization.part_errors import RUNS, PartErrors
from onnxcalib.quantization.part_precision import fit_parts

RULES = (
    (placement, "find_coarse_inputs"), (structure_rules, "find_last_layers"), (placement, "choose_by_cost"),
)  # fmt: skip
# The first channel of c is a thousand times as large as the others, and boxes alone read it.
PARTED = """g (float[N, 3, 24, 24] x) => (float[N, 5, 24, 24] y) {
    [first] a = Conv <pads = [1, 1, 1, 1]> (x, w1)  [act] r = Relu (a)  [second] d = Conv <pads = [1, 1, 1, 1]> (r, w4)
    [inner] c = Conv (d, w2)  [tanh] t = Tanh (c)
    [middle] m = Conv (c, w3)  [boxes] b = Conv (c, wb)  [scores] s = Conv (m, ws)  [q] q = Sigmoid (s)
    [other] o = Conv (t, wo)  [sum] sum = Add (q, o)  [y] y = Concat <axis = 1> (b, sum) }"""


@pytest.fixture
def prepare(build, weigh, draw, monkeypatch):
    """Prepares the model without the rule that is tested."""
    unlike, deaf = weigh(32, 32, 1, 1), weigh(32, 32, 1, 1)
    unlike[0] *= 1000
    deaf[:, 0] = 0
    weights = {"w1": weigh(32, 3, 3, 3), "w2": unlike, "w3": deaf, "wb": weigh(2, 32, 1, 1), "ws": weigh(3, 32, 1, 1)}

    def make(**settings):
        with monkeypatch.context() as patch:
            patch.setattr(placement, "fit_parts", lambda prepared, wanted: prepared)
            for room, rule in RULES:
                patch.setattr(room, rule, lambda *_, **__: {})
            model = build(PARTED, **weights, wo=weigh(3, 32, 1, 1), w4=weigh(32, 32, 3, 3))
            return pipeline.prepare(model, draw(32, 3, 24, 24), QuantizeConfig(threads=1, **settings))

    monkeypatch.setattr(part_precision, "MOST_TIME", np.inf)
    return make


def measure(prepared):
    errors = PartErrors.of(prepared)
    return part_precision._Found.of(prepared, errors, part_precision._choose(prepared, errors)).db


def test_layers_that_lose_a_part_stay_in_float(prepare, monkeypatch):
    prepared, told = prepare(), []
    monkeypatch.setattr(prepared.run.observer, "note", told.append)
    before = measure(prepared)
    fitted = fit_parts(prepared, ())
    assert "middle" in fitted.in_float and "--placement all" in fitted.in_float["middle"]
    assert "second" not in fitted.in_float
    assert measure(fitted) > before + 20
    assert "dB of the worst by grids of activations alone" in told[-1]


def test_layers_that_settings_name_are_not_left_in_float(prepare):
    fitted = fit_parts(prepare(), ["middle"])
    assert "middle" not in fitted.in_float


def test_placement_all_changes_ranges_alone(prepare):
    assert not fit_parts(prepare(placement="all"), ()).in_float


def test_no_more_is_left_in_float_than_the_time_allows(prepare, monkeypatch):
    monkeypatch.setattr(part_precision, "MOST_TIME", 0.0)
    assert not fit_parts(prepare(), ()).in_float


def test_whole_ranges_end_beyond_the_largest_values(prepare, monkeypatch):
    monkeypatch.setattr(part_precision, "MOST_MORE", np.inf)
    monkeypatch.setattr(part_precision, "LEAST_GAIN_DB", -np.inf)
    fitted = fit_parts(prepare(placement="all"), ())
    assert "r" in fitted.whole and "t" not in fitted.whole  # a Tanh reaches 1 and no more
    statistics = fitted.collect(fitted.scheme)
    grid, largest = fitted.choose_grids(fitted.scheme, statistics).activations["r"], statistics.histograms["r"].maximum
    assert (255 - int(grid.zero_point)) * float(grid.scale) == pytest.approx((1 + MARGIN) * largest, rel=1e-5)


def test_parts_that_have_enough_leave_the_model_as_it_is(prepare, monkeypatch):
    monkeypatch.setattr(part_precision, "ENOUGH_DB", 0.0)
    fitted = fit_parts(prepare(), ())
    assert not fitted.in_float and not fitted.whole


def test_a_choice_that_other_runs_do_not_show_to_gain_changes_nothing(prepare, monkeypatch):
    monkeypatch.setattr(part_precision, "LEAST_GAIN_DB", np.inf)
    fitted = fit_parts(prepare(), ())
    assert not fitted.in_float and not fitted.whole


def test_layers_of_large_models_are_tried_in_fewer_runs(prepare, monkeypatch):
    counts = []
    measure_all = PartErrors.measure
    monkeypatch.setattr(part_precision, "MOST_MACS", 1)
    monkeypatch.setattr(
        PartErrors, "measure", lambda self, grids, runs: counts.append(len(runs)) or measure_all(self, grids, runs)
    )
    fit_parts(prepare(placement="all"), ())
    assert set(counts) == {1, RUNS} and counts.count(RUNS) == 4


def test_an_output_without_parts_is_not_measured(residual, draw, monkeypatch):
    monkeypatch.setattr(PartErrors, "of", lambda _: pytest.fail("measured"))
    pipeline.prepare(residual, draw(20, 3, 8, 8), QuantizeConfig(threads=1, placement="all"))


def test_fewer_bits_are_the_users_choice(prepare, monkeypatch):
    monkeypatch.setattr(PartErrors, "of", lambda _: pytest.fail("measured"))
    fit_parts(prepare(activation_bits=4), ())
