"""What stays in float between grids is computed in float by onnxruntime too."""

import numpy as np
import pytest

from onnxcalib.graph.names import Selection
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.graph.unfuse import list_ineffective
from onnxcalib.spec import Requirements
from tests.small_models import run_model


@pytest.fixture
def between(build, draw):
    """Two convolutions around the nodes that make m of c."""

    def make(body, **constants):
        text = f"""g (float[2, 4, 8, 8] x) => (float[a, b, h, w] y) {{
            [first] c = Conv (x, w1)  {body}  [last] y = Conv (m, w2) }}"""
        return build(text, opset=21, ir=10, w1=draw(4, 4, 1, 1), w2=draw(4, 4, 1, 1), **constants)

    return make


POOL = "[pool] m = AveragePool <kernel_shape = [3, 3], {}> (c)"
BEYOND = "pads = [1, 1, 1, 1], strides = [2, 2], ceil_mode = 1, count_include_pad = {}"


@pytest.mark.parametrize(
    ("attributes", "barred"),
    [
        ("dilations = [2, 1], pads = [1, 0, 1, 0]", {"pool"}),
        (BEYOND.format(1), {"pool"}),
        (BEYOND.format(0), set()),
        ("pads = [1, 1, 1, 1], count_include_pad = 1", set()),
    ],
)
def test_a_pool_that_onnxruntime_has_no_right_kernel_for_runs_in_float(between, rough, draw, attributes, barred):
    model, x = between(POOL.format(attributes)), draw(2, 4, 8, 8)
    assert make_scheme(model).barred == barred
    quantized = rough(model, x)
    (wanted,), (given,) = run_model(model, x), run_model(quantized, x)
    assert np.square(wanted).sum() > 10**3 * np.square(wanted - given).sum()


@pytest.mark.parametrize(
    ("body", "excluded", "barred"),
    [
        ("[s] m = Sigmoid (c)", {"s"}, {"s"}),
        ("[a] s = Add (c, c)  [r] m = Relu (s)", {"a"}, {"a"}),
        ("[s] m = Sigmoid (c)", {"s", "last"}, set()),
        ("[s] m = Sigmoid (c)", {"s", "first"}, set()),
        ("[t] m = Tanh (c)", {"t"}, set()),
        ("[s] m = Conv (c, w1)", {"s"}, {"s"}),
        ("[s] d = Conv (c, w1)  [r] m = Relu (d)", {"s"}, {"r"}),
        ("[s] m = Conv (c, w1)", {"s", "last"}, set()),
        ("[s] m = Sigmoid (c)", set(), set()),
    ],
)
def test_an_excluded_node_between_grids_is_computed_in_float(between, rough, draw, body, excluded, barred):
    model = between(body)
    assert make_scheme(model, selection=Selection(frozenset(excluded))).barred == barred
    others = Requirements(for_onnxruntime=False)
    assert not make_scheme(model, selection=Selection(frozenset(excluded)), requirements=others).barred


@pytest.mark.parametrize(
    ("body", "excluded", "ineffective"),
    [
        ("[r] m = Relu (c)", {"r"}, ["r"]),
        ("[r] m = Relu (c)", {"r", "first"}, []),
        ("[a] s = Add (c, c) [r] m = Relu (s)", {"r"}, ["r"]),
        ("[a] s = Add (c, c) [r] m = Relu (s)", {"a", "r"}, []),
        ("[t] t = Tanh (c) [r] m = Relu (t)", {"r"}, []),
        ("[s] m = Sigmoid (c)", {"s"}, []),
    ],
)
def test_excluded_functions_that_are_absorbed_are_listed(between, body, excluded, ineffective):
    model = between(body)
    scheme = make_scheme(model, selection=Selection(frozenset(excluded)))
    assert list_ineffective(model, scheme, frozenset(excluded)) == ineffective


def test_the_identity_behind_a_node_takes_a_name_of_its_own(between, rough, draw):
    body = POOL.replace("m =", "p =").format("dilations = [2, 2]") + "  [pool_Max] m = Relu (p)"
    quantized = rough(between(body), draw(2, 4, 8, 8))
    names = [node.name for node in quantized.graph.node]
    assert "pool_Max_1" in names and len(set(names)) == len(names)
