"""Scales in front of a Concat, and where they go in a quantized graph."""

import numpy as np
import pytest

from onnxcalib.graph.index import Index
from onnxcalib.graph.layers import find_layers
from onnxcalib.graph.passes.even_joins import find_scaled, fold_scales, group_joins, look_ahead

QDQ = """g (uint8[N, 2, 4] a, uint8[N, 2, 4] b) => (uint8[N, 4, 4] y) {
    [da] x = DequantizeLinear (a, sa, z) [mul] m = Mul (x, factor) [q] mq = QuantizeLinear (m, sm, z)
    [dq] md = DequantizeLinear (mq, sm, z) MOVER [db] w = DequantizeLinear (b, sm, z)
    [join] c = Concat <axis = 1> (JOINED, w) [qy] y = QuantizeLinear (c, sm, z) }"""


def make(build, factor, own=0.5, mover=""):
    text = QDQ.replace("MOVER", mover).replace("JOINED", "t" if mover else "md")
    return build(text, sa=np.float32(own), sm=np.float32(1.0), z=np.uint8(3), factor=np.float32(factor))


@pytest.mark.parametrize(
    ("own", "mover"), [(0.5, ""), (0.25, ""), (0.5, "[move] t = Transpose <perm = [0, 1, 2]> (md)")]
)
def test_a_power_of_two_goes_into_the_scale(build, run, own, mover):
    model = make(build, 2.0, own, mover)
    a, b = (np.random.default_rng(seed).integers(0, 100, (3, 2, 4), np.uint8) for seed in (0, 1))
    (before,) = run(model, a, b)
    assert fold_scales(model) == 1
    assert not {"Mul"} & {node.op_type for node in model.graph.node} and "da" not in Index(model.graph).nodes
    np.testing.assert_array_equal(run(model, a, b)[0], before)


@pytest.mark.parametrize(
    ("factor", "own", "mover"), [(3.0, 1 / 3, ""), (2.0, 0.25, "[move] t = Transpose <perm = [0, 1, 2]> (md)")]
)
def test_other_factors_stay_and_those_whose_integers_are_moved(build, factor, own, mover):
    model = make(build, factor, own, mover)
    assert fold_scales(model) == 0 and "mul" in Index(model.graph).nodes


def test_what_another_node_reads_has_a_grid_of_its_own(build):
    text = """g (float[N, 4] x) => (float[N, 8] y, float[N, 4] z) {
        [neg] a = Neg (x) [mul] b = Mul (a, two) [other] z = Neg (OTHER) [join] y = Concat <axis = 1> (b, x) }"""
    alone, shared = (build(text.replace("OTHER", other), two=np.float32(2)) for other in ("x", "a"))
    assert find_scaled(Index(alone.graph)) == {"a": ("b", 2.0)} and not find_scaled(Index(shared.graph))


def test_a_concat_that_joins_what_others_give_is_of_their_group(build):
    model = build("""g (float[N, 2, 4, 4] x) => (float[N, 8, 4, 4] y, float[N, 4, 4, 4] z) {
        [a] a = Concat <axis = 1> (x, x) [r] r = Relu (a) [b] b = Concat <axis = 1> (x, x)
        [c] y = Concat <axis = 1> (r, b) [d] z = Concat <axis = 1> (x, x) }""")
    assert group_joins(Index(model.graph), ["a", "b", "c", "d"]) == [["a", "b", "c"], ["d"]]


READERS = {
    "a Split": "[s] p, q = Split <axis = 1> (c) [l] l = Conv (c, w) [n] y = Neg (p)",
    "a graph output": "[l] l = Conv (c, w) [n] y = Identity (c)",
    "a Neg": "[l] l = Conv (c, w) [n] y = Neg (c)",
}


@pytest.mark.parametrize("readers", READERS.values(), ids=READERS)
def test_nothing_is_scaled_for_readers_that_need_the_values(build, draw, readers):
    model = build(
        f"g (float[N, 2, 4, 4] x) => (float[N, c, 4, 4] y) {{ [j] c = Concat <axis = 1> (x, x) {readers} }}",
        w=draw(4, 4, 1, 1),
    )
    index = Index(model.graph)
    layers = {layer.name: layer for layer in find_layers(model, index, 8, 8)}
    assert look_ahead(index, layers, ["j"], {"x": 2}) is None
