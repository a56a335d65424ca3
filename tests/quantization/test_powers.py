"""Powers of two are chosen by the outputs; a brute force over all of them is the reference."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from onnxcalib import pipeline
from onnxcalib.config import QuantizeConfig
from onnxcalib.graph.switches import add_switches, feed_switches
from onnxcalib.numeric.ranges import make_grid
from onnxcalib.quantization import powers
from onnxcalib.quantization.calibrate import collect_statistics
from onnxcalib.quantization.powers import choose_powers
from onnxcalib.quantization.stages import calibrate_ranges
from onnxcalib.runtime.session import Session
from onnxcalib.spec import Grids, QuantSpec

SPEC = QuantSpec(8, signed=True, symmetric=True, power_of_two=True)
TEXT = """g (float[N, 3, 8, 8] x) => (float[N, 4, 4, 4] y) {
    [first] a = Conv (x, w1)  [act] r = Relu (a)  [second] c = Conv (r, w2)  [add] s = Add (c, r)
    [pool] p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (s)  [third] y = Conv (p, w3)
}"""


@pytest.fixture
def made(build, weigh, draw):
    """The prepared model on grids of powers of two, its histograms, and grids that clip nothing."""
    weights = {"w1": weigh(4, 3, 1, 1), "w2": weigh(4, 4, 1, 1), "w3": weigh(4, 4, 1, 1)}
    rows = np.random.default_rng(1).standard_t(4, size=(32, 3, 8, 8)).astype(np.float32)
    prepared = pipeline.prepare(build(TEXT, **weights), rows, QuantizeConfig(threads=1, placement="all"))
    scheme = replace(prepared.scheme, activations=dict.fromkeys(prepared.scheme.activations, SPEC))
    prepared = replace(prepared, scheme=scheme, lossless={})
    histograms = collect_statistics(
        prepared.model, list(scheme.activations), prepared.samples, prepared.padding
    ).histograms

    def choose(members):
        low = min(histograms[t].minimum for t in members)
        return make_grid(low, max(histograms[t].maximum for t in members), SPEC)

    return prepared, histograms, Grids({t: choose(scheme.members_of(t)) for t in scheme.activations})


def scales(grids):
    return {tensor: float(grid.scale) for tensor, grid in grids.activations.items()}


def measure(prepared, grids):
    """Squared error of the output with these grids and float weights."""
    feeds = prepared.samples.read(range(len(prepared.samples)))
    wanted = Session(prepared.model).run(feeds)["y"]
    given = Session(prepared.emit_grids(prepared.scheme, grids)).run(feeds)["y"]
    return float(np.square(given - wanted, dtype=np.float64).sum())


def test_the_powers_are_near_the_best_of_all(made):
    prepared, histograms, start = made
    found = choose_powers(prepared, histograms, start)
    sets = list(dict.fromkeys(map(prepared.scheme.members_of, prepared.scheme.activations)))
    feeds = prepared.samples.read(range(len(prepared.samples)))
    wanted, session = (
        Session(prepared.model).run(feeds)["y"],
        Session(add_switches(prepared.model, prepared.scheme, sets)),
    )
    losses = []
    for factors in itertools.product((0.5, 1.0, 2.0), repeat=len(sets)):
        firsts = zip(sets, factors, strict=True)
        changed = {t: replace(grid := start.activations[t], scale=grid.scale * np.float32(f)) for (t, *_), f in firsts}
        given = session.run({**feeds, **feed_switches(sets, changed)})["y"]
        losses.append(float(np.square(given - wanted, dtype=np.float64).sum()))
    assert len(losses) == 3**5
    assert measure(prepared, found) < 1.1 * min(losses) < 0.8 * measure(prepared, start)


def test_tensors_that_share_a_grid_move_together(made):
    prepared, histograms, start = made
    found = choose_powers(prepared, histograms, start)
    (members,) = [each for each in prepared.scheme.shared if "p" in each]
    assert len({scales(found)[t] for t in members}) == 1
    assert all(scales(found)[t] / scale in (0.5, 1.0, 2.0) for t, scale in scales(start).items())


def test_powers_that_the_target_does_not_take_are_not_tried(made):
    prepared, histograms, start = made
    held = {t: s for t, s in scales(start).items() if t in ("x", "r")}
    found = choose_powers(prepared, histograms, start, lambda grids: held.items() <= scales(grids).items())
    assert held.items() <= scales(found).items() and scales(found) != scales(start)


def test_free_scales_lossless_grids_and_few_samples_stay(made):
    prepared, histograms, start = made
    free = dict.fromkeys(start.activations, replace(SPEC, power_of_two=False))
    lossless = dict(start.activations)
    for kept in (
        replace(prepared, scheme=replace(prepared.scheme, activations=free)),
        replace(prepared, lossless=lossless),
        replace(prepared, samples=prepared.samples.take(range(7))),
    ):
        assert choose_powers(kept, histograms, start) is start


def test_samples_of_a_model_with_a_fixed_batch_are_read_in_its_runs(build, weigh, draw):
    text = "g (float[4, 3, 8, 8] x) => (float[4, 4, 8, 8] y) { [c] y = Conv (x, w) }"
    prepared = pipeline.prepare(build(text, w=weigh(4, 3, 1, 1)), draw(16, 3, 8, 8), QuantizeConfig(placement="all"))
    scheme = replace(prepared.scheme, activations=dict.fromkeys(prepared.scheme.activations, SPEC))
    prepared = replace(prepared, scheme=scheme, lossless={})
    histograms = collect_statistics(prepared.model, ["x", "y"], prepared.samples, prepared.padding).histograms
    coarse = Grids({t: make_grid(-20.0, 20.0, SPEC) for t in scheme.activations})
    assert scales(choose_powers(prepared, histograms, coarse))["x"] == scales(coarse)["x"] / 2


def test_outputs_that_leave_room_for_few_samples_alone_change_nothing(made, monkeypatch):
    prepared, histograms, start = made
    monkeypatch.setattr(powers, "BATCH", 4)
    monkeypatch.setattr(powers, "BATCH_BYTES", 1)
    assert choose_powers(prepared, histograms, start) is start


def test_calibration_for_a_device_ends_on_powers_that_its_shifts_hold(build, weigh, draw):
    weights = {"w1": weigh(4, 3, 1, 1), "w2": weigh(4, 4, 1, 1), "w3": weigh(4, 4, 1, 1)}
    prepared = pipeline.prepare(build(TEXT, **weights), draw(16, 3, 8, 8), QuantizeConfig(target="xint8"))
    grids = calibrate_ranges(prepared).grids(prepared.scheme)
    assert all(np.log2(grid.scale) % 1 == 0 and grid.zero_point == 0 for grid in grids.activations.values())
    assert prepared.holds_shifts(grids)
