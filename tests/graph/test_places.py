"""A pool whose indices are read stays in float with the layer in front of it."""

import numpy as np
import pytest

from onnxcalib.graph.index import Index
from onnxcalib.graph.places import IN_FRONT, POOLED, find_placing

SIZES = "<kernel_shape = [2, 2], strides = [2, 2]>"
UNPOOL = f"y = MaxUnpool {SIZES} (m, i)"


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (f"[c] c = Conv (x, w) [p] m, i = MaxPool {SIZES} (c) {UNPOOL}", {"p": POOLED, "c": IN_FRONT}),
        (f"[c] c = Conv (x, w) r = Relu (c) [p] m, i = MaxPool {SIZES} (r) {UNPOOL}", {"p": POOLED, "c": IN_FRONT}),
        (f"[c] c = Conv (x, w) r = Tanh (c) [p] m, i = MaxPool {SIZES} (r) {UNPOOL}", {"p": POOLED}),
        (f"[c] c = Conv (x, w) d = Neg (c) [p] m, i = MaxPool {SIZES} (c) {UNPOOL}", {"p": POOLED}),
        (f"[p] m, i = MaxPool {SIZES} (x) {UNPOOL}", {"p": POOLED}),
        (f"[c] c = Conv (x, w) [p] y, i = MaxPool {SIZES} (c)", {}),
        (f"[c] c = Conv (x, w) [p] y = MaxPool {SIZES} (c)", {}),
    ],
)
def test_pools_that_give_places(build, body, found):
    model = build(f"g (float[1, 2, 4, 4] x) => (float[1, 2, a, b] y) {{ {body} }}", w=np.ones((2, 2, 1, 1), np.float32))
    assert find_placing(model.graph, Index(model.graph)) == found
