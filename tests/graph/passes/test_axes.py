"""Pads and Resizes of some axes become those of all axes, and compute the same."""

import numpy as np
import pytest
from onnx import checker

from onnxcalib.graph.index import attribute_of
from onnxcalib.graph.passes.axes import spell_axes
from onnxcalib.graph.passes.normalise import normalise

CONSTANTS = {
    "axes": np.int64([3, -2]), "pads": np.int64([1, 0, 2, -1]), "fill": np.float32(2), "scales": np.float32([2, 1.5]),
    "sizes": np.int64([7, 5]), "roi": np.float32([0.1, 0, 0.8, 1.2]), "two": np.int64([2]), "four": np.int64([4]),
    "three": np.int64([3]), "all": np.float32([1, 1, 2, 2]),
}  # fmt: skip
CROP = 'coordinate_transformation_mode = "tf_crop_and_resize", extrapolation_value = 3.0'


def make(build, body, batch="2"):
    used = {name: value for name, value in CONSTANTS.items() if name in body}
    text = f"g (float[{batch}, 3, 4, 6] x) => (float[a, b, c, d] y) {{ {body} }}"
    model = build(text, opset=18, **used)
    normalise(model)
    return model


@pytest.mark.parametrize(
    "body",
    [
        "y = Pad (x, pads, fill, axes)",
        'y = Pad <mode = "edge"> (x, pads, , axes)',
        "s = Shape (x) n = Slice (s, two, four) p = Mod (n, three) q = Concat <axis = 0> (p, p) y = Pad (x, q, , axes)",
        'y = Resize <axes = [3, 2], mode = "linear"> (x, , scales)',
        "y = Resize <axes = [3, -2]> (x, , , sizes)",
        f"y = Resize <axes = [3, 2], {CROP}> (x, roi, , sizes)",
        "s = Shape (x) n = Slice (s, two, four) y = Resize <axes = [2, 3]> (x, , , n)",
    ],
)
@pytest.mark.parametrize("batch", ["2", "N"])
def test_values_of_some_axes_are_spread_over_all(build, run, draw, body, batch):
    model, x = make(build, body, batch), draw(2, 3, 4, 6)
    wanted = run(model, x)
    assert spell_axes(model) == 1 and spell_axes(model) == 0
    checker.check_model(model, full_check=True)
    assert not any(attribute_of(node, "axes", None) for node in model.graph.node)
    np.testing.assert_array_equal(run(model, x), wanted)


@pytest.mark.parametrize(
    "body",
    [
        'y = Resize <axes = [3, 2], keep_aspect_ratio_policy = "not_larger"> (x, , , sizes)',
        "y = Resize (x, , all)",
        "y = Relu (x)",
    ],
)
def test_what_has_all_axes_or_keeps_its_ratio_stays(build, body):
    model = make(build, body)
    before = model.SerializeToString()
    assert spell_axes(model) == 0
    assert model.SerializeToString() == before
