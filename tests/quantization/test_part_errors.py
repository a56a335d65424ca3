"""The error of the worst part of an output, with any activations on grids."""

from dataclasses import replace

import numpy as np
import pytest

from onnxcalib import pipeline
from onnxcalib.config import QuantizeConfig
from onnxcalib.graph.parts import Part
from onnxcalib.numeric.ranges import make_grid
from onnxcalib.quantization.part_errors import RUNS, PartErrors
from onnxcalib.runtime.session import Session
from onnxcalib.spec import QuantSpec

PARTED = """g (float[N, 3, 8, 8] x) => (float[N, 5, 8, 8] y) {
    [first] a = Conv (x, w1)  [act] r = Relu (a)  [inner] c = Conv (r, w2)
    [boxes] b = Conv (c, wb)  [scores] s = Conv (c, ws)  [q] q = Sigmoid (s)  [y] y = Concat <axis = 1> (b, q) }"""


@pytest.fixture
def errors(build, weigh, draw):
    weights = {"w1": weigh(4, 3, 1, 1), "w2": weigh(4, 4, 1, 1), "wb": weigh(2, 4, 1, 1), "ws": weigh(3, 4, 1, 1)}
    samples = draw(48, 3, 8, 8) * np.linspace(0.1, 2, 48, dtype=np.float32).reshape(-1, 1, 1, 1)
    config = QuantizeConfig(threads=1, placement="all")
    return PartErrors.of(pipeline.prepare(build(PARTED, **weights), samples, config))


def test_without_grids_there_is_no_error(errors):
    assert errors.measure({}, errors.chosen) == pytest.approx(0, abs=1e-12)


def test_the_error_is_that_of_the_worst_part(errors):
    name = next(name for name, *_ in errors.sets if name == "r")
    grid = make_grid(0, 8, QuantSpec(8), bound=np.inf)
    model = Session(errors.prepared.model, also=["r"], threads=1)
    shares = {"boxes": [0.0, 0.0], "scores": [0.0, 0.0]}
    rest = errors.session
    for feeds, wanted in errors.check:
        rounded = np.clip(np.rint(model.run(feeds)["r"] / float(grid.scale)), 0, 255) * float(grid.scale)
        assert np.abs(rounded - model.run(feeds)["r"]).max() > 0
        switches = {f"{n}{end}": v for n, *_ in errors.sets for end, v in ((":scale", 1.0), (":zero_point", 0))}
        given = rest.run(
            {
                **feeds,
                **{
                    key: np.asarray(v, np.uint8 if key.endswith("point") else np.float32) for key, v in switches.items()
                },
                **{f"{n}:on": np.asarray(n == name) for n, *_ in errors.sets},
                f"{name}:scale": np.asarray(grid.scale, np.float32),
            },
            ["y"],
        )["y"]
        for part, place in (("boxes", slice(0, 2)), ("scores", slice(2, 5))):
            shares[part][0] += float(np.square(given - wanted["y"])[:, place].sum(dtype=np.float64))
            shares[part][1] += float(np.square(wanted["y"])[:, place].sum(dtype=np.float64))
    worst = max(error / power for error, power in shares.values())
    assert errors.measure({name: grid}, errors.check) == pytest.approx(worst, rel=1e-3)


def test_the_runs_are_those_in_which_a_part_has_most_of_its_power(errors):
    assert len(errors.chosen) == len(errors.check) == RUNS
    loudest = [float(np.abs(feeds["x"]).max()) for feeds, _ in (*errors.chosen, *errors.check)]
    others = errors.prepared.samples.batches(1)
    assert np.median(loudest) > np.median([float(np.abs(feeds["x"]).max()) for feeds in others])
    first = [feeds["x"].tobytes() for feeds, _ in errors.chosen]
    assert not set(first).intersection(feeds["x"].tobytes() for feeds, _ in errors.check)


def test_outputs_in_an_order_of_their_own_are_not_measured(build, weigh, draw):
    text = PARTED.replace("[y] y = ", "z = ").replace("(b, q) }", "(b, q)  [top] y, i = TopK <axis = 2> (z, five) }")
    weights = {"w1": weigh(4, 3, 1, 1), "w2": weigh(4, 4, 1, 1), "wb": weigh(2, 4, 1, 1), "ws": weigh(3, 4, 1, 1)}
    model = build(text.replace("float[N, 5, 8, 8] y", "float[N, 5, 5, 8] y"), five=np.int64([5]), **weights)
    prepared = pipeline.prepare(model, draw(24, 3, 8, 8), QuantizeConfig(threads=1, placement="all"))
    assert not PartErrors.of(replace(prepared, parts={"y": (Part(1, 0, 2, 5, ("b",)), Part(1, 2, 5, 5, ("q",)))})).check


def test_runs_of_another_shape_and_values_that_are_not_finite_are_left_out(errors):
    feeds, wanted = errors.check[0]
    other = {name: value[:, :, :4] for name, value in wanted.items()}
    infinite = {name: np.where(value == value.max(), -np.inf, value) for name, value in wanted.items()}
    assert errors.measure({}, [(feeds, other)]) == 0
    assert errors.measure({}, [(feeds, infinite)]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("number", [np.inf, np.nan])
def test_a_value_of_which_grids_make_no_number_is_an_infinite_error(errors, monkeypatch, number):
    feeds, wanted = errors.check[0]
    broken = {name: np.where(value == value.max(), np.float32(number), value) for name, value in wanted.items()}
    monkeypatch.setattr(errors.session, "run", lambda *_: broken)
    assert errors.measure({}, [(feeds, wanted)]) == np.inf
