"""What must be kept of a graph at a tensor: no less than the rest of it reads, and no more."""

import numpy as np
import pytest

from onnxcalib.graph.extract import extract, infer_types
from onnxcalib.graph.liveness import find_live

RESIDUAL = """g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {
    [a] c = Conv (x, w)  [b] r = Relu (c)  [d] d = Conv (r, v)  [e] s = Add (d, r)  [f] y = Conv (s, w)
}"""
BRANCHES = """g (float[N, 4] x, bool flag) => (float[N, 4] y, float[N, 4] z, float[N, 2] p) {
    [one] a = MatMul (x, w)  [two] b = MatMul (a, v)  [three] c = MatMul (x, v)  [cut] p, q = Split <axis = 1> (c)
    [join] k = Concat <axis = 1> (q, p)  [if] i = If (flag) <
        then_branch = g1 () => (float[N, 4] u) { u = Add (a, w4) },
        else_branch = g2 () => (float[N, 4] t) { t = Mul (k, k) }>
    [sum] y = Add (b, i)  [last] z = Sub (y, k)
}"""


@pytest.fixture
def residual(build, weigh):
    return build(RESIDUAL, w=weigh(4, 4, 1, 1), v=weigh(4, 4, 1, 1))


@pytest.fixture
def branches(build, weigh):
    return build(BRANCHES, opset=17, w=weigh(4, 4), v=weigh(4, 4), w4=weigh(4))


def test_a_shortcut_lives_until_it_is_added(residual):
    found = find_live(residual, ["c", "r", "d", "s", "y"])
    assert found == {"c": ("c",), "r": ("r",), "d": ("r", "d"), "s": ("s",), "y": ("y",)}


def test_inputs_outputs_and_what_bodies_read_live_as_long_as_they_are_read(branches):
    found = find_live(branches, ["a", "b", "c", "p", "q", "k", "i", "y"])
    assert {name: set(live) for name, live in found.items()} == {
        "a": {"x", "flag", "a"},
        "b": {"x", "flag", "a", "b"},
        "c": {"flag", "a", "b", "c"},
        "p": {"flag", "a", "b", "p", "q"},
        "q": {"flag", "a", "b", "p", "q"},
        "k": {"flag", "a", "b", "p", "k"},
        "i": {"b", "p", "k", "i"},
        "y": {"p", "k", "y"},
    }


def test_tensors_that_no_node_makes_are_left_out(branches):
    assert find_live(branches, ["x", "w", "nothing", "u"]) == {}


def test_a_tensor_that_nothing_reads_is_not_alive(build):
    model = build("g (float[2] x) => (float[2] y) { [a] dead = Neg (x)  [b] y = Relu (x) }")
    assert find_live(model, ["dead"]) == {"dead": ("x",)}


def test_an_input_that_is_an_output_lives_to_the_end(build):
    model = build("g (float[2] x) => (float[2] y, float[2] x) { [a] a = Neg (x)  [b] y = Relu (a) }")
    assert find_live(model, ["a", "y"]) == {"a": ("x", "a"), "y": ("x", "y")}


@pytest.mark.parametrize("which", ["residual", "branches"])
@pytest.mark.parametrize("flag", [True, False])
def test_the_rest_run_on_the_live_tensors_gives_what_the_whole_model_gives(which, flag, request, run, draw):
    model = request.getfixturevalue(which)
    x = draw(2, 4, 6, 6) if which == "residual" else draw(2, 4)
    names = [value.name for value in model.graph.output]
    made = [tensor for node in model.graph.node for tensor in node.output]
    types = infer_types(model)
    feeds = {"x": x, "flag": np.array(flag)}
    read = [value.name for value in model.graph.input]
    inside = extract(model, types, inputs=read, outputs=made)
    values = feeds | dict(zip(made, run(inside, *(feeds[name] for name in read)), strict=True))
    live = find_live(model, made)
    assert list(live) == made
    for kept in live.values():
        wanted = [name for name in names if name not in kept]
        if not wanted:
            continue
        rest = extract(model, types, inputs=kept, outputs=wanted)
        given = run(rest, *(values[name] for name in kept))
        for name, value in zip(wanted, given, strict=True):
            np.testing.assert_allclose(value, values[name], rtol=1e-5, atol=1e-6)


def test_many_tensors_cost_one_pass_over_the_graph(build, count_lines):
    def work(count):
        chain = " ".join(f"t{i + 1} = Neg (t{i})" for i in range(count))
        model = build(f"g (float[N] x) => (float[N] y) {{ t0 = Neg (x) {chain} y = Neg (t{count}) }}")
        tensors = [f"t{i}" for i in range(count)]
        assert find_live(model, tensors)["t1"] == ("t1",)
        return count_lines(lambda: find_live(model, tensors))

    assert work(80) < 2.2 * work(40)
