"""Distillation of models that read few bits: what is trained and kept, and what is said where it cannot be."""

import re

import numpy as np
import pytest
from onnx import numpy_helper
from PIL import Image

from onnxcalib import QuantizeConfig, prepare, quantize
from onnxcalib.quantization import distill_all
from onnxcalib.runtime.blocks import BlockError
from tests.small_models import run_model

# Convolutions of which each reads what the one before leaves of 4 bits.
DEEP = """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
    [c1] a = Conv <pads = [1, 1, 1, 1]> (x, w1)  [r1] b = Relu (a)
    [c2] c = Conv <pads = [1, 1, 1, 1]> (b, w2)  [r2] d = Relu (c)
    [c3] e = Conv <pads = [1, 1, 1, 1]> (d, w3)  [s] f = Add (e, b)  [r3] h = Relu (f)
    [c4] i = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (h, w4)  [r4] k = Relu (i)
    [flat] l = Flatten (k)  [fc] y = Gemm (l, w5)
}"""
IMAGES, OTHERS = np.split(np.random.default_rng(0).normal(size=(384, 3, 8, 8)).astype(np.float32), [128])


@pytest.fixture
def deep(build, weigh):
    return build(DEEP, **weigh_all(weigh))


def weigh_all(weigh, *, grouped=False):
    inputs = {1: 3, 2: 8, 3: 8, 4: 1 if grouped else 8}
    weights = {f"w{number}": 1.5 * weigh(8, count, 3, 3) for number, count in inputs.items()}
    return {**weights, "w5": weigh(128, 5)}


def settings(**changes):
    given = {"weight_bits": 4, "activation_bits": 4, "first_last_bits": 4, "views": 1, "effort": "best", "threads": 1}
    return QuantizeConfig(**{**given, **changes})


def error(model, other):
    wanted, given = (run_model(each, OTHERS)[0] for each in (model, other))
    return np.square(given - wanted).sum() / np.square(wanted).sum()


def integers_of(model):
    stored = [
        each for each in model.graph.initializer if each.name in [f"w{number}_quantized" for number in range(1, 6)]
    ]
    return np.concatenate([numpy_helper.to_array(each).astype(int).ravel() for each in stored])


def test_training_end_to_end_brings_the_outputs_nearer_to_the_float_models_and_moves_few_integers(deep, monkeypatch):
    monkeypatch.setattr(distill_all, "STEPS_A_SAMPLE", 0.9)
    rounded, trained = (quantize(deep, IMAGES, settings(reconstruct=False, distill=each)) for each in (False, True))
    stage = trained.report.steps[-1]
    assert (stage.name, stage.outcome) == ("distill", "kept")
    assert re.search("error of blocks on held-out samples .* before, .* after", stage.reason)
    assert error(deep, trained.model) < 0.97 * error(deep, rounded.model)
    moved = np.abs(integers_of(trained.model) - integers_of(rounded.model))
    assert 0 < (moved > 0).mean() < 0.1 and moved.max() == 1


@pytest.mark.parametrize(
    ("count", "views", "reason"),
    [
        (16, 1, "16 samples are too few to see whether it helps, 64 would do"),
        (64, 0, distill_all.NO_IMAGES),
        (64, 1, r"training takes \d+\.\d\d GB of memory, more than the \d+\.\d\d GB there are"),
    ],
)
def test_where_nothing_is_trained_the_reason_is_told(deep, count, views, reason, monkeypatch):
    if reason.startswith("training"):
        monkeypatch.setattr(distill_all, "COPIES", 10**9)
    found = quantize(deep, IMAGES[:count], settings(reconstruct=False, distill=True, views=views))
    stage = found.report.steps[-1]
    assert (stage.name, stage.outcome) == ("distill", "rolled back") and re.fullmatch(reason, stage.reason)


def test_the_most_effort_distills_models_of_image_files_whose_layers_read_few_bits(deep, build, weigh, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "0.png")
    for samples, changes, distills in (
        (tmp_path, {}, True),
        (tmp_path, {"effort": "balanced"}, False),
        (tmp_path, {"distill": False}, False),
        (tmp_path, {"activation_bits": 8}, False),
        (tmp_path, {"views": 0}, False),
        (tmp_path, {"pipeline": "light"}, False),
        (tmp_path, {"pipeline": "parallel"}, False),
        (IMAGES, {}, False),
        (IMAGES, {"distill": True}, True),
    ):
        assert prepare(deep, samples, settings(**changes)).does("distill") == distills, changes
    grouped = build(DEEP.replace("strides", "group = 8, strides"), **weigh_all(weigh, grouped=True))
    assert not prepare(grouped, tmp_path, settings()).does("distill")
    fast = prepare(deep, tmp_path, settings(effort="fast", distill=True, views=None))  # which stores no views
    assert distill_all._find_axes(fast) == (2, 3)
    deep.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(BlockError, match="it takes a model of any number of samples"):
        distill_all._find_axes(prepare(deep, tmp_path, settings()))
