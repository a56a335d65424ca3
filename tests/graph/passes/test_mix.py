import numpy as np
import pytest

from onnxcalib.graph.index import Index
from onnxcalib.graph.layers import find_layers
from onnxcalib.graph.passes.mix import find_bottlenecks, mix_bottleneck
from onnxcalib.numeric.rotation import turn

NET = """g (float[N, 3, 6, 6] x) => (float[N, 5, 6, 6] y) {
    [first] a = Conv (x, w0, b0)  [up] u = Conv (a, w1)  [act] r = %s (u)  [down] d = Conv (r, w2, b0)
    [join] s = Add (a, d)  [last] y = Conv <pads = [1, 1, 1, 1]> (s, w3)
}"""


@pytest.fixture
def make(build, weigh):
    def net(text=NET, act="Relu"):
        return build(
            text % act, w0=weigh(4, 3, 1, 1), b0=weigh(4), w1=weigh(6, 4, 1, 1), w2=weigh(4, 6, 1, 1),
            w3=weigh(5, 4, 3, 3),
        )  # fmt: skip

    return net


def find(net):
    return find_bottlenecks(net, {layer.name: layer for layer in find_layers(net, Index(net.graph), 8, 8)})


def test_layers_on_both_sides_take_a_matrix_and_the_outputs_stay(make, run, draw):
    net, x = make(), draw(4, 3, 6, 6)
    (before,) = run(net, x)
    (found,) = find(net)
    assert {*found.tensors} == {"a", "d", "s"}
    assert [layer.name for layer in (*found.makers, *found.readers)] == ["first", "down", "up", "last"]
    mix_bottleneck(net, found, turn(4) * np.linspace(0.5, 2, 4))
    np.testing.assert_allclose(run(net, x)[0], before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[join] s = Add (a, d)", "[join] t = Add (a, d)  [cut] s = Relu (t)"),
        ("(float[N, 5, 6, 6] y)", "(float[N, 5, 6, 6] y, float[N, 4, 6, 6] s)"),
        ("[down] d = Conv (r, w2, b0)", "[down] e = Conv (r, w2, b0)  [norm] d = Softmax (e)"),
        ("w0, b0)  [up]", "w0, b0)  [size] n = ReduceMean <axes = [2, 3]> (a)  [up]"),
    ],
)
def test_what_is_between_other_nodes_is_no_bottleneck(make, old, new):
    text = NET.replace(old, new)
    assert text != NET and not find(make(text))
